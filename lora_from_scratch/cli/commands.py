"""What can be done with what a run left: predict, merge, evaluate, verify."""

import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import chain, count
from pathlib import Path

import torch
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.base.load import load_model
from lora_from_scratch.base.precisions import KEY, base_precision, rounded
from lora_from_scratch.cli.loading import told_while
from lora_from_scratch.cli.naming import loaded, named
from lora_from_scratch.cli.one_line import speaks_utf8
from lora_from_scratch.core.surgery import merge_lora
from lora_from_scratch.data.batches import tokenize
from lora_from_scratch.data.dataset import BUNDLED, load_dataset, load_labelled
from lora_from_scratch.data.rows import Rows
from lora_from_scratch.errors import UserError
from lora_from_scratch.formats import checkpoint, peft
from lora_from_scratch.formats.adapted import Adapted
from lora_from_scratch.formats.whole_files import appearing
from lora_from_scratch.methods import method_named
from lora_from_scratch.report.screen import not_beaten, summary
from lora_from_scratch.runs.config import RunConfig
from lora_from_scratch.runs.predict import Prediction, labelled
from lora_from_scratch.runs.record import as_json, evaluation_record, length_to_measure, read_record
from lora_from_scratch.runs.texts_to_label import write_table
from lora_from_scratch.runs.trained_on import warn_if_trained_on
from lora_from_scratch.runs.writable import RESULTS
from lora_from_scratch.train.device import resolve_device
from lora_from_scratch.train.evaluate import compare, evaluate, positive_id, predict_logits
from lora_from_scratch.train.precision import resolve_precision

MERGE_TOLERANCE = 1e-3  # of the largest logit: rounding in fp32 leaves 1e-5, a broken file anything
PEFT_TOLERANCE = 1e-4


def predict(
    adapter: Path,
    model: str | None,
    device: str,
    label_names: list[str] | None,
    texts: Iterator[str] | None = None,
    typed: bool = False,
    as_json: bool = False,
    table: tuple[Path, Rows, Path] | None = None,
) -> None:
    """Label texts and print them, or the texts of a table into a copy of it: its path, its texts, the copy.

    `typed`: somebody is typing the texts.

    Printed are label, probability and text, tab-separated (a tab or line break inside label or text becomes a
    space), or one JSON object a line. Every line gets its answer, without a label where it is blank, so that
    answers and lines stay side by side.
    """
    with told_while("loading the model", unless=typed):
        adapted = named(loaded(adapter, model), label_names)
        merge_lora(adapted.model.to(resolve_device(device)))
    if table:
        path, rows, output = table
        write_table(path, rows, chain.from_iterable(labelled(adapted, rows.texts)), output)
        print(f"written     {output}: {len(rows):,} texts labelled")
        return
    show = partial(_as_json, ascii_alone=not speaks_utf8()) if as_json else _as_line
    for portion in labelled(adapted, texts):
        print("\n".join(map(show, portion)), flush=True)


def merge(adapter: Path, model: str | None, out: Path) -> None:
    """Write the adapted model as a plain checkpoint, read it back, and print how well it agrees.

    What was read back computes with transformers' own forward pass. UserError if the method adds what no
    plain checkpoint holds, or the logits differ; then nothing stays behind.
    """
    from transformers import AutoModelForSequenceClassification

    adapted, texts = loaded(adapter, model), _probe()
    way = method_named(adapted.method) if adapted.method else None
    if way and not way.merges:
        what = f"what --method {adapted.method} trains has no place in a plain checkpoint"
        raise UserError(f"{adapter}: {what}; use predict or evaluate on the folder as it is")
    expected = _our_logits(adapted, texts)
    with appearing(out) as aside:
        (way.merge if way else merge_lora)(adapted.model)
        checkpoint.save(adapted, aside)
        reread = AutoModelForSequenceClassification.from_pretrained(
            aside, dtype=torch.float32, use_safetensors=True
        )
        difference = compare(_their_logits(replace(adapted, model=reread), texts), expected)
        if not difference.within(MERGE_TOLERANCE):
            raise UserError(f"the merged model is not the adapted one: {difference}; {out} was not written")
    print(f"merged      {out}, read back by transformers on {len(texts)} sentences: {difference}")


def evaluate_dataset(adapter: Path, label_names: list[str] | None, asked: RunConfig) -> None:
    """Measure the adapted model on labelled sentences as a run does at its end, into a new results.json.

    `asked.model` is the base. UserError if a label is not among the model's, or its logits are not finite.
    """
    adapted = named(loaded(adapter, asked.model), label_names)
    device = adapted.model.to(resolve_device(asked.device)).device
    precision = resolve_precision(asked.precision, device)
    length = length_to_measure(asked.max_length, read_record(adapter), adapted.model.config)
    config = {"dataset": asked.dataset, "max_length": length, "precision": precision, "device": str(device)}
    config |= {"positive_class": asked.positive_class, KEY: base_precision(adapted.model)}
    positive = positive_id(asked.positive_class, adapted.label_names)
    split, source = load_labelled(asked.dataset, adapted.label_names, asked.selection)
    warn_if_trained_on(adapter, split.sentences)
    examples = tokenize(adapted.tokenizer, split.sentences, split.labels, length)
    evaluation = evaluate(adapted.model, examples, precision, positive=positive)
    folder = Path(asked.output_dir or _new_folder(f"evaluate-{adapter.resolve().name}"))
    record = evaluation_record(adapted, adapter, examples, evaluation, config, source, folder)
    print(summary(record))
    if said := not_beaten(record):
        print(f"warning: {said}", file=sys.stderr)
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
    ours, texts = loaded(adapter, model), _probe()
    expected = _our_logits(ours, texts)

    def fresh_base() -> GPT2ForSequenceClassification:
        model = load_model(ours.base_name, ours.label_names, ours.tokenizer.pad_token_id)
        return rounded(model, base_precision(ours.model))

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


def _of_many_runs(name: str, **flags: object) -> None:
    from lora_from_scratch.cli import plans  # what else it imports would keep the other commands waiting

    getattr(plans, name)(**flags)


def _looking(name: str, **flags: object) -> None:
    from lora_from_scratch.cli import looking  # likewise

    getattr(looking, name)(**flags)


BY_NAME = {"predict": predict, "merge": merge, "evaluate": evaluate_dataset, "verify": verify}
BY_NAME |= {name: partial(_of_many_runs, name) for name in ("compare", "tune")}
BY_NAME |= {name: partial(_looking, name) for name in ("explain", "inspect", "truncate")}


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


def _as_line(prediction: Prediction) -> str:
    if prediction.label is None:
        return "\t\t"
    label, text = (" ".join(one.split()) for one in (prediction.label, prediction.text))
    return f"{label}\t{prediction.probability:.4f}\t{text}"


def _as_json(prediction: Prediction, ascii_alone: bool) -> str:
    return json.dumps(asdict(prediction), ensure_ascii=ascii_alone)
