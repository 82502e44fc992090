"""What was freed between what is still in use goes back to the system."""

from __future__ import annotations

import ctypes
import sys

import pytest
import torch

from lora_from_scratch.fast.freed_memory import give_back_freed
from lora_from_scratch.train.measure import read_memory

HAS_GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")


@pytest.mark.skipif(not HAS_GLIBC, reason="another C library")
def test_less_is_resident_and_what_is_in_use_is_as_it_was():
    def resident() -> int:
        return read_memory(torch.device("cpu")).allocated_bytes

    pieces = [torch.full((25_000,), float(i)) for i in range(2000)]  # 100 kB each: not mapped one by one
    kept = pieces[1::2]
    before = resident()
    del pieces
    assert resident() > before - 20_000_000
    give_back_freed()
    assert resident() < before - 80_000_000
    assert all(bool((piece == 2 * i + 1).all()) for i, piece in enumerate(kept))


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    give_back_freed()
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "CDLL", None)
    give_back_freed()
