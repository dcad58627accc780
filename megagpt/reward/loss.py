"""Ranking loss over all pairs of one prompt together."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def ranking_loss(
    scores: Tensor,
    winners: Tensor,
    losers: Tensor,
    weights: Tensor,
    *,
    margins: Tensor | float = 0.0,
    label_smoothing: float = 0.0,
    centring: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """sum over pairs of w [ -(1 - s) log sigma(d - m) - s log sigma(m - d) + c (r_winner + r_loser)^2 ],  d = r_winner - r_loser.

    With m = s = c = 0 this is Bradley-Terry (Ouyang et al. 2022, eq. 1). With w = 1 / (number of pairs of the prompt) every prompt counts
    once, however many answers were ranked. A plain sum over pairs: however prompts are cut into batches and ranks, the sums add up.

    Args:
        scores: [rows], one forward for each answer.
        winners, losers: [pairs] rows of `scores`.
        weights: [pairs].
        margins: m, [pairs] or one for all; how far apart the scores should at least be (Touvron et al. 2023, eq. 2).
        label_smoothing: s, the share of pairs that annotators are thought to have swapped.
        centring: c, holds the scores, of which the loss else fixes differences only, around 0 (Eisenstein et al. 2023, eq. 2).

    Returns:
        the weighted sum, and the weighted number of pairs in the right order (a draw counts half).
    """
    winner, loser = scores[winners], scores[losers]
    difference = winner - loser
    lead = difference - margins
    loss = -(1 - label_smoothing) * F.logsigmoid(lead) - label_smoothing * F.logsigmoid(-lead) + centring * (winner + loser).square()
    correct = (difference > 0).float() + 0.5 * (difference == 0).float()
    return (weights * loss).sum(), (weights * correct).sum().detach()
