"""Files appear together, whole, or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from lora_from_scratch.formats.whole_files import appearing, write_whole


def test_files_move_in_at_the_end_and_replace_older_ones(tmp_path):
    folder = tmp_path / "a" / "b"
    for text in ("old", "new"):
        with appearing(folder) as aside:
            (aside / "one").write_text(text)
            (aside / "two").write_text(text)
            assert not (folder / "one").exists() or (folder / "one").read_text() == "old"
        assert {path.name: path.read_text() for path in folder.iterdir()} == {"one": text, "two": text}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_after_an_error_everything_is_as_before(tmp_path, error):
    (tmp_path / "one").write_text("old")
    for folder in (tmp_path, tmp_path / "new" / "er"):
        with pytest.raises(error), appearing(folder) as aside:
            (aside / "one").write_text("half")
            raise error
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"one": "old"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without a device that is always full")
def test_a_full_disk_is_told_with_the_folder(tmp_path):
    """Python's own error for it names no file."""
    with pytest.raises(OSError, match=r"No space left on device: '.*/new'$"), appearing(tmp_path / "new"):
        Path("/dev/full").write_text("one")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", [False, True])
def test_an_error_names_the_files_as_they_will_be_called(tmp_path, there):
    """Whoever reads it knows nothing of the folder aside; one folder may appear inside another."""
    folder = tmp_path / "run"
    if there:
        folder.mkdir()
    for make in (
        lambda path: OSError(f"{path}: Error while serializing: no room"),  # as safetensors tells it
        lambda path: OSError(errno.ENOSPC, "No room", str(path)),
        lambda path: OSError(errno.EXDEV, "No link", str(path), None, str(path)),
    ):
        with pytest.raises(OSError) as found, appearing(folder) as outer, appearing(outer) as aside:
            raise make(aside / "weights")
        assert str(found.value) == str(make(folder / "weights"))


def test_a_disk_without_room_for_a_folder_is_told_with_its_name(tmp_path, monkeypatch):
    def no_room(path: str, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No room", path)

    monkeypatch.setattr(os, "mkdir", no_room)
    with pytest.raises(OSError, match=f"No room: '{tmp_path / 'run'}'$"), appearing(tmp_path / "run"):
        pass


def test_files_can_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        with appearing(tmp_path) as aside:
            (aside / "one").write_text("")
            (aside / "one").chmod(0o600)  # as safetensors leaves its files
    finally:
        os.umask(before)
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o644


def test_a_neighbours_files_survive_an_error(tmp_path):
    """Another run made its folder in the parent that this one had to make, too."""
    folder = tmp_path / "runs" / "mine"
    with pytest.raises(OSError), appearing(folder) as aside:
        (aside / "one").write_text("half")
        (tmp_path / "runs" / "other").mkdir()
        (tmp_path / "runs" / "other" / "weights").write_text("trained")
        raise OSError
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]
    assert (tmp_path / "runs" / "other" / "weights").read_text() == "trained"


def test_a_new_folder_appears_with_all_its_files(tmp_path, monkeypatch):
    """Killed at any moment, it is not there or whole: one rename."""
    renamed = []
    monkeypatch.setattr(
        Path, "rename", lambda path, to: renamed.append((sorted(p.name for p in path.iterdir()), to))
    )
    with appearing(tmp_path / "new") as aside:
        for name in ("one", "two"):
            (aside / name).write_text(name)
    assert renamed == [(["one", "two"], tmp_path / "new")]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"

    def no_room(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OSError, match="full"):
        write_whole(path, b"newer")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_what_is_written_is_flushed_to_disk(tmp_path, monkeypatch):
    """The files, and the folders in which they have got their names."""
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda number: flushed.append(stat.S_ISDIR(os.fstat(number).st_mode)))
    with appearing(tmp_path / "new") as aside:
        for name in ("one", "two"):
            (aside / name).write_text(name)
    write_whole(tmp_path / "three", b"three")
    assert flushed == [False, False, True, False, True]
