"""Tables in Markdown."""

from collections.abc import Sequence

COLUMNS = ("method", "accuracy (%)", "F1 (%)", "trainable", "time (s)", "memory")
MEMORY_KINDS = {"cuda": "allocated", "resident": "peak resident"}


def results_table(records: Sequence[dict[str, object]]) -> str:
    """Records (as in results.json) under the published table's columns."""
    return markdown_table([COLUMNS, *map(_cells, records)])


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first one the header, with every column as wide as its widest cell."""
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
        f"{record['accuracy']:.2f} ± {record['accuracy_margin_95']:.2f}",
        f"{record['f1']:.2f}",
        f"{trainable:,} ({100 * trainable / record['total_parameters']:.4g} %)" if trainable else "-",
        f"{record['train_seconds']:.1f}" if record["steps"] else "-",
        memory_text(record["memory"]),
    )
