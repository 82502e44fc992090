"""Text in, labels out."""

from collections.abc import Sequence
from dataclasses import dataclass

from lora_from_scratch.data.batches import tokenize
from lora_from_scratch.formats.adapted import Adapted
from lora_from_scratch.train.evaluate import predict_logits


@dataclass(frozen=True)
class Prediction:
    """The likeliest label by name, its probability in (0, 1], and the text it was given for."""

    label: str
    probability: float
    text: str


def predict(adapted: Adapted, texts: Sequence[str]) -> list[Prediction]:
    """Label texts, in their order, in fp32; they are read in batches of like length.

    Texts longer than the model has positions are cut at the end. Merge LoRA layers first (`merge_lora`): the
    result is the same, without their extra products.
    """
    if not texts:
        return []
    model = adapted.model
    stripped = [text.strip() for text in texts]  # as in training
    examples = tokenize(adapted.tokenizer, stripped, [0] * len(texts), model.config.n_positions)
    probabilities, labels = predict_logits(model, examples).softmax(dim=1).max(dim=1)
    names = adapted.label_names
    return [
        Prediction(names[label], probability, text)
        for label, probability, text in zip(labels.tolist(), probabilities.tolist(), texts, strict=True)
    ]
