"""GELU of x + bias (Hendrycks & Gimpel 2016, section 2): exact, or by their approximation with tanh.

The fused version (csrc/ops/bias_gelu.h) never stores x + bias: the backward pass adds them again, and sums the columns of the bias's gradient
while it writes that of x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megagpt.kernels import reference, select
from megagpt.kernels.operators import call, register

APPROXIMATIONS = ("none", "tanh")


def bias_gelu(x: Tensor, bias: Tensor | None = None, *, approximate: str = "tanh", implementation: str = "auto") -> Tensor:
    """v * P(v) for v = x + bias, P the standard normal distribution; "tanh": v * (1 + tanh(sqrt(2 / pi) * (v + 0.044715 v^3))) / 2.

    x               [..., width] float32, float16 or bfloat16 (float64: reference only)
    bias            [width], the same type; None: none
    approximate     "none" or "tanh", as in torch.nn.functional.gelu
    returns         [..., width], the same type

    The fused version does not round x + bias to a 16-bit type, as separate operations do. At large finite |v| its gradient is 0 or 1, where
    that of torch's tanh version becomes NaN once v^2 overflows.
    Raises ValueError for another approximation, RuntimeError for shapes or types that do not fit each other, and where "fused" is asked for
    and cannot run.
    """
    if approximate not in APPROXIMATIONS:
        raise ValueError(f"bias_gelu: approximate is {approximate!r}; it must be one of {', '.join(APPROXIMATIONS)}")
    if select.choose("bias_gelu", x, implementation) == "fused":
        return call("bias_gelu_forward", x, bias, approximate == "tanh")
    return reference.bias_gelu(x, bias, approximate)


def _forward_fake(x, bias, tanh):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output):
    x, bias, ctx.tanh = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, bias)


def _backward(ctx, grad_y):
    x, bias = ctx.saved_tensors
    grad_x, grad_bias = call("bias_gelu_backward", grad_y, x, bias, ctx.tanh)
    return grad_x, grad_bias if ctx.has_bias else None, None


def _backward_fake(grad_y, x, bias, tanh):
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(0) if bias is None else torch.empty_like(bias)


register("bias_gelu_forward", _forward_fake, _save, _backward)
register("bias_gelu_backward", _backward_fake)
