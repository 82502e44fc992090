"""Which tensor has which dtype at each line of a training step: read off one that is taken.

Source: Micikevicius et al. 2018, "Mixed Precision Training", arXiv:1710.03740: products in 16 bits, and what
learns in 32. `docs/precision.md` has the table.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.core.gpt2 import classify as plain_classify
from lora_from_scratch.core.loop import TrainState, train_step
from lora_from_scratch.core.lora import LoRALinear
from lora_from_scratch.data.batches import TokenizedExamples, pad_batch
from lora_from_scratch.fast.embedding_rows import Occurring
from lora_from_scratch.fast.gpt2 import classify as fast_classify
from lora_from_scratch.fast.switch import fast_training
from lora_from_scratch.lens.watching import watched
from lora_from_scratch.methods.interface import decay_matrices
from lora_from_scratch.train.optimizer import make_optimizer, make_schedule
from lora_from_scratch.train.precision import DTYPES, make_scaler

Lines = dict[tuple[str, str], str]  # from a moment and a tensor to a dtype's name: "fp32"
CPU = torch.device("cpu")
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MOMENTS = ("kept", "forward", "loss", "backward", "step", "merge")
FORWARD = {  # by the names of `watched`: of the second block, which reads what the first one made
    "wte": "wte(tokens)",
    "h.1.x": "x, the residual stream",
    "h.1.ln_1": "ln_1(x)",
    "h.1.attn.c_attn.base_layer": "W0 x + b",
    "h.1.attn.c_attn": "h, their sum",
    "h.1.attn.weights": "attention weights",
    "h.1.attn.y": "attention's output",
    "h.1.attn.c_proj": "attn.c_proj",
    "h.1.ln_2": "ln_2(x)",
    "h.1.mlp.c_fc": "mlp.c_fc",
    "h.1.mlp.act": "GELU",
    "h.1.mlp.c_proj": "mlp.c_proj",
    "ln_f": "ln_f(x)",
    "last": "what the head reads",
    "score": "logits",
}


def dtypes_of_a_step(model: GPT2ForSequenceClassification, precision: str, plain: bool) -> Lines:
    """Take one step on the CPU, then merge; the lines by moment, in the order of computing.

    The model has LoRA around the second block's `c_attn`, and dropout; it is another one afterwards.
    `precision` is what the forward pass is autocast to; `plain` leaves `fast/` out. In place of a dtype the
    GradScaler is "on" or "off".
    """
    lines, dtype = {}, DTYPES[precision]
    examples = TokenizedExamples(torch.tensor([1, 2, 3]), torch.tensor([1, 2]), torch.tensor([0, 1]), 0)
    whole = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}

    def tell(moment: str, what: str, *tensors: Tensor) -> None:
        (lines[moment, what],) = {NAMES[tensor.dtype] for tensor in tensors}

    with nullcontext(Occurring(examples)) if plain else fast_training(model, examples, dtype) as occurring:
        optimizer = make_optimizer(decay_matrices(model.parameters(), 0.01), lr=1e-3)
        schedule, scaler = make_schedule(optimizer, 1), make_scaler(dtype, CPU)
        forward = plain_classify if plain else fast_classify
        state = TrainState(model.train(), optimizer, schedule, scaler, dtype, forward)
        _take(state, occurring.examples, tell)
        lines["step", "GradScaler"] = "on" if scaler.is_enabled() else "off"

    for name, parameter in model.named_parameters():
        if name in whole:
            parameter.data = whole[name]
    layer = model.transformer.h[1].attn.c_attn
    tell("merge", "W0, as it was loaded", layer.base_layer.weight)
    tell("merge", "s B A", layer.delta_weight())
    tell("merge", "W0 + s B A, as it is kept", layer.merge().weight)
    return dict(sorted(lines.items(), key=lambda line: MOMENTS.index(line[0][0])))


def _take(state: TrainState, examples: TokenizedExamples, tell: Callable[..., None]) -> None:
    """One step; `tell` hears a moment, what there is, and the tensors."""
    model, block = state.model, state.model.transformer.h[1]
    layer, head = block.attn.c_attn, model.score.weight
    tell("kept", "W0", layer.base_layer.weight)
    tell("kept", "frozen biases and LayerNorm", layer.base_layer.bias, block.ln_1.weight)
    tell("kept", "frozen embeddings", model.transformer.wte.weight, model.transformer.wpe.weight)
    tell("kept", "A and B", layer.lora_A, layer.lora_B)
    tell("kept", "head", head)

    def see(name: str, tensor: Tensor) -> None:
        if name in FORWARD:
            tell("forward", FORWARD[name], tensor)
        if name == "h.1.attn.c_attn":
            tensor.register_hook(lambda gradient: tell("backward", "dL/dh", gradient))

    def lap(phase: str) -> None:
        if phase == "backward":
            tell("backward", "dL/dA and dL/dB", layer.lora_A.grad, layer.lora_B.grad)
            tell("backward", "dL/d(head)", head.grad)

    batch = pad_batch(examples, torch.arange(len(examples)))
    with watched(model, see), _products(layer, lambda what, tensor: tell("forward", what, tensor)):
        step = train_step(state, [batch], lap)
    tell("loss", "cross entropy", step.loss)
    tell("step", "norm of all gradients", step.gradient_norm)
    moments = [state.optimizer.state[p][key] for p in state.trainable for key in ("exp_avg", "exp_avg_sq")]
    tell("step", "AdamW's two moments", *moments)
    tell("step", "A, B and the head, moved", *state.trainable)


@contextmanager
def _products(layer: LoRALinear, tell: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the block `tell` hears a LoRA layer's two products, A x and then s B A x, or with it the sum."""
    mode = _Products(tell)

    def begins(*_: object) -> None:
        mode.__enter__()

    def ends(*_: object) -> None:
        mode.__exit__(None, None, None)

    hooks = layer.register_forward_pre_hook(begins), layer.register_forward_hook(ends)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Products(TorchFunctionMode):
    def __init__(self, tell: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self.tell, self.due = tell, ["s B A x", "A x"]

    def __torch_function__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        result = function(*args, **(kwargs or {}))
        if function in (Tensor.matmul, Tensor.addmm_):  # of which fast/ takes the second to add B's product
            self.tell(self.due.pop(), result)
        return result
