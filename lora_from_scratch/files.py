"""Files that appear together, whole, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """`with appearing(folder) as aside:` what is written into `aside` moves into `folder` at the end.

    Both are made if need be. After an error (a full disk, an interruption) `folder` holds what it held
    before, and `aside` is gone.

    Raises:
        OSError: the folder cannot be written to.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder, prefix=".part-"))
    try:
        yield aside
        for path in sorted(aside.iterdir()):
            path.chmod(0o666 & ~_umask())  # some writers leave files that only their owner may read
            path.replace(folder / path.name)
    except BaseException:
        shutil.rmtree(missing[-1] if missing else aside, ignore_errors=True)
        raise
    aside.rmdir()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
