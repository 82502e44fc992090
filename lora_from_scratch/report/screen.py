"""What a run shows on the screen: a banner, its plan, a summary."""

from collections import Counter

from transformers import GPT2ForSequenceClassification

from lora_from_scratch.data.batches import bucketed_batches, padding_efficiency
from lora_from_scratch.report.tables import markdown_table, parts_text, results_table
from lora_from_scratch.runs.prepare import Prepared, generator_for
from lora_from_scratch.train.measure import count_parameters

PARTS = {"wte": "token embeddings", "wpe": "position embeddings", "score": "head"}  # others: blocks


def banner(prepared: Prepared) -> str:
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
truncated   {examples.truncated:,} sentences longer than {config.max_length} tokens"""


def summary(record: dict[str, object]) -> str:
    """What a record has to say: the table, and what stands behind its columns."""
    trainable, total, memory = record["trainable_parameters"], record["total_parameters"], record["memory"]
    speed, what = (record, "training") if record["steps"] else (record["evaluation"], "evaluating")
    text = f"""\
{record["model"]} on {record["dataset"]}, {record["data"]["validation_sentences"]:,} sentences of \
{record["data"]["validation_name"]}

{results_table([record])}

F1          of {record["f1_of"]}; accuracy and F1 in {record["evaluation"]["precision"]}
parameters  {record["adapter_parameters"]:,} + head {record["head_parameters"]:,} = \
{trainable:,} of {total:,} ({100 * trainable / total:.4g} %)
"""
    if record["phase_seconds"]:
        phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in record["phase_seconds"].items())
        text += f"time        {record['train_seconds']:.1f} s: {phases}\n"
    text += f"speed       {speed['sentences_per_second']:,.0f} sentences/s, "
    text += f"{speed['tokens_per_second']:,.0f} real tokens/s in {what}"
    if record["steps"]:
        text += f", batches {100 * record['padding_efficiency']:.1f} % full"
    if memory["parts_bytes"] and memory["peak_bytes"] is not None:
        text += f"\nmemory      {parts_text(memory)}"
    return text


def _parameter_table(model: GPT2ForSequenceClassification) -> str:
    total, trainable = Counter(), Counter()
    for name, parameter in model.named_parameters():
        where = name.removeprefix("transformer.").split(".")[0]
        part = "LoRA A and B" if ".lora_" in name else PARTS.get(where, "blocks")
        total[part] += parameter.numel()
        trainable[part] += parameter.numel() * parameter.requires_grad
    rows = [(part, f"{total[part]:,}", f"{trainable[part]:,}") for part in total]
    rows.append(("all", f"{total.total():,}", f"{trainable.total():,}"))
    return markdown_table([("part", "parameters", "trainable"), *rows])
