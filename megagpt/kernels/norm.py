"""LayerNorm (Ba et al. 2016, eq. 4) and RMSNorm (Zhang & Sennrich 2019, eq. 4), with the residual addition before them.

The fused version (csrc/ops/norm.h) reads a row once and keeps one or two numbers of it for the backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megagpt.kernels import apex, reference, select
from megagpt.kernels.operators import call, register


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, residual: Tensor | None = None, implementation: str = "auto"
) -> Tensor | tuple[Tensor, Tensor]:
    """(s - mean) / sqrt(variance + eps) * weight + bias for each row of s = x + residual.

    x, residual     [..., width] float32, float16 or bfloat16 (float64: reference only)
    weight, bias    [width], the same type
    returns         y [..., width]; with a residual (y, s), as the next residual branch needs s

    Raises RuntimeError for shapes or types that do not fit each other, and where "fused" is asked for and cannot run.
    """
    choice = select.choose("layer_norm", x, implementation)
    if choice == "fused":
        y, s, _, _ = call("norm_forward", x, residual, weight, bias, eps, True)
        return y if residual is None else (y, s)
    if choice == "apex":
        s = x if residual is None else x + residual
        y = apex.layer_norm(s, weight, bias, eps)
        return y if residual is None else (y, s)
    return reference.layer_norm(x, weight, bias, eps, residual)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float = 1e-5, *, residual: Tensor | None = None, implementation: str = "auto"
) -> Tensor | tuple[Tensor, Tensor]:
    """s / sqrt(mean(s^2) + eps) * weight for each row of s = x + residual; shapes and types as for layer_norm."""
    choice = select.choose("rms_norm", x, implementation)
    if choice == "fused":
        y, s, _, _ = call("norm_forward", x, residual, weight, None, eps, False)
        return y if residual is None else (y, s)
    if choice == "apex":
        s = x if residual is None else x + residual
        y = apex.rms_norm(s, weight, eps)
        return y if residual is None else (y, s)
    return reference.rms_norm(x, weight, eps, residual)


def _forward_fake(x, residual, weight, bias, eps, center):
    stats = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    nothing = torch.empty(0, dtype=torch.float32, device=x.device)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty(0) if residual is None else torch.empty_like(y), torch.empty_like(stats) if center else nothing, stats


def _save(ctx, inputs, output):
    x, residual, weight, bias, _, center = inputs
    _, s, mean, rstd = output
    ctx.save_for_backward(x if residual is None else s, weight, mean, rstd)
    ctx.center, ctx.has_residual, ctx.has_bias = center, residual is not None, bias is not None


def _backward(ctx, grad_y, grad_s, *_):
    s, weight, mean, rstd = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = call("norm_backward", grad_y, grad_s if ctx.has_residual else None, s, weight, mean, rstd, ctx.center)
    return grad_x, grad_x if ctx.has_residual else None, grad_weight, grad_bias if ctx.has_bias else None, None, None


def _backward_fake(grad_y, grad_sum, s, weight, mean, rstd, center):
    return torch.empty_like(s, memory_format=torch.contiguous_format), torch.empty_like(weight), torch.empty_like(weight) if center else weight.new_empty(0)


register("norm_forward", _forward_fake, _save, _backward)
register("norm_backward", _backward_fake)
