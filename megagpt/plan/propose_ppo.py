"""Placements of PPO's models that fit the devices, best first.

Models that share ranks form a group, and groups have no ranks in common. So what a group takes does not depend on the others: its variants are
planned once, those that fit and that no other one beats in every phase are kept, and only these are combined.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from megagpt.config.check import check_rlhf
from megagpt.config.load import ConfigError
from megagpt.config.schema import ModelConfig, RlhfConfig, RoleConfig
from megagpt.parallel.placement import TRAINED, placed_roles, role_grid
from megagpt.plan.hardware import Hardware
from megagpt.plan.ppo import PpoPlan, jobs_of, plan_placement, round_seconds
from megagpt.plan.ppo_memory import worst_phases

MICRO_BATCHES = (1, 2, 4, 8, 16)
GROUPINGS = (
    (("policy", "reference", "reward", "value"),),
    (("policy", "reference"), ("reward", "value")),
    (("policy",), ("reference",), ("reward",), ("value",)),
)
SHARES = {1: ((1,),), 2: ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1)), 3: ((1, 1, 1), (2, 1, 1)), 4: ((1, 1, 1, 1), (4, 1, 1, 2))}
"""Number of groups -> how they divide the ranks among them, where it comes out even."""


@dataclass(frozen=True)
class _Variant:
    """One way to lay out a group."""

    roles: dict[str, RoleConfig]
    seconds: tuple[float, ...]
    """Of each phase of a round."""
    num_bytes: int
    """Of the rank that needs most."""


def propose_ppo(
    config: RlhfConfig, models: dict[str, ModelConfig], hardware: Hardware, ranks: int, limit: int = 5, micro_batches: tuple[int, ...] = MICRO_BATCHES
) -> list[PpoPlan]:
    """The fastest placements of all that are legal and fit into a device, and the smaller one of two that are as fast; empty where none fits.

    Tried are all models together, policy and reference apart from reward and value, and each alone; tensor (within a node) and pipeline
    parallelism, the same for the models of a group; ZeRO 1 to 3; frozen models and optimizers offloaded. Precision stays as configured.
    """
    found = []
    for micro in micro_batches:
        candidate = config.model_copy(update={"ppo": config.ppo.model_copy(update={"micro_batch_size": micro})})
        for _, total, num_bytes, roles in _combined(candidate, models, hardware, ranks)[:limit]:
            if num_bytes <= hardware.memory_bytes:
                found.append((total, num_bytes, _with(candidate, roles)))
    found.sort(key=lambda each: each[:2])
    return [plan_placement(candidate, models, hardware, ranks) for _, _, candidate in found[:limit]]


def smallest_need(config: RlhfConfig, models: dict[str, ModelConfig], hardware: Hardware, ranks: int) -> PpoPlan | None:
    """The placement that needs the least memory of a device, whether it fits or not; None where none is legal."""
    found = _combined(config, models, hardware, ranks)
    if not found:
        return None
    *_, roles = min(found, key=lambda each: each[2])
    return plan_placement(_with(config, roles), models, hardware, ranks)


def _with(config: RlhfConfig, roles: dict[str, RoleConfig]) -> RlhfConfig:
    """These models placed so; the policy writes the responses itself."""
    return config.model_copy(update={"placement": config.placement.model_copy(update={**roles, "rollout": None})})


def _combined(config: RlhfConfig, models: dict[str, ModelConfig], hardware: Hardware, ranks: int) -> list[tuple[bool, float, int, dict[str, RoleConfig]]]:
    """(does not fit, seconds, bytes, roles) of what is left of all placements, best first."""
    found, placed, known = [], placed_roles(config.placement), {}
    groupings = dict.fromkeys(tuple(filter(None, (tuple(role for role in group if role in placed) for group in grouping))) for grouping in GROUPINGS)
    for grouping in groupings:
        for shares in SHARES[len(grouping)]:
            if ranks % sum(shares):
                continue
            sizes = [share * ranks // sum(shares) for share in shares]
            places = [range(end - size, end) for end, size in zip(itertools.accumulate(sizes), sizes)]
            for group, place in zip(grouping, places):
                if (group, place) not in known:
                    known[group, place] = _best(list(_variants(config, models, hardware, group, place)), hardware.memory_bytes)
            for variants in itertools.product(*(known[group, place] for group, place in zip(grouping, places))):
                total = sum(max(times) for times in zip(*(variant.seconds for variant in variants), strict=True))
                num_bytes = max(variant.num_bytes for variant in variants)
                found.append((num_bytes > hardware.memory_bytes, total, num_bytes, {role: where for variant in variants for role, where in variant.roles.items()}))
    return sorted(found, key=lambda each: each[:3])


def _best(variants: list[_Variant], memory_bytes: float) -> list[_Variant]:
    """Of those that fit the ones that no other beats in every phase; the smallest one where none fits."""
    fitting = [variant for variant in variants if variant.num_bytes <= memory_bytes]
    if not fitting:
        return sorted(variants, key=lambda variant: variant.num_bytes)[:1]
    kept: list[_Variant] = []
    for variant in sorted(fitting, key=lambda each: (each.seconds, each.num_bytes)):
        if not any(all(a <= b for a, b in zip(other.seconds, variant.seconds)) for other in kept):
            kept.append(variant)
    return kept


def _variants(config: RlhfConfig, models: dict[str, ModelConfig], hardware: Hardware, group: tuple[str, ...], ranks: range) -> Iterator[_Variant]:
    """Every legal layout of these models on these ranks."""
    learns, rests = any(role in TRAINED for role in group), any(role not in TRAINED for role in group)
    offloads = ("none", "cpu") if hardware.host_link_bandwidth is not None else ("none",)  # it frees nothing where the device is the host
    for tp, pp in itertools.product(divisors(len(ranks)), repeat=2):
        if hardware.devices_per_node % tp or len(ranks) % (tp * pp):
            continue
        zeros = (1, 2, 3) if pp == 1 and len(ranks) > tp else (1, 2) if len(ranks) > tp * pp else (1,)
        for zero, frozen, optimizer in itertools.product(
            zeros if learns else (1,), offloads if rests else ("none",), offloads if learns else ("none",)
        ):
            roles = {
                role: getattr(config.placement, role).model_copy(update={
                    "ranks": list(ranks), "tp": tp, "pp": pp, "zero": zero if role in TRAINED else 1, "offload": optimizer if role in TRAINED else frozen,
                })
                for role in group
            }  # fmt: skip
            candidate = _with(config, roles)
            try:
                grids = {role: role_grid(role, where, ranks.stop) for role, where in roles.items()}
                check_rlhf(candidate, {role: grid.dp for role, grid in grids.items()})
                jobs = jobs_of(candidate, grids, models, hardware)
            except ConfigError:
                continue  # not legal for these models or batches
            num_bytes = max(each.total for each in worst_phases(candidate, jobs).values())
            yield _Variant(roles, tuple(round_seconds(candidate, jobs).values()), num_bytes)


def divisors(number: int) -> list[int]:
    """Ascending."""
    return [size for size in range(1, number + 1) if number % size == 0]


def placement_words(plan: PpoPlan) -> str:
    """A placement in one line; models that are laid out alike stand together."""
    alike: dict[str, list[str]] = {}
    for role, job in plan.jobs.items():
        grid = job.grid
        where = f"tp {grid.tp}, dp {grid.dp}, pp {grid.pp} on ranks {grid.ranks.start}-{grid.ranks.stop - 1}"
        alike.setdefault(where, []).append(role)
    words = [f"{' and '.join(roles)} {where}" for where, roles in alike.items()]
    away = [role for role, job in plan.jobs.items() if job.parallel.offload_optimizer != "none"]
    words += [f"ZeRO {plan.jobs['policy'].parallel.zero_stage}, micro-batch {plan.config.ppo.micro_batch_size}"]
    return "; ".join([*words, *[f"offloaded: {' and '.join(away)}"] * bool(away)])
