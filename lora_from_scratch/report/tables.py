"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

COLUMNS = ("method", "accuracy (%)", "F1 (%)", "trainable", "time (s)", "memory")
MEMORY_KINDS = {
    "cuda": "allocated",
    "resident": "peak resident",
    "process": "peak resident since the program began",
}


def results_table(records: Sequence[dict[str, object]]) -> str:
    """Records (as in results.json) under the published table's columns."""
    rows = [COLUMNS] + [
        (
            str(record["method"]),
            f"{record['accuracy']:.2f} ± {record['accuracy_margin_95']:.2f}",
            f"{record['f1']:.2f}",
            _trainable(record),
            f"{record['train_seconds']:.1f}" if record["steps"] else "-",
            memory_text(record["memory"]),
        )
        for record in records
    ]
    return markdown_table(rows)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first one the header, with every column as wide as its widest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def memory_text(memory: dict[str, object]) -> str:
    """What the published table calls memory: on CUDA what stays allocated, on the CPU the peak."""
    kind = memory["kind"]
    size = memory["allocated_bytes" if kind == "cuda" else "peak_bytes"]
    return f"{size / 1e9:.2f} GB {MEMORY_KINDS[kind]}" if size is not None else "-"


def parts_text(memory: dict[str, object]) -> str:
    """The peak, taken apart by arithmetic."""
    parts = ", ".join(f"{part} {size / 1e6:,.1f}" for part, size in memory["parts_bytes"].items())
    return f"peak {memory['peak_bytes'] / 1e6:,.1f} MB: {parts}"


def _trainable(record: dict[str, object]) -> str:
    trainable, total = record["trainable_parameters"], record["total_parameters"]
    return f"{trainable:,} ({100 * trainable / total:.4g} %)" if trainable else "-"
