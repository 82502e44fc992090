"""What can be done with what a run left: predict, merge, evaluate, verify."""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from lora_from_scratch.base.load import load_model
from lora_from_scratch.core.surgery import merge_lora
from lora_from_scratch.data.batches import tokenize
from lora_from_scratch.data.dataset import BUNDLED, load_dataset, load_labelled
from lora_from_scratch.data.rows import Columns
from lora_from_scratch.errors import UserError
from lora_from_scratch.formats import checkpoint, peft
from lora_from_scratch.formats.adapted import Adapted, load_adapted
from lora_from_scratch.formats.files import appearing
from lora_from_scratch.methods.interface import at_least_one
from lora_from_scratch.report.screen import summary
from lora_from_scratch.runs.folder import RESULTS
from lora_from_scratch.runs.predict import predict
from lora_from_scratch.runs.record import as_json, evaluation_record
from lora_from_scratch.train.device import resolve_device
from lora_from_scratch.train.evaluate import compare, evaluate, predict_logits
from lora_from_scratch.train.precision import resolve_precision

PORTION = 4096  # lines that are read, and labelled, at a time
MERGE_TOLERANCE = 1e-3  # of the largest logit: rounding in fp32 leaves 1e-5, a broken file anything
PEFT_TOLERANCE = 1e-4


def predict_lines(
    adapter: Path, model: str | None, texts: list[str], file: Path | None, as_json: bool, device: str
) -> None:
    """Print label, probability and text of each text, or else of each line of the file or of stdin.

    Tab-separated (a tab or line break inside a text becomes a space), or one JSON object a line. Every line
    gets its answer, an empty one too, so that answers and lines stay side by side.
    """
    lines = iter(texts) if texts else _lines(file)
    adapted = _load(adapter, model, device)
    merge_lora(adapted.model)
    while portion := list(islice(lines, PORTION)):
        for prediction in predict(adapted, portion):
            if as_json:
                print(json.dumps(asdict(prediction), ensure_ascii=False))
            else:
                text = " ".join(prediction.text.split())
                print(f"{prediction.label}\t{prediction.probability:.4f}\t{text}")
        sys.stdout.flush()


