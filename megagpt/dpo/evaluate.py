"""What held-out rankings say about the implicit reward; each prompt counts once, whatever it weighed in training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from megagpt.config.schema import DpoLossConfig
from megagpt.data.ranking import EncodedGroup
from megagpt.dpo.loss import implicit_rewards, preference_loss


def preference_metrics(
    groups: Sequence[EncodedGroup], logprobs: Sequence[Sequence[float]], reference: Sequence[Sequence[float]], terms: DpoLossConfig
) -> dict[str, float]:
    """Means over prompts of the means over their pairs.

    Args:
        logprobs, reference: of each group's K answers, under the policy and under the reference; nats.

    Returns:
        loss (as in training); accuracy, the share of pairs in the annotators' order, a draw counting half; margin, the winner's
        implicit reward less the loser's; chosen_reward and rejected_reward, of the two.
    """
    sums = []
    for group, own, before in zip(groups, logprobs, reference, strict=True):
        rewards = implicit_rewards(torch.tensor(own, dtype=torch.float64), torch.tensor(before, dtype=torch.float64), terms.beta)
        winners, losers = (torch.tensor(side) for side in zip(*group.pairs, strict=True))
        weights = torch.full((len(group.pairs),), 1 / len(group.pairs), dtype=torch.float64)
        _, report = preference_loss(rewards, winners, losers, weights, **terms.model_dump())
        sums.append({name: float(value) for name, value in report.items()})
    means = {name: float(np.mean([row[name] for row in sums])) for name in sums[0]}
    return {"accuracy" if name == "correct" else name: value for name, value in means.items()}
