"""Text in, labels out."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from lora_from_scratch.data.batches import tokenize
from lora_from_scratch.errors import UserError, quoted
from lora_from_scratch.formats.adapted import Adapted
from lora_from_scratch.train.evaluate import predict_logits

PORTION = 4096  # texts that are labelled at a time


@dataclass(frozen=True)
class Prediction:
    """The likeliest label by name, its probability in (0, 1], and the text it was given for."""

    label: str | None  # None: the text is blank
    probability: float | None
    text: str


def predict(adapted: Adapted, texts: Sequence[str]) -> list[Prediction]:
    """Label texts, in their order, in fp32; they are read in batches of like length.

    Texts longer than the model has positions are cut at the end, which a warning counts. Merge LoRA layers
    first (`merge_lora`): the result is the same up to rounding, without their extra products. UserError for a
    blank text, and where the logits are not finite.
    """
    if isinstance(texts, str):
        raise UserError("predict takes a list of texts: put the one into brackets")
    blank = next((number for number, text in enumerate(texts, start=1) if not text.strip()), None)
    if blank:
        raise UserError(f"text {blank} of {len(texts)} is blank; leave it out")
    return [prediction for portion in labelled(adapted, texts) for prediction in portion]


def labelled(adapted: Adapted, texts: Iterable[str]) -> Iterator[list[Prediction]]:
    """The same portion by portion, as texts come; a blank text gets no label."""
    remaining, count, cut = iter(texts), 0, 0
    while portion := list(islice(remaining, PORTION)):
        predictions, longer = _label(adapted, portion)
        count, cut = count + len(portion), cut + longer
        yield predictions
    if cut:
        positions = adapted.model.config.n_positions
        told = f"{cut:,} of {count:,} texts {'was' if cut == 1 else 'were'} cut at {positions:,} tokens"
        warnings.warn(f"{told}, all that the model can read; label their parts instead", stacklevel=2)


def _label(adapted: Adapted, texts: list[str]) -> tuple[list[Prediction], int]:
    """Predictions, and how many texts were cut."""
    stripped = [text.strip() for text in texts]  # as in training
    there = [text for text in stripped if text]
    if not there:
        return [Prediction(None, None, text) for text in texts], 0
    examples = tokenize(adapted.tokenizer, there, [0] * len(there), adapted.model.config.n_positions)
    logits = predict_logits(adapted.model, examples)
    finite = logits.isfinite().all(dim=1).tolist()
    if not all(finite):
        raise UserError(
            f"no label for {quoted(there[finite.index(False)])}: the logits are not finite, so the weights "
            "are too large; train them again, with a lower --lr"
        )
    probabilities, ids = logits.softmax(dim=1).max(dim=1)
    names = adapted.label_names
    answers = iter(zip((names[i] for i in ids.tolist()), probabilities.tolist(), strict=True))
    predictions = [Prediction(*(next(answers) if text.strip() else (None, None)), text) for text in texts]
    return predictions, examples.truncated
