"""What can be done with what a run left: predict, merge, evaluate, verify."""

import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from itertools import count, islice
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

from lora_from_scratch.base.load import load_model
from lora_from_scratch.core.surgery import merge_lora
from lora_from_scratch.data.batches import tokenize
from lora_from_scratch.data.dataset import BUNDLED, load_dataset, load_labelled
from lora_from_scratch.data.rows import Selection
from lora_from_scratch.errors import UserError
from lora_from_scratch.formats import checkpoint, peft
from lora_from_scratch.formats.adapted import Adapted, load_adapted
from lora_from_scratch.formats.files import appearing
from lora_from_scratch.report.screen import summary
from lora_from_scratch.runs.config import RunConfig
from lora_from_scratch.runs.folder import RESULTS
from lora_from_scratch.runs.predict import predict
from lora_from_scratch.runs.record import as_json, evaluation_record
from lora_from_scratch.train.device import resolve_device
from lora_from_scratch.train.evaluate import compare, evaluate, predict_logits
from lora_from_scratch.train.precision import resolve_precision

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
    adapted = load_adapted(adapter, model)
    merge_lora(adapted.model.to(resolve_device(device)))
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

    What was read back computes with transformers' own forward pass. UserError if `out` is not empty, or the
    logits differ; then nothing stays behind.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is not an empty folder")
    adapted, texts = load_adapted(adapter, model), _probe()
    expected = _our_logits(adapted, texts)
    with appearing(out) as aside:
        merge_lora(adapted.model)
        checkpoint.save(adapted, aside)
        reread = AutoModelForSequenceClassification.from_pretrained(aside, dtype=torch.float32)
        difference = compare(_their_logits(replace(adapted, model=reread), texts), expected)
        if not difference.within(MERGE_TOLERANCE):
            raise UserError(f"the merged model is not the adapted one: {difference}; {out} was not written")
    print(f"merged      {out}, read back by transformers on {len(texts)} sentences: {difference}")


def evaluate_dataset(adapter: Path, **flags: object) -> None:
    """Measure the adapted model on labelled sentences as a run does at its end, into a new results.json.

    The flags are fields of RunConfig, `model` the base. UserError if one is out of its range, a label is not
    among the model's, its logits are not finite, or the `output_dir` holds results.
    """
    asked = RunConfig(**flags)
    if asked.output_dir and Path(asked.output_dir, RESULTS).exists():
        raise UserError(f"--output-dir {asked.output_dir} holds results already: name another")
    adapted = load_adapted(adapter, asked.model)
    device = adapted.model.to(resolve_device(asked.device)).device
    precision = resolve_precision(asked.precision, device)
    length = min(asked.max_length, adapted.model.config.n_positions)
    config = {"dataset": asked.dataset, "max_length": length, "precision": precision, "device": str(device)}
    columns = Selection(asked.text_column, asked.label_column)
    split, source = load_labelled(asked.dataset, adapted.label_names, columns)
    examples = tokenize(adapted.tokenizer, split.sentences, split.labels, length)
    evaluation = evaluate(adapted.model, examples, precision)
    folder = Path(asked.output_dir or _new_folder(f"evaluate-{adapter.resolve().name}"))
    record = evaluation_record(adapted, adapter, examples, evaluation, config, source, folder)
    print(summary(record))
    with appearing(folder) as aside:
        (aside / RESULTS).write_bytes(as_json({**record, "files": [RESULTS]}))
    print(f"written     {folder / RESULTS}")


def verify(adapter: Path, model: str | None) -> None:
    """Compare with PEFT on real sentences: our files read by PEFT, and what PEFT then writes read by us.

    PEFT's model computes with transformers' own forward pass. UserError if PEFT is not installed, the folder
    holds no adapter in its format, or the logits differ.
    """
    try:
        import peft as library
    except ImportError:
        raise UserError("verify compares with PEFT, which is not installed: pip install peft") from None
    if not peft.is_in(adapter):
        raise UserError(f"{adapter} holds no {peft.FILES[0]}: it is not in the format that PEFT reads")
    ours, texts = load_adapted(adapter, model), _probe()
    expected = _our_logits(ours, texts)
    fresh_base = partial(load_model, ours.base_name, ours.label_names, ours.tokenizer.pad_token_id)
    theirs = replace(ours, model=library.PeftModel.from_pretrained(fresh_base(), str(adapter)).eval())
    read_by_peft = compare(_their_logits(theirs, texts), expected)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that PEFT's files do not say which base is theirs
        theirs.model.save_pretrained(folder)
        back = replace(ours, model=peft.load_adapter(fresh_base(), Path(folder)))
    read_back = compare(_our_logits(back, texts), expected)
    print(f"PEFT {library.__version__}, {len(texts)} sentences")
    for what, difference in (("ours, read by PEFT", read_by_peft), ("PEFT's, read here", read_back)):
        if not difference.within(PEFT_TOLERANCE):
            raise UserError(f"{adapter}: {what}, gives other logits: {difference}")
        print(f"{what:20}{difference}")


BY_NAME = {"predict": predict_lines, "merge": merge, "evaluate": evaluate_dataset, "verify": verify}


def _probe() -> list[str]:
    """Real sentences to compare logits on: the bundled ones kept for validation, and an awkward one."""
    awkward = "it ends in its own end <|endoftext|>"
    return sorted([*load_dataset(BUNDLED).validation.sentences, awkward], key=len)  # little padding


def _our_logits(adapted: Adapted, texts: list[str]) -> torch.Tensor:
    positions = adapted.model.config.n_positions
    return predict_logits(adapted.model, tokenize(adapted.tokenizer, texts, [0] * len(texts), positions))


@torch.no_grad()
def _their_logits(adapted: Adapted, texts: list[str]) -> torch.Tensor:
    """What transformers itself computes: its tokenizer's padding and mask, its own forward pass."""
    options = {"padding": True, "truncation": True, "max_length": adapted.model.config.n_positions}
    options |= {"return_tensors": "pt", "add_special_tokens": False}
    parts = [adapted.tokenizer(texts[i : i + 32], **options) for i in range(0, len(texts), 32)]
    return torch.cat([adapted.model(p.input_ids, attention_mask=p.attention_mask).logits for p in parts])


def _new_folder(name: str) -> Path:
    """runs/NAME, or the first of runs/NAME-2, runs/NAME-3, ... that is not there: results replace none."""
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(folder for folder in map(Path("runs").joinpath, names) if not folder.exists())


def _lines(file: Path | None) -> Iterator[str]:
    """The lines of a UTF-8 file, or of stdin, without their ends; UserError names one that is not UTF-8."""
    with file.open("rb") if file else nullcontext(sys.stdin.buffer) as source:
        for number, line in enumerate(source, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{file or 'stdin'}, line {number}: not UTF-8") from error
