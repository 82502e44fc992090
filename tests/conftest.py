"""What several test files share: a tiny GPT-2, few sentences, and where the real data lies.

PyTorch and transformers are imported where they are used: the process that hands tests out to others loads
this file too, and these wait for it.
"""

from __future__ import annotations

import gc
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers and datasets read it: no test asks the network
os.environ["OMP_NUM_THREADS"] = "1"  # before torch reads it; the processes that tests start inherit it

import forks
import pytest

if TYPE_CHECKING:
    import torch
    from transformers import GPT2Config, GPT2ForSequenceClassification

    from lora_from_scratch.data.batches import TokenizedExamples

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started deaf to Ctrl-C

# The files that take longest, first: two workers then end at about the same time.
LONGEST = ("tutorial", "commands", "hub", "processes", "family_lora", "resume", "no_pickle", "sentences")
LONGEST += ("pages", "folder", "lens_page", "page", "quantised", "explain", "trouble", "killed", "accounting")
LONGEST += ("peft_files", "fuzz", "end_to_end", "base_weights", "cli", "compare_command", "plan")

SHARED = Path(os.environ.get("LORA_SHARED", Path(__file__).parents[2] / "shared"))


def __getattr__(name: str) -> tuple[str, ...]:
    """`DEVICES`, for tests of each."""
    if name != "DEVICES":
        raise AttributeError(name)
    import torch

    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # else xdist begins with the files of most tests
    gc.disable()  # what the test files import is no garbage, and to look through it takes long


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.stem.removeprefix("test_")
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Once the test files are imported, and before a test; the process that hands tests out has none."""
    gc.freeze()
    gc.set_threshold(20_000)  # most of what a test makes is in use until it ends
    gc.enable()
    if session.items and not session.config.option.collectonly and hasattr(os, "fork"):
        forks.keep_one()
    os.fsync = unflushed  # after the fork: what is killed there is killed while it flushes, too


def unflushed(number: int, flush: Callable[[int], None] = os.fsync) -> None:
    """No test outlives the machine, so nothing waits for its disk; what cannot be flushed says so as ever.

    test_files.py has what is flushed, and when.
    """
    mode = os.fstat(number).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        flush(number)


def tiny_config(**changes: object) -> GPT2Config:
    """GPT-2's architecture at width 16: 2 blocks, 2 heads, 50 tokens, 32 positions; token 0 pads."""
    from transformers import GPT2Config

    sizes = {"vocab_size": 50, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return GPT2Config(**{**sizes, **tokens, **changes})


@pytest.fixture(scope="module")
def few_sentences(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of the bundled sentences the first 40 and 20, where how many there are does not matter."""
    from lora_from_scratch.data import dataset

    few = tmp_path_factory.mktemp("few")
    for name, rows in (("train.tsv", 40), ("validation.tsv", 20)):
        lines = (dataset.BUNDLED_DATASET / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (few / name).write_text("".join(lines[: rows + 1]), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "BUNDLED_DATASET", few)
        yield


@pytest.fixture(scope="module")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """For the bundled model a tiny one of random weights, where it does not matter what it has learned."""
    from small_runs import write_base

    from lora_from_scratch.base import load
    from lora_from_scratch.formats import peft, peft_base

    folder = write_base(
        tmp_path_factory.mktemp("tiny") / "bundled" / load.BUNDLED_MODEL.name, n_positions=128
    )
    with pytest.MonkeyPatch.context() as patch:
        for module in (load, peft, peft_base):
            patch.setattr(module, "BUNDLED_MODEL", folder)
        yield folder


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """The picture of a run is four bytes: to draw it takes longer than a small run."""
    from lora_from_scratch.report import picture

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture, "draw_training", lambda record, metrics: b"\x89PNG")
        yield


@pytest.fixture
def tiny_gpt2() -> GPT2ForSequenceClassification:
    """A randomly initialised tiny GPT-2 with weights large enough that every layer matters; in eval mode."""
    import torch
    from transformers import GPT2ForSequenceClassification

    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(tiny_config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture
def tiny_examples() -> TokenizedExamples:
    """48 sentences of 1 to 12 tokens; the label says whether the sentence holds token 7."""
    import torch

    from lora_from_scratch.data.batches import TokenizedExamples

    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 13, (48,), generator=draw)
    token_ids = torch.randint(1, 12, (int(lengths.sum()),), generator=draw)
    labels = torch.tensor([int(7 in part) for part in token_ids.split(lengths.tolist())])
    return TokenizedExamples(token_ids, lengths, labels, truncated=0)


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    """What PyTorch makes without being told a type is float64, as a program may ask."""
    import torch

    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data (SST-2, GPT-2's tokenizer and shape); tests that need it skip without it."""
    if not (SHARED / "data" / "sst2" / "train.tsv").exists():
        pytest.skip(f"no shared data at {SHARED}: set LORA_SHARED to its folder")
    return SHARED


def randomize_lora(model: torch.nn.Module, seed: int = 1, std: float = 0.1) -> None:
    """Move every B off zero: with B = 0 a test of the update proves nothing."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype) * std)
