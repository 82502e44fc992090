"""What results.json holds: one record, of a training and of a later evaluation alike."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lora_from_scratch.base.fingerprint import weights_fingerprint
from lora_from_scratch.base.load import display_name
from lora_from_scratch.data.batches import TokenizedExamples
from lora_from_scratch.formats.adapted import Adapted
from lora_from_scratch.train.device import environment
from lora_from_scratch.train.evaluate import Evaluation
from lora_from_scratch.train.log import Training
from lora_from_scratch.train.measure import count_parameters

if TYPE_CHECKING:
    from lora_from_scratch.runs.prepare import Prepared

VERSION = 2  # of the record; what came before 0.2 of the package had none


def run_record(
    prepared: Prepared,
    training: Training | None,
    evaluation: Evaluation | None,
    output_dir: Path | None = None,
) -> dict[str, object]:
    """The record of a run; without its evaluation, as it stands between training and measuring."""
    config, dataset = prepared.config, prepared.dataset
    train, validation = prepared.train_examples, prepared.validation_examples
    data = {
        "fingerprint": dataset.fingerprint(),
        "train_sentences": len(train),
        "train_truncated": train.truncated,
        "validation_sentences": len(validation),
        "validation_truncated": validation.truncated,
        "validation_name": dataset.validation_name,
        "label_names": dataset.label_names,
    }
    return {
        "record": VERSION,
        "kind": "run",
        "method": config.method,
        "model": prepared.model_name,
        "dataset": prepared.dataset_name,
        **_measures(evaluation, dataset.label_names),
        **_parameters(prepared.model),
        **_training(training),
        "memory": _memory(training, evaluation),
        "config": config.as_dict(),
        "base": {"name": config.model, "weights_sha256": prepared.base_digest},
        "environment": environment(torch.device(config.device)),
        "data": data,
        "evaluation": _evaluation(evaluation, validation),
        "output_dir": str(output_dir) if output_dir else None,
    }


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
    trained = [name for name, p in adapted.model.named_parameters() if p.requires_grad]
    base = {"name": adapted.base_name, "weights_sha256": weights_fingerprint(adapted.model, trained)}
    data = {
        "validation_sentences": len(examples),
        "validation_truncated": examples.truncated,
        "validation_name": source,
        "label_names": adapted.label_names,
    }
    return {
        "record": VERSION,
        "kind": "evaluation",
        "method": str(adapter),
        "model": display_name(adapted.base_name or str(adapter)),
        "dataset": config["dataset"],
        **_measures(evaluation, adapted.label_names),
        **_parameters(adapted.model),
        **_training(None),
        "memory": _memory(None, evaluation),
        "config": config,
        "base": base,
        "environment": environment(adapted.model.device),
        "data": data,
        "evaluation": _evaluation(evaluation, examples),
        "output_dir": str(output_dir),
    }


def as_json(record: dict[str, object]) -> bytes:
    """The record as a file, its long lists in one line each."""
    numbers = r"\[\s+([^\[\]{}\"]*?)\s+\]"
    text = re.sub(numbers, lambda list_: f"[{' '.join(list_[1].split())}]", json.dumps(record, indent=2))
    return text.encode() + b"\n"


def _measures(evaluation: Evaluation | None, label_names: list[str]) -> dict[str, object]:
    if evaluation is None:
        return {"accuracy": None, "accuracy_margin_95": None, "f1": None}
    score = evaluation.score
    return {
        "accuracy": score.accuracy,
        "accuracy_margin_95": score.margin,
        "f1": score.f1,
        "f1_of": label_names[1] if len(label_names) == 2 else "mean of all classes",
    }


def _parameters(model: torch.nn.Module) -> dict[str, int]:
    count = count_parameters(model)
    return {
        "trainable_parameters": count.trainable,
        "adapter_parameters": count.adapter,
        "head_parameters": count.head,
        "total_parameters": count.total,
    }


def _training(training: Training | None) -> dict[str, object]:
    seconds = training.seconds if training else 0.0
    return {
        "train_seconds": seconds,
        "phase_seconds": training.phases if training else {},
        "sentences_per_second": training.sentences / seconds if training else None,
        "tokens_per_second": training.tokens / seconds if training else None,
        "padding_efficiency": training.padding_efficiency if training else None,
        "steps": training.steps if training else 0,
    }


def _memory(training: Training | None, evaluation: Evaluation | None) -> dict[str, object] | None:
    """Of training, where there was any."""
    source = training or evaluation
    if source is None:
        return None
    memory = asdict(source.memory)
    parts = memory.pop("parts")
    if parts and memory["peak_bytes"] is not None:
        parts["rest"] = memory["peak_bytes"] - sum(parts.values())
    return {**memory, "parts_bytes": parts}


def _evaluation(evaluation: Evaluation | None, examples: TokenizedExamples) -> dict[str, object] | None:
    if evaluation is None:
        return None
    return {
        "precision": evaluation.precision,
        "seconds": evaluation.seconds,
        "sentences_per_second": len(examples) / evaluation.seconds,
        "tokens_per_second": int(examples.lengths.sum()) / evaluation.seconds,
        "labels": examples.labels.tolist(),
        "predictions": evaluation.predictions,
        "probabilities": [round(p, 6) for p in evaluation.probabilities],
    }
