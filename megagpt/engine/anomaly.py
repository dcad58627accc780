"""What to do about a step that went wrong: skip it, go back to the last checkpoint, or end the run."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any, Literal

from megagpt.config.schema import AnomalyConfig
from megagpt.runtime.errors import Foreseen

Verdict = Literal["ok", "skip", "rollback"]


class AnomalyError(Foreseen, RuntimeError):
    """Skipping and going back did not help; the message is one line."""

    exit_code = 1


def require_finite(stage: str, what: str, value: float | None) -> None:
    """A stage ends with something that a later one can start from; `value` says so, None standing for what is not finite in a state.json.

    Raises:
        AnomalyError: it is not finite.
    """
    if value is None or not math.isfinite(value):
        raise AnomalyError(f"{stage}: {what} not finite: the weights are broken; lower optimizer.lr")


class AnomalyGuard:
    """Watches loss and gradient norm of every step. All ranks feed it the same numbers and so come to the same verdict.

    The remedy for a spike is that of PaLM (Chowdhery et al. 2022, section 5.1): back to a checkpoint from before it, and on with
    the batches after it, since the same batches with other weights did no harm there.
    """

    def __init__(self, config: AnomalyConfig) -> None:
        self.config = config
        self._losses: deque[float] = deque(maxlen=config.window)
        self._in_row = 0
        self.skipped = self.rollbacks = 0

    def observe(self, step: int, loss: float, grad_norm: float) -> Verdict:
        """Judge a step.

        Returns:
            "ok"; "skip": not finite, and the engine made no update; "rollback": the loss is above `spike_factor` times the median
            of the last `window` good losses (never before there are as many), and the caller is to go back and say so (`went_back`).

        Raises:
            AnomalyError: `max_skipped` steps in a row, or a spike after `max_rollbacks` returns to a checkpoint.
        """
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self.skipped += 1
            self._in_row += 1
            if self._in_row >= self.config.max_skipped:
                what = f"step {step}: loss {loss:g}, gradient norm {grad_norm:g}"
                raise AnomalyError(f"{what}; skipped {self._in_row} steps in a row (anomaly.max_skipped)")
            return "skip"
        self._in_row = 0
        if self.config.spike_factor and len(self._losses) == self.config.window:
            median = statistics.median(self._losses)
            if loss > self.config.spike_factor * median:
                if self.rollbacks >= self.config.max_rollbacks:
                    raise AnomalyError(
                        f"step {step}: loss {loss:.4g} against a median of {median:.4g}; the run went back {self.config.max_rollbacks} times before "
                        "(anomaly.max_rollbacks)"
                    )
                return "rollback"
        self._losses.append(loss)
        return "ok"

    def went_back(self) -> None:
        """Count a return to a checkpoint, once it is made: without a checkpoint there is none."""
        self.rollbacks += 1

    def counts(self) -> dict[str, int]:
        """For the metrics of a step."""
        return {"skipped": self.skipped, "rollbacks": self.rollbacks}

    def state(self) -> dict[str, Any]:
        """JSON of all that a resume needs. Not to be loaded on a rollback, which would forget that it happened."""
        return {"losses": list(self._losses), "in_row": self._in_row, **self.counts()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self._losses = deque(state["losses"], maxlen=self.config.window)
        self._in_row, self.skipped, self.rollbacks = state["in_row"], state["skipped"], state["rollbacks"]
