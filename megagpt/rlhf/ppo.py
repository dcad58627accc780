"""One round of PPO after another: rollout, score, advantages, update (Ouyang et al. 2022)."""

from __future__ import annotations

import time
from typing import Any

import torch

from megagpt.config.schema import RlhfConfig
from megagpt.data.order import step_rows
from megagpt.data.prompts import EncodedPrompt
from megagpt.data.token_data import TokenData
from megagpt.engine.schedule import learning_rate
from megagpt.parallel.route import share_numbers
from megagpt.rlhf.doctor import Doctor, correlation
from megagpt.rlhf.experience import Experience
from megagpt.rlhf.four_models import FourModels
from megagpt.rlhf.kl import KlController
from megagpt.rlhf.pretrain_mix import PretrainMix
from megagpt.rlhf.rollout import Questions
from megagpt.rlhf.running import RunningMoments
from megagpt.rlhf.score import collect, score
from megagpt.rlhf.update import MIX_SUM, POLICY_SUMS, VALUE_SUMS, policy_loss_of, update, value_loss_of
from megagpt.runtime.distributed import World
from megagpt.runtime.log import say
from megagpt.runtime.timeline import Timeline
from megagpt.tokenizer.chat import stop_ids as chat_stop_ids
from megagpt.tokenizer.tokenizer import Tokenizer


