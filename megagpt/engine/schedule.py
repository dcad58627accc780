"""What happens when, as pure functions of progress; no state, so a resume or another batch size cannot shift it."""

from __future__ import annotations

import math

from megagpt.config.schema import OptimizerConfig, PretrainBatchConfig


def learning_rate(config: OptimizerConfig, done: float, total: float) -> float:
    """Linear warm-up from zero, then down to min_lr_ratio * lr by the configured schedule, where it stays.

    `cosine`: Loshchilov & Hutter 2017, eq. 5. `wsd` (warm-up, stable, decay): Hu et al. 2024, section 4.1.

    Args:
        done: progress at the end of the step that uses the rate (tokens, or steps where no number of tokens is configured).
        total: length of the run in the same unit; `decay_tokens` overrides it as the schedule's end.
    """
    end = total if config.decay_tokens is None else config.decay_tokens
    warmup = config.warmup_ratio * end if config.warmup_tokens is None else config.warmup_tokens
    if done < warmup:
        return config.lr * done / warmup
    fraction = min(1.0, (done - warmup) / max(end - warmup, 1e-12))
    if config.schedule == "cosine":
        left = 0.5 * (1.0 + math.cos(math.pi * fraction))
    elif config.schedule == "linear":
        left = 1.0 - fraction
    elif config.schedule == "wsd":
        left = min(1.0, (1.0 - fraction) / config.wsd_decay_ratio)
    else:
        left = 1.0
    floor = config.min_lr_ratio
    return config.lr * (floor + (1.0 - floor) * left)


def batch_size(batch: PretrainBatchConfig, tokens_seen: int) -> int:
    """Rows of the step that starts after so many tokens: linear growth in equal steps (Brown et al. 2020, appendix B)."""
    ramp = batch.ramp
    if ramp is None:
        return batch.global_batch_size
    num_increments = (batch.global_batch_size - ramp.initial_batch_size) // ramp.increment
    return ramp.initial_batch_size + ramp.increment * min(num_increments, num_increments * tokens_seen // ramp.tokens)


def run_steps(batch: PretrainBatchConfig, train_tokens: int, sequence_length: int, first_row: int = 0) -> list[range]:
    """The rows that each optimizer step of a run reads, by their position in the run; whole steps only.

    A function of the configuration alone: the number of ranks and the microbatches have no part in it.

    Args:
        first_row: where the run goes on after a resume.
    """
    steps, rows = [], first_row
    while (rows + (more := batch_size(batch, rows * sequence_length))) * sequence_length <= train_tokens:
        steps.append(range(rows, rows + more))
        rows += more
    return steps


def due(interval: int, step: int, total_steps: int) -> bool:
    """Does something that happens every `interval` steps (0: never) happen now? The last step has its own call."""
    return interval > 0 and step % interval == 0 and step < total_steps
