"""The PPO doctor: looks at the metrics of every step and says in plain sentences what is wrong, why that happens and what helps.

Checks are functions of the metrics of one step and of those of the steps before it, so that every rank, and a resumed run, comes to the
same findings.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from megagpt.config.schema import DoctorConfig
from megagpt.runtime.errors import Foreseen

Metrics = dict[str, Any]
REMEMBERED = ("kl", "logprob", "explained_variance", "eval_reward", "eval_held_out_reward")
"""Metrics whose course over the steps matters."""


class DoctorStop(Foreseen, RuntimeError):
    """The run was paused, with a checkpoint; the message is one line."""

    exit_code = 1


@dataclass(frozen=True)
class Finding:
    """One check that failed."""

    check: str
    """Its name in `doctor:`."""
    step: int
    action: str
    """warn, pause or rollback, as configured."""
    text: str
    """What is seen; why that happens; what helps."""


class Doctor:
    """Runs all checks on the metrics of a step."""

    def __init__(self, config: DoctorConfig) -> None:
        self.config = config
        self._past: dict[str, list[float]] = {name: [] for name in REMEMBERED}
        self._counts: dict[str, int] = dict.fromkeys(CHECKS, 0)
        self.rollbacks = 0

    def examine(self, step: int, metrics: Metrics) -> list[Finding]:
        """Findings of one step, or of one evaluation (whose metrics start with `eval_`), the gravest first.

        A check that only warns speaks at its first finding and then at every `repeat`th, so that it does not drown the log; one that pauses or
        goes back speaks each time.
        """
        for name in REMEMBERED:
            if name in metrics:
                self._remember(name, float(metrics[name]))
        found = []
        for name, check in CHECKS.items():
            action = getattr(self.config, name)
            text = None if action == "off" else check(self.config, metrics, self._past)
            if text is None:
                continue
            self._counts[name] += 1
            if action != "warn" or self._counts[name] % self.config.repeat == 1 or self.config.repeat == 1:
                found.append(Finding(name, step, action, text))
        return sorted(found, key=lambda finding: ("rollback", "pause", "warn").index(finding.action))

    def _remember(self, name: str, value: float) -> None:
        """The first and the last `patience` values: checks compare the two ends, or look at the last ones alone."""
        course, some = [*self._past[name], value], self.config.patience
        self._past[name] = course if len(course) <= 2 * some else course[:some] + course[-some:]

    def may_roll_back(self) -> bool:
        return self.rollbacks < self.config.max_rollbacks

    def went_back(self) -> None:
        """Count a return to a checkpoint, and forget the last steps: of the entropy's course what it is compared with stays."""
        self.rollbacks += 1
        for name, kept in (("kl", 0), ("explained_variance", 0), ("logprob", self.config.patience)):
            del self._past[name][kept:]

    def state(self) -> dict[str, Any]:
        """JSON of all that a resume needs."""
        return {"past": self._past, "counts": self._counts, "rollbacks": self.rollbacks}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self._past = {name: list(state["past"].get(name, [])) for name in REMEMBERED}
        self._counts = {name: state["counts"].get(name, 0) for name in CHECKS}
        self.rollbacks = state["rollbacks"]


# ---------------------------------------------------------------- the checks: (config, metrics, past) -> sentence or None

Check = Callable[[DoctorConfig, Metrics, dict[str, list[float]]], str | None]


def finite(config: DoctorConfig, metrics: Metrics, past: dict[str, list[float]]) -> str | None:
    broken = [name for name, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)]
    if broken:
        return (
            f"{', '.join(broken)} not finite: the weights or the reward are broken. A learning rate that is too high does this, or a reward "
            "function that divides by the length of an empty answer"
        )
    return None


def ratio(config: DoctorConfig, metrics: Metrics, past: dict[str, list[float]]) -> str | None:
    error = abs(metrics.get("policy_first_ratio_error", 0.0))
    if error > config.max_ratio_error:
        return (
            f"the ratio of new to old policy is off by {error:.2g} before the first update, where it must be 1: the training forward pass differs "
            "from the one that gave the old log-probabilities. Dropout, another temperature, another precision or truncated sampling does this; "
            "clipping then works against random tokens"
        )
    return None


def sampler_gap(config: DoctorConfig, metrics: Metrics, past: dict[str, list[float]]) -> str | None:
    gap = metrics.get("sampler_gap", 0.0)
    if gap > config.max_sampler_gap:
        return (
            f"sampler and trainer disagree about a token's log-probability by {gap:.2g}: the rollout comes from other weights or other arithmetic "
            "than is trained. A weight view that was not refreshed, another precision of the cache, or positions that padding has shifted do this"
        )
    return None


