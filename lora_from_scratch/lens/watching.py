"""A forward pass, watched: every tensor on its way, by name, at the moment it is computed.

Hooks hear what the modules are given and what they give back, whoever calls them: `classify` of `core/` or
of `fast/`. Nothing is computed a second time, and no bit of a result is changed
(`test_what_is_watched_is_what_is_computed`, `test_watching_a_step_changes_nothing`).
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import GPT2ForSequenceClassification

See = Callable[[str, Tensor], None]

# What a module gives back is heard under the module's name; what it is given, where a name stands here.
HEARD = ("wte", "wpe", "ln_1", "c_attn", "base_layer", "c_proj", "ln_2", "c_fc", "ln_f", "score")
GIVEN = {
    "ln_1": "x",
    "attn.c_proj": "attn.y",
    "ln_2": "x + attention",
    "mlp.c_proj": "mlp.act",
    "ln_f": "x",
    "score": "last",
}


@contextmanager
def watched(model: GPT2ForSequenceClassification, see: See) -> Iterator[None]:
    """Within the block `see(name, tensor)` hears each tensor of a forward pass, in the order of computing.

    Names are those of the modules, without `transformer.`: `h.0.ln_1` is what that LayerNorm gave,
    `(B, T, C)`. Beside these, in block 0: `h.0.x`, what the block reads (a learned prefix stands before it);
    `h.0.attn.weights`, the softmax, where it is no part of a fused kernel, `(B, H, T, T)`, or as `fast/` has
    it, by keys, `(T, B H, T)`; `h.0.attn.y`, what
    `c_proj` reads; `h.0.x + attention`; `h.0.mlp.act`. After the last block: `x`, and `last`, what the head
    reads, `(B, C)`. A LoRA layer is heard after its `base_layer`, W0 x + b.
    """
    with ExitStack() as stack:
        softmax = stack.enter_context(_Softmax(see))

        def given(name: str, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            see(name, arguments[0])

        def gave(name: str, _: nn.Module, __: object, result: Tensor) -> None:
            see(name, result)
            if name.endswith("attn.c_attn"):
                softmax.name = name.replace("c_attn", "weights")

        for full, module in model.named_modules():
            name = full.removeprefix("transformer.")
            block, inner = re.fullmatch(r"(h\.\d+\.)?(.*)", name).groups(default="")
            if inner in GIVEN:
                hook = module.register_forward_pre_hook(partial(given, block + GIVEN[inner]))
                stack.callback(hook.remove)
            if name.rpartition(".")[2] in HEARD:
                stack.callback(module.register_forward_hook(partial(gave, name)).remove)
        yield


class _Softmax(TorchFunctionMode):
    """Within the block `see` hears what `Tensor.softmax` gives, under `name`."""

    def __init__(self, see: See) -> None:
        super().__init__()
        self.see, self.name = see, ""

    def __torch_function__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        result = function(*args, **(kwargs or {}))
        if function is Tensor.softmax:
            self.see(self.name, result)
        return result
