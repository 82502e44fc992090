"""What goes wrong in the numbers of a run: told in one line, at that very step, with what is good kept."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import write_base
from torch import Tensor
from transformers import GPT2ForSequenceClassification

from lora_from_scratch import RunConfig, UserError
from lora_from_scratch.cli import main as cli
from lora_from_scratch.data.batches import training_batches
from lora_from_scratch.data.dataset import load_dataset
from lora_from_scratch.fast.gpt2 import classify as fast_classify
from lora_from_scratch.runs import execute
from lora_from_scratch.runs.prepare import prepare
from lora_from_scratch.runs.random_draws import generator_for
from lora_from_scratch.train.checkpoints import found_in, newest
from lora_from_scratch.train.log import StepLog
from lora_from_scratch.train.trouble import out_of_memory_told

pytestmark = pytest.mark.usefixtures("undrawn")
STEPS, LR = 6, 1e-3
Spoil = Callable[[Tensor, Tensor], Tensor]  # from a batch's token ids and its logits to its logits


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[str]:
    """A small base, and 40 rows, of which 4 are held out, of 3 to 10 words."""
    rows = [f"{word} film{' indeed' * (i % 8)} {i},{i % 2}" for i in range(20) for word in ("good", "dull")]
    folder = tmp_path_factory.mktemp("sources")
    base, path = write_base(folder / "base"), folder / "reviews.csv"
    path.write_text("text,label\n" + "\n".join(rows), encoding="utf-8")
    return ["--model", str(base), "--dataset", str(path)]


@pytest.fixture
def line(sources, tmp_path) -> list[str]:
    """A run of six steps of four sentences, with a checkpoint after each."""
    flags = [*sources, "--output-dir", str(tmp_path / "run"), "--rank", "2"]
    flags += ["--precision", "fp32", "--device", "cpu", "--batch-size", "4", "--max-steps", str(STEPS)]
    return [*flags, "--lr", str(LR), "--checkpoint-every", "1"]


def spoiled(monkeypatch: pytest.MonkeyPatch, number: int, spoil: Spoil) -> None:
    """Let something befall the forward pass of a run's batch `number`, counted from 1."""
    seen = 0

    def forward(model: GPT2ForSequenceClassification, input_ids: Tensor, lengths: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        logits = fast_classify(model, input_ids, lengths)
        return spoil(input_ids, logits) if seen == number else logits

    monkeypatch.setattr(execute, "fast_classify", forward)


def no_number(input_ids: Tensor, logits: Tensor) -> Tensor:
    return logits * float("nan")


def no_gradient(input_ids: Tensor, logits: Tensor) -> Tensor:
    """The loss is finite, its gradients are not."""
    logits.register_hook(lambda gradient: gradient * float("inf"))
    return logits


def raising(error: Exception) -> Spoil:
    def spoil(input_ids: Tensor, logits: Tensor) -> Tensor:
        raise error

    return spoil


def too_much(input_ids: Tensor, logits: Tensor) -> Tensor:
    return torch.empty(2**58)


def batch_of(line: list[str], step: int) -> tuple[list[str], str]:
    """The sentences of a step, and how large its batch is."""
    flags = dict(zip(line[::2], line[1::2], strict=True))
    prepared = prepare(
        RunConfig(model=flags["--model"], dataset=flags["--dataset"], device="cpu", precision="fp32")
    )
    examples = prepared.train_examples
    size, order = int(flags["--batch-size"]), generator_for(0, "order")
    indices = list(training_batches(examples, size, step, order))[-1]
    sentences = load_dataset(flags["--dataset"]).train.sentences
    longest = int(examples.lengths[indices].max())
    return [sentences[i] for i in indices.tolist()], f"{len(indices)} sentences x {longest} tokens"


def kept(line: list[str]) -> list[str]:
    return [path.name for path in found_in(folder_of(line) / "checkpoints")]


def folder_of(line: list[str]) -> Path:
    return Path(line[line.index("--output-dir") + 1])


def error(capsys: pytest.CaptureFixture[str]) -> str:
    """The only error on the screen."""
    (told,) = re.findall(r"^error: .*$", capsys.readouterr().err, re.MULTILINE)
    return told


@pytest.mark.parametrize("looked_at", [True, False])
def test_a_loss_that_is_no_number_stops_the_run_at_its_step(line, monkeypatch, capsys, looked_at):
    """Also where losses are not looked at after each step, as on a GPU: a checkpoint looks.

    Once the trouble is over the run goes on from the last one, bit for bit.
    """
    if not looked_at:
        monkeypatch.setattr(StepLog, "is_due", lambda log, every: False)
    spoiled(monkeypatch, 4, no_number)
    assert cli.main(line) == 2
    told, (sentences, _) = error(capsys), batch_of(line, 4)
    about = f"error: the loss is nan after 4 steps: --lr {LR:g} is too high for this run; its sentences: "
    assert told == about + ", ".join(map(repr, sentences[:3])) + ", ..."
    assert kept(line) == ["step-000000003.safetensors", "step-000000002.safetensors"]
    assert {path.name for path in folder_of(line).iterdir()} == {"checkpoints"}
    monkeypatch.undo()
    assert newest(folder_of(line) / "checkpoints")[1].steps == 3
    assert cli.main(["--resume", str(folder_of(line))]) == 0
    whole = str(folder_of(line).with_name("whole"))
    assert cli.main([*line, "--output-dir", whole]) == 0
    for name in ("adapter_model.safetensors", "metrics.jsonl"):
        assert (folder_of(line) / name).read_bytes() == (Path(whole) / name).read_bytes()


def test_weights_that_are_no_numbers_are_in_no_checkpoint(line, monkeypatch, capsys):
    """The loss of step 3 is finite, what it leaves is not: the one after step 2 is the last good one."""
    spoiled(monkeypatch, 3, no_gradient)
    assert cli.main(line) == 2
    assert "the loss is nan after 4 steps" in error(capsys)
    assert kept(line) == ["step-000000002.safetensors", "step-000000001.safetensors"]
    snapshot = newest(folder_of(line) / "checkpoints")[1]
    assert all(tensor.isfinite().all() for tensor in snapshot.tensors.values())


@pytest.mark.filterwarnings("ignore:--precision fp16 is slow on a CPU")
def test_steps_that_fp16_leaves_out_are_counted_and_end_nothing(line, monkeypatch, capsys):
    spoiled(monkeypatch, 2, no_gradient)
    assert cli.main([*line, "--precision", "fp16"]) == 0
    printed = capsys.readouterr()
    assert "skipped     1 of 6 steps, whose fp16 gradients overflowed\n" in printed.out
    assert "error" not in printed.err
    results = json.loads((folder_of(line) / "results.json").read_text())
    assert (results["steps"], results["skipped_steps"]) == (STEPS, 1)
    rows = [json.loads(row) for row in (folder_of(line) / "metrics.jsonl").read_text().splitlines()]
    assert [row["gradient_norm"] is None for row in rows] == [False, True, False, False, False, False]
    assert [row["lr"] for row in rows] == pytest.approx([LR * (1 - i / STEPS) for i in range(STEPS)])
    weights = load_file(folder_of(line) / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


OUT_OF_MEMORY = {
    "of a GPU": (
        raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")),
        "CUDA out of",
    ),
    "of a CPU": (raising(RuntimeError("DefaultCPUAllocator: not enough memory: you tried")), "DefaultCPUAll"),
    "of Python": (raising(MemoryError()), "MemoryError"),
    "in truth": (too_much, "["),
}


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_out_of_memory_says_at_what_batch_and_what_to_lower(line, monkeypatch, capsys, kind):
    spoil, said = OUT_OF_MEMORY[kind]
    spoiled(monkeypatch, 3, spoil)
    assert cli.main(line) == 2
    told, (_, size) = error(capsys), batch_of(line, 3)
    assert told.startswith(f"error: out of memory at a batch of {size} ({said}")
    assert told.endswith(
        "--gradient-accumulation 2 computes the same in smaller parts; or lower --max-length"
    )
    assert kept(line) == ["step-000000002.safetensors", "step-000000001.safetensors"]


@pytest.mark.parametrize(
    ("size", "parts", "advice"),
    [
        ("4", "2", "; --gradient-accumulation 4 computes the same in smaller parts; or lower --max-length"),
        ("4", "3", "; --gradient-accumulation 4 computes the same in smaller parts; or lower --max-length"),
        ("4", "4", "; lower --max-length"),
        ("1", "1", "; lower --max-length"),
    ],
)
def test_a_batch_of_single_sentences_is_not_to_be_parted_further(
    line, monkeypatch, capsys, size, parts, advice
):
    spoiled(monkeypatch, 1, raising(MemoryError()))
    line = [*line, "--gradient-accumulation", parts, "--batch-size", size]
    assert cli.main(line) == 2
    told, (_, size) = error(capsys), batch_of(line, 1)
    assert told == f"error: out of memory at a batch of {size} (MemoryError){advice}"


@pytest.mark.parametrize(
    ("shares", "advice"),
    [
        ([[8], [8]], "--gradient-accumulation 2 computes the same in smaller parts; or lower --max-length"),
        (
            [[8], [4, 4]],
            "--gradient-accumulation 4 computes the same in smaller parts; or lower --max-length",
        ),
        ([[1, 1], [1, 1]], "lower --max-length"),
    ],
)
def test_of_several_processes_the_largest_number_of_parts_counts(shares, advice):
    lengths = [[torch.full((sentences,), 9) for sentences in own] for own in shares]
    with pytest.raises(UserError) as told, out_of_memory_told(lambda: lengths):
        raise MemoryError
    size = f"{sum(map(sum, shares))} sentences x 9 tokens"
    assert str(told.value) == f"out of memory at a batch of {size} (MemoryError); {advice}"


def test_what_is_no_trouble_of_memory_keeps_its_traceback(line, monkeypatch):
    spoiled(monkeypatch, 2, raising(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        cli.main(line)
    assert kept(line) == ["step-000000001.safetensors"]


def test_out_of_memory_before_the_first_batch_is_one_line_too(line, monkeypatch, capsys):
    def full(model: torch.nn.Module, *_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has 1 GiB")

    monkeypatch.setattr(GPT2ForSequenceClassification, "to", full)
    assert cli.main(line) == 2
    told = error(capsys)
    assert told.startswith("error: out of memory (CUDA out of memory. Tried to allocate 2 GiB.")
    assert told.endswith("; a smaller --model, or another --device")
    assert not folder_of(line).exists()
