"""The folder of one run: what was trained first, then what it is worth, then what people look at."""

import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

from lora_from_scratch.errors import UserError, first_line
from lora_from_scratch.formats.adapted import Adapted
from lora_from_scratch.formats.table import FORMATS, format_named
from lora_from_scratch.formats.whole_files import appearing, write_whole
from lora_from_scratch.runs.prepare import Prepared
from lora_from_scratch.runs.record import as_json, run_record
from lora_from_scratch.runs.writable import RESULTS, check_place
from lora_from_scratch.train.checkpoints import FOLDER as CHECKPOINTS
from lora_from_scratch.train.checkpoints import found_in
from lora_from_scratch.train.log import Training

METRICS, PICTURE, CARD = "metrics.jsonl", "training.png", "README.md"
OURS = {RESULTS, METRICS, PICTURE, CARD, *(n for format in FORMATS for n in format_named(format).FILES)}


def check_folder(folder: Path, resumed: bool = False) -> None:
    """Fail before training: UserError if the folder cannot be written to, or holds somebody else's files.

    Nor does a new run begin where one was interrupted.
    """
    check_place(folder)
    if found_in(folder / CHECKPOINTS) and not resumed:
        told = f"{folder} holds an interrupted run: --resume {folder} goes on with it"
        raise UserError(f"{told}; to begin anew, delete its {CHECKPOINTS}, or name another --output-dir")
    if resumed:  # the files there are its own: a kill may have come before results.json lists them
        return
    for name in sorted(OURS - listed_files(folder)):
        if (folder / name).exists():
            raise UserError(f"--output-dir {folder} holds a {name} that is no earlier run's: name another")


def listed_files(folder: Path) -> set[str]:
    """What a run wrote there, by its results.json; nothing where that is not there, or somebody else's."""
    try:
        values = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        return OURS & set(values["files"]) if "environment" in values else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def write_trained(prepared: Prepared, training: Training | None, folder: Path) -> None:
    """Write what was trained (see `formats/`), metrics.jsonl (one line a step) and a first results.json.

    The files of an earlier run in the folder go. Random weights are not saved: nothing can be built on them.
    UserError if it could not be written, to a full disk for instance; what was trained is then in one of the
    system's folders for temporary files, if there is room, and the error says so.
    """
    earlier = listed_files(folder)
    try:
        try:
            _write_trained(prepared, training, folder, earlier)
        except KeyboardInterrupt as interrupt:  # what took so long is written all the same
            _write_trained(prepared, training, folder, earlier)
            raise KeyboardInterrupt(f"; what was trained is in {folder}") from interrupt
    except Exception as error:
        rescue = Path(tempfile.mkdtemp(prefix="lora-from-scratch-"))
        try:
            _write_trained(prepared, training, rescue, set())
        except Exception:
            shutil.rmtree(rescue)
            raise error from None
        raise UserError(f"{first_line(error)}; what was trained is in {rescue}") from error


def _write_trained(prepared: Prepared, training: Training | None, folder: Path, earlier: set[str]) -> None:
    config = prepared.config
    with appearing(folder) as aside:
        if training and not config.random_init:
            made_by = config.method, asdict(config.settings)
            adapted = Adapted(prepared.model, prepared.tokenizer, config.model, *made_by)
            format_named(config.way.format).save(adapted, aside)
        rows = training.metrics if training else []
        (aside / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        names = sorted([RESULTS, *(path.name for path in aside.iterdir())])
        record = run_record(prepared, training, None, folder)
        (aside / RESULTS).write_bytes(as_json({**record, "files": names}))
        # All is written. From here to the end of the block the old results would speak of new weights.
        for name in [RESULTS, *(earlier - set(names))]:
            (folder / name).unlink(missing_ok=True)


def write_record(record: dict[str, object], folder: Path, adding: str = RESULTS) -> dict[str, object]:
    """Put the record in the place of the one there, with the files that this lists, and one; returns it.

    OSError if the disk is full; the one there then stays.
    """
    record = {**record, "files": sorted({*listed_files(folder), adding})}
    write_whole(folder / RESULTS, as_json(record))
    return record


def add_file(name: str, contents: bytes, folder: Path) -> None:
    """One more file, listed in the record first: a later run here may replace it. OSError as above."""
    before = (folder / RESULTS).read_bytes()
    write_record(json.loads(before), folder, adding=name)
    try:
        write_whole(folder / name, contents)
    except BaseException:
        write_whole(folder / RESULTS, before)
        raise