class Trainer:
    """State of the PPO loop beside the models: which prompts come next, beta, and the moments of the scores."""

    def __init__(
        self, config: RlhfConfig, world: World, models: FourModels, tokenizer: Tokenizer, prompts: list[EncodedPrompt], texts: TokenData | None = None
    ) -> None:
        self.config, self.world, self.models, self.tokenizer, self.prompts = config, world, models, tokenizer, prompts
        self.kl = KlController(config.kl)
        self.scores = RunningMoments() if config.ppo.normalise_reward == "running" else None
        self.doctor = Doctor(config.doctor)
        self.skipped_rounds = 0
        """Rounds of prompts that were passed over after going back."""
        self.stop_ids = chat_stop_ids(tokenizer)
        self.mix = None
        if models.policy is not None and texts is not None:
            self.mix = PretrainMix(config.pretrain_mix, config.ppo, texts, models.policy, world.device)
        self.timeline = Timeline(world.device)

    def state(self) -> dict[str, Any]:
        """What a resume needs beside the models."""
        known = {"kl_coefficient": self.kl.coefficient, "skipped_rounds": self.skipped_rounds, "doctor": self.doctor.state()}
        return known | ({} if self.scores is None else {"score_moments": self.scores.state()})

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state()`; what it lacks stays as it is."""
        self.skipped_rounds = state.get("skipped_rounds", self.skipped_rounds)
        if "doctor" in state:
            self.doctor.load(state["doctor"])
        self._load_moments(state)
        self._refresh()

    def go_back(self, step: int, state: dict[str, Any]) -> None:
        """The models are those of an earlier step again: so is the rest, but the prompts since then are passed over, and the doctor remembers."""
        self._load_moments(state)
        self.skipped_rounds += step - state["step"]
        self.doctor.went_back()
        self._refresh()

    def _load_moments(self, state: dict[str, Any]) -> None:
        self.kl.coefficient = state.get("kl_coefficient", self.kl.coefficient)
        if self.scores is not None:
            self.scores = RunningMoments(**state.get("score_moments", {}))

    def step(self, step: int) -> dict[str, float]:
        """One round: sample, score, update. Returns its metrics, the same on every rank but for the seconds."""
        config, device, began = self.config, self.world.device, time.perf_counter()
        self.timeline.start_round(step)
        readings = collect(self.models, config, self.questions(step), ("reward", "value", "reference", "policy"), device, self.timeline)
        with self.timeline.span("advantages"):
            experience = score(self.models, readings, config, self.kl.coefficient, self.scores)
        scored = time.perf_counter()
        updates = self._update(experience, step)
        seconds = {
            "rollout_seconds": readings.rollout_seconds, "score_seconds": max(0.0, scored - began - readings.rollout_seconds),
            "update_seconds": time.perf_counter() - scored,
        }  # fmt: skip
        by_trainer = updates.pop("policy_first_log_ratio", None)
        gap = by_trainer if experience.sampler_gap is None else experience.sampler_gap
        seen = {} if gap is None else {"sampler_gap": gap}
        metrics = {**_describe(experience), **seen, **updates, "kl_coefficient": self.kl.coefficient, **seconds}
        if step > config.ppo.value_warmup_steps:  # before that the policy stands still, and a KL of 0 would lower beta round after round
            self.kl.update(metrics["kl"], config.ppo.rollout_batch_size)
        if step % config.every.log == 0:
            self._peek(experience)
        return metrics

    def questions(self, step: int) -> Questions:
        """The prompts of a round."""
        seed, samples = self.config.run.seed, self.config.ppo.samples_per_prompt
        chosen = step_rows(seed, step - 1 + self.skipped_rounds, self.config.ppo.rollout_batch_size // samples, len(self.prompts))
        rows = [self.prompts[item] for _, item in chosen for _ in range(samples)]
        numbers = [epoch * samples + sample for epoch, _ in chosen for sample in range(samples)]
        return Questions([p.tokens for p in rows], [p.number for p in rows], numbers, self.stop_ids, seed)

    def _update(self, experience: Experience, step: int) -> dict[str, float]:
        """Policy and value learn at the same time where they live on different ranks, one after the other where they share."""
        config, ppo, seed = self.config, self.config.ppo, self.config.run.seed
        found: dict[str, dict[str, float] | None] = {"policy": None, "value": None}
        texts = (MIX_SUM,) if config.pretrain_mix is not None else ()
        reported = {"policy": (*POLICY_SUMS, *texts, "grad_norm", "updates", "first_ratio_error", "first_log_ratio"), "value": (*VALUE_SUMS, "grad_norm")}
        reported = {role: (*names, "loss_scale") if self._has_loss_scale(role) else names for role, names in reported.items()}
        learns = [role for role in reported if role in self.models.grids and (role == "value" or step > ppo.value_warmup_steps)]
        if self.models.policy is not None and "policy" in learns:
            lr = learning_rate(config.policy_optimizer, step, ppo.steps)
            loss = policy_loss_of(self.models.policy, config, self.kl.coefficient)
            after = self.models.average.update if self.models.average is not None else lambda: None
            with self.timeline.span("train", "policy"):
                found["policy"] = update(
                    self.models.policy, experience, ppo, loss, POLICY_SUMS, lr=lr, seed=seed, step=step, after_step=after, mix=self.mix
                )
        if self.models.value is not None:
            lr = learning_rate(config.value_optimizer, step, ppo.steps)
            with self.timeline.span("train", "value"):
                found["value"] = update(self.models.value, experience, ppo, value_loss_of(ppo), VALUE_SUMS, lr=lr, seed=seed, step=step)
        if "policy" in learns:
            self._refresh()  # once the value model has learned: its ranks may write, and shall not wait for the policy
        metrics = {}
        with self.timeline.span("wait"):
            for role in learns:
                names = reported[role]
                known = None if found[role] is None else [found[role][name] for name in names]
                shared = share_numbers(known, len(names), self.models.grids[role], self.world.device)
                metrics |= {name if name.startswith(role) else f"{role}_{name}": value for name, value in zip(names, shared)}
        return metrics

    def _refresh(self) -> None:
        """What writes responses takes over the policy's weights; other ranks have no part in it."""
        if self.models.view is not None and (self.models.policy is not None or self.models.rollout is not None):
            with self.timeline.span("refresh", "rollout"):
                self.models.view.refresh()

    def _has_loss_scale(self, role: str) -> bool:
        where = getattr(self.config.placement, role)
        return where is not None and where.precision == "fp16"

    def _peek(self, experience: Experience) -> None:
        """One decoded sample: the fastest way to see what the numbers mean."""
        rollout, length = experience.rollout, int(experience.rollout.lengths[0])
        text = self.tokenizer.decode(rollout.tokens[0, :length].tolist(), show_special=True)
        say(f"[rlhf] sample (score {float(experience.scores[0]):+.2f}, kl {float(experience.kl[0]):.2f}): {text!r}")


def _describe(experience: Experience) -> dict[str, float]:
    """Metrics of a scored rollout, before the update."""
    mask, rollout = experience.mask, experience.rollout
    count = mask.sum()
    metrics = {
        "reward": float(experience.scores.mean()),
        "reward_std": float(experience.scores.std(correction=min(1, experience.scores.numel() - 1))),
        "kl": float(experience.kl.mean()),
        "length": float(rollout.response_lengths.mean()),
        "stopped": float(rollout.stopped.float().mean()),
        "logprob": float((experience.logprobs * mask).sum() / count),
        "reward_length_correlation": correlation(experience.scores.tolist(), rollout.response_lengths.tolist()),
        "outside_response": float(sum((x * (1 - mask)).abs().sum() for x in (experience.advantages, experience.returns) if x is not None)),
    }
    return metrics if experience.values is None else {**metrics, "explained_variance": _explained_variance(experience.values, experience.returns, mask)}


def _explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> float:
    """1 - sum (R - V)^2 / sum (R - mean R)^2."""
    mean = (returns * mask).sum() / mask.sum()
    residual, spread = (((returns - other).square() * mask).sum() for other in (values, mean))
    return float(1.0 - residual / spread.clamp(min=1e-12))
