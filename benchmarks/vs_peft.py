"""Why: is a hand-written loop slower than PEFT + Trainer? Same model, same sentences, their settings.

    python benchmarks/vs_peft.py --shared ../shared

GPT-2 small (random weights: speed does not depend on them; dropout as in its configuration), batch 16, LoRA
r=4 on c_attn with the head, on SST-2 sentences. Theirs, for LoRA:

- published: every sentence padded to 128 tokens, fp32;
- default:   padded to the longest of its batch, fp32;
- best:      grouped by length, bf16, fused AdamW, nothing logged, saved or shown.

And for full and prelayer, `Trainer` at its best. Each side is a process of its own, so that its peak memory
is its own. Both set up and warm up; then they take turns, one waiting while the other works through the same
sentences. Time is that of the training loop alone. Ends in one JSON line; time ratios are theirs / ours,
memory ratios ours / theirs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from lora_from_scratch.report import markdown_table

BATCH = 16
WARM_UP = 64  # sentences
SETTINGS = {  # (method, theirs, sentences in each turn)
    "published": ("lora", 96),
    "default": ("lora", 320),
    "best": ("lora", 1600),
    "full": ("full", 480),
    "prelayer": ("prelayer", 480),
}


class Ours:
    """This project's loop, as `run.py` runs it."""

    def __init__(self, setting: str, shared: Path) -> None:
        from lora_from_scratch.config import RunConfig
        from lora_from_scratch.experiment import prepare

        self.prepared = prepare(
            RunConfig(
                method=SETTINGS[setting][0],
                model=str(shared / "gpt2"),
                random_init=True,
                dataset=str(shared / "data" / "sst2"),
                epochs=1,
            )
        )

    def train(self, indices: list[int]) -> float:
        """Seconds of the loop over the sentences at `indices`."""
        from lora_from_scratch.batches import tokenize
        from lora_from_scratch.experiment import train_prepared

        prepared = self.prepared
        chosen = prepared.dataset.train.take(indices)
        examples = tokenize(prepared.tokenizer, chosen.sentences, chosen.labels, prepared.config.max_length)
        return train_prepared(replace(prepared, train_examples=examples)).seconds


class Theirs:
    """PEFT + Trainer, in one of three settings."""

    def __init__(self, setting: str, shared: Path) -> None:
        import peft
        from transformers import AutoConfig, AutoTokenizer, GPT2ForSequenceClassification

        from lora_from_scratch.dataset import load_dataset

        self.setting = setting
        method = SETTINGS[setting][0]
        train = load_dataset(str(shared / "data" / "sst2")).train
        tokenizer = AutoTokenizer.from_pretrained(shared / "gpt2")
        tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "right"
        self.tokenizer = tokenizer
        padding = {"padding": "max_length", "max_length": 128} if setting == "published" else {}
        encoded = tokenizer(train.sentences, truncation=True, **padding)
        self.rows = [
            {"input_ids": ids, "attention_mask": mask, "labels": label}
            for ids, mask, label in zip(
                encoded["input_ids"], encoded["attention_mask"], train.labels, strict=True
            )
        ]
        config = AutoConfig.from_pretrained(shared / "gpt2", num_labels=2)
        config.pad_token_id, config.use_cache = tokenizer.pad_token_id, False
        model = GPT2ForSequenceClassification(config)
        if method == "lora":
            lora = peft.LoraConfig(
                task_type="SEQ_CLS",
                r=4,
                lora_alpha=16,
                lora_dropout=0.05,
                target_modules=["c_attn"],
                fan_in_fan_out=True,
            )
            model = peft.get_peft_model(model, lora)
        elif method == "prelayer":
            model.requires_grad_(False)
            for part in (model.transformer.wte, model.transformer.wpe, model.score):
                part.requires_grad_(True)
        self.model = model

    def train(self, indices: list[int]) -> float:
        """Seconds from the first step's beginning to the last one's end."""
        from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

        class Clock(TrainerCallback):
            def on_train_begin(self, *_: object, **__: object) -> None:
                self.started = time.perf_counter()

            def on_train_end(self, *_: object, **__: object) -> None:
                self.seconds = time.perf_counter() - self.started

        best = self.setting not in ("published", "default")
        switches = {"bf16": True, "optim": "adamw_torch_fused"} if best else {}
        if best:
            switches["train_sampling_strategy"] = "group_by_length"
        arguments = TrainingArguments(
            output_dir=tempfile.gettempdir(),  # nothing is saved there
            num_train_epochs=1,
            per_device_train_batch_size=BATCH,
            learning_rate=2e-4,
            weight_decay=0.01,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=not torch.cuda.is_available(),
            **switches,
        )
        clock = Clock()
        Trainer(
            model=self.model,
            args=arguments,
            train_dataset=[self.rows[i] for i in indices],
            data_collator=DataCollatorWithPadding(self.tokenizer),
            callbacks=[clock],
        ).train()
        return clock.seconds


