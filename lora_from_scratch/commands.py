"""What can be done with what a run left: predict, merge, evaluate, verify."""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter

import torch
from transformers import AutoModelForSequenceClassification

from lora_from_scratch.adapter import CONFIG, load_adapter
from lora_from_scratch.batches import TokenizedExamples, tokenize
from lora_from_scratch.config import BUNDLED
from lora_from_scratch.dataset import Split, load_dataset, load_labelled
from lora_from_scratch.errors import UserError
from lora_from_scratch.evaluate import predict_logits, score
from lora_from_scratch.experiment import DTYPES, environment, resolve_device, resolve_precision
from lora_from_scratch.files import appearing
from lora_from_scratch.measure import count_parameters, read_memory, reset_peak_memory
from lora_from_scratch.model import load_model
from lora_from_scratch.outputs import METRICS, RESULTS
from lora_from_scratch.predict import predict
from lora_from_scratch.report import evaluation_text
from lora_from_scratch.saved import Adapted, load_adapted, save_checkpoint
from lora_from_scratch.surgery import merge_lora

PORTION = 4096  # lines that are read, and labelled, at a time
MERGE_TOLERANCE = 1e-3  # of the largest logit: rounding in fp32 leaves 1e-5, a broken file anything
PEFT_TOLERANCE = 1e-4


def predict_lines(
    adapter: Path, model: str | None, texts: list[str], file: Path | None, as_json: bool, device: str
) -> None:
    """Print label, probability and text of each text, or else of each line of the file or of stdin.

    Tab-separated (a tab or line break inside a text becomes a space), or one JSON object a line. Every line
    gets its answer, an empty one too, so that answers and lines stay side by side.
    """
    lines = iter(texts) if texts else _lines(file)
    adapted = _load(adapter, model, device)
    merge_lora(adapted.model)
    while portion := list(islice(lines, PORTION)):
        for prediction in predict(adapted, portion):
            if as_json:
                print(json.dumps(asdict(prediction), ensure_ascii=False))
            else:
                text = " ".join(prediction.text.split())
                print(f"{prediction.label}\t{prediction.probability:.4f}\t{text}")
        sys.stdout.flush()


def merge(adapter: Path, model: str | None, out: Path) -> None:
    """Write the adapted model as a plain checkpoint, read it back, and print how well it agrees.

    Raises:
        UserError: the folder `out` is not empty, or what was read back does not give the same logits; then
            nothing stays behind.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is not an empty folder")
    adapted = _load(adapter, model, "cpu")
    examples = _probe(adapted)
    expected = predict_logits(adapted.model, examples)
    with appearing(out) as aside:
        save_checkpoint(merge_lora(adapted.model), adapted.tokenizer, aside)
        reread = AutoModelForSequenceClassification.from_pretrained(aside, dtype=torch.float32)
        difference = compare(predict_logits(reread, examples), expected)
        if not difference.within(MERGE_TOLERANCE):
            raise UserError(f"the merged model is not the adapted one: {difference}; {out} was not written")
    print(f"merged      {out}, read back on {len(examples)} sentences: {difference}")


def evaluate(
    adapter: Path,
    model: str | None,
    dataset: str,
    text_column: str | None,
    label_column: str | None,
    max_length: int,
    precision: str,
    device: str,
    output_dir: Path,
) -> None:
    """Measure the adapted model on labelled sentences as a run does at its end, into results.json.

    Raises:
        UserError: a label that the model does not know, logits that are not finite, or an `output_dir` that
            holds the results of a training.
    """
    if (output_dir / METRICS).exists():
        raise UserError(f"--output-dir {output_dir} holds the results of a training: name another")
    adapted = _load(adapter, model, device)
    place = adapted.model.device
    precision = resolve_precision(precision, place)
    split, name = load_labelled(dataset, adapted.label_names, text_column, label_column)
    examples = _tokenize(adapted, split, min(max_length, adapted.model.config.n_positions))
    reset_peak_memory(place)
    started = perf_counter()
    logits = predict_logits(adapted.model, examples, precision=DTYPES[precision])
    seconds = perf_counter() - started  # the logits are on the CPU by now: the device has finished
    if not logits.isfinite().all():
        raise UserError(f"{adapter}: this model's logits are not finite")
    values = {
        "adapter": str(adapter),
        "model": adapted.base_name or str(adapter),
        "dataset": dataset,
        **_measures(adapted, examples, logits, seconds),
        "config": {"max_length": max_length, "precision": precision, "device": str(place)},
        "environment": environment(place),
        "data": {
            "sentences": len(examples),
            "truncated": examples.truncated,
            "name": name,
            "label_names": adapted.label_names,
        },
    }
    print(evaluation_text(values))
    with appearing(output_dir) as aside:
        (aside / RESULTS).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    print(f"written     {output_dir / RESULTS}")


def _measures(
    adapted: Adapted, examples: TokenizedExamples, logits: torch.Tensor, seconds: float
) -> dict[str, object]:
    """The figures of an evaluation, under the keys of a run's results.json."""
    figures = score(logits.argmax(dim=1), examples.labels, len(adapted.label_names))
    parameters = count_parameters(adapted.model)
    return {
        "accuracy": figures.accuracy,
        "accuracy_margin_95": figures.margin,
        "f1": figures.f1,
        "trainable_parameters": parameters.trainable,
        "adapter_parameters": parameters.adapter,
        "head_parameters": parameters.head,
        "total_parameters": parameters.total,
        "evaluate_seconds": seconds,
        "sentences_per_second": len(examples) / seconds,
        "tokens_per_second": int(examples.lengths.sum()) / seconds,
        "memory": asdict(read_memory(adapted.model.device)),
    }


