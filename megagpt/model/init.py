"""Initial weights as a function of (seed, canonical name): the same numbers under every layout."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from megagpt.model.shape import ModelShape
from megagpt.runtime.random import generator


def initial_tensor(name: str, size: tuple[int, ...], shape: ModelShape, seed: int) -> Tensor:
    """Global float32 value of one canonical tensor (Radford et al. 2019, section 2.3).

    Norm weights are one and biases zero; matrices are normal with standard deviation init_std, and the two projections
    into the residual stream with init_std / sqrt(2 num_layers). The scalar head starts small, so that a new reward
    model scores near zero: 1 / sqrt(hidden_size + 1) (Stiennon et al. 2020, appendix B.1). Of an adapter A is normal and B
    zero (Hu et al. 2021, section 4.1); with 1 / sqrt(inputs), A x is as large as x.
    """
    if name.endswith(("bias", "lora_b")):
        return torch.zeros(size)
    if "norm" in name:
        return torch.ones(size)
    std = shape.config.init_std
    if name == "scalar_head.weight":
        std = (shape.config.hidden_size + 1) ** -0.5
    elif name.endswith("lora_a"):
        std = size[1] ** -0.5
    elif name.endswith(("attention.output.weight", "mlp.down.weight")):
        std /= (2 * shape.config.num_layers) ** 0.5
    return torch.empty(size).normal_(0.0, std, generator=generator(seed, zlib.crc32(name.encode())))
