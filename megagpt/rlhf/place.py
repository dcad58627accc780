"""`placement: auto`: the planner's choice for the devices that the job has."""

from __future__ import annotations

import os
import re

import torch
import torch.distributed as dist

from megagpt.config.load import ConfigError
from megagpt.config.schema import RlhfConfig
from megagpt.plan.hardware import FOLDER, Hardware, load_hardware
from megagpt.plan.ppo import models_of
from megagpt.plan.propose import nothing_fits, words_of
from megagpt.plan.propose_ppo import propose_ppo
from megagpt.plan.show import size
from megagpt.runtime.distributed import World
from megagpt.runtime.log import say
from megagpt.runtime.run_folder import RunFolder

LIKE_UNKNOWN_GPUS = "a100-80gb"
USABLE = 0.9
"""Of the memory: the planner's figures hold to 10 %."""


def choose_placement(config: RlhfConfig, world: World) -> RlhfConfig:
    """The configuration with the fastest placement that fits the smallest device of the job, the same on every rank: rank 0 chooses, the others
    hear of it. Micro-batches stay as configured.

    Raises:
        ConfigError: on every rank; a model is not there, or nothing fits.
    """
    if config.placement.rollout is not None:
        raise ConfigError("placement.rollout is given where the planner places the models: it has the policy write; leave it out, or give every model its ranks")
    hardware = _smallest(device_hardware(world), world.device)
    answer: list[RlhfConfig | str | None] = [None]
    if world.rank == 0:
        try:
            answer = [_choose(config, hardware, world.size)]
        except ConfigError as error:
            answer = [str(error)]
    dist.broadcast_object_list(answer, src=0)
    (chosen,) = answer
    if isinstance(chosen, str):
        raise ConfigError(chosen)
    return chosen


def _choose(config: RlhfConfig, hardware: Hardware, ranks: int) -> RlhfConfig:
    models = models_of(config, RunFolder(config.run).path)
    micro_batches = (config.ppo.micro_batch_size,)
    plans = propose_ppo(config, models, hardware, ranks, limit=2, micro_batches=micro_batches)
    if not plans:
        raise ConfigError(nothing_fits(config, models, hardware, ranks))
    say(f"[rlhf] placement for {ranks} x {hardware.name} with {size(hardware.memory_bytes)}: {words_of(plans[0])}")
    for plan in plans[1:]:
        say(f"[rlhf] placement, runner-up: {words_of(plan)}")
    return plans[0].config


def device_hardware(world: World) -> Hardware:
    """The profile of the device that this rank has, with as much of its own memory as may be planned with: of a CPU its share of the machine's."""
    if world.device.type == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / world.local_size
        hardware = load_hardware("cpu")
    else:
        facts = torch.cuda.get_device_properties(world.device)
        hardware, memory = _profile_of(facts.name, facts.total_memory), facts.total_memory
    return hardware.model_copy(update={"memory_bytes": USABLE * memory, "devices_per_node": world.local_size})


def _profile_of(name: str, memory: int) -> Hardware:
    """The profile whose file name has the most in common with what the driver calls the device; the nearest in memory of several."""
    words = set(re.findall(r"[a-z]+\d+", name.lower()))
    profiles = {path.stem: load_hardware(path.stem) for path in sorted(FOLDER.glob("*.yaml"))}
    known = [profile for stem, profile in profiles.items() if stem.split("-")[0] in words]
    return min(known, key=lambda profile: abs(profile.memory_bytes - memory), default=profiles[LIKE_UNKNOWN_GPUS])


def _smallest(hardware: Hardware, device: torch.device) -> Hardware:
    """As if every rank had the smallest memory of all."""
    memory = torch.tensor(hardware.memory_bytes, dtype=torch.float64, device=device)
    dist.all_reduce(memory, op=dist.ReduceOp.MIN)
    return hardware.model_copy(update={"memory_bytes": float(memory)})
