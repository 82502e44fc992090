"""Results for people: tables, a summary, a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy
from torch.nn import Parameter
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.experiment import Prepared, RunResult, epoch_plan
from lora_from_scratch.measure import count_parameters

COLUMNS = ("method", "accuracy (%)", "F1 (%)", "trainable", "time (s)", "memory")
MEMORY_KINDS = {"cuda": "allocated", "resident": "peak resident"}


def results_table(results: Sequence[dict[str, object]]) -> str:
    """Results (as in results.json) under the published table's columns, in Markdown."""
    rows = [COLUMNS] + [
        (
            str(result["method"]),
            f"{result['accuracy']:.2f} ± {result['accuracy_margin_95']:.2f}",
            f"{result['f1']:.2f}",
            _trainable(result),
            f"{result['train_seconds']:.1f}" if result["steps"] else "-",
            memory_text(result["memory"]),
        )
        for result in results
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


def summary(result: RunResult) -> str:
    """What a run has to say at its end: the table, and what stands behind its columns."""
    prepared, parameters, training = result.prepared, result.parameters, result.training
    values = result.as_dict()
    lines = [
        f"{prepared.model_name} on {prepared.dataset_name}, "
        f"{len(prepared.validation_examples):,} sentences of {prepared.dataset.validation_name}",
        "",
        results_table([values]),
        "",
        f"parameters  {parameters.adapter:,} + head {parameters.head:,}"
        f" = {parameters.trainable:,} of {parameters.total:,} ({100 * parameters.share:.4g} %)",
    ]
    if training:
        phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in training.phases.items())
        lines += [
            f"time        {training.seconds:.1f} s: {phases}",
            f"speed       {values['sentences_per_second']:,.0f} sentences/s,"
            f" {values['tokens_per_second']:,.0f} real tokens/s,"
            f" batches {100 * training.padding_efficiency:.1f} % full",
        ]
    if result.memory.kind == "cuda" and result.memory.peak_bytes is not None:
        lines.append(f"memory      peak {result.memory.peak_bytes / 1e9:.2f} GB allocated on the GPU")
    return "\n".join(lines)


def evaluation_text(values: dict[str, object]) -> str:
    """What an evaluation has to say: the same columns as a run, but for the training's."""
    data = values["data"]
    row = {**values, "method": values["adapter"], "steps": 0}
    return "\n".join(
        [
            f"{values['adapter']} on {values['dataset']}, {data['sentences']:,} sentences of {data['name']}",
            "",
            results_table([row]),
            "",
            f"speed       {values['sentences_per_second']:,.0f} sentences/s,"
            f" {values['tokens_per_second']:,.0f} real tokens/s in {values['config']['precision']}",
        ]
    )


def plan(prepared: Prepared) -> str:
    """What a run would do: the parameters by part, and what an epoch holds."""
    config, model, examples = prepared.config, prepared.model, prepared.train_examples
    parameters, epoch = count_parameters(model), epoch_plan(prepared)
    rows = [("part", "parameters", "trainable")]
    for name, part in _parts(model).items():
        trainable = sum(p.numel() for p in part if p.requires_grad)
        rows.append((name, f"{sum(p.numel() for p in part):,}", f"{trainable:,}"))
    rows.append(("all", f"{parameters.total:,}", f"{parameters.trainable:,}"))
    return "\n".join(
        [
            f"{config.method}: {prepared.model_name} on {prepared.dataset_name}",
            "",
            markdown_table(rows),
            "",
            f"trainable   {parameters.trainable:,} of {parameters.total:,} ({100 * parameters.share:.4g} %):"
            f" {parameters.adapter:,} + head {parameters.head:,}",
            f"epoch       {epoch['sentences']:,} sentences, {epoch['steps']:,} steps,"
            f" {epoch['tokens']:,} tokens, padding efficiency {100 * epoch['padding_efficiency']:.1f} %",
            f"truncated   {examples.truncated:,} sentences longer than {config.max_length} tokens",
        ]
    )


def banner(prepared: Prepared) -> str:
    """Says in plain sight what stands in for GPT-2 or SST-2."""
    missing = " and ".join(prepared.substituted)
    lines = [
        f"The hub is out of reach and its cache does not hold {missing}: this run goes on with",
        f"  model    {prepared.model_name}",
        f"  dataset  {prepared.dataset_name}",
        "Its figures are theirs, not those of GPT-2 on SST-2.",
    ]
    width = max(map(len, lines))
    return "\n".join(["=" * width, *lines, "=" * width])


def draw_training(result: RunResult) -> bytes | None:
    """A PNG of the loss over the steps and of where the time went; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    training = result.training
    losses = numpy.array([row["loss"] for row in training.metrics])
    window = max(1, len(losses) // 50)
    smooth = numpy.convolve(losses, numpy.ones(window) / window, mode="valid")
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    left.plot(range(1, len(losses) + 1), losses, color="0.8", linewidth=0.8, label="each step")
    left.plot(range(window, len(losses) + 1), smooth, color="C0", label=f"mean of {window} steps")
    left.set(xlabel="step", ylabel="training loss (nats)")
    left.legend()
    phases = list(training.phases)
    bars = right.barh(phases, [training.phases[phase] for phase in phases], color="C0")
    right.bar_label(bars, fmt="%.1f s", padding=3)
    right.margins(x=0.2)
    right.invert_yaxis()
    right.set(xlabel="seconds", title=f"{training.seconds:.1f} s of training")
    prepared = result.prepared
    figure.suptitle(
        f"{prepared.config.method}: {prepared.model_name} on {prepared.dataset_name}, "
        f"accuracy {result.score.accuracy:.1f} ± {result.score.margin:.1f} %"
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _trainable(result: dict[str, object]) -> str:
    trainable, total = result["trainable_parameters"], result["total_parameters"]
    return f"{trainable:,} ({100 * trainable / total:.4g} %)" if trainable else "-"


def _parts(model: GPT2ForSequenceClassification) -> dict[str, list[Parameter]]:
    """The model's parameters by part: embeddings, blocks, LoRA, head."""
    parts: dict[str, list[Parameter]] = {}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            part = "LoRA A and B"
        elif name.startswith("score."):
            part = "head"
        else:
            part = {"wte": "token embeddings", "wpe": "position embeddings"}.get(name.split(".")[1], "blocks")
        parts.setdefault(part, []).append(parameter)
    return parts
