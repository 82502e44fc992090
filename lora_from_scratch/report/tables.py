"""Tables in Markdown."""

from collections.abc import Sequence

from lora_from_scratch.runs.record import MEAN

ACCURACY = "accuracy (%), 95 % interval"
MANY = 10  # classes
MEMORY_KINDS = {"cuda": "allocated", "resident": "peak resident"}


def results_table(records: Sequence[dict[str, object]]) -> str:
    """Records (as in results.json), all of one dataset, under the published table's columns."""
    columns = ("method", ACCURACY, f1_title(records[0]["f1_of"]), "trainable", "time (s)", "memory")
    return markdown_table([columns, *map(_cells, records)])


def f1_title(of: str) -> str:
    """The title of a column of F1, which names the class."""
    return "F1, mean of the classes (%)" if of == MEAN else f"F1 of class {shown(of)} (%)"


def interval_text(record: dict[str, object]) -> str:
    """The 95 % interval of a record's accuracy."""
    return "{:.1f} to {:.1f}".format(*record["accuracy_interval_95"])


def against_baseline(record: dict[str, object]) -> str:
    """Empty where the accuracy's whole interval lies above what always saying the commonest class scores."""
    score = record["baseline"]["accuracy"]
    if record["accuracy"] <= score:
        return "does not beat"
    return "is not shown to beat" if record["accuracy_interval_95"][0] <= score else ""


def classes_text(counts: dict[str, int]) -> str:
    """Each class with its count; of many the commonest ones."""
    few = counts if len(counts) <= MANY else sorted(counts, key=counts.__getitem__, reverse=True)[:5]
    more = f", and {len(counts) - 5} more" if few is not counts else ""
    return ", ".join(f"{shown(name)} ({counts[name]:,})" for name in few) + more


def shown(name: str) -> str:
    """A class's name for the screen and in tables: on one line, cut where it is long."""
    name = " ".join(name.split())
    return name if len(name) <= 30 else f"{name[:27]}..."


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first one the header, with every column as wide as its widest cell."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def memory_text(memory: dict[str, object]) -> str:
    """What the published table calls memory: on CUDA what stays allocated, on the CPU the peak."""
    size = memory["allocated_bytes" if memory["kind"] == "cuda" else "peak_bytes"]
    kind = MEMORY_KINDS.get(memory["kind"], "peak resident since the program began")
    return f"{size / 1e9:.2f} GB {kind}" if size is not None else "-"


def parts_text(memory: dict[str, object]) -> str:
    """The peak, taken apart by arithmetic."""
    parts = ", ".join(f"{part} {size / 1e6:,.1f}" for part, size in memory["parts_bytes"].items())
    return f"peak {memory['peak_bytes'] / 1e6:,.1f} MB: {parts}"


def _cells(record: dict[str, object]) -> tuple[str, ...]:
    trainable = record["trainable_parameters"]
    return (
        str(record["method"]),
        f"{record['accuracy']:.2f} ({interval_text(record)})",
        f"{record['f1']:.2f}",
        f"{trainable:,} ({100 * trainable / record['total_parameters']:.4g} %)" if trainable else "-",
        f"{record['train_seconds']:.1f}" if record["steps"] else "-",
        memory_text(record["memory"]),
    )
