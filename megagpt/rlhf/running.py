"""Mean and standard deviation of all scores that training has seen."""

from __future__ import annotations

from torch import Tensor


class RunningMoments:
    """Mean and population variance over everything taken in, batch by batch (Chan et al. 1979, the pairwise update)."""

    def __init__(self, count: float = 0, mean: float = 0.0, variance: float = 0.0) -> None:
        self.count, self.mean, self.variance = count, mean, variance

    def update(self, values: Tensor) -> None:
        values = values.double()
        count, mean, variance = values.numel(), float(values.mean()), float(values.var(correction=0))
        total, shift = self.count + count, mean - self.mean
        self.variance = (self.count * self.variance + count * variance + shift**2 * self.count * count / total) / total
        self.mean += shift * count / total
        self.count = total

    def normalise(self, values: Tensor, epsilon: float = 1e-8) -> Tensor:
        """(values - mean) / (std + epsilon)."""
        return (values - self.mean) / (self.variance**0.5 + epsilon)

    def state(self) -> dict[str, float]:
        """What the constructor takes."""
        return {"count": self.count, "mean": self.mean, "variance": self.variance}
