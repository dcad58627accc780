"""How much arithmetic a run is, and which run a given amount of it is best spent on."""

from __future__ import annotations

from dataclasses import dataclass

PETAFLOP_S_DAY = 1e15 * 86400.0


def petaflop_s_days(num_parameters: float, tokens: float) -> float:
    """6 N D: two operations a weight and token forward, four backward (Kaplan et al. 2020, section 2.1; Brown et al. 2020,
    appendix D)."""
    return 6.0 * num_parameters * tokens / PETAFLOP_S_DAY


@dataclass(frozen=True)
class Optimum:
    """The best use of a budget."""

    flops: float
    parameters: float
    tokens: float
    loss: float
    """Predicted, nats a token, on the paper's data."""


def compute_optimal(flops: float) -> Optimum:
    """20 tokens a parameter: parameters and tokens grow alike (Hoffmann et al. 2022, approaches 1 and 2, table 3)."""
    parameters = (flops / (6.0 * 20.0)) ** 0.5
    return Optimum(flops, parameters, 20.0 * parameters, predicted_loss(parameters, 20.0 * parameters))


E, A, B, ALPHA, BETA = 1.69, 406.4, 410.7, 0.34, 0.28
"""The constants of `predicted_loss` as the paper rounds them."""


def predicted_loss(parameters: float, tokens: float) -> float:
    """E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, eq. 10)."""
    return E + A / parameters**ALPHA + B / tokens**BETA


def compute_optimal_by_loss(flops: float) -> Optimum:
    """The minimum of `predicted_loss` under 6 N D = flops: N = G (C / 6)^a with G = (alpha A / (beta B))^(1 / (alpha + beta))
    and a = beta / (alpha + beta) (Hoffmann et al. 2022, eq. 4; approach 3). Smaller models than `compute_optimal`."""
    scale = (ALPHA * A / (BETA * B)) ** (1.0 / (ALPHA + BETA))
    parameters = scale * (flops / 6.0) ** (BETA / (ALPHA + BETA))
    tokens = flops / 6.0 / parameters
    return Optimum(flops, parameters, tokens, predicted_loss(parameters, tokens))
