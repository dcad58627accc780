"""The forward pass of one stage over packed new tokens, without what training needs around it.

A pass over a few tokens takes a millisecond a layer in Megatron-core's modules, on a CPU mostly for getting from one product
to the next. Here are the same products on the same weights, one after the other, and what they need of the modules is looked up
once. Weights that ZeRO 3 has taken away come back by those modules' hooks only, so `can_decode` says no and `GPT.forward` does the pass.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from megagpt.kernels.bias_swiglu import bias_swiglu
from megagpt.kernels.few_row_linear import few_row_linear
from megagpt.kernels.rotary import rotary
from megagpt.model.gpt import GPT
from megagpt.model.key_value_cache import KeyValueCache


def can_decode(model: GPT) -> bool:
    """Whether the stage's weights lie here whole and stay: ZeRO 3 marks those that it takes away, also while they are here."""
    return not any(hasattr(parameter, "ds_id") for parameter in model.parameters())


class Decoder:
    """What `model(tokens, positions, cache, last)` does in evaluation mode, as long as the model keeps its weights where they are."""

    def __init__(self, model: GPT) -> None:
        self._layers = [_Layer(layer) for layer in model.decoder.layers]
        self._embedding = model.embedding if model.pre_process else None
        self._norm = self._head = None
        if model.post_process:
            tied = model.share_embeddings_and_output_weights
            self._norm, self._head = model.decoder.final_layernorm.forward, model.shared_embedding_or_output_weight() if tied else model.output_layer.weight

    @torch.no_grad()
    def __call__(self, tokens: Tensor, positions: Tensor, cache: KeyValueCache, last: Tensor, received: Tensor | None = None) -> Tensor:
        """One pass.

        Args:
            tokens, positions: [1, t], as `cache` expects them.
            last: [n] places of the tokens whose output is wanted.
            received: [t, 1, h] from the stage before; None on the first one.

        Returns:
            last stage: logits [1, n, padded vocabulary / tp] of this tensor-parallel rank; other stages: hidden states [t, 1, h].
        """
        hidden = (self._embedding(input_ids=tokens, position_ids=positions) if received is None else received).squeeze(1)
        for layer in self._layers:
            hidden = layer(hidden, positions, cache)
        return hidden[:, None] if self._head is None else few_row_linear(self._norm(hidden[last]), self._head)[None]


class _Layer:
    def __init__(self, layer: TransformerLayer) -> None:
        self._attention_norm, self._attention = layer.input_layernorm.forward, _Attention(layer.self_attention)
        self._mlp_norm, self._mlp = layer.pre_mlp_layernorm.forward, _Mlp(layer.mlp)

    def __call__(self, hidden: Tensor, positions: Tensor, cache: KeyValueCache) -> Tensor:
        hidden = hidden + self._attention(self._attention_norm(hidden), positions, cache)
        return hidden + self._mlp(self._mlp_norm(hidden))


class _Attention:
    def __init__(self, attention: SelfAttention) -> None:
        core = attention.core_attention
        self._layer, self._rotary_table = core.layer_number, core.rotary_table
        self._groups, self._size = attention.num_query_groups_per_partition, attention.hidden_size_per_attention_head
        self._scale = core.softmax_scale or self._size**-0.5
        self._in, self._out = _Linear(attention.linear_qkv), _RowParallel(attention.linear_proj)

    def __call__(self, hidden: Tensor, positions: Tensor, cache: KeyValueCache) -> Tensor:
        mixed = self._in(hidden).view(hidden.size(0), self._groups, -1, self._size)  # of each group: queries | key | value
        query, pairs = mixed[:, :, :-2], mixed[:, :, -2:]
        if self._rotary_table is not None:
            turned = rotary(mixed[:, :, :-1], positions.t(), self._rotary_table.on(hidden.device))
            query, pairs = turned[:, :, :-1], torch.stack((turned[:, :, -1], mixed[:, :, -1]), dim=2)
        return self._out(cache.attend(self._layer, query, pairs, self._scale).flatten(1))


class _Mlp:
    def __init__(self, mlp: MLP) -> None:
        self._in, self._out, self._is_gated = _Linear(mlp.linear_fc1), _RowParallel(mlp.linear_fc2), mlp.config.gated_linear_unit

    def __call__(self, hidden: Tensor) -> Tensor:
        inner = self._in(hidden)
        return self._out(bias_swiglu(inner) if self._is_gated else F.gelu(inner, approximate="tanh"))


class _Linear:
    """[t, inputs] -> this rank's part of the outputs [t, …], that of an adapter with it."""

    def __init__(self, linear: torch.nn.Module) -> None:
        self._weight, self._bias, self._adapter = linear.weight, linear.bias, getattr(linear, "lora", None)

    def __call__(self, inputs: Tensor) -> Tensor:
        product = few_row_linear(inputs, self._weight, self._bias)
        return product if self._adapter is None else self._adapter.local(product, inputs)


class _RowParallel(_Linear):
    """[t, part of the inputs] -> [t, h], summed over the ranks that hold the other parts; the bias counts once."""

    def __init__(self, linear: torch.nn.Module) -> None:
        super().__init__(linear)
        self._group, self._bias_of_all = linear.tp_group if linear.tp_group.size() > 1 else None, None
        if self._group is not None:
            self._bias, self._bias_of_all = None, self._bias

    def __call__(self, part: Tensor) -> Tensor:
        output = super().__call__(part)
        if self._group is not None:
            dist.all_reduce(output, group=self._group)
        return output if self._bias_of_all is None else output.add_(self._bias_of_all)
