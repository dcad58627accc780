"""Every tolerance of the tests by name, with its reason, and the comparison that applies them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

# fp32 keeps 6e-8. On the tiny models the plain reference in fp32 is within 8e-7 of itself in fp64 (gradients) and 3e-7 (parameters after
# three steps); the smallest real mistake met so far (a later pipeline stage's norms left out of the clipping) moved a tensor by 8e-5.
PARITY_RELATIVE = 1e-5

# The same conversations in rows of their own and packed into long ones, fp32: the same sums in another order.
PACKED_RELATIVE = 1e-6

# A key bias adds the same number to all scores of a query, so its true gradient is exactly zero and a relative error means nothing. What
# remains is rounding: 1e-10 at most in the plain reference on the tiny models.
KEY_BIAS_ABSOLUTE = 1e-8

# The gradient of what shifts all scores of a reward model alike is exactly zero too: a sum of terms up to 1 that cancel, 1.5e-8 at most.
SCORE_SHIFT_ABSOLUTE = 1e-7

# AdamW over 10 steps against its formula on the same gradients: elementwise operations only, no sums to reorder.
ADAMW_RELATIVE = 1e-6

# Against Hugging Face: the same formulas, other kernels and other order of sums. Logits are of the order 1.
LOGITS_ABSOLUTE = 1e-4  # megagpt under any layout
PLAIN_LOGITS_ABSOLUTE = 1e-5  # the plain reference itself, which has fewer reasons to differ

# A formula in float64 against the same one written otherwise: sums of some dozen terms of order 1, each rounded to 1e-16.
FLOAT64_ABSOLUTE = 1e-12

# Central differences in float64 with steps of 1e-5: step^2 / 6 times a third derivative below 1, and rounding of 1e-16 / step.
FINITE_DIFFERENCE_STEP, FINITE_DIFFERENCE_ABSOLUTE = 1e-5, 1e-8

# Normalised scores: they are within LOGITS_ABSOLUTE of the plain ones, and are divided by a deviation that may be a tenth.
NORMALISED_SCORE_ABSOLUTE = 10 * LOGITS_ABSOLUTE

# The same rows inside a longer tensor: other blocks in the kernels, nothing else.
PADDED_LOGITS_ABSOLUTE = 1e-6

# Sampled with a key/value cache (sums over one row at a time) against one full forward.
LOG_PROBABILITY_ABSOLUTE = 1e-4

# PPO before its first update: policy and behaviour policy are the same weights, evaluated once by decoding and once by a forward.
RATIO_ABSOLUTE = 1e-5
KL_ABSOLUTE = 1e-6  # a mean over tokens of differences that cancel

# Metrics of one PPO step under different placements: a chain of generation, scoring, advantage and update, each exact to 1e-5.
PPO_METRIC_RELATIVE = 1e-4

# bfloat16 keeps 8 bits: each rounding moves a number by at most 2^-9. A gradient passes some 40 rounded operations in a row, whose errors add
# up like a random walk: sqrt(40) * 2^-9 = 1.2e-2, and five times that for tensors in which terms cancel. A loss is a mean over many tokens.
BF16_GRADIENT_RELATIVE = 6e-2
BF16_LOSS_RELATIVE = 5e-3
BF16_ROUNDING_RELATIVE = 2.0**-8  # one number, rounded once to the nearest
FP16_GRADIENT_RELATIVE = 6e-2 / 8  # three bits more


# GGUF's Q8_0 keeps 32 numbers in steps of their largest / 127: half a step of rounding, and the step itself in float16, 127 * 2^-11 of one.
Q8_0_STEPS = 0.57


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ over the whole tensor; 0 where both are zero, inf where only `expected` is."""
    difference, size = (actual.double() - expected.double()).norm().item(), expected.double().norm().item()
    if size == 0:
        return 0.0 if difference == 0 else math.inf
    return difference / size


def assert_tensors_close(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], relative: float = PARITY_RELATIVE) -> None:
    """Same canonical names, same shapes, each tensor within `relative`; NaN never passes.

    A key bias passes within KEY_BIAS_ABSOLUTE as well. So its gradient, which is rounding only, is compared absolutely, and the trained
    parameter, which is far larger, relatively.
    """
    missing, unknown = sorted(expected.keys() - actual.keys()), sorted(actual.keys() - expected.keys())
    assert not missing and not unknown, f"missing tensors: {missing}; unknown tensors: {unknown}"
    shapes = {name: (tuple(actual[name].shape), tuple(tensor.shape)) for name, tensor in expected.items()}
    wrong = [f"{name}: {ours}, expected {theirs}" for name, (ours, theirs) in shapes.items() if ours != theirs]
    assert not wrong, "shapes differ: " + "; ".join(wrong)

    offenders = []
    for name, tensor in expected.items():
        error = relative_error(actual[name], tensor)
        distance = (actual[name].double() - tensor.double()).abs().max().item() if tensor.numel() else 0.0
        close = error <= relative or (name.endswith("attention.key.bias") and distance <= KEY_BIAS_ABSOLUTE)
        if not close:  # a NaN compares as not close
            offenders.append((math.inf if math.isnan(error) else error, f"{name}: relative {error:.2e}, largest difference {distance:.2e}"))
    worst = [line for _, line in sorted(offenders, reverse=True)[:3]]
    assert not offenders, f"{len(offenders)} of {len(expected)} tensors differ by more than {relative:g}:\n  " + "\n  ".join(worst)
