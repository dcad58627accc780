"""Softmax of attention scores over the keys that a query sees (Vaswani et al. 2017, eq. 1 and section 3.2.3): scale, mask and softmax in one.

The fused version (csrc/ops/masked_softmax.h) makes neither the scaled nor the masked scores, and does not read what the causal mask hides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megagpt.kernels import reference, select
from megagpt.kernels.operators import call, register


def masked_softmax(
    x: Tensor, scale: float = 1.0, *, causal: bool = False, mask: Tensor | None = None, implementation: str = "auto"
) -> Tensor:
    """softmax(scale * x) over the keys that each query sees, exactly 0 in all other columns.

    x           [b, heads, s_q, s_k] scores; float32, float16 or bfloat16 (float64: reference only)
    scale       positive
    causal      query i sees the keys up to i + s_k - s_q: the last query sees all
    mask        [b, s_k] bool, True where a key may be seen; both conditions hold
    returns     [b, heads, s_q, s_k], the same type

    A query that sees nothing gets zeros and no gradient. What a query does not see has no influence on it, be it NaN. A query that sees
    NaN, +inf, or -inf only gets NaN in the columns that it sees, as from torch.softmax.

    Raises RuntimeError for shapes or types that do not fit each other and for a scale <= 0, and where "fused" is asked for and cannot run.
    """
    if select.choose("masked_softmax", x, implementation) == "fused":
        return call("masked_softmax_forward", x, mask, scale, causal)
    return reference.masked_softmax(x, scale, causal, mask)


def _forward_fake(x, mask, scale, causal):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output):
    _, mask, ctx.scale, ctx.causal = inputs
    ctx.save_for_backward(output, mask)


def _backward(ctx, grad_y):
    y, mask = ctx.saved_tensors
    return call("masked_softmax_backward", grad_y, y, mask, ctx.scale, ctx.causal), None, None, None


def _backward_fake(grad_y, y, mask, scale, causal):
    return torch.empty_like(y, memory_format=torch.contiguous_format)


register("masked_softmax_forward", _forward_fake, _save, _backward)
register("masked_softmax_backward", _backward_fake)
