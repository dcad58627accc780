"""Ranking loss over all pairs of one prompt together."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def ranking_loss(scores: Tensor, winners: Tensor, losers: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """sum over pairs of  - w log sigma(r_winner - r_loser) (Bradley-Terry; Ouyang et al. 2022, eq. 1).

    With w = 1 / (number of pairs of the prompt) every prompt counts once, however many answers were ranked.

    Args:
        scores: [rows], one forward for each answer.
        winners, losers: [pairs] rows of `scores`.
        weights: [pairs].

    Returns:
        the weighted sum, and the weighted number of pairs in the right order (a draw counts half).
    """
    difference = scores[winners] - scores[losers]
    correct = (difference > 0).float() + 0.5 * (difference == 0).float()
    return -(weights * F.logsigmoid(difference)).sum(), (weights * correct).sum().detach()
