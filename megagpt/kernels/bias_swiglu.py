"""SwiGLU of the two halves of x + bias (Shazeer 2020, eq. 6): the gated activation of Llama's feed-forward layers.

The fused version (csrc/ops/bias_swiglu.h) stores neither the halves nor x + bias, and sums the columns of the bias's gradient while it writes
that of x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megagpt.kernels import reference, select
from megagpt.kernels.operators import call, register


def bias_swiglu(x: Tensor, bias: Tensor | None = None, *, implementation: str = "auto") -> Tensor:
    """silu(gate) * up for [gate; up] = x + bias, silu(a) = a / (1 + exp(-a)).

    x               [..., 2 * width] float32, float16 or bfloat16 (float64: reference only); all of gate stands before all of up, as in each
                    tensor-parallel rank's part of Megatron-core's `linear_fc1`
    bias            [2 * width], the same type; None: none
    returns         [..., width], the same type

    The fused version does not round x + bias to a 16-bit type, as separate operations do.
    Raises RuntimeError for shapes or types that do not fit each other, and where "fused" is asked for and cannot run.
    """
    if select.choose("bias_swiglu", x, implementation) == "fused":
        return call("bias_swiglu_forward", x, bias)
    return reference.bias_swiglu(x, bias)


def _forward_fake(x, bias):
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


def _save(ctx, inputs, output):
    x, bias = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, bias)


def _backward(ctx, grad_y):
    grad_x, grad_bias = call("bias_swiglu_backward", grad_y, *ctx.saved_tensors)
    return grad_x, grad_bias if ctx.has_bias else None


def _backward_fake(grad_y, x, bias):
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(0) if bias is None else torch.empty_like(bias)


register("bias_swiglu_forward", _forward_fake, _save, _backward)
register("bias_swiglu_backward", _backward_fake)
