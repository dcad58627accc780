"""Which implementation of each op runs: the fused kernel built from csrc/, NVIDIA's apex, or the plain PyTorch of reference.py.

Every op takes `implementation`: "fused", "reference", "apex", or "auto", which leaves it to the process-wide setting (set_kernels).
That setting is "auto" as well unless changed, and then means: apex where it is installed and has the op, else the fused kernel where
there is one for the device and PyTorch is not faster, else the reference, with one warning if megagpt._C is missing altogether.
"fused" never falls back: it raises and says why. "apex" does so if apex is missing; for ops that apex lacks it means "auto".
"""

from __future__ import annotations

import functools
import importlib
import logging

import torch

from megagpt.kernels import apex, flash_attention
from megagpt.runtime.errors import Foreseen

CHOICES = ("auto", "fused", "reference", "apex")
OPS = {
    "layer_norm": "norm_forward",
    "rms_norm": "norm_forward",
    "token_logprob": "token_logprob_forward",
    "bias_gelu": "bias_gelu_forward",
    "bias_swiglu": "bias_swiglu_forward",
    "bias_dropout_add": "bias_dropout_add_forward",
    "adamw": "adamw",
    "gae": "gae",
    "ppo_policy_loss": "ppo_policy_loss",
    "ppo_value_loss": "ppo_value_loss",
    "masked_softmax": "masked_softmax_forward",
    "rotary": "rotary",
    "sample": "sample",
    "few_row_linear": "few_row_linear",
}
"""Each op -> the operator (csrc/ops/*.cpp) that is registered for the devices that it was built for."""
SLOWER: dict[tuple[str, str], str] = {("layer_norm", "cpu"): "as fast"}
"""What "auto" leaves to PyTorch although the kernel could run: (op, kind of device) -> why; figures in csrc/README.md."""
FUSED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""The storage types of csrc/common/kernel.h."""
library = "megagpt"
"""The operators' namespace in torch.ops. The tests put that of the emulated CUDA kernels here."""
FLOAT32_ONLY = ("adamw", "gae", "ppo_policy_loss", "ppo_value_loss", "few_row_linear")
"""Ops whose first tensor is a master weight or a number for each token, never stored in 16 bits; and what is for CPUs, where weights seldom are."""

log = logging.getLogger(__name__)
_setting = "auto"


class KernelError(Foreseen, RuntimeError):
    """Kernels that were asked for and cannot run here."""


def set_kernels(choice: str) -> None:
    """Set what "auto" means in this process: one of CHOICES.

    Raises:
        KernelError: "fused" without the extension, or "apex" without apex.
    """
    global _setting
    missing = {"fused": extension_missing, "apex": apex.missing}.get(_checked(choice, "set_kernels"), lambda: None)()
    if missing:
        raise KernelError(f"kernels = {choice}: {missing}; take auto")
    _setting = choice


def choose(op: str, tensor: torch.Tensor, implementation: str = "auto") -> str:
    """Return "fused", "reference" or "apex" for a call of `op` on `tensor`.

    Raises ValueError for an unknown `implementation`, RuntimeError where "fused" or "apex" is wanted and cannot run.
    """
    wish = _checked(implementation, op)
    if wish == "auto":
        wish = _setting
    if wish == "reference":
        return "reference"
    if wish != "fused" and op in apex.OPS:
        if tensor.device.type == "cuda" and apex.missing() is None:
            return "apex"
        if wish == "apex":
            raise RuntimeError(f"{op}: NVIDIA's apex was asked for, but {apex.missing() or f'the tensor is on {tensor.device}'}")
    obstacle = _obstacle(op, tensor.device.type, tensor.dtype)
    if obstacle is None:
        return "reference" if wish != "fused" and (op, tensor.device.type) in SLOWER else "fused"
    if wish == "fused":
        raise RuntimeError(f"{op}: the fused kernel was asked for, but {obstacle}")
    if extension_missing():
        _warn_once()
    return "reference"


def describe(device_type: str) -> list[str]:
    """What runs for float32, float16 and bfloat16 tensors on this kind of device: one line for each implementation, with the ops that
    take it and, for PyTorch, why."""
    found: dict[str, list[str]] = {}
    for op in OPS:
        if _setting != "reference" and _setting != "fused" and op in apex.OPS and device_type == "cuda" and apex.missing() is None:
            found.setdefault("NVIDIA's apex", []).append(op)
            continue
        obstacle = "kernels = reference" if _setting == "reference" else _obstacle(op, device_type, torch.float32)
        if _setting != "fused":
            obstacle = obstacle or SLOWER.get((op, device_type))
        found.setdefault("fused" if obstacle is None else f"PyTorch ({obstacle})", []).append(op)
    if flash_attention.missing() is None and device_type == "cuda" and _setting != "reference":
        found["flash-attention"] = ["attention within documents"]
    lines = [f"{how}: {', '.join(ops)}" for how, ops in found.items()]
    absent = {"NVIDIA's apex": apex.missing(), "flash-attention": flash_attention.missing()}
    return lines + [f"not used: {name} ({why})" for name, why in absent.items() if why]


def flash_attention_runs(query: torch.Tensor) -> bool:
    """Whether the flash-attention package takes attention within documents."""
    return _setting != "reference" and flash_attention.takes(query)


@functools.cache
def extension_missing() -> str | None:
    """Why megagpt._C cannot be used here; None where it is loaded."""
    try:
        importlib.import_module("megagpt._C")
    except ImportError as error:
        return f"megagpt._C is not there ({error})"
    return None


def _obstacle(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    if missing := extension_missing():
        return missing
    if not _is_built(f"{library}::{OPS[op]}", device_type):
        return f"not built for {device_type}"
    if dtype not in (FUSED_DTYPES if op not in FLOAT32_ONLY else (torch.float32,)):
        return f"it does not take {dtype}"
    return None


@functools.cache
def _is_built(operator: str, device_type: str) -> bool:
    """Asking PyTorch takes up to 50 microseconds, and every call of every op asks."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(operator, torch._C._dispatch_key_for_device(device_type))


def _checked(choice: str, who: str) -> str:
    if choice not in CHOICES:
        raise ValueError(f"{who}: implementation is {choice!r}; it must be one of {', '.join(CHOICES)}")
    return choice


@functools.cache
def _warn_once() -> None:
    log.warning("kernels run as plain PyTorch: %s; build it with: bash launch/setup.sh", extension_missing())
