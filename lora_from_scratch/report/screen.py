"""What a run shows on the screen: a banner, its plan, a summary."""

from __future__ import annotations

from torch.nn import Parameter
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.data.batches import bucketed_batches, padding_efficiency
from lora_from_scratch.report.tables import markdown_table, parts_text, results_table
from lora_from_scratch.runs.prepare import Prepared, generator_for
from lora_from_scratch.train.measure import count_parameters


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


def plan(prepared: Prepared) -> str:
    """What a run would do: the parameters by part, and what an epoch holds."""
    config, model, examples = prepared.config, prepared.model, prepared.train_examples
    parameters = count_parameters(model)
    rows = [("part", "parameters", "trainable")]
    for name, part in _parts(model).items():
        trainable = sum(p.numel() for p in part if p.requires_grad)
        rows.append((name, f"{sum(p.numel() for p in part):,}", f"{trainable:,}"))
    rows.append(("all", f"{parameters.total:,}", f"{parameters.trainable:,}"))
    batches = bucketed_batches(examples.lengths, config.batch_size, generator_for(config.seed, "order"))
    return "\n".join(
        [
            f"{config.method}: {prepared.model_name} on {prepared.dataset_name}",
            "",
            markdown_table(rows),
            "",
            f"trainable   {parameters.trainable:,} of {parameters.total:,} ({100 * parameters.share:.4g} %):"
            f" {parameters.adapter:,} + head {parameters.head:,}",
            f"epoch       {len(examples):,} sentences, {len(batches):,} steps, "
            f"{int(examples.lengths.sum()):,} tokens, "
            f"padding efficiency {100 * padding_efficiency(examples.lengths, batches):.1f} %",
            f"truncated   {examples.truncated:,} sentences longer than {config.max_length} tokens",
        ]
    )


def summary(record: dict[str, object]) -> str:
    """What a record has to say: the table, and what stands behind its columns."""
    data, trainable, total = record["data"], record["trainable_parameters"], record["total_parameters"]
    speed, what = (record, "training") if record["steps"] else (record["evaluation"], "evaluating")
    lines = [
        f"{record['model']} on {record['dataset']}, "
        f"{data['validation_sentences']:,} sentences of {data['validation_name']}",
        "",
        results_table([record]),
        "",
        f"F1          of {record['f1_of']}; accuracy and F1 in {record['evaluation']['precision']}",
        f"parameters  {record['adapter_parameters']:,} + head {record['head_parameters']:,}"
        f" = {trainable:,} of {total:,} ({100 * trainable / total:.4g} %)",
    ]
    if record["phase_seconds"]:
        phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in record["phase_seconds"].items())
        lines.append(f"time        {record['train_seconds']:.1f} s: {phases}")
    lines.append(
        f"speed       {speed['sentences_per_second']:,.0f} sentences/s,"
        f" {speed['tokens_per_second']:,.0f} real tokens/s in {what}"
    )
    if record["steps"]:
        lines[-1] += f", batches {100 * record['padding_efficiency']:.1f} % full"
    if record["memory"]["parts_bytes"] and record["memory"]["peak_bytes"] is not None:
        lines.append(f"memory      {parts_text(record['memory'])}")
    return "\n".join(lines)


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
