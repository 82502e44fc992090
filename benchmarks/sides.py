"""The two sides of a comparison, each in a process of its own: this project's loop, and PEFT + Trainer.

Not a benchmark itself: `vs_peft.py` and `scaling.py` give both sides the same sentences, as token ids, and
let them take turns, one waiting while the other works. Time is that of the training loop alone. Memory is the
peak of the process (resident on a CPU, imports included; allocated on a GPU) over all turns, the first one
too, read in one way for both: the peak starts anew when a turn begins and is read when it has ended. What a
side takes while it is set up, and frees before it trains, counts for neither.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from unittest import mock

import torch

from lora_from_scratch.cli.waiting import waiting_by_load
from lora_from_scratch.data.batches import TokenizedExamples
from lora_from_scratch.data.dataset import load_dataset
from lora_from_scratch.train.device import resolve_device
from lora_from_scratch.train.precision import resolve_precision

Sentences = list[list[int]]  # token ids
AS_RUN_PY = "as run.py"  # how threads wait for each other


def best(precision: str = "auto") -> dict[str, object]:
    """TrainingArguments that make Trainer fastest here: bf16 is slower than fp32 where it is emulated."""
    resolved = resolve_precision(precision, resolve_device("auto"))
    return {
        "bf16": resolved == "bf16",
        "optim": "adamw_torch_fused",
        "train_sampling_strategy": "group_by_length",
    }


@dataclass(frozen=True)
class Work:
    """What both sides train, and how Trainer does it. Random weights do: speed does not depend on them."""

    model: str  # a folder with GPT-2's config.json and tokenizer; without weights both sides draw them
    method: str = "lora"
    rank: int = 4
    batch_size: int = 16
    trainer: dict[str, object] = field(default_factory=best)  # of TrainingArguments
    pad_to: int | None = None  # theirs: every sentence to so many tokens; None: to the longest of its batch
    precision: str = "auto"  # ours; theirs is among the arguments
    plain: bool = False  # ours: by core/ alone, as with `run.py --plain`
    # Theirs. GPT-2's configurations name GELU "gelu_new", which transformers computes in eight steps; the
    # same function by this name is one fused kernel.
    activation: str = "gelu_pytorch_tanh"
    base_in_bf16: bool = False  # theirs: the model loaded in bf16 (PEFT keeps the adapter in fp32)

    @property
    def has_weights(self) -> bool:
        return Path(self.model, "model.safetensors").is_file()


class Ours:
    """This project's loop, as `run.py` runs it."""

    def __init__(self, work: Work) -> None:
        from lora_from_scratch.runs.config import RunConfig
        from lora_from_scratch.runs.prepare import prepare

        self.prepared = prepare(
            RunConfig(
                method=work.method,
                model=work.model,
                random_init=not work.has_weights,
                dataset="bundled",
                epochs=1,
                batch_size=work.batch_size,
                precision=work.precision,
                plain=work.plain,
                **({"rank": work.rank} if work.method == "lora" else {}),
            )
        )

    def train(self, sentences: Sentences) -> float:
        """Seconds of the loop. By itself it starts the peak of memory anew, and hides what came before it."""
        from lora_from_scratch.runs.execute import train_prepared
        from lora_from_scratch.train import measure

        with mock.patch.object(measure, "reset_peak_memory", return_value=True):
            return train_prepared(replace(self.prepared, train_examples=as_examples(sentences))).seconds


