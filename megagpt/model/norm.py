"""LayerNorm and RMSNorm for our layer specification."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megagpt.kernels.norm import layer_norm, rms_norm


class LayerNorm(torch.nn.LayerNorm):
    def forward(self, hidden: Tensor) -> Tensor:
        return layer_norm(hidden, self.weight, self.bias, self.eps)


class RMSNorm(torch.nn.RMSNorm):
    def forward(self, hidden: Tensor) -> Tensor:
        return rms_norm(hidden, self.weight, self.eps)


class Norm:
    """Builds a LayerNorm or RMSNorm as the configuration says.

    Megatron-core's own wrapper refuses sequence parallelism. All that it takes is a mark: with sequence parallelism each
    tensor-parallel rank normalises other tokens, so that the gradients of these weights are sums over the ranks
    (`engine/build.py` adds them up).
    """

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_) -> torch.nn.Module:
        norm = {"LayerNorm": LayerNorm, "RMSNorm": RMSNorm}[config.normalization](hidden_size, eps=eps).to(config.params_dtype)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel
        return norm
