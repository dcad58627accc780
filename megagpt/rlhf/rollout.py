"""Prompts -> responses: every replica of the policy answers its rows, then all ranks get all rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megagpt.config.schema import RlhfConfig
from megagpt.generation.generate import generate
from megagpt.generation.sample import Sampling
from megagpt.parallel.route import replica_rows, share_rows
from megagpt.rlhf.experience import Rollout
from megagpt.rlhf.four_models import FourModels


def roll_out(
    models: FourModels, config: RlhfConfig, prompts: Sequence[Sequence[int]], prompt_ids: Sequence[int], sample_numbers: Sequence[int],
    *, stop_ids: Sequence[int], seed: int, device: torch.device,
) -> Rollout:
    """Sample one response for each prompt with the current policy; equal on every rank of the job.

    Args:
        prompts: token ids of all rows of the rollout, the same on every rank.
        prompt_ids, sample_numbers: counters of randomness, one for each row.
    """
    length = config.prompts.max_prompt_length + config.prompts.max_response_length
    grid, groups = models.grids["policy"], models.groups["policy"]
    packed = None
    if groups is not None:
        mine = replica_rows(len(prompts), grid, groups.coordinates.dp)
        with models.scope("policy"):
            generated = generate(
                models.policy.model, [prompts[i] for i in mine], max_new_tokens=config.prompts.max_response_length, stop_ids=stop_ids,
                sampling=Sampling(temperature=config.ppo.temperature, seed=seed),
                prompt_ids=[prompt_ids[i] for i in mine], sample_numbers=[sample_numbers[i] for i in mine],
                max_rows=config.ppo.generation_batch_size, lockstep=groups.collection.dp_cp if models.policy.zero_stage == 3 else None,
            )
        # One float64 row for each response: tokens | log-probabilities | prompt length, length, stopped.
        packed = torch.zeros(len(mine), 2 * length + 3, dtype=torch.float64)
        for row, i in enumerate(mine):
            prompt, response = list(prompts[i]), generated.tokens[row]
            packed[row, : len(prompt) + len(response)] = torch.tensor(prompt + response, dtype=torch.float64)
            start = length + len(prompt) - 1  # prediction t - 1 is about token t
            packed[row, start : start + len(response)] = torch.tensor(generated.logprobs[row], dtype=torch.float64)
            packed[row, -3:] = torch.tensor([len(prompt), len(prompt) + len(response), generated.stopped[row]], dtype=torch.float64)
        packed = packed.to(device)
    rows = share_rows(packed, grid, (len(prompts), 2 * length + 3), torch.float64, device)
    return Rollout(
        tokens=rows[:, :length].long(), prompt_lengths=rows[:, -3].long(), lengths=rows[:, -2].long(), stopped=rows[:, -1] > 0,
        sampler_logprobs=rows[:, length : 2 * length - 1].float(),
    )
