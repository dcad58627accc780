"""The coefficient beta of the KL penalty: fixed, or steered towards a target."""

from __future__ import annotations

from megagpt.config.schema import KlConfig


class KlController:
    """beta <- beta (1 + clip(KL / target - 1, +-0.2) n / horizon) after n responses (Ziegler et al. 2019, section 2.2)."""

    def __init__(self, config: KlConfig) -> None:
        self.coefficient, self._target, self._horizon = config.coefficient, config.target, config.horizon

    def update(self, kl: float, num_responses: int) -> None:
        """Take in the mean KL (nats a response) of one rollout; nothing happens without a target."""
        if self._target is not None:
            error = min(max(kl / self._target - 1.0, -0.2), 0.2)
            self.coefficient *= 1.0 + error * num_responses / self._horizon
