"""Accuracy and loss with a part of what was learned: some directions, all layers but one, more or less of it.

Everything else of the model, its head above all, stays as it was trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.core.surgery import merge_lora
from lora_from_scratch.data.batches import TokenizedExamples
from lora_from_scratch.lens.measures import energy
from lora_from_scratch.lens.updates import Update, set_weight
from lora_from_scratch.train.bar import Bar
from lora_from_scratch.train.evaluate import evaluate

PRECISION = "fp32"
SCALES = (0.0, 0.5, 1.0, 1.5, 2.0)  # of delta W; 1 is what was learned
EACH = 8  # so many directions are tried one by one, more by powers of two

Found = dict[str, float]


@dataclass(frozen=True)
class Measured:
    """Each with its accuracy in percent and its loss in nats, as `evaluate` has them."""

    kept: list[dict[str, float]]  # with the first k directions of every layer, from none to all
    scaled: list[dict[str, float]]  # with delta W times a scale
    left_out: list[dict[str, object]]  # without one layer's update


def measure(
    model: GPT2ForSequenceClassification, updates: Sequence[Update], examples: TokenizedExamples
) -> Measured:
    """Evaluate a model with all these parts; it comes back merged, otherwise as it was.

    With all directions it is the merged model itself, bit for bit. Two points that are one are computed once.
    """
    merge_lora(model)
    layers = {update.name: model.get_submodule(update.name) for update in updates}
    tuned = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    most = max(len(update.S) for update in updates)
    ks = [k for k in range(1, most) if k <= EACH or k & (k - 1) == 0]
    scales = [scale for scale in SCALES if scale not in (0, 1)]
    bar = Bar(total=2 + len(ks) + len(scales) + len(updates), desc="inspect", unit="evaluation")

    def evaluated() -> Found:
        found = evaluate(model, examples, PRECISION)
        bar.update()
        return {"accuracy": found.score.accuracy, "loss": found.loss}

    def of(part: Callable[[Update], Tensor | float]) -> Found:
        for update in updates:
            set_weight(layers[update.name], update.base + part(update))
        return evaluated()

    def without(out: Update) -> Found:
        set_weight(layers[out.name], out.base)
        found = evaluated()
        _put_back(layers[out.name], tuned[out.name])
        return found

    with bar:
        whole, none = evaluated(), of(lambda update: 0.0)
        kept = {0: none, **{k: of(lambda update, k=k: update.kept(k)) for k in ks}, most: whole}
        scaled = {0.0: none, 1.0: whole}
        scaled |= {scale: of(lambda update, scale=scale: scale * update.kept(most)) for scale in scales}
        for name, layer in layers.items():
            _put_back(layer, tuned[name])
        left_out = [{"layer": update.layer, **without(update)} for update in updates]
    shares = energy_kept(updates)
    return Measured(
        [{"directions": k, "energy": shares[k], **found} for k, found in kept.items()],
        [{"scale": scale, **scaled[scale]} for scale in SCALES],
        left_out,
    )


def energy_kept(updates: Sequence[Update]) -> list[float]:
    """The share of all updates' squared norm in the first 0, 1, ... directions of each."""
    most = max(len(update.S) for update in updates)
    sums = torch.zeros(most + 1, dtype=torch.float64)
    for update in updates:
        own = energy(update.S)
        sums += torch.cat([own, own[-1:].expand(most + 1 - len(own))])
    return (sums / sums[-1]).tolist()


@torch.no_grad()
def _put_back(layer: torch.nn.Module, weight: Tensor) -> None:
    layer.weight.copy_(weight)
