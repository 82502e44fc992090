"""Labelled sentences of a dataset on the hub, or in its cache."""

from lora_from_scratch.data.rows import Rows, Selection, collect
from lora_from_scratch.errors import NotFound, UserError, first_line

ALIASES = {"sst2": ("nyu-mll/glue", "sst2")}  # hub id and configuration behind a short name


def rows_of_hub(name: str, selection: Selection) -> tuple[Rows, Rows, str]:
    """Rows for training and for validation, and the second split's name.

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
        columns = splits[split].column_names
        text, label = selection.found_in(columns, place)
        names = getattr(splits[split].features[label], "names", None)
        triples = zip(range(len(splits[split])), splits[split][text], splits[split][label], strict=True)
        rows.append(collect(triples, place, "row", selection.drop_blank, names))
    return *rows, second
