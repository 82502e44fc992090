"""cli/waiting.py: threads spin while they wait, unless others want the cores."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lora_from_scratch.cli import waiting
from lora_from_scratch.cli.waiting import Idlers, Reading, waiting_by_load

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
BUSY, QUIET = (1.0, 0.0), (0.0, 0.1)  # cores: that others took, that nobody did


@pytest.fixture
def two_threads(monkeypatch) -> Iterator[None]:
    for name in waiting.CHOICES:
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def load(monkeypatch) -> list[tuple[float, float]]:
    """What the machine is said to do; the last of it stays."""
    said = [QUIET]
    monkeypatch.setattr(waiting, "INTERVAL", 0.01)
    monkeypatch.setattr(Reading, "since", lambda now, earlier: said[-1])
    return said


def threads() -> int:
    """Of this process, as the system counts them."""
    return len(list(Path("/proc/self/task").iterdir()))


def comes(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def test_what_others_take_is_what_is_busy_without_our_own(tmp_path, monkeypatch):
    """Of two CPUs that we may use: 0.3 idle, 0.2 waiting for a disk, 1.1 our own, 0.4 others."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2})
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    own = iter([5.0, 6.1])
    monkeypatch.setattr(os, "times", lambda: os.times_result((next(own), 0.0, 9.0, 9.0, 0.0)))
    monkeypatch.setattr(waiting, "CPUS", tmp_path / "stat")
    readings = []
    for two in ("cpu2 500 0 0 700 0 0 0 0 0 0", "cpu2 550 10 10 710 20 0 0 0 0 0"):
        of_zero = "cpu0 100 0 0 300 0 0 0 0 7 7" if not readings else "cpu0 140 10 10 320 0 5 5 10 9 9"
        (tmp_path / "stat").write_text(f"cpu  1 2 3 4\n{of_zero}\ncpu1 9 9 9 9 9 9 9 9\n{two}\nintr 5\n")
        readings.append(Reading.now())
    before, now = readings
    assert now.since(before) == pytest.approx((0.4, 0.5))


def test_threads_are_added_while_others_want_the_cores_and_taken_away_after(two_threads, load):
    torch.zeros(1 << 17).exp_()
    before = threads()
    with waiting_by_load():
        assert comes(lambda: threads() == before + 1), "the one that watches"
        load.append(BUSY)
        assert comes(lambda: threads() > before + 1)
        cpus = len(os.sched_getaffinity(0))
        assert comes(lambda: threads() - before - 1 >= 2 * (max(0, cpus - 2) + 1)), "each with its partner"
        load.append((1.0, 1.0))
        time.sleep(0.1)
        assert threads() > before + 1, "kept while others are there, though a core is free"
        load.append(QUIET)
        assert comes(lambda: threads() == before + 1)
        load.append((1.0, 1.0))
        time.sleep(0.1)
        assert threads() == before + 1, "others have cores enough"
        load.append(BUSY)
        assert comes(lambda: threads() > before + 1)
    assert comes(lambda: threads() == before)


def test_the_bits_stay(two_threads):
    a, b = torch.randn(2, 300, 300, generator=torch.Generator().manual_seed(0))
    alone, idlers = a @ b, Idlers()
    idlers.start()
    assert torch.equal(a @ b, alone) and torch.get_num_threads() == 2
    idlers.stop()


def test_with_one_thread_nobody_waits(load):
    load.append(BUSY)
    before = threads()
    with waiting_by_load():
        time.sleep(0.1)
        assert threads() <= before + 1


@pytest.mark.parametrize("choice", waiting.CHOICES)
def test_a_users_own_choice_stays(monkeypatch, choice):
    monkeypatch.setenv(choice, "1000" if choice == "GOMP_SPINCOUNT" else "passive")
    before = threading.active_count()
    with waiting_by_load():
        assert threading.active_count() == before


def test_where_the_machine_does_not_tell_nothing_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(waiting, "CPUS", tmp_path / "stat")
    before = threading.active_count()
    with waiting_by_load():
        assert threading.active_count() == before


def test_a_thread_that_waits_burns_less_where_there_are_more_than_cpus(two_threads):
    """What the module relies on, in libgomp: a partner that has nothing to do sleeps soon."""
    if "libgomp" not in Path("/proc/self/maps").read_text() or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("another OpenMP, or more threads than CPUs to begin with")

    def burnt() -> float:
        """CPU seconds of a process that computes for a moment and waits for five milliseconds, many times."""
        numbers, before = torch.zeros(1 << 16), time.process_time()
        for _ in range(30):
            numbers.add_(1)
            time.sleep(0.005)
        return time.process_time() - before

    torch.zeros(1 << 17).exp_()
    spinning, idlers = burnt(), Idlers()
    idlers.start()
    assert comes(lambda: threading.active_count() > 1)
    brief = burnt()
    idlers.stop()
    assert brief < spinning / 2