def verify(adapter: Path, model: str | None) -> None:
    """Compare with PEFT on real sentences: our files read by PEFT, and what PEFT then writes read by us.

    Raises:
        UserError: PEFT is not installed, the folder holds no adapter in its format, or the logits differ.
    """
    try:
        import peft
    except ImportError:
        raise UserError("verify compares with PEFT, which is not installed: pip install peft") from None
    if not (adapter / CONFIG).exists():
        raise UserError(f"{adapter} holds no {CONFIG}: only lora and prelayer leave what PEFT can read")
    ours = load_adapted(adapter, model)
    examples = _probe(ours)
    expected = predict_logits(ours.model, examples)

    def fresh_base() -> torch.nn.Module:
        return load_model(ours.base_name, ours.label_names, ours.tokenizer.pad_token_id)

    theirs = peft.PeftModel.from_pretrained(fresh_base(), str(adapter))
    read_by_peft = compare(predict_logits(theirs.base_model.model, examples), expected)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that PEFT's files do not say which base is theirs
        theirs.save_pretrained(folder)
        back = load_adapter(fresh_base(), Path(folder))
    read_back = compare(predict_logits(back, examples), expected)
    print(f"PEFT {peft.__version__}, {len(examples)} sentences")
    for what, difference in (("ours, read by PEFT", read_by_peft), ("PEFT's, read here", read_back)):
        if not difference.within(PEFT_TOLERANCE):
            raise UserError(f"{adapter}: {what}, gives other logits: {difference}")
        print(f"{what:20}{difference}")


BY_NAME = {"predict": predict_lines, "merge": merge, "evaluate": evaluate, "verify": verify}


@dataclass(frozen=True)
class Difference:
    """How far two sets of logits lie apart."""

    largest: float  # max |delta logit|
    scale: float  # max |logit|, at least 1
    flipped: int  # predictions that differ
    not_finite: int  # values

    def within(self, tolerance: float) -> bool:
        """All finite, and no logit off by more than `tolerance` times the largest: a flip is then a tie."""
        return not self.not_finite and self.largest <= tolerance * self.scale

    def __str__(self) -> str:
        return (
            f"max |delta logit| {self.largest:.1e}, flipped predictions {self.flipped}, "
            f"non-finite values {self.not_finite}"
        )


def compare(logits: torch.Tensor, expected: torch.Tensor) -> Difference:
    """Two `(N, num_labels)` tensors of logits for the same sentences."""
    finite = logits.isfinite() & expected.isfinite()
    return Difference(
        largest=(logits - expected)[finite].abs().max().item() if finite.any() else float("nan"),
        scale=max(1.0, expected[finite].abs().max().item() if finite.any() else 1.0),
        flipped=int((logits.argmax(dim=1) != expected.argmax(dim=1)).sum()),
        not_finite=int((~finite).sum()),
    )


def _load(adapter: Path, model: str | None, device: str) -> Adapted:
    adapted = load_adapted(adapter, model)
    adapted.model.to(resolve_device(device))
    return adapted


def _probe(adapted: Adapted) -> TokenizedExamples:
    """Real sentences to compare logits on: the bundled ones that are kept for validation."""
    return _tokenize(adapted, load_dataset(BUNDLED).validation, adapted.model.config.n_positions)


def _tokenize(adapted: Adapted, split: Split, max_length: int) -> TokenizedExamples:
    return tokenize(adapted.tokenizer, split.sentences, split.labels, max_length)


def _lines(file: Path | None) -> Iterator[str]:
    """The lines of a UTF-8 file, or of stdin, without their ends.

    Raises:
        UserError: a line is not UTF-8; its number is named.
    """
    with file.open("rb") if file else nullcontext(sys.stdin.buffer) as source:
        for number, line in enumerate(source, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{file or 'stdin'}, line {number}: not UTF-8") from error
