"""A reference call of every op: what csrc/verify.sh measures, in the emulator and on a GPU.

Each function takes the number of rows and their width, a dtype and a device, and returns what to run, forward and backward, and the fewest bytes
that it can move: every large tensor read or written once. What all rows share and what there is one of for each row is left out, as in
csrc/cuda/vec.cuh.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from megagpt.kernels.norm import layer_norm

Call = tuple[Callable[[], object], int]


def norm(rows: int, width: int, dtype: torch.dtype, device: str) -> Call:
    x, residual, grad = (torch.randn(rows, width, dtype=dtype, device=device) for _ in range(3))
    weight, bias = (torch.ones(width, dtype=dtype, device=device, requires_grad=True) for _ in range(2))
    x.requires_grad_(), residual.requires_grad_()

    def work():
        outputs = layer_norm(x, weight, bias, residual=residual, implementation="fused")
        return torch.autograd.grad(outputs, (x, residual, weight, bias), (grad, grad))

    # Forward x, residual, sum, y; backward two gradients in, sum, one out.
    return work, 8 * x.nbytes


CALLS: dict[str, Callable[[int, int, torch.dtype, str], Call]] = {"norm": norm}
