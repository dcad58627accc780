"""Put the reward model on a scale: demonstrations score mean 0, standard deviation 1 (Stiennon et al. 2020, appendix B.1)."""

from __future__ import annotations

import numpy as np


def score_statistics(scores: list[float]) -> dict[str, float]:
    """Mean and standard deviation of the scores of good answers; stored with the model, used by PPO.

    (score - reward_mean) / reward_std has mean 0 and standard deviation 1 over them.
    """
    spread = float(np.std(scores))
    return {"reward_mean": float(np.mean(scores)), "reward_std": spread if spread > 1e-6 else 1.0}  # one score has no spread
