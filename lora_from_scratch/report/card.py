"""The README.md beside what was trained: what it is, how it was made and measured, how to load it."""

import json
import math

from lora_from_scratch.base.precisions import FLOAT
from lora_from_scratch.data.hub import ALIASES
from lora_from_scratch.formats.table import format_named
from lora_from_scratch.report.tables import against_baseline, classes_text, results_table, shown
from lora_from_scratch.runs.config import RunConfig

CARD = """\
---
base_model: {base_model}
library_name: {library}
pipeline_tag: text-classification
tags:
- text-classification
- gpt2
- {method}
- lora-from-scratch
datasets:
- {source}
metrics:
- accuracy
- f1
---

# {method}: {model} on {dataset}

{saved_as} for {model}, trained by lora-from-scratch to classify text as {names} ({ids} in that order). \
The classifier head is part of it.

## Measures

On {data[validation_sentences]:,} sentences ({data[validation_name]}), in {evaluation[precision]}; \
the interval of the accuracy is Wilson's.

{table}

Always saying {always}, the commonest class to train on, would score {baseline[accuracy]:.2f} %{verdict}.

## Recipe

- data: {dataset}, {data[train_sentences]:,} sentences, fingerprint `{data[fingerprint]:.16}`
- classes: {train_classes}; for validation {validation_classes}{settings}
- {steps:,} steps of {config[batch_size]} sentences ({passes}), AdamW, \
peak learning rate {config[lr]:g} falling linearly to 0, weight decay {config[weight_decay]:g}
- {config[precision]}, {rounding}texts cut at {config[max_length]} tokens, seed {config[seed]}

## How to load it

With lora-from-scratch installed:

```bash
python -m lora_from_scratch predict --adapter . "a text to classify"
```

{loading}
"""

ROUNDED = (
    "on a base whose frozen matrices are rounded to {} (PEFT's logits on the whole ones differ a little), "
)
UNMERGED = """\
From Python:

```python
from pathlib import Path

from lora_from_scratch.formats.adapted import load_adapted
from lora_from_scratch.runs.predict import predict

predict(load_adapted(Path(".")), ["a text to classify"])
```

It cannot be merged into a plain transformers checkpoint, which has no place for what was trained."""


def model_card(record: dict[str, object]) -> str:
    """Markdown with the front matter that hubs read; every value comes from the run's record."""
    config, data = RunConfig(**record["config"]), record["data"]
    names, verdict = data["label_names"], against_baseline(record)
    format, settings = format_named(config.way.format), config.way.describe(config.settings)
    return CARD.format(
        **record,
        base_model=json.dumps(config.model, ensure_ascii=False),  # JSON's strings are YAML's
        source=json.dumps(_repository(config.dataset), ensure_ascii=False),
        library=format.TITLE if config.way.merges else "lora-from-scratch",
        saved_as=config.way.saved_as,
        names=_listed(names),
        ids=_listed([str(i) for i in range(len(names))]),
        table=results_table([record]),
        always=shown(record["baseline"]["label"]),
        verdict=f"; this model {verdict} that" if verdict else "",
        train_classes=classes_text(data["train_classes"]),
        validation_classes=classes_text(data["validation_classes"]),
        settings=f"\n- {settings}" if settings else "",
        passes=_passes(record["steps"], data["train_sentences"], config),
        rounding=ROUNDED.format(config.base_precision) if config.base_precision != FLOAT else "",
        loading="\n".join(format.how_to_load(config.model, names)) if config.way.merges else UNMERGED,
    )


def _passes(steps: int, sentences: int, config: RunConfig) -> str:
    """How often the sentences were read, where `max_steps` may have ended the run before."""
    if steps < config.epochs * math.ceil(sentences / config.batch_size):
        return f"{steps * config.batch_size / sentences:.2g} epochs"
    return f"{config.epochs} epochs"


def _repository(dataset: str) -> str:
    """Of a dataset on the hub owner/name, without its configuration; of any other its name."""
    return "/".join(ALIASES.get(dataset, dataset).split("/")[:2]) if dataset in ALIASES else dataset


def _listed(names: list[str]) -> str:
    return ", ".join(names[:-1]) + " or " + names[-1]
