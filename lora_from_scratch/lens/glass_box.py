"""One text through the model and one step back, number by number: the glass box.

`core/gpt2.py` computes, and `watching.py` listens; here the tensors become rows of figures. Nothing stays
changed: the weights are the same bits afterwards, and no gradient is left.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.core.gpt2 import classify
from lora_from_scratch.core.loop import Batch
from lora_from_scratch.core.surgery import lora_layers, place
from lora_from_scratch.data.batches import pad_batch, tokenize
from lora_from_scratch.errors import UserError, quoted
from lora_from_scratch.formats.adapted import Adapted
from lora_from_scratch.lens.watching import watched
from lora_from_scratch.version import __version__

Row = dict[str, object]
Seen = Mapping[str, Tensor]  # by the names of `watched`


def glass_box(adapted: Adapted, text: str, label: str | None = None) -> Row:
    """What happens to one text, in fp32 with dropout off, as JSON can hold it.

    `label` is the one whose loss is taken, by default the predicted one. Norms are Frobenius norms, summed in
    float64. The keys `layers` (a row a LoRA layer), `at_step_one`, and in `labels` `logit_without` and
    `probability_without`, are there for a model with LoRA layers alone. UserError for a blank text, a label
    that the model has not, and logits that are not finite.
    """
    model, names = adapted.model.eval(), adapted.label_names
    batch, tokens = _read(adapted, text)
    if label is not None and label not in names:
        raise UserError(f"--label {quoted(label)}: there is no such label; choose one of {quoted(*names)}")
    model.zero_grad()
    seen, logits = _forward(model, batch)
    if not logits.isfinite().all():
        raise UserError("the logits are not finite, so the weights are too large; train again, lower --lr")
    predicted = int(logits.argmax())
    target = predicted if label is None else names.index(label)
    box = {"kind": "explanation", "version": __version__, "text": text.strip(), **tokens}
    box |= {"labels": _labels(names, logits), "predicted": names[predicted], "label": names[target]}
    box |= {"loss": _backward(logits, target), "forward": list(_lines(model, seen)), **_gradients(model)}
    model.zero_grad()
    if any(True for _ in lora_layers(model)):
        with _without_lora(model), torch.no_grad():
            bare = classify(model, batch.input_ids, batch.lengths)
        for row, off in zip(box["labels"], _labels(names, bare), strict=True):
            row |= {"logit_without": off["logit"], "probability_without": off["probability"]}
        box |= {"layers": list(_beside(model, seen)), "at_step_one": _at_step_one(model, batch, target)}
    return box


def _read(adapted: Adapted, text: str) -> tuple[Batch, Row]:
    """The text as a batch of its own, and its tokens; where the model reads fewer, the first ones."""
    if not text.strip():
        raise UserError("the text is blank; give one with words in it")
    examples = tokenize(adapted.tokenizer, [text.strip()], [0], adapted.model.config.n_positions)
    batch = pad_batch(examples, torch.tensor([0]), adapted.model.score.weight.device)
    rows = [
        {"position": position, "id": token, "token": adapted.tokenizer.decode([token])}
        for position, token in enumerate(batch.input_ids[0].tolist())
    ]
    return batch, {"cut": examples.truncated > 0, "tokens": rows}


def _forward(model: GPT2ForSequenceClassification, batch: Batch) -> tuple[Seen, Tensor]:
    """Every tensor of the forward pass, ready to keep its gradient, and the logits `(1, num_labels)`."""
    seen = {}

    def see(name: str, tensor: Tensor) -> None:
        seen[name] = tensor
        if tensor.requires_grad:
            tensor.retain_grad()

    with torch.enable_grad(), watched(model, see):
        logits = classify(model, batch.input_ids, batch.lengths)
    return seen, logits


def _backward(logits: Tensor, target: int) -> float:
    loss = cross_entropy(logits, torch.tensor([target], device=logits.device))
    loss.backward()
    return loss.item()


def _lines(model: GPT2ForSequenceClassification, seen: Seen) -> Iterator[Row]:
    """A row a tensor: name, shape, dtype, norm, and the norm of dL/d(tensor), None where none is computed.

    Beside what `watched` hears: `.update`, what a LoRA layer adds; and q, k, v, `(B, H, T, D)` each.
    """
    adapted = {_short(name) for name, _ in lora_layers(model)}
    for name, tensor in seen.items():
        if name in adapted:  # of a sum each part gets the whole gradient
            yield _line(f"{name}.update", _update(seen, name), tensor.grad)
        yield _line(name, tensor, tensor.grad)
        if name.endswith("attn.c_attn"):
            heads = model.config.n_head
            gradients = (None,) * 3 if tensor.grad is None else _parts(tensor.grad, heads)
            for letter, part, gradient in zip("qkv", _parts(tensor, heads), gradients, strict=True):
                yield _line(f"{name}.{letter}", part, gradient)


def _parts(qkv: Tensor, heads: int) -> list[Tensor]:
    """q, k and v of `(B, S, 3 C)`, `(B, H, S, D)` each."""
    parts = qkv.detach().chunk(3, dim=2)
    return [part.unflatten(2, (heads, -1)).transpose(1, 2) for part in parts]


def _line(name: str, tensor: Tensor, gradient: Tensor | None) -> Row:
    dtype = str(tensor.dtype).removeprefix("torch.")
    sizes = {"shape": list(tensor.shape), "dtype": dtype, "norm": _norm(tensor)}
    return {"name": name, **sizes, "gradient": _norm(gradient)}


def _norm(tensor: Tensor | None) -> float | None:
    return None if tensor is None else tensor.detach().double().norm().item()


def _short(name: str) -> str:
    return name.removeprefix("transformer.")


def _update(seen: Seen, layer: str) -> Tensor:
    """What a LoRA layer, whatever its kind, adds to W0 x + b: s B A x of the plain one, `(B, T, out_dim)`."""
    return (seen[layer] - seen[f"{layer}.base_layer"]).detach()


def _beside(model: GPT2ForSequenceClassification, seen: Seen) -> Iterator[Row]:
    """What each LoRA layer adds, beside what was there, over all tokens."""
    for full, layer in lora_layers(model):
        name = _short(full)
        frozen, update = seen[f"{name}.base_layer"].detach().double(), _update(seen, name).double()
        whole, part = _norm(frozen), _norm(update)
        yield {
            "name": name,
            "kind": type(layer).__name__,
            "rank": layer.rank,
            "scaling": layer.scaling,
            "frozen": whole,
            "update": part,
            "ratio": part / whole if whole else None,
            "cosine": cosine_similarity(frozen.flatten(), update.flatten(), dim=0).item() if part else None,
        }


def _labels(names: list[str], logits: Tensor) -> list[Row]:
    shares = logits.detach()[0].double().softmax(dim=0).tolist()
    values = zip(names, logits[0].tolist(), shares, strict=True)
    return [{"label": name, "logit": logit, "probability": share} for name, logit, share in values]


def _gradients(model: GPT2ForSequenceClassification) -> Row:
    """A row for each parameter that learns, and how many others there are; none of those has a gradient."""
    learns = {name: p for name, p in model.named_parameters() if p.requires_grad}
    frozen = [p for p in model.parameters() if not p.requires_grad]
    return {
        "gradients": [_line(name, p, p.grad) for name, p in learns.items()],
        "frozen": {
            "tensors": len(frozen),
            "numbers": sum(p.numel() for p in frozen),
            "with_gradient": sum(p.grad is not None for p in frozen),
        },
    }


@contextmanager
def _without_lora(model: GPT2ForSequenceClassification) -> Iterator[None]:
    """Within the block the bare layers stand in the places of their LoRA layers."""
    layers = list(lora_layers(model))
    for name, layer in layers:
        place(model, name, layer.base_layer)
    try:
        yield
    finally:
        for name, layer in layers:
            place(model, name, layer)


def _at_step_one(model: GPT2ForSequenceClassification, batch: Batch, target: int) -> Row:
    """The backward pass with every B at zero, where LoRA's training begins; all else is the trained one."""
    layers = dict(lora_layers(model))
    kept = {name: layer.lora_B.detach().clone() for name, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.lora_B.data.zero_()
        _, logits = _forward(model, batch)
        loss = _backward(logits, target)
        rows = [
            {"name": _short(name), "A": _norm(layer.lora_A.grad), "B": _norm(layer.lora_B.grad)}
            for name, layer in layers.items()
        ]
    finally:
        for name, layer in layers.items():
            layer.lora_B.data.copy_(kept[name])
        model.zero_grad()
    return {"loss": loss, "layers": rows}
