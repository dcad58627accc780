"""One PPO update: minibatch epochs over an experience, for the policy and for the value model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megagpt.config.schema import PpoConfig, RlhfConfig
from megagpt.data.batch import TokenBatch
from megagpt.engine.build import Engine
from megagpt.model.token_loss import response_statistics
from megagpt.parallel.collectives import max_over, sum_reports
from megagpt.rlhf.experience import Experience, predicting, spread
from megagpt.rlhf.kl import kl_loss
from megagpt.rlhf.loss import policy_loss, value_loss
from megagpt.rlhf.pretrain_mix import PretrainMix
from megagpt.runtime.random import uniform

POLICY_SUMS = ("policy_loss", "clip_fraction", "ratio_error", "update_kl", "entropy")
MIX_SUM = "pretrain_loss"
VALUE_SUMS = ("value_loss", "value_error")


@dataclass(frozen=True)
class PpoBatch:
    """Rows of an experience in one forward pass; shapes as in `experience.py` with n = b."""

    tokens: Tensor
    row_ids: Tensor
    mask: Tensor
    logprobs: Tensor
    reference_logprobs: Tensor
    advantages: Tensor
    values: Tensor | None
    returns: Tensor | None

    @property
    def only(self) -> Tensor:
        return predicting(self.mask)


def minibatches(ppo: PpoConfig, seed: int, step: int) -> Iterator[np.ndarray]:
    """Rows of every minibatch of every epoch, in an order that is a function of (seed, step, epoch) alone."""
    for epoch in range(ppo.epochs):
        order = np.argsort(uniform(seed, step, epoch, np.arange(ppo.rollout_batch_size)), kind="stable")
        yield from order.reshape(-1, ppo.minibatch_size)


def update(
    engine: Engine, experience: Experience, ppo: PpoConfig, loss: Callable, sums: tuple[str, ...], *, lr: float, seed: int, step: int,
    after_step: Callable[[], None] = lambda: None, mix: PretrainMix | None = None,
) -> dict[str, float]:
    """All optimizer steps of one model on one experience. All ranks of the model's grid call this.

    Args:
        loss: (output of the last stage, PpoBatch) -> (summed loss, sums to report).
        after_step: called after every optimizer step.
        mix: pre-training text for the same steps; its mean loss is reported as `pretrain_loss`.

    Returns:
        means over response tokens of the reported sums, the mean gradient norm, the number of optimizer steps (without those that FP16 skipped),
        and of the first minibatch the `ratio_error` and the largest `log_ratio` (the policy has not moved yet, so both must be 0 up to rounding).
        The policy's steps end early where `target_kl` says so; the sums are the same on all ranks, and so is that decision.
    """
    sums = sums if mix is None else (*sums, MIX_SUM)
    groups, totals, norms, first, tokens_seen = engine.groups, dict.fromkeys(sums, 0.0), [], {}, 0.0
    length = experience.rollout.tokens.size(1)
    for number, rows in enumerate(minibatches(ppo, seed, step)):
        mine = rows.reshape(groups.grid.dp, -1, ppo.micro_batch_size)[groups.coordinates.dp]
        batches = [_cut(experience, torch.as_tensor(micro, device=experience.mask.device)) for micro in mine]
        count = float(experience.mask[torch.as_tensor(rows, device=experience.mask.device)].sum())
        both = loss
        if mix is not None:
            texts, num_targets = mix.batches(step, number)
            batches, both = [*batches, *texts], _with_text(loss, mix, count / num_targets, sums)
        reports = engine.accumulate(batches, both, denominator=count, rows=ppo.micro_batch_size, length=length)
        norm = engine.step(lr)
        if not (engine.overflow and engine.model.layout.dtype == torch.float16):  # its loss scale was too large: this step is skipped, and that is all
            norms.append(norm)
            after_step()
        summed = sum_reports(groups, reports, sums)
        if not first:
            largest = max((float(report.get("log_ratio", 0.0)) for report in reports), default=0.0)
            first = {
                "first_ratio_error": summed.get("ratio_error", 0.0) / count, "first_log_ratio": max_over(groups.whole, largest, experience.mask.device),
            }
        totals = {name: totals[name] + summed[name] for name in sums}
        tokens_seen += count
        if ppo.target_kl is not None and summed.get("update_kl", 0.0) / count > ppo.target_kl:
            break
    means = {name: total / tokens_seen for name, total in totals.items()}
    return {**means, "grad_norm": float(np.mean(norms or [0.0])), "updates": len(norms), "loss_scale": engine.loss_scale, **first}


def _with_text(loss: Callable, mix: PretrainMix, weight: float, sums: tuple[str, ...]) -> Callable:
    """The loss of either kind of microbatch. All of it is divided by the response tokens later, so text weighs response tokens / text tokens."""

    def both(output: Tensor, batch: PpoBatch | TokenBatch):
        if isinstance(batch, PpoBatch):
            total, report = loss(output, batch)
            return total, {**report, MIX_SUM: 0.0}
        total, nll = mix.loss(output, batch, weight)
        return total, {**dict.fromkeys(sums, 0.0), MIX_SUM: nll}

    return both


def policy_loss_of(engine: Engine, config: RlhfConfig, kl_coefficient: float) -> Callable:
    """The clipped surrogate of this policy, less its entropy bonus, and with the KL where that is not in the reward."""
    ppo = config.ppo
    clips = {"clip_ratio_high": ppo.clip_ratio_high, "dual_clip": ppo.dual_clip, "clamp_log_ratio": ppo.clamp_log_ratio}

    def loss(logits: Tensor, batch: PpoBatch):
        found = response_statistics(engine.model, logits, batch.tokens[:, 1:][batch.mask.bool()][None], ppo.temperature)
        logprobs = spread(found.logprob, batch.mask)
        total, report = policy_loss(logprobs, batch.logprobs, batch.advantages, batch.mask, ppo.clip_ratio, **clips)
        entropy = found.entropy.sum()
        if ppo.entropy_coefficient > 0:
            total = total - ppo.entropy_coefficient * entropy
        if config.kl.where == "loss":
            total = total + kl_coefficient * kl_loss(config.kl.estimator, logprobs, batch.logprobs, batch.reference_logprobs, batch.mask)
        log_ratio = ((logprobs.detach() - batch.logprobs) * batch.mask).abs().max()
        return total, {**report, "policy_loss": total.detach(), "entropy": entropy.detach(), "log_ratio": log_ratio}

    return loss


def value_loss_of(ppo: PpoConfig) -> Callable:
    """The clipped value loss."""

    def loss(values: Tensor, batch: PpoBatch):
        return value_loss(spread(values, batch.mask), batch.values, batch.returns, batch.mask, ppo.clip_value)

    return loss


def _cut(experience: Experience, rows: Tensor) -> PpoBatch:
    def cut(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[rows]

    return PpoBatch(
        experience.rollout.tokens[rows], rows, experience.mask[rows], experience.logprobs[rows], experience.reference_logprobs[rows],
        experience.advantages[rows], cut(experience.values), cut(experience.returns),
    )
