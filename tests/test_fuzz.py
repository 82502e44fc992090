"""Damaged files, a few hundred cases of each kind; `fuzz.py` says what they must give, and runs more."""

from __future__ import annotations

import os

import fuzz
import pytest
from fuzz_files import Finding
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.filterwarnings("ignore")  # a load may warn
EXAMPLES = {name: 300 for name in fuzz.PROPERTIES} | {"peft": 150, "plain": 60}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    before = os.getcwd()
    fuzz.prepare(tmp_path_factory.mktemp("fuzz"))
    yield
    os.chdir(before)


@pytest.mark.parametrize("name", fuzz.PROPERTIES)
def test_damage_loads_clean_or_is_refused_in_a_sentence(name):
    loaded = []

    @settings(max_examples=EXAMPLES[name], derandomize=True, database=None, deadline=None)
    @given(st.integers(0, 2**32 - 1))
    def holds(seed: int) -> None:
        loaded.append(fuzz.PROPERTIES[name].check(fuzz.case(name, seed)))

    holds()
    assert not all(loaded) and (any(loaded) or name in ("adapter", "head", "checkpoint")), "nothing is tried"


def test_a_finding_is_printed_with_its_bytes(monkeypatch, capsys):
    def check(files: fuzz.Files) -> bool:
        raise Finding("wrong")

    monkeypatch.setitem(fuzz.PROPERTIES, "csv", fuzz.Property(lambda draw: {"d.csv": b"a\0"}, check))
    with pytest.raises(Finding):
        fuzz.run("csv", range(7, 9))
    assert capsys.readouterr().out == "--only csv --first 7 --cases 1\nd.csv: b'a\\x00'\n"
