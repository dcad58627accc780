"""NVIDIA's apex, where it is installed on a GPU machine: its fused AdamW and norms. Elsewhere torch's own, which is said once.

The package of that name on the Python index is another project; this one is built from source (docker/Dockerfile.train).
"""

from __future__ import annotations

import functools
import importlib

import torch


@functools.cache
def missing() -> str | None:
    """Why apex is not used in this process; None where it is."""
    if not torch.cuda.is_available():
        return "no GPU"
    try:
        importlib.import_module("apex.optimizers").FusedAdam, importlib.import_module("apex.normalization").FusedLayerNorm  # noqa: B018
    except (ImportError, AttributeError) as error:
        return f"NVIDIA's apex is not installed ({error})"
    return None


def adamw(groups: list[dict], lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """AdamW over parameters on a GPU in one kernel for many tensors: apex's, or else torch's."""
    if missing():
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
    return importlib.import_module("apex.optimizers").FusedAdam(groups, lr=lr, betas=betas, eps=eps, adam_w_mode=True)


def norm_class(name: str) -> type[torch.nn.Module]:
    """`LayerNorm` or `RMSNorm`: apex's, or else torch's."""
    if missing():
        return getattr(torch.nn, name)
    return getattr(importlib.import_module("apex.normalization"), f"Fused{name}")


def describe() -> str:
    """One line for the start of a stage."""
    reason = missing()
    return "AdamW and norms: " + ("NVIDIA's apex, fused" if reason is None else f"torch's own ({reason})")
