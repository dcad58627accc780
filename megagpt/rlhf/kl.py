"""The KL penalty: estimators of the KL of one token, and the coefficient beta, fixed or steered towards a target."""

from __future__ import annotations

from torch import Tensor

from megagpt.config.schema import KlConfig

ESTIMATORS = {
    "k1": lambda log_ratio: log_ratio,
    "k2": lambda log_ratio: 0.5 * log_ratio.square(),
    "k3": lambda log_ratio: (-log_ratio).exp() - 1.0 + log_ratio,
}
"""Of KL(pi || pi_ref) from tokens sampled by pi, as functions of log pi - log pi_ref (Schulman, Approximating KL Divergence, 2020)."""


def kl_estimate(estimator: str, logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """One estimate for each sampled token, 0 where the mask is; the mean of k1's and of k3's is the KL, that of k2's is near it where the two
    distributions are near each other. A token that pi sampled although pi_ref likes it much more gives k3 a huge value.

    Args:
        all [b, P].
    """
    return ESTIMATORS[estimator]((logprobs - reference_logprobs) * mask)  # masked first: what padding would give may be infinite


def kl_loss(estimator: str, logprobs: Tensor, old_logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """sum rho k(log pi - log pi_ref), with rho = pi / pi_old, over the tokens where the mask is 1.

    The ratio has a gradient, so the loss's gradient is that of E_pi[k], however far pi has moved from the pi_old that sampled: with k1 and k3
    an unbiased gradient of each token's KL(pi || pi_ref) given the tokens before it; with k2, whose mean is not the KL, a biased one.
    (Without the ratio, as Shao et al. 2024 write it, k3's would be the gradient of KL(pi_ref || pi), and k1's would be 0 on average.) What a
    token does to the KL of those after it only the penalty in the reward sees.

    Args:
        all [b, P].
    """
    ratio = ((logprobs - old_logprobs) * mask).exp()
    return (ratio * kl_estimate(estimator, logprobs, reference_logprobs, mask)).sum()


class KlController:
    """beta <- beta (1 + clip(KL / target - 1, +-0.2) n / horizon) after n responses (Ziegler et al. 2019, section 2.2)."""

    def __init__(self, config: KlConfig) -> None:
        self.coefficient, self._target, self._horizon = config.coefficient, config.target, config.horizon

    def update(self, kl: float, num_responses: int) -> None:
        """Take in the mean KL (nats a response) of one rollout; nothing happens without a target."""
        if self._target is not None:
            error = min(max(kl / self._target - 1.0, -0.2), 0.2)
            self.coefficient *= 1.0 + error * num_responses / self._horizon
