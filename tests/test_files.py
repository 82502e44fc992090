"""Files appear together, whole, or not at all."""

from __future__ import annotations

import os

import pytest

from lora_from_scratch.files import appearing


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


def test_files_can_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        with appearing(tmp_path) as aside:
            (aside / "one").write_text("")
            (aside / "one").chmod(0o600)  # as safetensors leaves its files
    finally:
        os.umask(before)
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o644
