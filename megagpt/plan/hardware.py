"""Devices that a run could be planned on: configs/hardware/*.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from megagpt.config.load import ConfigError, load_config
from megagpt.config.schema import Frozen

FOLDER = Path(__file__).resolve().parents[2] / "configs/hardware"


class PeakConfig(Frozen):
    """Dense matrix products, FLOP/s of one device."""

    fp32: float = Field(gt=0)
    """With tensor cores left at full fp32 (no TF32), as PyTorch does by default."""
    bf16: float = Field(gt=0)
    """0 is not possible: a device without bf16 gets the rate at which it emulates it."""
    fp16: float = Field(gt=0)
    """With fp32 accumulation."""


class Hardware(Frozen):
    """One kind of device and how devices are connected."""

    name: str
    """What the plan calls it."""
    kind: Literal["gpu", "cpu"] = "gpu"
    """Ranks on a `cpu` keep what they free (`memory.CPU_NOTE`)."""
    peak_flops: PeakConfig
    """By type of the weights."""
    memory_bytes: float = Field(gt=0)
    """Of one device."""
    memory_bandwidth: float = Field(gt=0)
    """Bytes a second between a device and its memory."""
    devices_per_node: int = Field(gt=0)
    """Devices that the fast links connect; the largest number that divides all slots of a hostfile overrides it."""
    intra_node_bandwidth: float = Field(gt=0)
    """Bytes a second that one device can send within its node."""
    inter_node_bandwidth: float = Field(gt=0)
    """Bytes a second that one device can send to another node."""
    host_link_bandwidth: float | None = Field(gt=0)
    """Bytes a second that one device can send to its host or fetch from there; null where the device is the host."""
    host_memory_bandwidth: float = Field(gt=0)
    """Bytes a second between the host and its memory, divided by its devices: what an offloaded optimizer works with."""
    drive_bandwidth: float = Field(gt=0)
    """Bytes a second that the host can write to its drives, divided by its devices; reading is taken to be as fast."""
    runtime_bytes: float = Field(ge=0)
    """What a process holds beside tensors (libraries, CUDA context, communication buffers)."""
    price_per_device_hour: float | None = Field(None, ge=0)
    """In whatever currency you pay; null: no cost is planned."""

    def bandwidth(self, num_neighbours: int, first: int = 0) -> float:
        """Within groups of `num_neighbours` consecutive ranks, the first of which begins at rank `first`: that of the slowest one.

        Groups stay within nodes where their size divides a node and they begin at a multiple of it.
        """
        inside = self.devices_per_node % num_neighbours == 0 and first % num_neighbours == 0
        return self.intra_node_bandwidth if inside else self.inter_node_bandwidth


def load_hardware(name: str) -> Hardware:
    """A profile by its name in configs/hardware, or a file of your own.

    Raises:
        ConfigError: no such profile, or a file that is not one.
    """
    if name.endswith((".yaml", ".yml")):
        return load_config(Hardware, name)
    known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"--hardware {name}: must be a .yaml file or one of {', '.join(known)}")
    return load_config(Hardware, FOLDER / f"{name}.yaml")
