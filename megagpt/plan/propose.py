"""Layouts that fit the devices, best first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from megagpt.config.load import ConfigError
from megagpt.config.schema import DpoConfig, ModelConfig, RewardConfig, RlhfConfig, StageConfig
from megagpt.plan.hardware import Hardware
from megagpt.plan.ppo import PpoPlan
from megagpt.plan.propose_ppo import divisors, placement_words, smallest_need
from megagpt.plan.show import size
from megagpt.plan.stage import StagePlan, layout_words, plan_layout

MICRO_BATCHES = (1, 2, 4, 8, 16)
VIRTUAL_STAGES = (1, 2, 3, 4)


def propose_stage(config: StageConfig, model: ModelConfig, hardware: Hardware, ranks: int, limit: int = 5) -> list[StagePlan]:
    """The fastest layouts of all that are legal and fit into a device; tensor parallelism stays within a node.

    Replicas, tensor and pipeline parallelism, virtual stages, micro-batches, ZeRO 1 and 3 and recomputation are searched; the
    global batch, context parallelism and precision stay as configured.
    """
    found = []
    for candidate in _stage_candidates(config, model, hardware, ranks):
        try:
            plan = plan_layout(candidate, model, hardware, ranks)
        except ConfigError:
            continue  # not legal for this model or batch
        if plan.fits:
            found.append(plan)
    return sorted(found, key=lambda plan: (plan.step.total, plan.bytes_per_rank))[:limit]


def _stage_candidates(config: StageConfig, model: ModelConfig, hardware: Hardware, ranks: int) -> Iterator[StageConfig]:
    cp, plain = config.parallel.context_parallel_size, isinstance(config, (RewardConfig, DpoConfig))  # they take the plain schedules only
    for tp, pp in itertools.product(divisors(ranks), repeat=2):
        if hardware.devices_per_node % tp or ranks % (tp * pp * cp) or model.num_layers % pp:
            continue
        zeros = (1, 3) if pp == 1 and ranks > tp else (1,)
        virtual = VIRTUAL_STAGES if pp > 1 and not plain else (1,)
        for zero, chunks, micro, recompute in itertools.product(zeros, virtual, MICRO_BATCHES, ("none", "full")):
            num_microbatches, rest = divmod(config.batch.global_batch_size, micro * ranks // (tp * pp * cp))
            if model.num_layers % (pp * chunks) or rest or (chunks > 1 and num_microbatches % pp):
                continue  # the interleaved schedule would fill up with empty microbatches
            parallel = config.parallel.model_copy(update={
                "tensor_parallel_size": tp, "pipeline_parallel_size": pp, "data_parallel_size": ranks // (tp * pp * cp), "zero_stage": zero,
                "virtual_pipeline_size": chunks, "sequence_parallel": tp > 1 and not plain, "recompute": recompute, "stage_layers": None,
            })  # fmt: skip
            yield config.model_copy(update={"parallel": parallel, "batch": config.batch.model_copy(update={"micro_batch_size": micro})})


def words_of(plan: StagePlan | PpoPlan) -> str:
    """The layout or placement, its memory and its speed."""
    words, seconds = (placement_words(plan), plan.seconds_per_step) if isinstance(plan, PpoPlan) else (layout_words(plan), plan.step.total)
    return f"{words}: {plan.bytes_per_rank / 1e9:.1f} GB a rank, {seconds:.3g} s a step"


def nothing_fits(config: RlhfConfig, models: dict[str, ModelConfig], hardware: Hardware, ranks: int) -> str:
    """One line: how much the smallest placement needs, or that none is legal."""
    smallest = smallest_need(config, models, hardware, ranks)
    if smallest is None:
        return f"placement = auto: no placement of these models and batches is legal on {ranks} ranks; take another number, or a smaller ppo.micro_batch_size"
    return (
        f"placement = auto: nothing fits into {size(hardware.memory_bytes)} of each of {ranks} devices; the smallest need is "
        f"{size(smallest.bytes_per_rank)} a rank ({words_of(smallest)})"
    )
