"""The clock, the count and the memory reading."""

from __future__ import annotations

import mmap
import sys
import time

import pytest
import torch

from lora_from_scratch.train import measure
from lora_from_scratch.train.measure import (
    PeakMemory,
    PhaseClock,
    count_parameters,
    read_memory,
    reset_peak_memory,
    synchronize,
)

CPU = torch.device("cpu")


def a_block() -> mmap.mmap:
    """300 MB that the system has to give: memory of its own, not what the heap has kept from before."""
    block = mmap.mmap(-1, 300_000_000)
    block[::4096] = b"x" * len(block[::4096])
    return block


def test_the_clock_splits_its_time_into_phases():
    clock = PhaseClock(CPU)
    for _ in range(2):
        clock.start()
        for _ in range(3):
            time.sleep(0.01)
            clock.lap("a")
            time.sleep(0.03)
            clock.lap("b")
        clock.stop()
        time.sleep(0.1)  # between stop and start nothing counts
    assert list(clock.phases) == ["a", "b"]
    assert 0.06 <= clock.phases["a"] < 0.12
    assert 0.18 <= clock.phases["b"] < 0.24
    assert sum(clock.phases.values()) == pytest.approx(clock.seconds, rel=0.02)


def test_only_a_device_that_works_behind_our_back_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    synchronize(CPU)
    assert not waited
    synchronize(torch.device("cuda", 1))
    assert waited == [torch.device("cuda", 1)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_clock_waits_for_the_gpu():
    device = torch.device("cuda")
    a = torch.randn(8192, 8192, device=device)
    clock = PhaseClock(device)
    clock.start()
    for _ in range(20):
        a @ a
    queued = time.perf_counter() - clock._started
    clock.lap("products")
    clock.stop()
    assert clock.seconds > 3 * queued
    assert clock.phases["products"] == pytest.approx(clock.seconds, rel=0.1)


@pytest.mark.parametrize("index", [0, 1])
def test_on_cuda_the_laps_stand_in_the_stream_of_that_device(monkeypatch, index):
    """On cuda:1 the events have to be recorded there, not on the device that happens to be current."""
    device, recorded = torch.device("cuda", index), []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: object) -> None:
            recorded.append(stream)
            self.at = 10 * len(recorded)

        def elapsed_time(self, other: object) -> float:
            return other.at - self.at  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    clock = PhaseClock(device)
    clock.start()
    clock.lap("a")
    clock.lap("b")
    clock.lap("a")
    clock.stop()
    assert recorded == 4 * [f"stream of cuda:{index}"]
    assert clock.phases == pytest.approx({"a": 0.02, "b": 0.01})


def test_where_the_device_cannot_be_marked_there_is_the_total_alone(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    clock = PhaseClock(torch.device("mps"))
    clock.start()
    clock.lap("forward")
    clock.stop()
    assert clock.seconds > 0 and clock.phases == {}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_that_of_the_run_where_it_can_be_started_anew():
    block = a_block()
    whole = read_memory(CPU, reset_peak_memory(CPU)).peak_bytes
    block.close()
    if not reset_peak_memory(CPU):
        pytest.skip("this system does not start a peak anew")
    memory = read_memory(CPU)
    assert memory.kind == "resident" and whole - memory.peak_bytes > 250e6
    assert memory.peak_bytes == pytest.approx(memory.allocated_bytes, rel=0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_comes_and_goes_between_two_stretches_is_not_in_the_peak():
    if not reset_peak_memory(CPU):
        pytest.skip("this system does not start a peak anew")
    memory, peaks = PeakMemory(CPU), []
    for inside in (False, True):
        memory.start()
        if inside:
            a_block().close()
        memory.stop()
        a_block().close()
        peaks.append(memory.reading(gradients=3).peak_bytes)
    memory.start()
    memory.stop()
    assert peaks[1] - peaks[0] > 250e6  # what was there for a moment, within
    last = memory.reading(gradients=3)
    assert last.peak_bytes == peaks[1] and last.parts == {"gradients": 3} and last.kind == "resident"


@pytest.mark.parametrize("left", [{"status": "VmRSS:\t  100 kB\n"}, {}])
def test_without_a_peak_of_the_run_the_processs_is_told_as_such(monkeypatch, tmp_path, left):
    """No clear_refs to write to, no VmHWM in the account, or no account at all."""
    for name, text in left.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(measure, "PROC", tmp_path / ("" if left else "nowhere"))
    memory = read_memory(CPU, reset_peak_memory(CPU), weights=3)
    assert memory.kind == "process" and memory.peak_bytes > 50e6
    assert memory.allocated_bytes == (102_400 if left else None) and memory.parts == {"weights": 3}


def test_synchronize_on_the_cpu_returns():
    synchronize(CPU)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_sees_what_was_held_for_a_moment():
    before = read_memory(CPU)
    block = a_block()
    during = read_memory(CPU)
    block.close()
    after = read_memory(CPU)
    assert before.kind == "resident"
    assert during.allocated_bytes - before.allocated_bytes == pytest.approx(300e6, rel=0.05)
    assert after.allocated_bytes - before.allocated_bytes < 30e6
    assert after.peak_bytes >= 0.99 * during.allocated_bytes  # the kernel counts in batches


def test_parameters_are_counted_head_apart(tiny_gpt2):
    tiny_gpt2.requires_grad_(False)
    tiny_gpt2.score.requires_grad_(True)
    tiny_gpt2.transformer.wpe.requires_grad_(True)
    count = count_parameters(tiny_gpt2)
    assert (count.adapter, count.head, count.trainable) == (32 * 16, 2 * 16, 34 * 16)
    # wte, wpe, 2 blocks of 12 w^2 + 13 w, ln_f, head
    assert count.total == 50 * 16 + 32 * 16 + 2 * (12 * 16**2 + 13 * 16) + 2 * 16 + 2 * 16
