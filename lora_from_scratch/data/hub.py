"""Labelled sentences of a dataset on the hub, or in its cache."""

from lora_from_scratch.data.rows import Columns, Row, make_row
from lora_from_scratch.errors import NotFound, UserError, first_line

ALIASES = {"sst2": ("nyu-mll/glue", "sst2")}  # hub id and configuration behind a short name


def rows_of_hub(name: str, columns: Columns) -> tuple[list[Row], list[Row], str, list[str] | None]:
    """Rows for training and for validation, the second split's name, and the names of the ids if it has any.

    Raises NotFound where neither the hub nor its cache has it; UserError where it does not load, or lacks a
    split or a column.
    """
    import datasets  # a second's import, needed here alone

    try:
        splits = datasets.load_dataset(*ALIASES.get(name, (name,)))
    except (ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise UserError(f"dataset {name!r} does not load from the hub: {reason}") from error
    except OSError as error:
        raise NotFound(
            f"dataset {name!r} is neither here nor in the hub's cache, and the hub does not give it: "
            f"check the name and the network, or use --dataset bundled"
        ) from error
    second = next((split for split in ("validation", "dev", "test") if split in splits), None)
    if "train" not in splits or second is None:
        raise UserError(f"dataset {name!r} has splits {', '.join(splits)}; it needs train and validation")
    rows = []
    for split in ("train", second):
        place = f"dataset {name!r}, split {split}"
        text, label = columns.found_in(splits[split].column_names, place)
        pairs = zip(splits[split][text], splits[split][label], strict=True)
        rows.append([make_row(*pair, f"{place}, row {i}") for i, pair in enumerate(pairs)])
    return *rows, second, getattr(splits["train"].features[label], "names", None)
