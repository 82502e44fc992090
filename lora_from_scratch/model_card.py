"""The README.md beside what was trained: what it is, how it was made and measured, how to load it."""

from __future__ import annotations

import json

from lora_from_scratch.config import BUNDLED, DEFAULT_DATASET
from lora_from_scratch.dataset import GLUE_SST2
from lora_from_scratch.experiment import RunResult
from lora_from_scratch.report import results_table

WHAT = {
    "lora": "A LoRA adapter",
    "prelayer": "Token and position embeddings, tuned (PreLayer),",
    "head": "A classifier head",
    "full": "A fully fine-tuned model",
}


def model_card(result: RunResult) -> str:
    """Markdown with the front matter that hubs read; every value comes from the run itself."""
    prepared, training = result.prepared, result.training
    config, dataset = prepared.config, prepared.dataset
    validation = len(prepared.validation_examples)
    lines = [
        *_front_matter(result),
        "",
        f"# {config.method}: {prepared.model_name} on {prepared.dataset_name}",
        "",
        f"{WHAT[config.method]} for {prepared.model_name}, trained by lora-from-scratch to classify text as "
        f"{_listed(dataset.label_names)} ({_listed(list(map(str, range(len(dataset.label_names)))))} in that "
        f"order). The classifier head is part of it.",
        "",
        "## Measures",
        "",
        f"On {validation:,} sentences ({dataset.validation_name}); ± is half the 95 % confidence interval.",
        "",
        results_table([result.as_dict()]),
        "",
        "## Recipe",
        "",
        f"- data: {prepared.dataset_name}, {len(prepared.train_examples):,} sentences, fingerprint "
        f"`{dataset.fingerprint()[:16]}`",
        *([_lora_settings(result)] if config.method == "lora" else []),
        f"- {training.steps:,} steps of {config.batch_size} sentences ({config.epochs} epochs), AdamW, peak "
        f"learning rate {config.lr:g} falling linearly to 0, weight decay {config.weight_decay:g}",
        f"- {config.precision}, texts cut at {config.max_length} tokens, seed {config.seed}",
        "",
        "## How to load it",
        "",
        *_how_to_load(result),
    ]
    return "\n".join(lines) + "\n"


def _front_matter(result: RunResult) -> list[str]:
    config = result.prepared.config
    dataset = GLUE_SST2[0] if config.dataset == DEFAULT_DATASET else config.dataset
    adapts = config.method in ("lora", "prelayer")
    tags = ["text-classification", "gpt2", config.method, "lora-from-scratch"]
    return [
        "---",
        f"base_model: {_quoted(config.model)}",
        f"library_name: {'peft' if adapts else 'transformers'}",
        "pipeline_tag: text-classification",
        "tags:",
        *(f"- {tag}" for tag in tags),
        "datasets:",
        f"- {_quoted(dataset)}",
        "metrics:",
        "- accuracy",
        "- f1",
        "---",
    ]


def _quoted(name: str) -> str:
    """A YAML scalar: JSON's strings are YAML's."""
    return json.dumps(name, ensure_ascii=False)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:-1]) + " or " + names[-1]


def _lora_settings(result: RunResult) -> str:
    config = result.prepared.config
    return (
        f"- LoRA around {', '.join(config.target_modules)}: rank {config.rank}, alpha {config.alpha:g}, "
        f"dropout {config.dropout:g}"
    )


def _how_to_load(result: RunResult) -> list[str]:
    config = result.prepared.config
    count = len(result.prepared.dataset.label_names)
    here = ["Here:", "", "```bash", 'python run.py predict --adapter . "a text to classify"', "```"]
    if config.method == "full":
        return [*here, "", "In transformers:", "", *_python(*_PIPELINE.format(folder=".").splitlines())]
    merged = [
        *("In transformers, after merging into a plain checkpoint:", ""),
        *("```bash", "python run.py merge --adapter . --out merged", "```", ""),
        *_python(*_PIPELINE.format(folder="merged").splitlines()),
    ]
    if config.method == "head":
        return [*here, "", *merged]
    base = "str(BUNDLED_MODEL)" if config.model == BUNDLED else repr(config.model)
    peft = [
        *(["from lora_from_scratch.model import BUNDLED_MODEL"] if config.model == BUNDLED else []),
        "from peft import PeftModel",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({base})",
        "base = AutoModelForSequenceClassification.from_pretrained(",
        f'    {base}, num_labels={count}, dtype="float32"',
        ")",
        "base.config.pad_token_id = tokenizer.eos_token_id",
        'model = PeftModel.from_pretrained(base, ".")',
    ]
    return [*here, "", "In PEFT:", "", *_python(*peft), "", *merged]


_PIPELINE = """from transformers import pipeline

classify = pipeline("text-classification", model="{folder}")
classify("a text to classify")"""


def _python(*lines: str) -> list[str]:
    return ["```python", *lines, "```"]