def work(side: str, setting: str, shared: Path) -> None:
    """A worker: reads lists of sentence indices from stdin, answers with seconds and peak memory."""
    from lora_from_scratch.measure import read_memory

    answers = sys.stdout
    sys.stdout = sys.stderr
    torch.manual_seed(0)
    worker = {"ours": Ours, "theirs": Theirs}[side](setting, shared)
    for line in sys.stdin:
        seconds = worker.train(json.loads(line))
        memory = read_memory(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        answers.write(json.dumps({"seconds": seconds, "peak_bytes": memory.peak_bytes}) + "\n")
        answers.flush()


class Side:
    """One side in a process of its own."""

    def __init__(self, side: str, setting: str, shared: Path) -> None:
        command = [sys.executable, __file__, "--work", side, setting, "--shared", str(shared)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def train(self, indices: list[int]) -> dict[str, float]:
        self.process.stdin.write(json.dumps(indices) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(setting: str, shared: Path, pairs: int) -> dict[str, object]:
    """Turns of both sides over the same sentences: other ones in each pair, the same seeds every time."""
    count = SETTINGS[setting][1]
    rows = 67_349
    draw = torch.Generator().manual_seed(0)
    ours, theirs = Side("ours", setting, shared), Side("theirs", setting, shared)
    for side in (ours, theirs):
        side.train(torch.randint(rows, (WARM_UP,), generator=draw).tolist())
    turns = []
    for _ in range(pairs):
        indices = torch.randint(rows, (count,), generator=draw).tolist()
        turns.append((ours.train(indices), theirs.train(indices)))
    ours.close(), theirs.close()
    ratios = [b["seconds"] / a["seconds"] for a, b in turns]
    peaks = [max(turn[i]["peak_bytes"] for turn in turns) for i in range(2)]
    return {
        "time_ratio": median(ratios),
        "time_ratio_range": [min(ratios), max(ratios)],
        "memory_ratio": peaks[0] / peaks[1],
        "ours_ms_per_sentence": median(1000 * a["seconds"] / count for a, _ in turns),
        "theirs_ms_per_sentence": median(1000 * b["seconds"] / count for _, b in turns),
        "ours_peak_bytes": peaks[0],
        "theirs_peak_bytes": peaks[1],
        "sentences_per_turn": count,
        "pairs": pairs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="holds gpt2/ and data/sst2/")
    parser.add_argument("--settings", nargs="+", choices=tuple(SETTINGS), default=tuple(SETTINGS))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--work", nargs=2, metavar=("SIDE", "SETTING"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.work:
        work(*flags.work, flags.shared)
        return
    results = {}
    rows = [("setting", "time ratio", "range", "memory ratio", "ms a sentence: ours, theirs")]
    for setting in flags.settings:
        result = results[setting] = compare(setting, flags.shared, flags.pairs)
        low, high = result["time_ratio_range"]
        rows.append(
            (
                setting,
                f"{result['time_ratio']:.2f}",
                f"{low:.2f} .. {high:.2f}",
                f"{result['memory_ratio']:.2f}",
                f"{result['ours_ms_per_sentence']:.1f}, {result['theirs_ms_per_sentence']:.1f}",
            )
        )
        print(f"{setting}: {result['time_ratio']:.2f} ({low:.2f} .. {high:.2f})", file=sys.stderr, flush=True)
    print(markdown_table(rows))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
