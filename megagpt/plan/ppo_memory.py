"""Bytes of each rank of a PPO job: what it holds of each model, and what each phase adds to that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from megagpt.config.schema import RlhfConfig
from megagpt.parallel.placement import TRAINED, reference_is_policy, rollout_parts
from megagpt.plan import memory
from megagpt.plan.job import Job, total
from megagpt.plan.memory import Memory

BATCH_BYTES = 32
"""Of each token of a rollout that is scored: the token, 8, and mask, three log-probabilities, value and return, 4 each."""


@dataclass(frozen=True)
class Asked:
    """What one replica answers at the same time."""

    rows: int
    longest: int
    """Tokens of the longest prompt."""
    tokens: int
    """Of all prompts; one that several rows have is passed once."""

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], rows: int) -> Asked:
        """The first of these that run: a slot goes to the longest one first."""
        first = sorted(prompts, key=len, reverse=True)[:rows]
        return cls(len(first), len(first[0]), sum(map(len, {tuple(prompt) for prompt in first})))


def worst_phases(config: RlhfConfig, jobs: dict[str, Job]) -> dict[str, Memory]:
    """Phase -> its peak on the rank where that is highest; answers are sampled in an evaluation as in a round."""
    stages = {tuple(sorted((role, job.grid.coordinates(rank).pp) for role, job in jobs.items() if rank in job.grid)) for rank in all_ranks(jobs)}
    asked, worst = [], {}
    if (writer := jobs.get(writer_of(jobs))) is not None:
        rows = max(rows_of_a_part(config, jobs, number) for number in (config.ppo.rollout_batch_size, config.prompts.eval_prompts))
        rows, longest = rows_at_once(config, writer, rows), config.prompts.max_prompt_length
        asked = [Asked(rows, longest, rows * longest)]
    for roles in stages:
        for phase, found in phases(config, jobs, dict(roles), asked).items():
            worst[phase] = max(worst.get(phase, found), found, key=lambda each: each.total)
    return worst


def all_ranks(jobs: dict[str, Job]) -> set[int]:
    """Of the job."""
    return {rank for job in jobs.values() for rank in job.grid.ranks}


def writer_of(jobs: dict[str, Job]) -> str:
    """The role that writes responses."""
    return "rollout" if "rollout" in jobs else "policy"


def rows_of_a_part(config: RlhfConfig, jobs: dict[str, Job], num_rows: int) -> int:
    """Answers that are sampled before they go to the models that score them."""
    return num_rows // rollout_parts(config, {role: job.grid for role, job in jobs.items()}, num_rows)


def stages_of(jobs: dict[str, Job], rank: int) -> dict[str, int]:
    """Role -> pipeline stage of each model that a rank holds."""
    return {role: job.grid.coordinates(rank).pp for role, job in jobs.items() if rank in job.grid}


def present(config: RlhfConfig, jobs: dict[str, Job], roles: dict[str, int]) -> dict[str, int]:
    """Those of these roles that have a model: a reference that is the policy without its adapters has none."""
    shared = {"policy", "reference"} <= jobs.keys() and reference_is_policy(config, {role: job.grid for role, job in jobs.items()})
    return {role: stage for role, stage in roles.items() if not (shared and role == "reference")}


def held(config: RlhfConfig, job: Job, role: str, stage: int) -> Memory:
    """Of one model between the phases."""
    if role not in TRAINED:
        found = memory.resident(job, stage, trained=False)
        return replace(found, weights=0) if job.parallel.offload_optimizer != "none" else found
    found = memory.resident(job, stage)
    if role == "policy" and config.ppo.ema_decay is not None and job.parallel.offload_optimizer == "none":
        found += Memory(average=4 * memory.partition(job.trained(stage), job.parallel.zero_stage, job.num_replicas))
    return found


def phases(config: RlhfConfig, jobs: dict[str, Job], roles: dict[str, int], asked: Sequence[Asked]) -> dict[str, Memory]:
    """Peak of each phase on a rank that holds these roles: role -> pipeline stage. All models stay where they are; what is added changes.

    Args:
        asked: of a replica of what writes, in each part of a rollout.
    """
    base = sum((held(config, jobs[role], role, stage) for role, stage in present(config, jobs, roles).items()), start=Memory())
    found, writer = {}, writer_of(jobs)
    if writer in roles:
        found["rollout"] = max((_rollout(config, jobs[writer], roles[writer], each) for each in asked), key=lambda each: each.total)
    silent = {"rollout", "held_out"} | ({"policy"} if config.ppo.logprobs == "sampler" else set())
    if scored := [_scoring(config, jobs[role], role, stage) for role, stage in roles.items() if role not in silent]:
        found["score"] = max(scored, key=lambda each: each.total)
    for role in TRAINED:
        if role in roles:
            found[f"update {role}"] = max(memory.training_phases(jobs[role], roles[role]).values(), key=lambda each: each.total)
    return {phase: base + extra for phase, extra in found.items()}


def _rollout(config: RlhfConfig, job: Job, stage: int, asked: Asked) -> Memory:
    """Keys and values of every layer and token, and the prompts' first pass."""
    shape, length = job.shape, asked.longest + config.prompts.max_response_length
    passing = asked.tokens * (2 * shape.ffn_hidden_size // job.grid.tp + 2 * shape.config.hidden_size) * job.num_bytes
    cache = shape.cache_bytes(asked.rows, length, num_layers=sum(job.layers(stage)), tp=job.grid.tp, num_bytes=job.num_bytes)
    return Memory(kv_cache=cache, activations=passing + 2 * asked.rows * shape.vocab_size * 4, buffers=memory.gathered_bytes(job, stage))


def rows_at_once(config: RlhfConfig, job: Job, rows: int) -> int:
    """Of one replica, when all replicas together answer so many."""
    return min(rows // job.grid.dp, config.ppo.generation_batch_size or rows)


def cache_bytes(job: Job, rows: int, num_layers: int) -> int:
    """Keys and values, prompt and response."""
    return job.shape.cache_bytes(rows, job.length, num_layers=num_layers, tp=job.grid.tp, num_bytes=job.num_bytes)


def _scoring(config: RlhfConfig, job: Job, role: str, stage: int) -> Memory:
    """A forward pass keeps nothing but what is in work; weights that wait in host memory come first.

    Of a layer, in its MLP: what comes in from below and from the embedding, the norm's output, and both sides of the activation. At the end the
    logits, and where no kernel is fused float32 copies for their softmax and its exponentials.
    """
    shape, work = job.shape, 3 * job.shape.config.hidden_size + (3 if job.shape.is_llama else 2) * job.shape.ffn_hidden_size // job.grid.tp
    passing, head = job.tokens * work * job.num_bytes, 0
    if stage == job.grid.pp - 1 and not job.scalar_head:
        logits = job.head_tokens * shape.padded_vocab_size(job.grid.tp) // job.grid.tp
        head = 2 * job.tokens * shape.config.hidden_size * job.num_bytes + logits * (job.num_bytes + (0 if job.fused else 2 * 4))
    fetched = total(job.parameters(stage)) * job.num_bytes if role not in TRAINED and job.parallel.offload_optimizer != "none" else 0
    batch = config.ppo.rollout_batch_size * job.length * BATCH_BYTES
    return Memory(weights=fetched, activations=max(passing, head) + batch, buffers=memory.gathered_bytes(job, stage))
