"""What a run shows on the screen: a banner, its plan, a summary."""

from collections import Counter

from transformers import GPT2ForSequenceClassification

from lora_from_scratch.base.quantised import stored_weights
from lora_from_scratch.data.batches import bucketed_batches, padding_efficiency
from lora_from_scratch.errors import quoted
from lora_from_scratch.report.tables import (
    against_baseline,
    classes_text,
    interval_text,
    markdown_table,
    parts_text,
    results_table,
    shown,
)
from lora_from_scratch.runs.prepare import Prepared, generator_for
from lora_from_scratch.runs.sources import Sources
from lora_from_scratch.train.evaluate import baseline, class_counts
from lora_from_scratch.train.measure import count_parameters

PARTS = {"wte": "token embeddings", "wpe": "position embeddings", "score": "head"}  # others: blocks
ADDED = {".lora_magnitude": "DoRA's magnitudes", ".lora_": "LoRA A and B", ".ia3_": "(IA)^3's vectors"}


def banner(prepared: Prepared | Sources) -> str:
    """Says in plain sight what stands in for GPT-2 or SST-2."""
    missing = " and ".join(prepared.substituted)
    reasons = ", ".join(dict.fromkeys(prepared.substituted.values()))
    text = f"""\
No {missing}: {reasons}, and its cache does not hold what is missing. This run goes on with
  model    {prepared.model_name}
  dataset  {prepared.dataset_name}
Its figures are theirs, not those of GPT-2 on SST-2."""
    rule = "=" * max(map(len, text.splitlines()))
    return f"{rule}\n{text}\n{rule}"


def plan(prepared: Prepared) -> str:
    """What a run would do: the parameters by part, and what an epoch holds."""
    config, examples, count = prepared.config, prepared.train_examples, count_parameters(prepared.model)
    batches = bucketed_batches(examples.lengths, config.batch_size, generator_for(config.seed, "order"))
    return f"""\
{config.method}: {prepared.model_name} on {prepared.dataset_name}

{_parameter_table(prepared.model)}

trainable   {count.trainable:,} of {count.total:,} ({100 * count.share:.4g} %): \
{count.adapter:,} + head {count.head:,}
epoch       {len(examples):,} sentences, {len(batches):,} steps, {int(examples.lengths.sum()):,} tokens, \
padding efficiency {100 * padding_efficiency(examples.lengths, batches):.1f} %
truncated   {examples.truncated:,} sentences longer than {config.max_length} tokens
{_classes_of(prepared)}"""


def summary(record: dict[str, object]) -> str:
    """What a record has to say: the table, and what stands behind its columns."""
    trainable, total, memory = record["trainable_parameters"], record["total_parameters"], record["memory"]
    verdict = against_baseline(record)
    speed, what = (record, "training") if record["steps"] else (record["evaluation"], "evaluating")
    text = f"""\
{record["model"]} on {record["dataset"]}, {record["data"]["validation_sentences"]:,} sentences of \
{record["data"]["validation_name"]}

{results_table([record])}

{_classes(record["data"], record["baseline"])}{verdict and f": this result {verdict} it"}
precision   accuracy and F1 in {record["evaluation"]["precision"]}
parameters  {record["adapter_parameters"]:,} + head {record["head_parameters"]:,} = \
{trainable:,} of {total:,} ({100 * trainable / total:.4g} %)
"""
    if record["phase_seconds"]:
        phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in record["phase_seconds"].items())
        text += f"time        {record['train_seconds']:.1f} s: {phases}\n"
    if skipped := record.get("skipped_steps"):
        text += f"skipped     {skipped:,} of {record['steps']:,} steps, whose fp16 gradients overflowed\n"
    text += f"speed       {speed['sentences_per_second']:,.0f} sentences/s, "
    text += f"{speed['tokens_per_second']:,.0f} real tokens/s in {what}"
    if record["steps"]:
        text += f", batches {100 * record['padding_efficiency']:.1f} % full"
    if memory["parts_bytes"] and memory["peak_bytes"] is not None:
        text += f"\nmemory      {parts_text(memory)}"
    return text


def not_beaten(record: dict[str, object]) -> str:
    """A warning that says so, with what to do; empty where the baseline is beaten, or nothing was trained."""
    verdict, trained = against_baseline(record), record["steps"] or record["kind"] == "evaluation"
    if not verdict or not trained:
        return ""
    label, score = quoted(record["baseline"]["label"]), record["baseline"]["accuracy"]
    advice = ["train longer (--epochs)"] if record["steps"] and record["accuracy"] < 100 else []
    if record["accuracy"] > score:
        advice.append("measure on more sentences")
    else:
        advice.append("take another --lr" if record["steps"] else "train on sentences like these")
    result = f"accuracy {record['accuracy']:.2f} % ({interval_text(record)})"
    return f"{result} {verdict} always saying {label} ({score:.2f} %): {' or '.join(advice)}"


def _classes_of(prepared: Prepared) -> str:
    names = prepared.dataset.label_names
    train = class_counts(prepared.train_examples.labels, names)
    validation = class_counts(prepared.validation_examples.labels, names)
    return _classes({"train_classes": train, "validation_classes": validation}, baseline(train, validation))


def _classes(data: dict[str, object], always: dict[str, object]) -> str:
    measured, score = classes_text(data["validation_classes"]), f"scores {always['accuracy']:.2f} %"
    lines = [f"classes     {measured}", f"baseline    always saying {shown(always['label'])} {score}"]
    if "train_classes" in data:
        lines[:1] = [f"train       {classes_text(data['train_classes'])}", f"validation  {measured}"]
    return "\n".join(lines)


def _parameter_table(model: GPT2ForSequenceClassification) -> str:
    total, trainable = Counter(), Counter()
    for name, parameter in model.named_parameters():
        where = name.removeprefix("transformer.").split(".")[0]
        part = next((added for mark, added in ADDED.items() if mark in name), PARTS.get(where, "blocks"))
        total[part] += parameter.numel()
        trainable[part] += parameter.numel() * parameter.requires_grad
    total["blocks"] += stored_weights(model)
    rows = [(part, f"{total[part]:,}", f"{trainable[part]:,}") for part in total]
    rows.append(("all", f"{total.total():,}", f"{trainable.total():,}"))
    return markdown_table([("part", "parameters", "trainable"), *rows])
