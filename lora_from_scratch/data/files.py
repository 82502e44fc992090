"""Files of labelled sentences, by their endings: a line in `FORMATS`, and a file of this room for each kind.

Nothing heavy is imported: pyarrow comes with the first .parquet file.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from lora_from_scratch.data.delimited import open_delimited
from lora_from_scratch.data.json_rows import open_json
from lora_from_scratch.data.large_files import LARGE
from lora_from_scratch.data.lines import DAMAGE, refuse_by_content, unreadable
from lora_from_scratch.data.parquet import open_parquet
from lora_from_scratch.data.rows import Rows, Selection, Table, collect, nothing_in
from lora_from_scratch.errors import UserError

FORMATS: dict[str, Callable[[Path], Table]] = {
    ".csv": partial(open_delimited, delimiters=",;\t|"),
    ".tsv": partial(open_delimited, delimiters="\t,;|"),
    ".json": open_json,
    ".jsonl": open_json,
    ".ndjson": open_json,
    ".parquet": open_parquet,
}


def suffix(path: Path) -> str:
    """The ending that says how a file is laid out: lower-cased, without .gz."""
    ending = path.suffix.lower()
    return path.with_suffix("").suffix.lower() if ending == ".gz" else ending


def is_table(name: str) -> bool:
    """Whether a name ends as one of the formats does."""
    return suffix(Path(name)) in FORMATS


def open_table(path: Path) -> Table:
    """Open a file by its ending and read its header.

    Raises UserError, then or while its rows are read, for whatever is no such file; the line says where.
    """
    if suffix(path) not in FORMATS:
        refuse_by_content(path)
        raise UserError(
            f"{path}: a dataset file ends in one of {', '.join(FORMATS)}, each also .gz; rename or export it"
        )
    try:
        refuse_by_content(path)
        table = FORMATS[suffix(path)](path)
    except DAMAGE as error:
        raise unreadable(path, error) from error
    if not table.columns:
        raise nothing_in(table.source)
    return table


def read_rows(path: Path, selection: Selection) -> Rows:
    """Every labelled text of a file. Raises UserError as `open_table`, `found_in` and `collect` do."""
    try:
        return _rows(path, selection)
    except MemoryError as error:  # a few kilobytes may hold terabytes, compressed
        raise UserError(f"{path}: its rows take more memory than there is; give it in parts") from error


def _rows(path: Path, selection: Selection) -> Rows:
    table = open_table(path)
    text, label = selection.found_in(table.columns, table.source)
    if path.stat().st_size >= LARGE and (rows := table.at_once(text, label)):
        return rows
    triples = ((number, *cells) for number, cells in table.pick([text, label]))
    return collect(triples, table.source, table.unit, selection.drop_blank, table.label_names.get(label))
