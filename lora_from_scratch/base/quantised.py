"""A frozen layer that keeps a rounded weight in few bits, and computes as `nn.Linear` does.

Source: Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv:2305.14314, eq. 5.
`int8.py` and `nf4.py` each say how a weight is rounded; their table is in `precisions.py`.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, FunctionCtx
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers.pytorch_utils import Conv1D

from lora_from_scratch.core.surgery import lora_layers, place
from lora_from_scratch.errors import UserError


class QuantisedLinear(nn.Linear):
    """y = W x + b, where W is dequantised anew for every product, and forgotten behind it.

    It is an `nn.Linear` to whoever asks, so that LoRA wraps it as any other. Shapes: x `(..., in_features)`
    -> `(..., out_features)`; `weight` `(out_features, in_features)`, also where the layer it was made of
    stores `(in, out)`: numbers that share a scale then belong to one output.

    No gradient flows to W. A subclass keeps W in buffers: `encode` makes them, `dequantise` reads them.
    """

    def __init__(self, layer: nn.Linear | Conv1D) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make the weight that is not kept
        self.fan_in_fan_out = isinstance(layer, Conv1D)  # PEFT's word for a weight stored as (in, out)
        weight = layer.weight.detach().float()
        weight = weight.T.contiguous() if self.fan_in_fan_out else weight
        self.out_features, self.in_features = weight.shape
        self.register_parameter("bias", layer.bias)
        self.encode(weight)
        self.train(layer.training)

    def encode(self, weight: Tensor) -> None:
        """Keep a weight, `(out_features, in_features)` in fp32, as buffers."""
        raise NotImplementedError

    def dequantise(self) -> Tensor:
        """What they stand for: W in fp32, `(out_features, in_features)`, in memory of its own."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        with torch.inference_mode(False):  # what is made within it does not count what is written
            weight = self.dequantise()
        return weight.as_subclass(_Copy) if type(weight) is Tensor else weight  # a fake one has its own class

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self.bias, self)

    def dense(self) -> nn.Linear | Conv1D:
        """The layer that it was made of, in fp32, its weight as it was rounded."""
        weight = self.dequantise()
        with torch.device("meta"):  # what a new layer draws is not wanted
            sizes = self.in_features, self.out_features
            layer = Conv1D(*reversed(sizes)) if self.fan_in_fan_out else nn.Linear(*sizes)
        weight = weight.T.contiguous() if self.fan_in_fan_out else weight
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.register_parameter("bias", self.bias)
        return layer.train(self.training)


class _Copy(Tensor):
    """A weight for reading. What is written into it, or into a view of it, would be lost, and is refused.

    What is computed from it is a plain tensor.
    """

    @classmethod
    def __torch_function__(
        cls, function: Callable, types: object, args: tuple = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        kwargs = kwargs or {}
        copies = [one for one in tree_leaves((args, kwargs)) if isinstance(one, cls)]
        with torch._C.DisableTorchFunctionSubclass():
            before = [one._version for one in copies]  # counts what is written in place
            found = function(*args, **kwargs)
            set_anew = function.__name__ == "__set__" and isinstance(args[0], cls)  # weight.data = ...
            if set_anew or before != [one._version for one in copies]:
                told = "this base is quantised, and its weights cannot be written to"
                where = "dequantised(model) of lora_from_scratch.base.quantised"
                raise UserError(f"{told}: {where} makes them dense")
            memory = [one.untyped_storage().data_ptr() for one in copies]

            def kept(one: Tensor) -> Tensor:
                return one.as_subclass(cls) if one.untyped_storage().data_ptr() in memory else one

            return tree_map_only(Tensor, kept, found)


class _Product(Function):
    """The product and its gradient: dL/dx = W^T dL/dy. Autograd keeps no dense W between the two."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, bias: Tensor | None, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        bias = None if bias is None else bias.to(x.dtype)
        return nn.functional.linear(x, layer.dequantise().to(x.dtype), bias)

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        of_x, of_bias, _ = ctx.needs_input_grad
        dx = dy @ ctx.layer.dequantise().to(dy.dtype) if of_x else None
        return dx, dy.reshape(-1, dy.shape[-1]).sum(0) if of_bias else None, None


def quantised_layers(model: nn.Module) -> Iterator[tuple[str, QuantisedLinear]]:
    """The (dotted name, layer) pairs of the model's quantised layers, in the model's order."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QuantisedLinear))


def dequantised(model: nn.Module) -> nn.Module:
    """Put dense layers, of the kinds that were there before, into the places of quantised ones."""
    for name, layer in list(quantised_layers(model)):
        place(model, name, layer.dense())
    return model


def kept_weights(model: nn.Module) -> Iterator[Tensor]:
    """All that holds a model's weights: parameters, and what quantised and LoRA layers keep in buffers."""
    yield from model.parameters()
    for _, layer in (*quantised_layers(model), *lora_layers(model)):
        yield from layer.buffers(recurse=False)


def stored_weights(model: nn.Module) -> int:
    """How many weights quantised layers stand for, which are no parameters."""
    return sum(layer.in_features * layer.out_features for _, layer in quantised_layers(model))
