"""x W^T + bias for the few rows of a decoding step, without gradient.

A general matrix product rearranges the weights first, which for 16 rows takes longer than the product; the fused version (csrc/ops/few_row_linear.h,
for CPUs alone) reads each weight once, as it lies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megagpt.kernels import reference, select
from megagpt.kernels.operators import call, register

FEW = range(4, 33)
"""Numbers of rows for which the fused version is faster; one row is a matrix times a vector, which needs no rearrangement."""


def few_row_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, implementation: str = "auto") -> Tensor:
    """x W^T + bias; "auto" leaves any number of rows but FEW, and what needs a gradient, to torch.nn.functional.linear, which is the reference.

    x           [rows, inputs] float32 (other types: reference only)
    weight      [outputs, inputs]
    bias        [outputs]
    returns     [rows, outputs]

    Raises RuntimeError for shapes or types that do not fit each other, and where "fused" is asked for and cannot run.
    """
    leave = implementation == "auto" and (x.size(0) not in FEW or torch.is_grad_enabled())
    if leave or select.choose("few_row_linear", x, implementation) != "fused":
        return reference.few_row_linear(x, weight, bias)
    y = x.new_empty(x.size(0), weight.size(0))
    call("few_row_linear", x, weight, bias, y)
    return y


register("few_row_linear", lambda x, weight, bias, y: None)
