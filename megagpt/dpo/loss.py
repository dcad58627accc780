"""Direct preference optimization: the policy's own log-probabilities are the reward model (Rafailov et al. 2023)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

SUMS = ("loss", "correct", "margin", "chosen_reward", "rejected_reward")
"""What `preference_loss` reports."""


def implicit_rewards(logprobs: Tensor, reference_logprobs: Tensor, beta: float) -> Tensor:
    """r = beta (log pi(answer | prompt) - log pi_ref(answer | prompt)), the reward that this policy is optimal for, up to a constant of the
    prompt (Rafailov et al. 2023, eq. 5). All [rows]; log-probabilities are sums over an answer's tokens."""
    return beta * (logprobs - reference_logprobs)


def preference_loss(
    rewards: Tensor,
    winners: Tensor,
    losers: Tensor,
    weights: Tensor,
    *,
    beta: float,
    kind: Literal["sigmoid", "ipo"] = "sigmoid",
    label_smoothing: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """sum over pairs of w times, with d = r_winner - r_loser,

        sigmoid   -(1 - s) log sigma(d) - s log sigma(-d)
        ipo       (d / beta - 1 / (2 beta))^2

    `sigmoid` with s = 0 is DPO (Rafailov et al. 2023, eq. 7), with s > 0 its conservative form (Mitchell 2023), least where sigma(d) = 1 - s.
    `ipo` (Azar et al. 2024, eq. 17) pulls the log-ratio, d / beta, to a finite lead, so that pairs on which all annotators agree do
    not drive it on for ever. With w = 1 / (number of pairs of the prompt) every prompt counts once, however many answers were ranked. A plain
    sum over pairs: however prompts are cut into batches and ranks, the sums add up.

    Args:
        rewards: [rows] implicit rewards.
        winners, losers: [pairs] rows of `rewards`.
        weights: [pairs].
        beta: strength of the pull to the reference, as in `implicit_rewards`.
        kind: formula, as above.
        label_smoothing: s, the share of pairs that annotators are thought to have swapped; `sigmoid` only.

    Returns:
        the weighted sum, and weighted sums to report, without gradient: the loss, pairs in the right order (a draw counts half), d, r_winner, r_loser.
    """
    chosen, rejected = rewards[winners], rewards[losers]
    lead = chosen - rejected
    if kind == "ipo":
        loss = (lead / beta - 1 / (2 * beta)).square()
    else:
        loss = -(1 - label_smoothing) * F.logsigmoid(lead) - label_smoothing * F.logsigmoid(-lead)
    total, correct = (weights * loss).sum(), (lead > 0).float() + 0.5 * (lead == 0).float()
    report = dict(zip(SUMS, (total, *((weights * value).sum() for value in (correct, lead, chosen, rejected))), strict=True))
    return total, {name: value.detach() for name, value in report.items()}
