"""GPT-2's GELU on a CPU, where PyTorch's kernel takes up to 0.4 times as long as the product before it.

Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2: x P(X <= x) of a normal X, which they
approximate by tanh, as GPT-2 does, and PyTorch also has by erf. With 0.5 (1 + tanh(z / 2)) = sigmoid(z),
GPT-2's is

    y = x s,  dy/dx = s + y (1 - s) dz/dx,  with s = sigmoid(z), z = 2 sqrt(2 / pi) (x + 0.044715 x^3)

In fp32 that is computed: PyTorch's kernel of the sigmoid takes a fifth of the time of that of GELU. In bf16
oneDNN has kernels that read and write less:

- Forward the tanh form, which PyTorch hands to it at the end of a matrix product alone. So x is multiplied by
  the identity, which changes nothing.
- Backward the derivative of the erf form, which PyTorch hands to it as it is. The two derivatives are at most
  8.7e-4 apart, where bf16 rounds a number near 1 by up to 3.9e-3.
"""

import math
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import Function, FunctionCtx
from torch.nn.functional import gelu as torch_gelu

WIDTH = 16  # of the identity: of a smaller one the product is slower, of a larger one there is more of it
SLOPE = 2 * math.sqrt(2 / math.pi)  # of z at 0
CUBIC = SLOPE * 0.044715


def gelu(x: Tensor) -> Tensor:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), element by element.

    In bf16 an infinite element makes NaN of WIDTH elements, as a product does.
    """
    with_numbers = type(x) is Tensor and x.device.type == "cpu"  # other kinds of tensor may have shapes alone
    if with_numbers and x.dtype == torch.float32:
        return _Gelu.apply(x)
    if with_numbers and x.dtype == torch.bfloat16 and _fits(x) and _as_known():
        return _GeluInBf16.apply(x)
    return torch_gelu(x, approximate="tanh")


def _fits(x: Tensor) -> bool:
    return x.is_contiguous() and x.dim() > 0 and x.shape[-1] % WIDTH == 0


class _Gelu(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        s = torch.addcmul(x.new_tensor(SLOPE), x, x, value=CUBIC).mul_(x).sigmoid_()
        if not ctx.needs_input_grad[0]:
            return s.mul_(x)
        y = s * x
        slope = torch.addcmul(x.new_tensor(SLOPE), x, x, value=3 * CUBIC).mul_(y)  # y dz/dx
        ctx.save_for_backward(torch.addcmul(s, slope, 1 - s, out=slope))
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return dy * slope


class _GeluInBf16(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _at_the_end_of_a_product(x)

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.gelu_backward(dy.contiguous(), x)


def _at_the_end_of_a_product(x: Tensor) -> Tensor:
    rows, identity = x.view(-1, WIDTH), torch.eye(WIDTH, dtype=x.dtype)
    return torch.ops.mkldnn._linear_pointwise(rows, identity, None, "gelu", [], "tanh").view_as(x)


@cache
def _as_known() -> bool:
    """Whether oneDNN's private operation is there, and does what it did."""
    x = torch.linspace(-4, 4, 8 * WIDTH).bfloat16()
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        found = _at_the_end_of_a_product(x)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.allclose(found.double(), torch_gelu(x.double(), approximate="tanh"), rtol=2**-8, atol=1e-6)
