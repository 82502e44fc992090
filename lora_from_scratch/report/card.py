"""The README.md beside what was trained: what it is, how it was made and measured, how to load it."""

from __future__ import annotations

import json

from lora_from_scratch.data.hub import ALIASES
from lora_from_scratch.formats.table import format_named
from lora_from_scratch.report.tables import results_table
from lora_from_scratch.runs.config import RunConfig


def model_card(record: dict[str, object]) -> str:
    """Markdown with the front matter that hubs read; every value comes from the run's record."""
    config = RunConfig(**record["config"])
    data, names, way = record["data"], record["data"]["label_names"], config.way
    settings = way.describe(config.settings)
    format = format_named(way.format)
    lines = [
        "---",
        f"base_model: {_quoted(config.model)}",
        f"library_name: {format.TITLE}",
        "pipeline_tag: text-classification",
        "tags:",
        *(f"- {tag}" for tag in ("text-classification", "gpt2", config.method, "lora-from-scratch")),
        "datasets:",
        f"- {_quoted(ALIASES.get(config.dataset, [config.dataset])[0])}",
        "metrics:",
        "- accuracy",
        "- f1",
        "---",
        "",
        f"# {config.method}: {record['model']} on {record['dataset']}",
        "",
        f"{way.saved_as} for {record['model']}, trained by lora-from-scratch to classify text as "
        f"{_listed(names)} ({_listed(list(map(str, range(len(names)))))} in that order). The classifier head "
        "is part of it.",
        "",
        "## Measures",
        "",
        f"On {data['validation_sentences']:,} sentences ({data['validation_name']}), in "
        f"{record['evaluation']['precision']}; ± is half the 95 % confidence interval; F1 is that of "
        f"{record['f1_of']}.",
        "",
        results_table([record]),
        "",
        "## Recipe",
        "",
        f"- data: {record['dataset']}, {data['train_sentences']:,} sentences, fingerprint "
        f"`{data['fingerprint'][:16]}`",
        *([f"- {settings}"] if settings else []),
        f"- {record['steps']:,} steps of {config.batch_size} sentences ({config.epochs} epochs), AdamW, peak "
        f"learning rate {config.lr:g} falling linearly to 0, weight decay {config.weight_decay:g}",
        f"- {config.precision}, texts cut at {config.max_length} tokens, seed {config.seed}",
        "",
        "## How to load it",
        "",
        *("Here:", "", "```bash", 'python run.py predict --adapter . "a text to classify"', "```", ""),
        *format.how_to_load(config.model, len(names)),
    ]
    return "\n".join(lines) + "\n"


def _quoted(name: str) -> str:
    """A YAML scalar: JSON's strings are YAML's."""
    return json.dumps(name, ensure_ascii=False)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:-1]) + " or " + names[-1]
