"""What happens when, as pure functions of progress; no state, so a resume or another batch size cannot shift it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from megagpt.config.schema import OptimizerConfig, PretrainBatchConfig


def learning_rate(config: OptimizerConfig, done: float, total: float) -> float:
    """Linear warm-up from zero, then down to min_lr_ratio * lr by the configured schedule, where it stays.

    `cosine`: Loshchilov & Hutter 2017, eq. 5. `wsd` (warm-up, stable, decay): Hu et al. 2024, section 4.1.

    Args:
        done: progress at the end of the step that uses the rate (tokens, or steps where no number of tokens is configured).
        total: length of the run in the same unit, of which `warmup_ratio` is a fraction; `decay_tokens` overrides it as the
            schedule's end, and `wsd_decay_ratio` is a fraction of all up to there.
    """
    end = total if config.decay_tokens is None else config.decay_tokens
    warmup = config.warmup_ratio * total if config.warmup_tokens is None else config.warmup_tokens
    if done < warmup:
        return config.lr * done / warmup
    fraction = min(1.0, (done - warmup) / max(end - warmup, 1e-12))
    if config.schedule == "cosine":
        left = 0.5 * (1.0 + math.cos(math.pi * fraction))
    elif config.schedule == "linear":
        left = 1.0 - fraction
    elif config.schedule == "wsd":
        left = min(1.0, (1.0 - fraction) * max(1.0, (end - warmup) / (config.wsd_decay_ratio * end)))
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


@dataclass(frozen=True)
class RunSteps(Sequence[range]):
    """The rows that each optimizer step of a run reads, by their position in the run; kept as stretches of equal steps."""

    first_steps: list[int]
    """Of each stretch; the last number is that of all steps."""
    first_rows: list[int]
    """Of each stretch; the last number is that of all rows."""
    batch_sizes: list[int]
    """Of each stretch, in rows."""

    def __len__(self) -> int:
        return self.first_steps[-1]

    def __getitem__(self, step: int) -> range:
        """Rows of one step, from 0; -1 is the last."""
        if not -len(self) <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        step %= len(self)
        stretch = bisect_right(self.first_steps, step) - 1
        size = self.batch_sizes[stretch]
        start = self.first_rows[stretch] + (step - self.first_steps[stretch]) * size
        return range(start, start + size)


def run_steps(batch: PretrainBatchConfig, train_tokens: int, sequence_length: int, first_row: int = 0) -> RunSteps:
    """All whole steps of a run; no more work for many steps than for few.

    A function of the configuration alone: the number of ranks and the microbatches have no part in it.

    Args:
        first_row: where the run goes on after a resume.
    """
    first_steps, first_rows, sizes = [0], [first_row], []
    while True:
        tokens = first_rows[-1] * sequence_length
        size = batch_size(batch, tokens)
        more = (train_tokens - tokens) // (size * sequence_length)
        if size < batch.global_batch_size:
            more = min(more, -(-(_next_growth(batch, size) - tokens) // (size * sequence_length)))
        if more <= 0:
            return RunSteps(first_steps, first_rows, sizes)
        sizes.append(size)
        first_steps.append(first_steps[-1] + more)
        first_rows.append(first_rows[-1] + more * size)


def _next_growth(batch: PretrainBatchConfig, size: int) -> int:
    """Tokens seen from which `batch_size` is more than this."""
    ramp = batch.ramp
    increments = (size - ramp.initial_batch_size) // ramp.increment + 1
    return -(-increments * ramp.tokens * ramp.increment // (batch.global_batch_size - ramp.initial_batch_size))
