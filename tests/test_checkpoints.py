"""Checkpoints as files: whole or not there, whatever fails meanwhile, and none but our own is read."""

from __future__ import annotations

import errno
import json
import os
import pickletools
import random
import re
import resource
import shutil
import stat
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_runs import Outcome, ready, trained, with_all_checkpoints

from lora_from_scratch.errors import UserError, quoted
from lora_from_scratch.formats import whole_files
from lora_from_scratch.train import checkpoints as of_checkpoints
from lora_from_scratch.train.checkpoints import ABOUT, DIGEST, FACTS, Checkpoints, found_in, newest, read

ABOUT_IT = {"config": {"lr": 0.001, "method": "lora"}, "sources": ["é"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Outcome, list[Path]]:
    """A training, and the checkpoints after each of its steps."""
    return with_all_checkpoints(tmp_path_factory.mktemp("all"))


@pytest.fixture
def two(run, tmp_path) -> tuple[Path, Path]:
    """A folder with the newest checkpoint and the one before it."""
    for path in run[1][-2:]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    last, before = found_in(tmp_path)
    return last, before


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def step(number: int) -> str:
    return f"step-{number:09}.safetensors"


def test_the_newest_two_are_kept(tmp_path):
    trained(ready(), Checkpoints(tmp_path / "run" / "checkpoints", ABOUT_IT, every=2))
    assert names(tmp_path / "run" / "checkpoints") == [step(4), step(6)]
    about, snapshot = newest(tmp_path / "run" / "checkpoints")
    assert about == ABOUT_IT and snapshot.steps == 6


def test_where_there_are_none_there_is_nothing_to_go_on_from(tmp_path):
    assert newest(tmp_path) is None and newest(tmp_path / "not there") is None


def test_they_go_with_their_folder_and_leave_what_is_not_theirs(tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, {}, every=2)
    checkpoints.clear()
    trained(ready(), checkpoints)
    checkpoints.clear()
    assert names(tmp_path) == []
    trained(ready(), checkpoints)
    (folder / "notes.txt").write_text("mine")
    checkpoints.clear()
    assert names(folder) == ["notes.txt"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_others_may_read_them_as_far_as_the_user_lets_them(tmp_path, mask):
    """Not as a temporary file's owner alone (trap 12)."""
    before = os.umask(mask)
    try:
        trained(ready(epochs=1), Checkpoints(tmp_path / "checkpoints", {}, every=3))
    finally:
        os.umask(before)
    (path,) = found_in(tmp_path / "checkpoints")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o777 & ~mask


def test_a_file_is_tensors_and_json_and_nothing_that_runs(two):
    """By what it holds: the format's header, and bytes in which no pickle is found."""
    contents = two[0].read_bytes()
    length = int.from_bytes(contents[:8], "little")
    header = json.loads(contents[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert metadata.keys() == {ABOUT, FACTS, DIGEST}
    assert json.loads(metadata[ABOUT]) == {} and json.loads(metadata[FACTS])["scaler"] == {}
    assert {entry["dtype"] for entry in header.values()} == {"F32", "F64", "I64", "U8"}
    assert len(contents) == 8 + length + max(entry["data_offsets"][1] for entry in header.values())
    assert not re.search(rb"\x80[\x02-\x05]c|PK\x03\x04", contents)
    with pytest.raises(ValueError):
        list(pickletools.genops(contents))


@pytest.mark.parametrize("left", [0, 7, 8, 100, -1])
def test_of_one_that_is_cut_off_the_one_before_is_taken(two, left):
    last, before = two
    last.write_bytes(last.read_bytes()[:left])
    with pytest.warns(UserWarning, match=f"^{last.name} in .* is cut off; the one before it is taken$"):
        found = newest(last.parent)
    assert found[1].steps == read(before)[1].steps == 6
    before.write_bytes(b"")
    with pytest.warns(UserWarning) as told:
        assert newest(last.parent) is None
    assert len(told) == 2


def test_a_training_that_fell_back_ends_the_same_and_writes_over_what_is_cut_off(run, two):
    last, before = two
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="is cut off"):
        _, snapshot = newest(last.parent)
    assert trained(ready(), Checkpoints(last.parent, {}, 1, snapshot)) == run[0]
    assert found_in(last.parent) == [last, before] and read(last)[1].steps == 7


def test_what_is_further_than_the_training_goes_before_what_is_older(run, two):
    """Left behind by another try, cut off or damaged: it takes no other's place."""
    folder = two[0].parent
    trained(ready(max_steps=5), Checkpoints(folder, {}, every=2))
    assert names(folder) == [step(2), step(4)]


def positions(contents: bytes) -> list[int]:
    """In the length, the header's braces, names, digits and padding, the metadata, and in every tensor."""
    length = int.from_bytes(contents[:8], "little")
    header = json.loads(contents[8 : 8 + length])
    metadata = contents.index(b"__metadata__")
    draw = random.Random(0)
    of_tensors = [
        8 + length + entry["data_offsets"][i] - i
        for name, entry in header.items()
        if name != "__metadata__"
        for i in (0, 1)
    ]
    in_header = [*draw.sample(range(8, 8 + length), 150), *range(metadata, metadata + 60)]
    return [*range(8), 8, 7 + length, *in_header, *of_tensors]


def test_a_flipped_bit_anywhere_is_never_gone_on_from(two):
    last, draw, refused = two[0], random.Random(1), 0
    contents = last.read_bytes()
    for position in positions(contents):
        flipped = bytearray(contents)
        flipped[position] ^= 1 << draw.randrange(8)
        last.write_bytes(flipped)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                _, snapshot = newest(last.parent)
            except UserError as error:
                refused += 1
                assert str(last) in str(error) and "\n" not in str(error)
                assert str(error).endswith("start the run again, or take another copy of the folder")
                assert not told
            else:
                assert snapshot.steps == 6, f"read, flipped at {position}"
                assert len(told) == 1 and "is cut off" in str(told[0].message)
    assert refused > 100
    last.write_bytes(contents)
    assert newest(last.parent)[1].steps == 7


def foreign(path: Path, kind: str) -> None:
    tensors = {"log.losses": torch.zeros(3)}
    if kind == "of others":
        save_file(tensors, path, {"format": "pt"})
    elif kind == "without metadata":
        save_file(tensors, path)
    elif kind == "with another digest":
        save_file(tensors, path, {ABOUT: "{}", FACTS: "{}", DIGEST: "0" * 64})
    elif kind == "without JSON":
        save_file(tensors, path, {ABOUT: "lora", FACTS: "{}", DIGEST: "0" * 64})
    elif kind == "a text":
        path.write_bytes(b"# notes on the run, of somebody else" * 9)
    elif kind == "a pickle":
        torch.save(tensors, path)
    else:
        header = {"offsets of no number": '{"a": {"data_offsets": [0, "x"]}}', "a list": "[1, 2]"}[kind]
        path.write_bytes(len(header).to_bytes(8, "little") + header.encode())


@pytest.mark.parametrize(
    "kind",
    [
        "of others",
        "without metadata",
        "with another digest",
        "without JSON",
        "offsets of no number",
        "a list",
        "a text",
        "a pickle",
    ],
)
def test_a_foreign_file_is_refused_in_one_line(two, kind):
    foreign(two[0], kind)
    with pytest.raises(UserError, match=r"is no checkpoint of this project|is damaged") as refusal:
        newest(two[0].parent)
    assert "\n" not in str(refusal.value) and str(two[0]) in str(refusal.value)


def test_what_a_kill_kept_from_being_dropped_goes_when_the_run_goes_on(two):
    """Or kills at that very moment, one after the other, would fill the disk."""
    folder = two[0].parent
    for steps in (3, 4):
        shutil.copy(two[0], folder / f"step-{steps:09}.safetensors")
    _, snapshot = newest(folder)
    Checkpoints(folder, {}, resumed=snapshot)
    assert found_in(folder) == sorted(two, reverse=True)


# What fails while one is written.


def no_room(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def short_write(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    save_file(tensors, path, metadata)
    os.truncate(path, path.stat().st_size // 2)
    no_room()


def refused_by_the_system(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """In the middle of safetensors' own writing, which has an error of its own for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        save_file(tensors, path, metadata)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def of_files(real: Callable[[int], None]) -> Callable[[int], None]:
    return lambda number: real(number) if stat.S_ISDIR(os.fstat(number).st_mode) else no_room()


def of_folders(real: Callable[[int], None]) -> Callable[[int], None]:
    return lambda number: no_room() if stat.S_ISDIR(os.fstat(number).st_mode) else real(number)


FAULTS = {  # what is replaced by what, and whether the checkpoint is there all the same
    "a full disk": (of_checkpoints, "save_file", no_room, False),
    "a short write": (of_checkpoints, "save_file", short_write, False),
    "a file too large": (of_checkpoints, "save_file", refused_by_the_system, False),
    "a folder that is not to be made": (whole_files.tempfile, "mkdtemp", no_room, False),
    "flushing the file": (os, "fsync", of_files(os.fsync), False),
    "renaming": (Path, "replace", no_room, False),
    "flushing the folder": (os, "fsync", of_folders(os.fsync), True),
    "removing the old": (Path, "unlink", no_room, True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_fails_is_a_warning_and_those_before_it_stay(run, tmp_path, monkeypatch, fault):
    """At every step from the third to the sixth; what is trained is the same, and the next one is written."""
    place, name, broken, is_there = FAULTS[fault]
    left: dict[int, list[str]] = {}

    class Broken(Checkpoints):
        def write(self, state):
            taken = len(state.log)
            if 3 <= taken <= 6:
                with monkeypatch.context() as patch:
                    patch.setattr(place, name, broken)
                    path = super().write(state)
                assert (path is not None) == is_there
            else:
                assert super().write(state)
            left[taken] = names(self.folder)
            assert newest(self.folder)[1].steps == (taken if is_there or not 3 <= taken <= 6 else 2)
            return None

    with pytest.warns(UserWarning) as told:
        assert trained(ready(), Broken(tmp_path, {}, every=1)) == run[0]
    kind = "trouble with the" if is_there else "no"
    assert [re.sub(r":.*;", ":;", str(one.message)) for one in told] == [
        f"{kind} checkpoint after step {i}:; make room in {quoted(tmp_path, length=60)}" for i in range(3, 7)
    ]
    why = "File too large" if fault == "a file too large" else "No space left on device"
    assert all(why in str(one.message) for one in told)
    if fault == "removing the old":
        assert left[6] == [step(i) for i in range(1, 7)], "what cannot be removed"
    elif is_there:
        assert left[6] == [step(5), step(6)], "they do not pile up"
    else:
        assert left[6] == left[2] == [step(1), step(2)]
    assert left[7] == ([step(6), step(7)] if is_there else [step(2), step(7)]), "and what was left is gone"


def test_the_first_one_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(of_checkpoints, "save_file", short_write)
    with pytest.warns(UserWarning, match="no checkpoint after step 4: No space left on device"):
        trained(ready(), Checkpoints(tmp_path / "run" / "checkpoints", {}))
    assert names(tmp_path) == []


def test_checkpoints_that_cannot_go_are_a_warning(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints", {})
    trained(ready(), checkpoints)
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="stays: No space.*; delete it"):
        patch.setattr(Path, "unlink", no_room)
        checkpoints.clear()
    assert names(tmp_path / "checkpoints") == [step(4)]


def test_what_a_killed_process_left_goes_with_the_next_start(tmp_path):
    """Of a first checkpoint, beside the folder that was not there yet, and of a later one, in it."""
    for place in (tmp_path, tmp_path / "checkpoints"):
        (place / ".checkpoints.part-1").mkdir(parents=True)
        (place / ".checkpoints.part-1" / step(1)).write_bytes(b"\0" * 99)
    (tmp_path / ".other.part-1").mkdir()
    Checkpoints(tmp_path / "checkpoints", {})
    assert names(tmp_path) == [".other.part-1", "checkpoints"] and names(tmp_path / "checkpoints") == []
