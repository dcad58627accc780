"""How fast a run is: tokens, model FLOPs, their share of what the device can do, memory."""

from __future__ import annotations

import resource
import time

import psutil
import torch

PEAKS = (
    ("GB200", {"bf16": 2500, "fp16": 2500, "fp32": 80}),
    ("B200", {"bf16": 2250, "fp16": 2250, "fp32": 75}),
    ("H200 NVL", {"bf16": 835, "fp16": 835, "fp32": 60}),
    ("H200", {"bf16": 989, "fp16": 989, "fp32": 67}),
    ("H100 PCIe", {"bf16": 756, "fp16": 756, "fp32": 51}),
    ("H100 NVL", {"bf16": 835, "fp16": 835, "fp32": 60}),
    ("H100", {"bf16": 989, "fp16": 989, "fp32": 67}),
    ("A100", {"bf16": 312, "fp16": 312, "fp32": 19.5}),
    ("L40S", {"bf16": 362, "fp16": 362, "fp32": 91.6}),
    ("V100-PCIE", {"fp16": 112, "fp32": 14}),
    ("V100", {"fp16": 125, "fp32": 15.7}),
)
"""Part of torch's name of a device -> TFLOP/s of dense matrix products, from NVIDIA's data sheets of these products (where
those state figures with sparsity: half of them). float32 without TF32, as torch computes by default. The first match counts."""
GIB = 2.0**30


class Meter:
    """Speed and memory of each step, for its metrics: `start()`, the step, `stop(num_tokens)`.

    Args:
        flops_per_token, num_devices: as in `speed`.
        device: of this rank.
        dtype: "fp32", "bf16" or "fp16".
    """

    def __init__(self, flops_per_token: float, num_devices: int, device: torch.device, dtype: str) -> None:
        self._flops, self._devices, self._device, self._peak = flops_per_token, num_devices, device, peak_flops(device, dtype)

    def start(self) -> None:
        self._began = time.perf_counter()

    def stop(self, num_tokens: int) -> dict[str, float]:
        """What `speed` and `memory` return. A step ends with a number read from the device, so nothing is left to wait for."""
        seconds = time.perf_counter() - self._began
        return speed(
            num_tokens=num_tokens, seconds=seconds, flops_per_token=self._flops, num_devices=self._devices, peak=self._peak
        ) | memory(self._device)


def peak_flops(device: torch.device, dtype: str) -> float | None:
    """FLOP/s that a device can do at best in "fp32", "bf16" or "fp16"; None where that is not known, as for every CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    tera = next((table.get(dtype) for part, table in PEAKS if part in name), None)
    return None if tera is None else tera * 1e12


def speed(*, num_tokens: int, seconds: float, flops_per_token: float, num_devices: int, peak: float | None) -> dict[str, float]:
    """Metrics of a step.

    Args:
        num_tokens: of the global batch.
        seconds: that the step took.
        flops_per_token: of the model, forward and backward (`ModelShape.flops_per_token`); recomputation does not count.
        num_devices: that shared the work.
        peak: of one device, FLOP/s.

    Returns:
        `tokens_per_s` of the whole job, `tflops_per_device`, and where the peak is known `mfu`, model FLOPs utilisation
        (Chowdhery et al. 2022, appendix B).
    """
    tokens_per_s = num_tokens / seconds
    flops = tokens_per_s * flops_per_token / num_devices
    return {"tokens_per_s": tokens_per_s, "tflops_per_device": flops / 1e12} | ({} if peak is None else {"mfu": flops / peak})


def memory(device: torch.device) -> dict[str, float]:
    """GiB in use by this rank: on CUDA the most that tensors have taken and that torch has reserved, else the process now and at most."""
    if device.type == "cuda":
        used = {"memory_gib": torch.cuda.max_memory_allocated(device), "memory_reserved_gib": torch.cuda.max_memory_reserved(device)}
    else:
        now, most = psutil.Process().memory_info().rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
        used = {"memory_gib": now, "memory_peak_gib": max(now, most)}  # the kernel brings its peak up to date now and then only
    return {name: size / GIB for name, size in used.items()}