def negative_kl(config: DoctorConfig, metrics: Metrics, past: dict[str, list[float]]) -> str | None:
    recent = past["kl"]
    if "kl" in metrics and len(recent) >= config.patience and max(recent[-config.patience :]) < -config.min_negative_kl:
        return (
            f"the KL to the reference was below -{config.min_negative_kl:g} nats for {config.patience} steps (now {recent[-1]:.2g}); a KL is never "
            "negative. The estimate assumes that the samples are the policy's own: truncated sampling (top-k, top-p), padding that counts, or a "
            "reference with other special tokens breaks that, and the penalty then pays for leaving the reference"
        )
    return None


def padding(config: DoctorConfig, metrics: Metrics, past: dict[str, list[float]]) -> str | None:
    outside = metrics.get("outside_response", 0.0)
    if outside > 0:
        return (
            f"advantages or returns of {outside:.2g} stand on tokens outside of the responses: a reward was put on the prompt or on padding. The score "
            "belongs on the last token that the policy wrote"
        )
    return None


def endless(config: DoctorConfig, metrics: Metrics, past: dict[str, list[float]]) -> str | None:
    share = 1.0 - metrics.get("stopped", 1.0)
    if share > config.max_endless:
        return (
            f"{share:.0%} of the answers were cut at max_response_length: their score judges half an answer. Raise max_response_length, or set "
            "ppo.missing_eos_penalty so that ending pays"
        )
    return None


def length(config: DoctorConfig, metrics: Metrics, past: dict[str, list[float]]) -> str | None:
    correlation = metrics.get("reward_length_correlation", 0.0)
    if abs(correlation) > config.max_length_correlation:
        more = "longer" if correlation > 0 else "shorter"
        return (
            f"reward and length of an answer correlate at {correlation:+.2f}: the policy learns that {more} is better. Look at the reward model's "
            "accuracy by length (evaluation.json), add a length penalty, or train the reward model on pairs of equal length"
        )
    return None


def value(config: DoctorConfig, metrics: Metrics, past: dict[str, list[float]]) -> str | None:
    recent = past["explained_variance"]
    if "explained_variance" in metrics and len(recent) >= config.patience and max(recent[-config.patience :]) < config.min_explained_variance:
        return (
            f"the value model explained less than {config.min_explained_variance:g} of the returns' variance for {config.patience} steps (now "
            f"{recent[-1]:.2g}): advantages are noise around it. Warm it up before the policy moves, raise value_optimizer.lr, or widen ppo.clip_value"
        )
    return None


def clip(config: DoctorConfig, metrics: Metrics, past: dict[str, list[float]]) -> str | None:
    share = metrics.get("policy_clip_fraction", 0.0)
    if share > config.max_clip_fraction:
        return (
            f"{share:.0%} of the tokens are clipped: the policy moves further in one rollout than its samples can speak for. Lower "
            "policy_optimizer.lr, or take fewer epochs or larger minibatches"
        )
    return None


def entropy(config: DoctorConfig, metrics: Metrics, past: dict[str, list[float]]) -> str | None:
    # The mean of -log pi over its own samples is an unbiased estimate of the entropy a token.
    course = [-logprob for logprob in past["logprob"]]
    if "logprob" not in metrics or len(course) <= config.patience:
        return None
    first, now = statistics.fmean(course[: config.patience]), statistics.fmean(course[-config.patience :])
    if now < config.min_entropy_share * first:
        return (
            f"the policy's entropy fell to {now / first:.0%} of what it was ({first:.2f} to {now:.2f} nats a token): it says the same thing to every "
            "prompt and has nothing left to learn from. Raise kl.coefficient or add an entropy bonus, and look at the samples"
        )
    return None


def hacking(config: DoctorConfig, metrics: Metrics, past: dict[str, list[float]]) -> str | None:
    trained, held_out = past["eval_reward"], past["eval_held_out_reward"]
    if "eval_held_out_reward" not in metrics or len(held_out) < 2 or len(trained) < 2:
        return None
    if trained[-1] > trained[0] and held_out[-1] < held_out[0] - config.min_held_out_drop:
        return (
            f"the reward rose from {trained[0]:+.2f} to {trained[-1]:+.2f} while a reward model that the policy does not train on fell from "
            f"{held_out[0]:+.2f} to {held_out[-1]:+.2f}: reward hacking. Stop at the checkpoint before it, raise kl.coefficient, or train the "
            "reward model on what the policy says now"
        )
    return None


CHECKS: dict[str, Check] = {
    check.__name__: check for check in (finite, ratio, sampler_gap, negative_kl, padding, endless, length, value, clip, entropy, hacking)
}
"""Name in `doctor:` -> check."""


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's; 0 where one of them does not vary."""
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    spread = math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))
    return covariance / spread if spread > 0 else 0.0
