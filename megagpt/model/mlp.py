"""The forward pass of Megatron-core's MLP with our fused bias and activation between its two linear layers."""

from __future__ import annotations

from megatron.core.transformer.mlp import MLP
from torch import Tensor

from megagpt.kernels.bias_gelu import bias_gelu
from megagpt.kernels.bias_swiglu import bias_swiglu


def mlp_forward(mlp: MLP, hidden: Tensor, **_) -> tuple[Tensor, Tensor | None]:
    """fc2(gelu(fc1(x) + bias)), or fc2(silu(gate) * up) with [gate; up] = fc1(x) (Shazeer 2020, eq. 6).

    Returns:
        [s, b, h], and the output's bias, which the residual addition adds.
    """
    inner, bias = mlp.linear_fc1(hidden)
    if bias is not None:
        bias = bias.clone()  # kept for the backward pass, when ZeRO 3 has taken the parameter away
    inner = bias_swiglu(inner, bias) if mlp.config.gated_linear_unit else bias_gelu(inner, bias, approximate="tanh")
    return mlp.linear_fc2(inner)
