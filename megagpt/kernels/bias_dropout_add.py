"""Dropout (Srivastava et al. 2014) of x + bias before the residual addition, and dropout masks for anything else.

Masks are a function of (key, row of the global batch, element of the row) by Philox 4x32-10 (Salmon et al. 2011), the same on every device, in
the fused version and in the reference, for any layout. They are drawn again in the backward pass; only the key is kept.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from megagpt.kernels import reference, select
from megagpt.kernels.operators import call, register
from megagpt.runtime.random import hash_counters


def dropout_key(*counters: int) -> int:
    """The key for a place of a model at one step, (seed, step, layer, place, …): their hash by `runtime.random`, as a signed 64-bit integer."""
    return int(hash_counters(*counters).astype(np.int64))


def bias_dropout_add(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    p: float,
    key: int,
    row_ids: Tensor,
    first_position: int = 0,
    *,
    implementation: str = "auto",
) -> Tensor:
    """residual + m * (x + bias), where m is 1 / (1 - p) with probability 1 - p, else 0.

    x, residual     [positions, b, h] float32, float16 or bfloat16 (float64: reference only)
    bias            [h], the same type; None: none
    p               probability to drop, in [0, 1)
    key             64 bits, from `dropout_key`
    row_ids         [b] int64: which rows of the global batch these are
    first_position  of the whole row, where this rank holds a part of it
    returns         [positions, b, h], the same type

    The mask of (row, position, feature) is that of element position * h + feature of the row (`dropout_mask`). NaN and infinity are passed on
    even where dropped, since they are multiplied by 0. The fused version rounds to a 16-bit type once, at the end.
    Raises ValueError for p or first_position out of range, RuntimeError for shapes or types that do not fit each other, and where "fused" is
    asked for and cannot run.
    """
    _check(p, first_position)
    first = first_position * x.shape[-1]
    if select.choose("bias_dropout_add", x, implementation) == "fused":
        return call("bias_dropout_add_forward", x, bias, residual, p, key, row_ids, first)
    return reference.bias_dropout_add(x, bias, residual, p, key, row_ids, first)


def dropout_mask(
    p: float, key: int, row_ids: Tensor, count: int, first: int = 0, *, dtype: torch.dtype = torch.float32, implementation: str = "auto"
) -> Tensor:
    """Scaled masks of the elements [first, first + count) of each row: 1 / (1 - p) where kept, else 0.

    p, key, row_ids as for bias_dropout_add; an attention mask [heads, s, s] has count = heads * s * s, and first = the first head * s * s where
    this rank holds a part of the heads.
    returns         [b, count] on the device of row_ids
    """
    _check(p, first)
    if select.choose("bias_dropout_add", torch.empty(0, dtype=dtype, device=row_ids.device), implementation) == "fused":
        return call("dropout_mask", row_ids, dtype, count, p, key, first)
    return reference.dropout_mask(p, key, row_ids, count, first, dtype)


def _check(p: float, first: int) -> None:
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout: p is {p}; it must be in [0, 1)")
    if first < 0:
        raise ValueError(f"dropout: the first position or element is {first}; it must be at least 0")


def _forward_fake(x, bias, residual, p, key, row_ids, first):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output):
    _, bias, _, ctx.p, ctx.key, row_ids, ctx.first = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(row_ids)


def _backward(ctx, grad_y):
    # Read whatever p is: a layer that is computed again begins to be so at the first saved tensor that is asked for, which under ZeRO 3 must
    # be before the weights of its last linear layer are gathered.
    (row_ids,) = ctx.saved_tensors
    if ctx.p == 0:  # the gradient passes as it is, without a copy
        return grad_y, grad_y.flatten(0, 1).sum(0) if ctx.has_bias else None, grad_y, None, None, None, None
    grad_x, grad_bias = call("bias_dropout_add_backward", grad_y, ctx.p, ctx.key, row_ids, ctx.first, ctx.has_bias)
    return grad_x, grad_bias if ctx.has_bias else None, grad_y, None, None, None, None


def _backward_fake(grad_y, p, key, row_ids, first, has_bias):
    return torch.empty_like(grad_y, memory_format=torch.contiguous_format), grad_y.new_empty(grad_y.shape[-1] if has_bias else 0)


def _mask_fake(row_ids, dtype, count, p, key, first):
    return torch.empty(row_ids.shape[0], count, dtype=dtype, device=row_ids.device)


register("bias_dropout_add_forward", _forward_fake, _save, _backward)
register("bias_dropout_add_backward", _backward_fake)
register("dropout_mask", _mask_fake)
