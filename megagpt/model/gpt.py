"""The GPT on Megatron-core blocks: tokens -> vocabulary-parallel logits, or -> one scalar for each position."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from megagpt.model import dropout as drop
from megagpt.model import param_map
from megagpt.model.attention import CausalAttention, KeyValueCache
from megagpt.model.shape import ModelShape, transformer_config
from megagpt.parallel.groups import Groups
from megagpt.parallel.stages import stage_layers


class GPT(GPTModel):
    """One pipeline stage of a causal transformer with a language-model or a scalar head.

    Args:
        shape: sizes; the vocabulary must be known.
        groups: process groups of the grid that holds this model.
        scalar_head: replace the language-model head by a linear map to one number (reward and value models).
        dtype: of the parameters.

    Weights are uninitialised until `load_canonical`.
    """

    def __init__(self, shape: ModelShape, groups: Groups, *, scalar_head: bool = False, dtype: torch.dtype = torch.float32) -> None:
        config = transformer_config(shape, groups.grid, dtype)
        spec = get_gpt_layer_local_spec(normalization=config.normalization)
        spec.submodules.self_attention.submodules.core_attention = CausalAttention
        super().__init__(
            config=config,
            transformer_layer_spec=spec,
            vocab_size=shape.padded_vocab_size(groups.grid.tp),
            max_sequence_length=shape.config.max_sequence_length,
            pre_process=groups.is_first_stage,
            post_process=groups.is_last_stage,
            parallel_output=True,
            share_embeddings_and_output_weights=shape.tied and not scalar_head,
            position_embedding_type="none" if shape.is_llama else "learned_absolute",
            pg_collection=groups.collection,
        )
        self.shape, self.groups, self.has_scalar_head = shape, groups, scalar_head
        if scalar_head and self.post_process:
            del self.output_layer
            self.scalar_head = torch.nn.Linear(config.hidden_size, 1, dtype=dtype)
        self._layer_offset = stage_layers(config.num_layers, groups.grid.pp, groups.coordinates.pp).start
        self._install_dropout(shape.config.dropout)
        for name, parameter in self.named_parameters():
            axis = self.entry(name).axis
            # Read by DeepSpeed: a parameter that is not sharded counts once in the gradient norm.
            parameter.tensor_model_parallel, parameter.partition_dim = axis is not None, -1 if axis is None else axis

    def _install_dropout(self, probability: float) -> None:
        self.dropout_state = drop.DropoutState(probability)
        if self.pre_process:
            self.embedding.embedding_dropout = drop.Dropout(self.dropout_state, 0, drop.EMBEDDING)
        for layer in self.decoder.layers:
            number = layer.layer_number
            layer.self_attn_bda = drop.BiasDropoutAdd(self.dropout_state, number, drop.ATTENTION_RESIDUAL)
            layer.mlp_bda = drop.BiasDropoutAdd(self.dropout_state, number, drop.MLP_RESIDUAL)
            layer.self_attention.core_attention.dropout_state = self.dropout_state

    # ------------------------------------------------------------ forward

    def forward(
        self, tokens: Tensor, positions: Tensor | None = None, cache: KeyValueCache | None = None, only: Tensor | None = None
    ) -> Tensor:
        """One pass of this stage.

        Args:
            tokens: [b, s] ids (read on the first stage; the others take what `set_input_tensor` gave them).
            positions: [b, s] position of each token; default 0 … s - 1. With a cache also the slots written.
            cache: keys and values of the earlier tokens.
            only: [b] index of the one position of each row whose output is wanted; the head is spared the others.

        Returns:
            last stage: logits [b, s, padded vocabulary / tp] of this tensor-parallel rank, or scalars [b, s];
            other stages: hidden states [s, b, h]. With `only`, s is 1 in the last stage's output.
        """
        if positions is None:
            positions = torch.arange(tokens.size(1), device=tokens.device)[None]  # one row for all: cheaper rotary angles
        if cache is not None:
            cache.positions = positions.expand_as(tokens)
        for layer in self.decoder.layers:
            layer.self_attention.core_attention.cache = cache
        self._only = only
        return super().forward(tokens, positions, attention_mask=None)

    def _preprocess(self, input_ids: Tensor, position_ids: Tensor, **_):
        """Embedding, and rotary angles from the explicit positions (Megatron-core's count from 0 in every row)."""
        hidden = self.embedding(input_ids=input_ids, position_ids=position_ids) if self.pre_process else None
        rotary = self._rotary_angles(position_ids) if self.shape.is_llama else None
        return hidden, rotary, None, None, None, None

    def _rotary_angles(self, positions: Tensor) -> Tensor:
        """Angles [s, b, 1, head size], halves repeated (Su et al. 2021, section 3.2.2; first half pairs with second)."""
        size, base = self.shape.head_size, self.shape.config.rotary_base
        exponents = torch.arange(0, size, 2, dtype=torch.float32, device=positions.device) / size
        angles = positions.t()[:, :, None].float() * base**-exponents
        return torch.cat((angles, angles), dim=-1)[:, :, None]

    def _postprocess(self, hidden_states: Tensor, **kwargs) -> Tensor:
        if self.post_process and self._only is not None:
            hidden_states = hidden_states[self._only, torch.arange(hidden_states.size(1), device=hidden_states.device)][None]
        if self.has_scalar_head and self.post_process:
            return self.scalar_head(hidden_states).squeeze(-1).t().contiguous()
        return super()._postprocess(hidden_states, **kwargs)

    # ------------------------------------------------------------ canonical names

    def entry(self, name: str) -> param_map.Entry:
        """Table entry of a local parameter name, whose layer number counts within this stage."""
        return param_map.entry(
            re.sub(r"(decoder\.layers\.)(\d+)", lambda m: m[1] + str(int(m[2]) + self._layer_offset), name), self.shape
        )

    def entries(self) -> Iterator[tuple[torch.nn.Parameter, param_map.Entry]]:
        """Each local parameter with its table entry."""
        for name, parameter in self.named_parameters():
            yield parameter, self.entry(name)

    @torch.no_grad()
    def load_canonical(self, read: Callable[[str], Tensor]) -> None:
        """Fill this stage's shard of every weight from global canonical tensors, asked for one by one."""
        for parameter, entry in self.entries():
            pieces = [read(name).to(parameter.dtype) for name in entry.pieces]
            tp = self.groups.collection.tp
            parameter.copy_(param_map.split(entry, pieces, self.shape, tp.size(), tp.rank()))

    @property
    def tied_weight(self) -> torch.nn.Parameter | None:
        """The copy of tied embeddings that this stage must keep equal to another stage's, if there is one."""
        if not self.share_embeddings_and_output_weights or self.groups.grid.pp == 1:
            return None
        return self.shared_embedding_or_output_weight() if self.pre_process or self.post_process else None
