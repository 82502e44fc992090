"""The picture of a training: its loss over the steps, and where the time went."""

import io
from collections.abc import Sequence

import numpy

from lora_from_scratch.report.tables import interval_text


def draw_training(record: dict[str, object], metrics: Sequence[dict[str, float | None]]) -> bytes | None:
    """A PNG of a record and of the lines of its metrics.jsonl; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    losses = numpy.array([row["loss"] for row in metrics])
    window = max(1, len(losses) // 50)
    smooth = numpy.convolve(losses, numpy.ones(window) / window, mode="valid")
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    left.plot(range(1, len(losses) + 1), losses, color="0.8", linewidth=0.8, label="each step")
    left.plot(range(window, len(losses) + 1), smooth, color="C0", label=f"mean of {window} steps")
    seen = [
        (row["step"], row["validation_loss"]) for row in metrics if row.get("validation_loss") is not None
    ]
    if seen:
        left.plot(*zip(*seen, strict=True), color="C1", marker="o", markersize=3, label="validation")
    left.set(xlabel="step", ylabel="loss (nats)" if seen else "training loss (nats)")
    left.legend()
    phases = record["phase_seconds"]
    bars = right.barh(list(phases), list(phases.values()), color="C0")
    right.bar_label(bars, fmt="%.1f s", padding=3)
    right.margins(x=0.2)
    right.invert_yaxis()
    right.set(xlabel="seconds", title=f"{record['train_seconds']:.1f} s of training")
    title = "{method}: {model} on {dataset}, accuracy {accuracy:.1f} % ({interval})".format
    figure.suptitle(title(**record, interval=interval_text(record)), parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
