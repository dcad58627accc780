"""Generalised advantage estimation (Schulman et al. 2016, eq. 16).

The fused version (csrc/ops/gae.h) scans every row in one pass, instead of some operators for each column.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megagpt.kernels import reference, select
from megagpt.kernels.operators import call, register


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, gae_lambda: float, implementation: str = "auto"
) -> tuple[Tensor, Tensor]:
    """A_t = sum over l >= 0 of (gamma lambda)^l delta_{t+l}, with delta_t = r_t + gamma V_{t+1} - V_t and V = 0 where the mask is 0 and
    behind the last column.

    rewards, values, mask   [n, P] float32 (float64: reference only); mask 1 on response tokens, 0 elsewhere
    gamma, gae_lambda       in [0, 1]
    returns                 advantages A and returns A + V, [n, P], 0 outside the response

    The fused version has no gradient: advantages are constants of the policy's loss. Raises RuntimeError for shapes or types that do not fit
    each other, and where "fused" is asked for and cannot run.
    """
    if select.choose("gae", rewards, implementation) == "fused":
        return call("gae", rewards, values, mask, gamma, gae_lambda)
    return reference.gae(rewards, values, mask, gamma, gae_lambda)


def _fake(rewards, values, mask, gamma, gae_lambda):
    return tuple(torch.empty_like(rewards, memory_format=torch.contiguous_format) for _ in range(2))


register("gae", _fake)
