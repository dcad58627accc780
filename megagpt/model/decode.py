"""The forward pass of one stage over packed new tokens, without what training needs around it.

A pass over a few tokens takes a millisecond a layer in Megatron-core's modules, on a CPU mostly for getting from one product
to the next. Here are the same products on the same weights, one after the other. Weights that ZeRO 3 has taken away come
back by those modules' hooks only, so `can_decode` says no and `GPT.forward` does the pass.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.mlp import MLP
from torch import Tensor

from megagpt.kernels.bias_swiglu import bias_swiglu
from megagpt.kernels.rotary import rotary
from megagpt.model.gpt import GPT
from megagpt.model.key_value_cache import KeyValueCache


def can_decode(model: GPT) -> bool:
    """Whether the stage's weights lie here whole and stay: ZeRO 3 marks those that it takes away, also while they are here."""
    return not any(hasattr(parameter, "ds_id") for parameter in model.parameters())


@torch.no_grad()
def decoding_pass(model: GPT, tokens: Tensor, positions: Tensor, cache: KeyValueCache, last: Tensor, received: Tensor | None = None) -> Tensor:
    """What `model(tokens, positions, cache, last)` returns in evaluation mode.

    Args:
        tokens, positions: [1, t], as `cache` expects them.
        last: [n] places of the tokens whose output is wanted.
        received: [t, 1, h] from the stage before; None on the first one.

    Returns:
        last stage: logits [1, n, padded vocabulary / tp] of this tensor-parallel rank; other stages: hidden states [t, 1, h].
    """
    hidden = (model.embedding(input_ids=tokens, position_ids=positions) if received is None else received).squeeze(1)
    for layer in model.decoder.layers:
        hidden = hidden + _attention(layer.self_attention, layer.input_layernorm(hidden), positions, cache)
        hidden = hidden + _mlp(layer.mlp, layer.pre_mlp_layernorm(hidden))
    if not model.post_process:
        return hidden[:, None]
    weight = model.shared_embedding_or_output_weight() if model.share_embeddings_and_output_weights else model.output_layer.weight
    return F.linear(model.decoder.final_layernorm(hidden[last]), weight)[None]


def _attention(attention: SelfAttention, hidden: Tensor, positions: Tensor, cache: KeyValueCache) -> Tensor:
    core, groups, size = attention.core_attention, attention.num_query_groups_per_partition, attention.hidden_size_per_attention_head
    mixed = _product(attention.linear_qkv, hidden, attention.linear_qkv.bias)
    mixed = mixed.view(len(hidden), groups, -1, size)  # of each group: queries | key | value
    query, pairs = mixed[:, :, :-2], mixed[:, :, -2:]
    if core.rotary_table is not None:
        turned = rotary(mixed[:, :, :-1], positions.t(), core.rotary_table.on(hidden.device))
        query, pairs = turned[:, :, :-1], torch.stack((turned[:, :, -1], mixed[:, :, -1]), dim=2)
    found = cache.attend(core.layer_number, query.flatten(1, 2), pairs, core.softmax_scale or size**-0.5)
    return _row_parallel(attention.linear_proj, found.flatten(1))


def _mlp(mlp: MLP, hidden: Tensor) -> Tensor:
    inner = _product(mlp.linear_fc1, hidden, mlp.linear_fc1.bias)
    return _row_parallel(mlp.linear_fc2, bias_swiglu(inner) if mlp.config.gated_linear_unit else F.gelu(inner, approximate="tanh"))


def _row_parallel(linear: torch.nn.Module, part: Tensor) -> Tensor:
    """[t, part of the inputs] -> [t, h], summed over the ranks that hold the other parts; the bias counts once."""
    if linear.tp_group.size() == 1:
        return _product(linear, part, linear.bias)
    summed = _product(linear, part)
    dist.all_reduce(summed, group=linear.tp_group)
    return summed if linear.bias is None else summed.add_(linear.bias)


def _product(linear: torch.nn.Module, inputs: Tensor, bias: Tensor | None = None) -> Tensor:
    """This rank's part, that of an adapter with it."""
    product, adapter = F.linear(inputs, linear.weight, bias), getattr(linear, "lora", None)
    return product if adapter is None else adapter.local(product, inputs)
