"""Which implementation of each op runs: the fused one built from csrc/, or the plain one in reference.py.

Every op takes `implementation`: "fused", "reference", or "auto", which leaves it to the process-wide setting (set_kernels). That
setting is "auto" as well unless changed, and then means: fused where it can run, the reference elsewhere, with one warning if
megagpt._C is missing altogether. "fused" never falls back: it raises and says why.
"""

import functools
import importlib
import logging

import torch

CHOICES = ("auto", "fused", "reference")
# Each op that has a fused version -> the operator of csrc/bindings.cpp that is registered for the devices it was built for.
OPS = {
    "layer_norm": "norm_forward",
    "rms_norm": "norm_forward",
    "token_logprob": "token_logprob_forward",
    "sample": "sample",
}
# What "auto" leaves to PyTorch although the kernel could run, (op, kind of device) -> why; figures in csrc/README.md.
SLOWER: dict[tuple[str, str], str] = {("layer_norm", "cpu"): "PyTorch's own is fused as well, and as fast"}
library = "megagpt"
"""The operators' namespace in torch.ops. The tests put that of the emulated CUDA kernels here."""
# The storage types of csrc/common/kernel.h.
FUSED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

log = logging.getLogger(__name__)
_setting = "auto"


def set_kernels(choice: str) -> None:
    """Set what "auto" means in this process: "auto", "fused" or "reference"."""
    global _setting
    _setting = _checked(choice, "set_kernels")


def choose(op: str, tensor: torch.Tensor, implementation: str = "auto") -> str:
    """Return "fused" or "reference" for a call of `op` on `tensor`.

    Raises ValueError for an unknown `implementation`, RuntimeError where "fused" is wanted and cannot run.
    """
    wish = _checked(implementation, op)
    if wish == "auto":
        wish = _setting
    if wish == "reference":
        return "reference"
    obstacle = _obstacle(op, tensor.device.type, tensor.dtype)
    if obstacle is None and wish == "auto":
        return "reference" if (op, tensor.device.type) in SLOWER else "fused"
    if obstacle is None:
        return "fused"
    if wish == "fused":
        raise RuntimeError(f"{op}: the fused kernel was asked for, but {obstacle}")
    if extension_missing():
        _warn_once()
    return "reference"


def describe(device_type: str) -> list[str]:
    """One line per op: what "auto" runs for float32, float16 and bfloat16 tensors on this kind of device, and why."""
    lines = []
    for op in OPS:
        obstacle = "as set by set_kernels" if _setting == "reference" else _obstacle(op, device_type, torch.float32)
        if _setting == "auto":
            obstacle = obstacle or SLOWER.get((op, device_type))
        fallback = "an error" if _setting == "fused" else "reference"
        lines.append(f"{op} on {device_type}: " + (f"{fallback} ({obstacle})" if obstacle else "fused"))
    return lines


@functools.cache
def extension_missing() -> str | None:
    """Why megagpt._C cannot be used here; None where it is loaded."""
    try:
        importlib.import_module("megagpt._C")
    except ImportError as error:
        return str(error)
    return None


def _obstacle(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    if missing := extension_missing():
        return f"megagpt._C is not there ({missing})"
    key = torch._C._dispatch_key_for_device(device_type)
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{library}::{OPS[op]}", key):
        return f"it was not built for {device_type}"
    if dtype not in FUSED_DTYPES:
        return f"it does not take {dtype}"
    return None


def _checked(choice: str, who: str) -> str:
    if choice not in CHOICES:
        raise ValueError(f"{who}: implementation is {choice!r}; it must be one of {', '.join(CHOICES)}")
    return choice


@functools.cache
def _warn_once() -> None:
    log.warning("kernels run as plain PyTorch, since megagpt._C is not there (%s); build it with: bash launch/setup.sh", extension_missing())
