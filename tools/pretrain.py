"""How the bundled mini-gpt2 was made: plain text in, a pretrained GPT-2 of a few million parameters out.

    python tools/pretrain.py TEXT [TEXT ...] --out FOLDER --compile

Each TEXT is a UTF-8 file, `.gz` or not, with one document a line. Everything that decides the outcome is a
field of `Settings`; `pretraining.json`, written beside the weights, says which and from what text. After an
interruption the same command goes on with `--resume`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from pretraining import Pretraining
from pretraining_model import Settings
from pretraining_text import END_OF_TEXT, read_documents, train_tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lora_from_scratch.errors import UserError
from lora_from_scratch.methods.interface import at_least_one
from lora_from_scratch.train.checkpoints import FOLDER, Checkpoints, found_in, newest
from lora_from_scratch.train.interrupts import Interrupted


def pretrain(
    texts: list[Path],
    out: Path,
    settings: Settings,
    device: str = "cpu",
    compiled: bool = False,
    checkpoint_every: int | None = None,
    resume: bool = False,
) -> None:
    """Tokenizer, model and record into the folder `out`; checkpoints on the way (default: each ten minutes).

    UserError if another pretraining was interrupted there, or `resume` finds none.
    """
    started, folder = time.time(), out / FOLDER
    if found_in(folder) and not resume:
        told = f"{out} holds an interrupted pretraining: add --resume to go on with it"
        raise UserError(f"{told}, or delete its {FOLDER} to begin anew")
    found = newest(folder) if resume else None
    if resume and not found:
        raise UserError(f"--resume: there is no checkpoint in {folder}; leave the flag out to begin")
    documents = list(read_documents(texts))
    tokenizer = train_tokenizer(documents, settings.vocab_size)
    settings = replace(settings, vocab_size=tokenizer.get_vocab_size())
    run = Pretraining(settings, tokenizer, documents, device)
    run.started = started
    about = {"settings": asdict(settings), "text_sha256": run.text_digest()}
    if found:
        check_same(found[0], about)
    save_tokenizer(tokenizer, settings, out)
    checkpoints = Checkpoints(folder, about, checkpoint_every, found[1] if found else None)
    record = {
        "settings": asdict(settings),
        "texts": [path.name for path in texts],
        "documents": len(documents),
        "tokens_in_text": len(run.stream),
        "tokens_read": settings.steps * settings.batch_size * settings.n_positions,
        "parameters": run.model.num_parameters(),
        "validation_loss_nats": run.train(out, compiled, checkpoints),
        "hours": run.seconds / 3600,
        "torch": torch.__version__,
    }
    (out / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    checkpoints.clear()


def save_tokenizer(tokenizer: Tokenizer, settings: Settings, out: Path) -> None:
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=settings.n_positions,
    ).save_pretrained(out)


def check_same(there: dict[str, object], here: dict[str, object]) -> None:
    """UserError unless both pretrainings have the same text and settings."""
    if there.get("text_sha256") != here["text_sha256"]:
        raise UserError("--resume: the text is not what the pretraining began with: name that")
    settings = there.get("settings", {})
    for name, value in here["settings"].items():
        if settings.get(name) != value:
            raise UserError(f"--resume: {name} was {settings.get(name)}, now {value}: ask for the same")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "texts", nargs="+", type=Path, metavar="TEXT", help="UTF-8, .gz or not, one document a line"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="twice as fast; needs a C++ compiler")
    parser.add_argument("--checkpoint-every", type=int, metavar="N", help="steps (default: ten minutes)")
    parser.add_argument("--resume", action="store_true", help="go on after an interruption")
    flags = parser.parse_args()
    settings, more = Settings(steps=flags.steps), (flags.checkpoint_every, flags.resume)
    try:
        at_least_one(checkpoint_every=flags.checkpoint_every)
        pretrain(flags.texts, flags.out, settings, flags.device, flags.compile, *more)
    except (UserError, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as interrupt:
        print("interrupted; go on with the same command and --resume", file=sys.stderr)
        return interrupt.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
