"""Several processes against one: the same weights, losses and scores; stopped and gone on; never a hang."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from forks import in_a_fork
from safetensors.torch import load_file
from several_processes import leave_all

from lora_from_scratch import UserError
from lora_from_scratch.cli.main import main
from lora_from_scratch.core.gpt2 import classify
from lora_from_scratch.data.batches import TokenizedExamples
from lora_from_scratch.train.checkpoints import found_in, newest
from lora_from_scratch.train.parts import Parting
from lora_from_scratch.train.processes import Processes, own_batches, split

METHODS = ("full", "lora", "prelayer", "prefix", "head", "lora-plus", "dora", "bitfit", "ia3")
WIDTH = 16  # of the base in several_processes.py


@pytest.fixture(scope="module")
def left(tmp_path_factory) -> Path:
    """What the processes of every scenario left."""
    folder = tmp_path_factory.mktemp("processes")
    done = in_a_fork(leave_all, folder, folder=folder)
    assert done.returncode == 0, done.stderr
    return folder


def results(folder: Path, name: str) -> dict[str, object]:
    return json.loads((folder / f"{name}.json").read_text())


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """What learnt, but for the biases of the keys: the loss does not depend on them, so that their gradients
    are rounding alone, of which AdamW makes whole steps."""
    found = load_file(folder / f"{name}.safetensors")
    for name, tensor in found.items():
        if name.endswith("c_attn.bias"):
            tensor[WIDTH : 2 * WIDTH] = 0
    return found


def assert_the_same(folder: Path, name: str, expected: str) -> None:
    """To 1e-6; predictions and their order exactly."""
    torch.testing.assert_close(weights(folder, name), weights(folder, expected), rtol=0, atol=1e-6)
    ours, theirs = results(folder, name), results(folder, expected)
    assert len(ours["metrics"]) == len(theirs["metrics"])
    for here, there in zip(ours["metrics"], theirs["metrics"], strict=True):
        assert here == pytest.approx(there, rel=1e-6, abs=1e-6)
        assert here["sentences"] == there["sentences"] and here["tokens"] == there["tokens"]
    assert ours["predictions"] == theirs["predictions"]
    assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-6)
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-6)


@pytest.mark.parametrize("scenario", [*METHODS, "three", "plain", "validated"])
def test_two_processes_train_what_one_does(left, scenario):
    """51 sentences by 8, so that the last batch does not divide; `three` has processes without a sentence."""
    for rank in (0, 1):
        assert_the_same(left, f"{scenario}-2-{rank}", f"{scenario}-1-0")


def test_processes_whose_shares_of_a_step_are_in_other_numbers_of_parts_train_what_one_does(left):
    for rank in (0, 1):
        assert_the_same(left, f"in_parts-2-{rank}", "lora-1-0")
        parts = results(left, f"in_parts-2-{rank}")["parts"]  # of the shares of both, step by step
        assert parts[::2] != parts[1::2]


@pytest.mark.parametrize("scenario", ["sharded", "sharded_parts"])
def test_a_model_that_is_shared_out_learns_the_same(left, scenario):
    for rank in (0, 1):
        assert_the_same(left, f"{scenario}-2-{rank}", "full-1-0")


@pytest.mark.parametrize("scenario", [*METHODS, "sharded"])
def test_the_processes_end_with_the_same_bits(left, scenario):
    first, second = (load_file(left / f"{scenario}-2-{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_dropout_differs_between_processes_and_the_losses_do_not(left):
    first, second = (results(left, f"whole-2-{rank}") for rank in (0, 1))
    assert first["drawn_next"] != second["drawn_next"]
    assert first["metrics"] == second["metrics"]


def test_a_signal_to_one_process_stops_all_at_the_same_step(left):
    """Every process leaves the loop, and the first one a checkpoint of just that step."""
    for rank in (0, 1):
        assert results(left, f"stopped-2-{rank}")["processes"] == 2
    _, snapshot = newest(left / "kept")
    assert snapshot.steps == 5


def test_two_processes_go_on_bit_for_bit(left):
    for rank in (0, 1):
        whole, resumed = (results(left, f"{name}-2-{rank}") for name in ("whole", "resumed"))
        assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
        first, second = (load_file(left / f"{name}-2-{rank}.safetensors") for name in ("whole", "resumed"))
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_one_process_goes_on_where_two_were(left):
    assert_the_same(left, "two_one-1-0", "full-1-0")


def test_a_model_that_is_shared_out_goes_on(left):
    for rank in (0, 1):
        assert_the_same(left, f"shard-2-{rank}", "full-1-0")


@pytest.mark.parametrize("what", ["raises", "dies"])
def test_where_one_fails_the_other_ends_at_once_and_writes_nothing(left, what):
    """The checkpoint after the second step is there, the one that was due after the fourth is not."""
    survivor = results(left, f"{what}-2-0")
    assert survivor["error"] == "RuntimeError" and "peer" in survivor["said"]
    assert survivor["seconds"] < 20
    statuses = json.loads((left / "statuses.json").read_text())[what]
    assert statuses == ([0, 0] if what == "raises" else [0, -9])
    if what == "raises":
        assert results(left, "raises-2-1")["said"] == "this one alone"
    folder = left / {"raises": "raise", "dies": "die"}[what]
    assert [path.name for path in found_in(folder)] == ["step-000000002.safetensors"]


def test_processes_that_were_asked_different_things_are_refused(left):
    for rank in (0, 1):
        found = results(left, f"unequal-2-{rank}")
        assert found["error"] == "UserError" and "not the same settings" in found["said"]


def test_a_checkpoint_that_one_process_alone_sees_is_refused_by_all(left):
    for rank in (0, 1):
        found = results(left, f"half_seen-2-{rank}")
        assert found["error"] == "UserError" and "checkpoint to go on from" in found["said"]


def test_the_first_process_speaks_and_writes(left):
    first, second = ((left / f"said-{rank}.txt").read_text() for rank in (0, 1))
    assert "written" in first and first.count("| method") == 1
    assert second.splitlines() == ["error: compare works in one process; start it without torchrun"]
    for rank in (0, 1):
        assert results(left, f"command-2-{rank}")["status"] == 0
        assert results(left, f"command-2-{rank}")["refused"] == 2
    record = json.loads((left / "run" / "results.json").read_text())
    assert record["environment"]["processes"] == 2 and record["data"]["validation_sentences"] == 5
    assert sorted(path.name for path in (left / "run").iterdir()) == sorted(record["files"])


def test_a_step_is_shared_out_without_gaps_or_repeats():
    for sentences in range(1, 12):
        for count in (1, 2, 3):
            for parts in (1, 2, 5):
                indices = torch.arange(sentences)
                shares = split(
                    indices, Processes(count=count), lambda share, parts=parts: min(parts, len(share))
                )
                assert len(shares) == count and all(len(own) <= parts for own in shares)
                assert all(len(part) for own in shares for part in own)
                assert sorted(int(i) for own in shares for part in own for i in part) == indices.tolist()


def test_processes_whose_parts_are_of_other_numbers_compute_as_many_batches():
    """The second one's sentences are a token longer, and so in two parts where the first has one."""
    lengths = torch.tensor([64, 65] * 8)
    examples = TokenizedExamples(torch.ones(int(lengths.sum()), dtype=torch.long), lengths, lengths % 2, 0)
    parting = Parting(1, 512)
    shares = split(torch.arange(16), Processes(count=2), lambda share: parting.parts(lengths[share]))
    assert [len(own) for own in shares] == [1, 2]
    for rank in (0, 1):
        batches = list(own_batches(examples, shares, Processes(rank, 2), torch.device("cpu"), classify))
        assert [len(batch.labels) for batch in batches] == ([1, 8] if rank == 0 else [4, 4])
        assert [batch.share for batch in batches] == ([0, 1] if rank == 0 else [0.5, 0.5])


def test_sharing_out_needs_several_processes(tmp_path):
    from lora_from_scratch import RunConfig, run

    with pytest.raises(UserError, match="start several with torchrun"):
        run(RunConfig(method="full", shard=True, model="bundled", dataset="bundled", max_steps=1))


def test_half_of_what_torchrun_says_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert main([]) == 2
    assert capsys.readouterr().err == (
        "error: WORLD_SIZE is set and RANK is not; start with torchrun, or unset it\n"
    )