class Theirs:
    """PEFT + Trainer, or Trainer alone."""

    def __init__(self, work: Work) -> None:
        import peft
        from transformers import AutoConfig, AutoTokenizer, GPT2ForSequenceClassification

        self.work = work
        self.tokenizer = AutoTokenizer.from_pretrained(work.model)
        self.tokenizer.pad_token, self.tokenizer.padding_side = self.tokenizer.eos_token, "right"
        config = AutoConfig.from_pretrained(work.model, num_labels=2)
        config.pad_token_id, config.use_cache = self.tokenizer.pad_token_id, False
        config.activation_function = work.activation
        if work.has_weights:
            model = GPT2ForSequenceClassification.from_pretrained(
                work.model, config=config, dtype=torch.float32
            )
        else:
            model = GPT2ForSequenceClassification(config)
        if work.base_in_bf16:
            model = model.to(torch.bfloat16)
        if work.method == "lora":
            lora = peft.LoraConfig(
                task_type="SEQ_CLS",
                r=work.rank,
                lora_alpha=16,
                lora_dropout=0.05,
                target_modules=["c_attn"],
                fan_in_fan_out=True,
            )
            model = peft.get_peft_model(model, lora)
        elif work.method == "prelayer":
            model.requires_grad_(False)
            for part in (model.transformer.wte, model.transformer.wpe, model.score):
                part.requires_grad_(True)
        self.model = model

    def train(self, sentences: Sentences) -> float:
        """Seconds from the first step's beginning to the last one's end."""
        from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

        class Clock(TrainerCallback):
            def on_train_begin(self, *_: object, **__: object) -> None:
                self.started = time.perf_counter()

            def on_train_end(self, *_: object, **__: object) -> None:
                self.seconds = time.perf_counter() - self.started

        gpu = torch.cuda.is_available()
        arguments = TrainingArguments(
            output_dir=tempfile.gettempdir(),  # nothing is saved there
            num_train_epochs=1,
            per_device_train_batch_size=self.work.batch_size,
            learning_rate=2e-4,
            weight_decay=0.01,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=gpu,
            use_cpu=not gpu,
            **self.work.trainer,
        )
        if self.work.pad_to:
            collator = DataCollatorWithPadding(
                self.tokenizer, padding="max_length", max_length=self.work.pad_to
            )
        else:
            collator = DataCollatorWithPadding(self.tokenizer)
        rows = [
            {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": i % 2}
            for i, ids in enumerate(sentences)
        ]
        clock = Clock()
        Trainer(
            model=self.model, args=arguments, train_dataset=rows, data_collator=collator, callbacks=[clock]
        ).train()
        if gpu:
            torch.cuda.synchronize()
        return clock.seconds


class Side:
    """One side in a process of its own, set up while others are; ours waits as `run.py` does, unless an
    environment is given, in which PyTorch decides."""

    def __init__(
        self, side: type[Ours | Theirs], work: Work, environment: Mapping[str, str] | None = None
    ) -> None:
        how = AS_RUN_PY if side is Ours and environment is None else "as PyTorch"
        self.process = subprocess.Popen(
            [sys.executable, __file__, side.__name__, json.dumps(asdict(work)), how],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.seconds: list[float] = []  # of each turn
        self.peak_bytes = 0

    def train(self, sentences: Sentences) -> float:
        """Take a turn. A side that fails ends the benchmark: run `sides.py` by hand to see why."""
        self.process.stdin.write(json.dumps(sentences) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.peak_bytes = max(self.peak_bytes, answer["peak_bytes"])
        return answer["seconds"]

    def turn(self, sentences: Sentences) -> None:
        """A turn that counts."""
        self.seconds.append(self.train(sentences))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, list[float]]:
    """Of two sides' seconds, turn by turn: the median ratio, and the smallest and largest."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return median(ratios), [min(ratios), max(ratios)]


def as_examples(sentences: Sentences) -> TokenizedExamples:
    """The sentences with labels 0 and 1 in turn."""
    return TokenizedExamples(
        token_ids=torch.tensor([token for sentence in sentences for token in sentence]),
        lengths=torch.tensor([len(sentence) for sentence in sentences]),
        labels=torch.arange(len(sentences)) % 2,
        truncated=0,
    )


def sst2_sentences(model: str, data: Path) -> Sentences:
    """SST-2's training sentences as the model's tokenizer reads them."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)(load_dataset(str(data)).train.sentences).input_ids


def write_checkpoint(like: Path, folder: Path) -> Path:
    """A base in the shape that `like` is configured for, with its tokenizer and random weights."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config.from_pretrained(like)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder


def draw(sentences: Sentences, count: int, generator: torch.Generator) -> Sentences:
    return [sentences[i] for i in torch.randint(len(sentences), (count,), generator=generator).tolist()]


def work_on(side: type[Ours | Theirs], work: Work, waiting: str) -> None:
    """Be one side: read lists of sentences from stdin, answer each with seconds and peak memory."""
    from lora_from_scratch.train.measure import read_memory, reset_peak_memory

    answers, sys.stdout = sys.stdout, sys.stderr
    torch.manual_seed(0)
    worker = side(work)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for line in sys.stdin:
        sentences = json.loads(line)
        reset = reset_peak_memory(device)
        with waiting_by_load() if waiting == AS_RUN_PY else nullcontext():
            seconds = worker.train(sentences)
        peak = read_memory(device, reset).peak_bytes
        print(json.dumps({"seconds": seconds, "peak_bytes": peak}), file=answers, flush=True)


if __name__ == "__main__":
    work_on({"Ours": Ours, "Theirs": Theirs}[sys.argv[1]], Work(**json.loads(sys.argv[2])), sys.argv[3])
