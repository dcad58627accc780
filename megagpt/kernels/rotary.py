"""Rotary position embedding (Su et al. 2021, section 3.2.2, eq. 34).

The fused version (csrc/ops/rotary.h) reads x once, wherever its heads lie, and takes the angles from a table that is made once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megagpt.kernels import reference, select
from megagpt.kernels.operators import call, register


def rotary_table(max_position: int, size: int, base: float = 10000.0, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines of position * base^(-2 i / size) for i < size / 2: two tensors [max_position, size / 2] float32.

    Computed in float64 and rounded: the angle of a late position would lose its digits in float32.

    Raises ValueError for an odd or negative size.
    """
    if size < 0 or size % 2:
        raise ValueError(f"rotary_table: size is {size}; it must be even")
    frequencies = base ** (-torch.arange(0, size, 2, dtype=torch.float64, device=device) / size)
    angles = torch.arange(max_position, dtype=torch.float64, device=device)[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()


def rotary(x: Tensor, positions: Tensor, table: tuple[Tensor, Tensor], *, interleaved: bool = False, implementation: str = "auto") -> Tensor:
    """Turn each pair of columns of every head by the angles of its token's position.

    x             [..., heads, width] float32, float16 or bfloat16 (float64: reference only), such as queries [s, b, heads, head size];
                  a slice of fused queries, keys and values is read where it lies
    positions     [...] int64, or what expands to it ([s, 1]): packed documents and decoding are a matter of positions
    table         cosines and sines [max_position, size / 2] float32 of rotary_table; size <= width, the columns behind it are copied
    interleaved   pairs are the columns 2 i and 2 i + 1; otherwise i and i + size / 2, as Llama and this project's models have them
    returns       like x, contiguous

    A position outside the table: RuntimeError on the CPU; on CUDA the fused version takes the nearest position of the table.

    Raises RuntimeError for shapes or types that do not fit each other, and where "fused" is asked for and cannot run.
    """
    positions = positions.expand(x.shape[:-2])
    if select.choose("rotary", x, implementation) == "fused":
        return call("rotary", x, positions, *table, interleaved, False)
    return reference.rotary(x, positions, *table, interleaved)


def _fake(x, positions, cos, sin, interleaved, inverse):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output):
    _, positions, cos, sin, ctx.interleaved, ctx.inverse = inputs
    ctx.save_for_backward(positions, cos, sin)


def _backward(ctx, grad_y):
    """The transpose of a rotation is the rotation back."""
    return call("rotary", grad_y, *ctx.saved_tensors, ctx.interleaved, not ctx.inverse), None, None, None, None, None


register("rotary", _fake, _save, _backward)
