"""The command line: one run, or a command on what a run left, and one line for every mistake."""

import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout

from lora_from_scratch.base.reachable import go_offline_if_unreachable
from lora_from_scratch.cli import one_run
from lora_from_scratch.cli.early_checks import check_arguments, check_command
from lora_from_scratch.cli.flags import COMMANDS, command_parser, run_parser
from lora_from_scratch.cli.loading import importing, told_while
from lora_from_scratch.cli.one_line import escape_what_cannot_be_encoded, one_line, speaks
from lora_from_scratch.cli.waiting import waiting_by_load
from lora_from_scratch.errors import UserError

TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what it tells each process


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns exit status: 2 after a mistake, 130 after Ctrl-C, 143 after SIGTERM.

    Of several processes, as torchrun starts them, the first one speaks; each tells of its own mistakes.
    """
    if _alone():
        return _main(arguments)
    if lacking := [name for name in TORCHRUN if not os.environ.get(name)]:
        print(
            f"error: WORLD_SIZE is set and {lacking[0]} is not; start with torchrun, or unset it",
            file=sys.stderr,
        )
        return 2
    if not speaks():
        os.environ["TQDM_DISABLE"] = "1"  # before torch imports tqdm, which reads it then
    from torch.distributed.elastic.multiprocessing.errors import record  # shows torchrun the traceback

    if speaks():
        return record(_main)(arguments)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        return record(_main)(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = arguments.pop(0) if arguments and arguments[0] in COMMANDS else None
    escape_what_cannot_be_encoded()
    flags = vars((command_parser(command) if command else run_parser()).parse_args(arguments))
    debug = flags.pop("debug", False)
    warnings.showwarning = _show_warning
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        check_arguments(arguments)
        with waiting_by_load():
            _run_command(command, flags) if command else one_run.train(flags)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, OSError) as error:
        if debug:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if debug or not _is_out_of_memory(error):
            raise  # a defect
        told = one_line(error)[:100]
        print(f"error: out of memory ({told}); a smaller --model, or another --device", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        if speaks():
            print(f"interrupted{interrupt}", file=sys.stderr)
        return getattr(interrupt, "exit_status", 130)
    return 0


def _run_command(name: str, flags: dict[str, object]) -> None:
    if not _alone():
        raise UserError(f"{name} works in one process; start it without torchrun")
    flags = check_command(name, flags)
    with importing(), told_while("loading PyTorch and transformers", unless=flags.get("typed", False)):
        go_offline_if_unreachable()
        from lora_from_scratch.cli import commands

    commands.BY_NAME[name](**flags)


def _is_out_of_memory(error: Exception) -> bool:
    from lora_from_scratch.train.trouble import is_out_of_memory  # torch, which is loaded where this is true

    return is_out_of_memory(error)


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    if category is UserWarning and speaks():  # others are for developers
        print(f"warning: {one_line(message)}", file=sys.stderr)


def _alone() -> bool:
    """Whether torchrun started no other process beside this one."""
    return os.environ.get("WORLD_SIZE", "1") == "1"
