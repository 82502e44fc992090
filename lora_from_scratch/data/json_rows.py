"""Files of JSON objects: .json, .jsonl and .ndjson."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from lora_from_scratch.data.lines import lines_of
from lora_from_scratch.data.rows import Numbered, Table
from lora_from_scratch.errors import UserError, first_line, quoted


def open_json(path: Path) -> Table:
    """An array of objects, or one object a line: whatever the ending is, the first character decides."""
    lines = lines_of(path)
    head = next((line for line in lines if line.strip()), "")
    if head.lstrip().startswith("["):
        unit, objects = "row", _array(path)
    else:
        unit, objects = "line", list(_objects(path))
        if (
            len(objects) == 1
            and len(objects[0][1]) > 1
            and all(isinstance(value, (dict, list)) for value in objects[0][1].values())
        ):
            raise UserError(f"{path}: one object of columns; write one a row (in pandas orient='records')")
    columns: dict[str, None] = {}
    for _, row in objects:
        columns.update(dict.fromkeys(row))

    def pick(names: Sequence[str]) -> Numbered:
        return ((number, [row.get(name) for name in names]) for number, row in objects)

    return Table(str(path), unit, list(columns), pick)


def _array(path: Path) -> list[tuple[int, dict[str, object]]]:
    text = "".join(lines_of(path))
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}); mend or export it") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({first_line(error)[:80]}); mend or export it") from error
    return [(number, _object(path, f"row {number}", row)) for number, row in enumerate(values, start=1)]


def _objects(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(lines_of(path), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                why = getattr(error, "msg", first_line(error)[:80])
                raise UserError(
                    f"{path}, line {number}: not JSON ({why}); write one object a line, or one array"
                ) from error
            yield number, _object(path, f"line {number}", row)


def _object(path: Path, where: str, row: object) -> dict[str, object]:
    if not isinstance(row, dict):
        raise UserError(
            f'{path}, {where}: {quoted(row)} is no JSON object; write {{"text": ..., "label": ...}} there'
        )
    return row
