"""NVIDIA's apex, where it is installed on a GPU machine: its fused AdamW and norms.

The package of that name on the Python index is another project; this one is built from source (docker/Dockerfile.train).
"""

from __future__ import annotations

import functools
import importlib

import torch
from torch import Tensor

OPS = ("layer_norm", "rms_norm", "adamw")
"""What is taken from it."""


@functools.cache
def missing() -> str | None:
    """Why apex is not used in this process; None where it is."""
    if not torch.cuda.is_available():
        return "no GPU"
    try:
        importlib.import_module("apex.optimizers").FusedAdam, importlib.import_module("apex.normalization").fused_layer_norm_affine  # noqa: B018
    except (ImportError, AttributeError) as error:
        return f"it is not installed: {error}"
    return None


def adamw(groups: list[dict], lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """AdamW over parameters on a GPU, many tensors in one kernel."""
    return importlib.import_module("apex.optimizers").FusedAdam(groups, lr=lr, betas=betas, eps=eps, adam_w_mode=True)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return importlib.import_module("apex.normalization").fused_layer_norm_affine(x, weight, bias, weight.shape, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return importlib.import_module("apex.normalization").fused_rms_norm_affine(x, weight, weight.shape, eps)
