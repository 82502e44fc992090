"""Files of Apache Parquet."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lora_from_scratch.data.lines import bytes_of
from lora_from_scratch.data.rows import Numbered, Table
from lora_from_scratch.errors import UserError, first_line, quoted


def open_parquet(path: Path) -> Table:
    """The table of a file; names of label ids are in the metadata, where `datasets` writes them."""
    from pyarrow import ArrowException, parquet

    contents = io.BytesIO(bytes_of(path))
    try:
        file = parquet.ParquetFile(contents)
        schema = file.schema_arrow
    except (ArrowException, ValueError, OSError) as error:
        raise _no_parquet(path, error) from error

    def pick(names: Sequence[str]) -> Numbered:
        number = 0
        try:
            for batch in file.iter_batches(columns=list(names)):
                for row in batch.to_pylist():
                    number += 1
                    yield number, [row[name] for name in names]
        except (ArrowException, ValueError, KeyError, OSError, OverflowError) as error:
            raise _no_parquet(path, error) from error

    return Table(str(path), "row", schema.names, pick, _names_of_ids(schema.metadata or {}))


def _names_of_ids(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"].items()
        return {column: feature["names"] for column, feature in features if _are_names(feature.get("names"))}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _are_names(value: object) -> bool:
    """Whether these are different names, each of characters alone."""
    return (
        isinstance(value, list)
        and all(isinstance(name, str) and name.strip() and name.isprintable() for name in value)
        and 0 < len(value) == len(set(value))
    )


def _no_parquet(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: not whole as Parquet ({quoted(first_line(error), length=80)}); write it again")
