"""What happens when, as pure functions of progress; no state, so a resume or another batch size cannot shift it."""

from __future__ import annotations

import math

from megagpt.config.schema import OptimizerConfig


def learning_rate(config: OptimizerConfig, done: float, total: float) -> float:
    """Linear warm-up from zero, then cosine to min_lr_ratio * lr (Loshchilov & Hutter 2017, eq. 5).

    Args:
        done: progress at the end of the step that uses the rate (tokens, samples or steps).
        total: length of the run in the same unit; from there on the rate stays at its minimum.
    """
    warmup = config.warmup_ratio * total
    if done < warmup:
        return config.lr * done / warmup
    fraction = min(1.0, (done - warmup) / max(total - warmup, 1e-12))
    floor = config.min_lr_ratio
    return config.lr * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * fraction)))


def due(interval: int, step: int, total_steps: int) -> bool:
    """Does something that happens every `interval` steps (0: never) happen now? The last step has its own call."""
    return interval > 0 and step % interval == 0 and step < total_steps
