"""Counter-based randomness: every random number is a function of named integers, never of what was drawn before.

Hence samples, dropout masks and data order do not depend on layout, batch, order of calls or restarts. The integers
are mixed with the finaliser of SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators").
"""

from __future__ import annotations

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_counters(*counters: int | np.ndarray) -> np.ndarray:
    """64-bit hash of the given counters; arrays broadcast against each other. Returns uint64."""
    with np.errstate(over="ignore"):
        state = np.uint64(0)
        for counter in counters:
            state = _mix((state + _GOLDEN) ^ np.asarray(counter).astype(np.uint64))
        return _mix(state + _GOLDEN)


def uniform(*counters: int | np.ndarray) -> np.ndarray:
    """Uniform float64 in [0, 1) from the counters, 53 random bits."""
    return (hash_counters(*counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def generator(*counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator whose whole stream is a function of the counters."""
    return torch.Generator(device).manual_seed(int(hash_counters(*counters) >> np.uint64(1)))
