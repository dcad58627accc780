"""x W^T + bias for the few rows of a decoding step, without gradient.

A general matrix product rearranges the weights first, which for 16 rows takes longer than the product; the fused version (csrc/ops/few_row_linear.h,
for CPUs alone) reads each weight once, as it lies.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from megagpt.kernels import reference, select
from megagpt.kernels.operators import call, register

FEWEST = 5
"""Rows from which the fused version is faster; for one row PyTorch multiplies a matrix by a vector, which needs no rearrangement."""
VECTORS = {"AVX512": 16, "AVX2": 8}
"""Rows that a vector holds. With more the weights would have to be read again, and without such vectors the kernel is slow."""


@functools.cache
def few() -> range:
    """The numbers of rows for which the fused version is faster on this CPU."""
    return range(FEWEST, VECTORS.get(torch.backends.cpu.get_cpu_capability(), 0) + 1)


def few_row_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, implementation: str = "auto") -> Tensor:
    """x W^T + bias; "auto" leaves other devices, types and numbers of rows (`few`), and what needs a gradient, to torch.nn.functional.linear.

    x           [rows, inputs] float32 (other types: reference only)
    weight      [outputs, inputs]
    bias        [outputs]
    returns     [rows, outputs]

    Raises RuntimeError for shapes or types that do not fit each other, and where "fused" is asked for and cannot run.
    """
    suits = x.size(0) in few() and x.is_cpu and x.dtype == torch.float32 and not torch.is_grad_enabled()
    if (implementation == "auto" and not suits) or select.choose("few_row_linear", x, implementation) != "fused":
        return reference.few_row_linear(x, weight, bias)
    y = x.new_empty(x.size(0), weight.size(0))
    call("few_row_linear", x, weight, bias, y)
    return y


register("few_row_linear", lambda x, weight, bias, y: None)
