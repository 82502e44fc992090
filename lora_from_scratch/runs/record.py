"""What results.json holds: one record, of a training and of a later evaluation alike."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from transformers import GPT2Config, GPT2ForSequenceClassification

from lora_from_scratch.base.fingerprint import is_added, weights_fingerprint
from lora_from_scratch.base.load import display_name, lasting_name
from lora_from_scratch.data.batches import TokenizedExamples
from lora_from_scratch.formats.adapted import HEAD_WEIGHT, Adapted
from lora_from_scratch.runs.prepare import Prepared, decided_length
from lora_from_scratch.runs.writable import RESULTS
from lora_from_scratch.train.device import environment
from lora_from_scratch.train.evaluate import Evaluation, baseline, class_counts
from lora_from_scratch.train.log import Training
from lora_from_scratch.train.measure import count_parameters

VERSION = 3  # of the record: 2 had a margin in place of the interval; before 0.2 of the package it had none
MEAN = "mean of all classes"


def run_record(
    prepared: Prepared, training: Training | None, evaluation: Evaluation | None, output_dir: Path | None
) -> dict[str, object]:
    """The record of a run; without its evaluation, as it stands between training and measuring."""
    config, dataset, train = prepared.config, prepared.dataset, prepared.train_examples
    about = {
        "kind": "run",
        "method": config.method,
        "model": prepared.model_name,
        "dataset": prepared.dataset_name,
        "base": {"name": config.model, "weights_sha256": prepared.base_digest},
        "config": config.as_dict(),
    }
    data = {
        "fingerprint": dataset.fingerprint(),
        "train_sentences": len(train),
        "train_truncated": train.truncated,
        "train_classes": class_counts(train.labels, dataset.label_names),
        "validation_name": dataset.validation_name,
        "label_names": dataset.label_names,
        "path": lasting_name(config.dataset),
    }
    validation = prepared.validation_examples
    return _record(about, data, prepared.model, validation, training, evaluation, output_dir)


def evaluation_record(
    adapted: Adapted,
    adapter: Path,
    examples: TokenizedExamples,
    evaluation: Evaluation,
    config: dict[str, object],
    source: str,
    output_dir: Path,
) -> dict[str, object]:
    """The record of a later evaluation of what a folder, `adapter`, holds, on sentences of `source`."""
    learned = {n for n, p in adapted.model.named_parameters() if p.requires_grad and not is_added(n)}
    whole_base = adapted.base_name and learned <= {HEAD_WEIGHT}  # nothing of it was replaced
    digest = weights_fingerprint(adapted.model, [HEAD_WEIGHT]) if whole_base else None
    base = {"name": adapted.base_name, "weights_sha256": digest}
    about = {
        "kind": "evaluation",
        "method": str(adapter),
        "model": display_name(adapted.base_name or str(adapter)),
        "dataset": config["dataset"],
        "base": base,
        "config": config,
    }
    data = {"validation_name": source, "label_names": adapted.label_names}
    return _record(about, data, adapted.model, examples, None, evaluation, output_dir)


def read_record(folder: Path) -> dict[str, object]:
    """What a run's results.json holds; nothing where none is there, or an evaluation's or somebody else's."""
    try:
        record = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        if record.get("kind", "run") != "run":
            return {}
        return record if isinstance(record["config"], dict) and isinstance(record["data"], dict) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def asked_rank(record: Mapping[str, object], ranks: Iterable[int]) -> int | None:
    """The run's --rank, where its files have another in some layer; None where it is theirs, or not known.

    They hold several updates in one where q, k and v are apart, and of PiSSA.
    """
    asked = record.get("config", {}).get("rank")
    return asked if type(asked) is int and any(rank != asked for rank in ranks) else None


def length_to_measure(asked: int | None, record: Mapping[str, object], base: GPT2Config) -> int:
    """How many tokens of a sentence are read where a trained model is measured.

    As many as in its training, by the record of its folder, unless asked otherwise. UserError as
    `decided_length` has it.
    """
    trained = record.get("config", {}).get("max_length")
    if asked is None and type(trained) is int and 1 <= trained <= base.n_positions:
        return trained
    return decided_length(asked, base)


def as_json(record: dict[str, object]) -> bytes:
    """The record as a file, its long lists in one line each."""
    numbers = r"\[\n\s+([^\[\]{}\"]*?)\s+\]"
    text = re.sub(numbers, lambda list_: f"[{' '.join(list_[1].split())}]", json.dumps(record, indent=2))
    return text.encode() + b"\n"


def _record(
    about: dict[str, object],
    data: dict[str, object],
    model: GPT2ForSequenceClassification,
    examples: TokenizedExamples,
    training: Training | None,
    evaluation: Evaluation | None,
    output_dir: Path | None,
) -> dict[str, object]:
    score, names, count = evaluation and evaluation.score, data["label_names"], count_parameters(model)
    classes = class_counts(examples.labels, names)
    measured = {"sentences": len(examples), "truncated": examples.truncated, "classes": classes}
    positive = about["config"]["positive_class"] or (names[1] if len(names) == 2 else MEAN)
    return {
        "record": VERSION,
        **about,
        "accuracy": score and score.accuracy,
        "accuracy_interval_95": score and list(score.interval),
        "baseline": baseline(data.get("train_classes", classes), classes),
        "f1": score and score.f1,
        "f1_of": positive,
        "trainable_parameters": count.trainable,
        "adapter_parameters": count.adapter,
        "head_parameters": count.head,
        "total_parameters": count.total,
        "train_seconds": training.seconds if training else 0.0,
        "checkpoint_seconds": training.checkpoint_seconds if training else 0.0,
        "phase_seconds": training.phases if training else {},
        "sentences_per_second": training.sentences / training.seconds if training else None,
        "tokens_per_second": training.tokens / training.seconds if training else None,
        "padding_efficiency": training.padding_efficiency if training else None,
        "steps": training.steps if training else 0,
        "skipped_steps": training.skipped_steps if training else 0,
        "memory": _memory(training or evaluation),
        "environment": environment(model.score.weight.device),
        "data": {**data, **{f"validation_{key}": value for key, value in measured.items()}},
        "evaluation": evaluation and _evaluation(evaluation, examples),
        "output_dir": output_dir and str(output_dir),
    }


def _memory(measured: Training | Evaluation | None) -> dict[str, object] | None:
    if measured is None:
        return None
    memory = asdict(measured.memory)
    parts = memory.pop("parts")
    if parts and memory["peak_bytes"] is not None:
        parts["rest"] = memory["peak_bytes"] - sum(parts.values())
    return {**memory, "parts_bytes": parts}


def _evaluation(evaluation: Evaluation, examples: TokenizedExamples) -> dict[str, object]:
    return {
        "precision": evaluation.precision,
        "loss": evaluation.loss,
        "seconds": evaluation.seconds,
        "sentences_per_second": len(examples) / evaluation.seconds,
        "tokens_per_second": int(examples.lengths.sum()) / evaluation.seconds,
        "labels": examples.labels.tolist(),
        "predictions": evaluation.predictions,
        "probabilities": [round(p, 6) for p in evaluation.probabilities],
    }