def merge(adapter: Path, model: str | None, out: Path) -> None:
    """Write the adapted model as a plain checkpoint, read it back, and print how well it agrees.

    What was read back computes with transformers' own forward pass.

    Raises:
        UserError: the folder `out` is not empty, or what was read back does not give the same logits; then
            nothing stays behind.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is not an empty folder")
    adapted, texts = _load(adapter, model, "cpu"), _probe()
    expected = _our_logits(adapted, texts)
    with appearing(out) as aside:
        merge_lora(adapted.model)
        checkpoint.save(adapted, aside)
        reread = AutoModelForSequenceClassification.from_pretrained(aside, dtype=torch.float32)
        difference = compare(_their_logits(reread, adapted.tokenizer, texts), expected)
        if not difference.within(MERGE_TOLERANCE):
            raise UserError(f"the merged model is not the adapted one: {difference}; {out} was not written")
    print(f"merged      {out}, read back by transformers on {len(texts)} sentences: {difference}")


def evaluate_dataset(
    adapter: Path,
    model: str | None,
    dataset: str,
    text_column: str | None,
    label_column: str | None,
    max_length: int,
    precision: str,
    device: str,
    output_dir: Path | None,
) -> None:
    """Measure the adapted model on labelled sentences as a run does at its end, into a new results.json.

    Raises:
        UserError: a label that the model does not know, logits that are not finite, or an `output_dir` that
            holds results.
    """
    at_least_one(max_length=max_length)
    if output_dir and (output_dir / RESULTS).exists():
        raise UserError(f"--output-dir {output_dir} holds results already: name another")
    adapted = _load(adapter, model, device)
    config = {
        "dataset": dataset,
        "max_length": min(max_length, adapted.model.config.n_positions),
        "precision": resolve_precision(precision, adapted.model.device),
        "device": str(adapted.model.device),
    }
    split, source = load_labelled(dataset, adapted.label_names, Columns(text_column, label_column))
    examples = tokenize(adapted.tokenizer, split.sentences, split.labels, config["max_length"])
    evaluation = evaluate(adapted.model, examples, config["precision"])
    folder = output_dir or _new_folder(f"evaluate-{adapter.resolve().name}")
    record = evaluation_record(adapted, adapter, examples, evaluation, config, source, folder)
    print(summary(record))
    with appearing(folder) as aside:
        (aside / RESULTS).write_bytes(as_json({**record, "files": [RESULTS]}))
    print(f"written     {folder / RESULTS}")


def verify(adapter: Path, model: str | None) -> None:
    """Compare with PEFT on real sentences: our files read by PEFT, and what PEFT then writes read by us.

    PEFT's model computes with transformers' own forward pass.

    Raises:
        UserError: PEFT is not installed, the folder holds no adapter in its format, or the logits differ.
    """
    try:
        import peft as library
    except ImportError:
        raise UserError("verify compares with PEFT, which is not installed: pip install peft") from None
    if not peft.is_in(adapter):
        raise UserError(f"{adapter} holds no {peft.FILES[0]}: it is not in the format that PEFT reads")
    ours, texts = load_adapted(adapter, model), _probe()
    expected = _our_logits(ours, texts)

    def fresh_base() -> torch.nn.Module:
        return load_model(ours.base_name, ours.label_names, ours.tokenizer.pad_token_id).eval()

    theirs = library.PeftModel.from_pretrained(fresh_base(), str(adapter)).eval()
    read_by_peft = compare(_their_logits(theirs, ours.tokenizer, texts), expected)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that PEFT's files do not say which base is theirs
        theirs.save_pretrained(folder)
        back = peft.load_adapter(fresh_base(), Path(folder))
    read_back = compare(_our_logits(Adapted(back, ours.tokenizer, None), texts), expected)
    print(f"PEFT {library.__version__}, {len(texts)} sentences")
    for what, difference in (("ours, read by PEFT", read_by_peft), ("PEFT's, read here", read_back)):
        if not difference.within(PEFT_TOLERANCE):
            raise UserError(f"{adapter}: {what}, gives other logits: {difference}")
        print(f"{what:20}{difference}")


BY_NAME = {"predict": predict_lines, "merge": merge, "evaluate": evaluate_dataset, "verify": verify}


def _load(adapter: Path, model: str | None, device: str) -> Adapted:
    adapted = load_adapted(adapter, model)
    adapted.model.to(resolve_device(device))
    return adapted


def _probe() -> list[str]:
    """Real sentences to compare logits on: the bundled ones kept for validation, and an awkward one."""
    return [*load_dataset(BUNDLED).validation.sentences, "it ends in its own end <|endoftext|>"]


def _our_logits(adapted: Adapted, texts: list[str]) -> torch.Tensor:
    positions = adapted.model.config.n_positions
    return predict_logits(adapted.model, tokenize(adapted.tokenizer, texts, [0] * len(texts), positions))


@torch.no_grad()
def _their_logits(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[str], batch_size: int = 32
) -> torch.Tensor:
    """What transformers itself computes: its tokenizer's padding and mask, its own forward pass."""
    logits = []
    for start in range(0, len(texts), batch_size):
        part = texts[start : start + batch_size]
        inputs = tokenizer(part, padding=True, truncation=True, return_tensors="pt", add_special_tokens=False)
        logits.append(model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits)
    return torch.cat(logits)


def _new_folder(name: str) -> Path:
    """runs/NAME, or the first of runs/NAME-2, runs/NAME-3, ... that is not there: results replace none."""
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def _lines(file: Path | None) -> Iterator[str]:
    """The lines of a UTF-8 file, or of stdin, without their ends.

    Raises:
        UserError: a line is not UTF-8; its number is named.
    """
    with file.open("rb") if file else nullcontext(sys.stdin.buffer) as source:
        for number, line in enumerate(source, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{file or 'stdin'}, line {number}: not UTF-8") from error
