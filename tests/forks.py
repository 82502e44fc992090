"""Python processes that have torch, transformers and the package loaded: forks of this one before any test.

To start Python and import them takes five seconds of a CPU, to fork takes a hundredth. But a process in which
a backward pass has run may not train in a fork. So conftest.py calls `keep_one` once all test files are
imported and no test has run, and after `gc.freeze`: else each fork would look through all that, and copy it.
The process that is kept does nothing but fork again, for each `in_a_fork`.
Tests of what is imported when, or of what is read at import, start Python itself.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

_kept: list[socket.socket] = []


def keep_one() -> None:
    """Fork a process that waits until it is asked to fork, and ends when this one does."""
    here, there = socket.socketpair()
    if not os.fork():
        here.close()
        try:
            _serve(there)
        finally:
            os._exit(0)
    there.close()
    here.settimeout(400)  # seconds; a fork that hangs fails its test
    _kept.append(here)
    atexit.register(here.close)


def in_a_fork(program: Callable[..., None], *arguments: object, folder: Path) -> CompletedProcess[str]:
    """Call a function of a test file in a process of its own; what came of it, as `subprocess.run` says it.

    The arguments arrive as text. Nothing that a test has changed in this process is changed there.
    """
    asked = [program.__module__, program.__name__, str(folder), *map(str, arguments)]
    _kept[0].sendall(json.dumps(asked).encode() + b"\n")
    with _kept[0].makefile() as answers:
        return CompletedProcess(asked, *json.loads(answers.readline()))


def _serve(asked: socket.socket) -> None:
    with asked.makefile() as lines:
        for line in lines:
            with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
                child = os.fork()
                if not child:
                    _run(out.fileno(), err.fileno(), *json.loads(line))
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                texts = [file.seek(0) or file.read() for file in (out, err)]
            asked.sendall(json.dumps([status, *texts]).encode() + b"\n")


def _run(out: int, err: int, module: str, name: str, folder: str, *arguments: str) -> None:
    """Be that process: call the function, and end as a program does."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    status: object = 0
    try:
        os.chdir(folder)
        getattr(sys.modules[module], name)(*arguments)
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)
