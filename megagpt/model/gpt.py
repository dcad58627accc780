"""The GPT on Megatron-core blocks: tokens -> vocabulary-parallel logits, or -> one scalar for each position."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megagpt.config.stages import stage_layers
from megagpt.model import dropout as drop
from megagpt.model import lora, megatron_globals, param_map
from megagpt.model.attention import CausalAttention, RotaryTable
from megagpt.model.forward_pass import CurrentPass, ForwardPass
from megagpt.model.key_value_cache import KeyValueCache
from megagpt.model.layout import Layout
from megagpt.model.megatron_config import transformer_config
from megagpt.model.mlp import mlp_forward
from megagpt.model.norm import Norm
from megagpt.model.shape import ModelShape
from megagpt.parallel.groups import Groups


class GPT(GPTModel):
    """One pipeline stage (or one of its blocks of layers) of a causal transformer with a language-model or a scalar head.

    Args:
        shape: sizes; the vocabulary must be known.
        groups: process groups of the grid that holds this model.
        scalar_head: replace the language-model head by a linear map to one number (reward and value models).
        layout: precision, recomputation, how stages are cut.
        chunk: which of this rank's blocks of layers, where a stage has several.

    Weights are uninitialised until `load_canonical`. With adapters of low rank (`shape.lora`) only these and a scalar head require gradients.
    """

    def __init__(self, shape: ModelShape, groups: Groups, *, scalar_head: bool = False, layout: Layout = Layout(), chunk: int = 0) -> None:
        config = transformer_config(shape, groups.grid, layout)
        layers = stage_layers(
            config.num_layers, groups.grid.pp, groups.coordinates.pp,
            num_chunks=layout.num_chunks, chunk=chunk, layers_of_stages=layout.stage_layers,
        )
        megatron_globals.install()
        super().__init__(
            config=config,
            transformer_layer_spec=_block_spec(config, len(layers)),
            vocab_size=shape.padded_vocab_size(groups.grid.tp),
            max_sequence_length=shape.config.max_sequence_length,
            pre_process=groups.is_first_stage and chunk == 0,
            post_process=groups.is_last_stage and chunk == layout.num_chunks - 1,
            parallel_output=True,
            share_embeddings_and_output_weights=shape.tied and not scalar_head,
            position_embedding_type="none" if shape.is_llama else "learned_absolute",
            pg_collection=groups.collection,
            vp_stage=chunk if layout.num_chunks > 1 else None,
        )
        self.shape, self.groups, self.layout, self.has_scalar_head = shape, groups, layout, scalar_head
        if scalar_head and self.post_process:
            del self.output_layer
            self.scalar_head = torch.nn.Linear(config.hidden_size, 1, dtype=layout.dtype)
        self.to(layout.dtype)  # Megatron-core makes learned positions in float32
        self._layer_offset = layers.start
        self.current = CurrentPass()
        self._rotary_table = RotaryTable(shape.config.max_sequence_length, shape.head_size, shape.config.rotary_base) if shape.is_llama else None
        self._connect_layers()
        if shape.lora is not None:
            lora.attach(self, shape.lora)
        for name, parameter in self.named_parameters():
            entry = self.entry(name)
            parameter.requires_grad_(param_map.is_trained(entry.pieces[0], shape))
            axis = entry.axis
            # Read by DeepSpeed: a parameter that is not sharded counts once in the gradient norm.
            parameter.tensor_model_parallel, parameter.partition_dim = axis is not None, -1 if axis is None else axis

    def _connect_layers(self) -> None:
        """Give every layer its global number, our activations and dropout, the current pass, and recomputation where it is asked for."""
        places, grid = self.groups.coordinates, self.groups.grid
        shard = (places.cp, grid.cp)
        if self.layout.sequence_parallel:
            shard = (places.cp * grid.tp + places.tp, grid.cp * grid.tp)
        state = self.dropout_state = drop.DropoutState(self.shape.config.dropout, self.current, shard)
        if self.pre_process:
            self.embedding.embedding_dropout = drop.Dropout(state, 0, drop.EMBEDDING)
        for number, layer in enumerate(self.decoder.layers, self._layer_offset + 1):
            layer.layer_number = number
            layer.self_attn_bda = drop.BiasDropoutAdd(state, number, drop.ATTENTION_RESIDUAL)
            layer.mlp_bda = drop.BiasDropoutAdd(state, number, drop.MLP_RESIDUAL)
            layer.mlp.forward = functools.partial(mlp_forward, layer.mlp)
            attention = layer.self_attention.core_attention
            attention.layer_number, attention.current, attention.dropout_state = number, self.current, state
            attention.rotary_table = self._rotary_table
            if self.post_process and layer is self.decoder.layers[-1]:
                layer._forward_mlp = self._spare(layer._forward_mlp)
            if self.layout.recompute == "full":
                layer.forward = self.current.recomputed(layer.forward)
            elif self.layout.recompute == "selective":
                attention.forward = self.current.recomputed(attention.forward)

    def _spare(self, mlp: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The last layer's MLP, with its norm and residual, on the wanted places alone: no other token looks at what it makes of the rest."""

        def forward(hidden: Tensor, *args, **kwargs) -> Tensor:
            return mlp(self._wanted(hidden) if self._spares_mlp else hidden, *args, **kwargs)

        return forward

    @property
    def _spares_mlp(self) -> bool:
        """Whether this stage has such an MLP; a dropout mask is for whole rows."""
        return self.post_process and len(self.decoder.layers) > 0 and not (self.training and self.dropout_state.active)

    def _wanted(self, hidden: Tensor) -> Tensor:
        """[s, b, h] -> [places, 1, h], row by row; all of it where nothing is said."""
        only = self.current.value.only
        if only is None:
            return hidden
        return hidden.transpose(0, 1)[only][:, None] if only.dtype == torch.bool else hidden[only]

    # ------------------------------------------------------------ forward

    def train(self, mode: bool = True) -> GPT:
        """As of any module, but nothing where it is so already: phases of PPO ask for it again and again, and there are modules by the hundred."""
        return self if self.training == mode else super().train(mode)

    def forward(
        self, tokens: Tensor, positions: Tensor | None = None, cache: KeyValueCache | None = None, only: Tensor | None = None, *,
        segments: Tensor | None = None, branches: Tensor | None = None, hidden: Tensor | None = None,
        dropout_key: tuple[int, int] | None = None, row_ids: Sequence[int] = (),
    ) -> Tensor:
        """One pass of this stage.

        Args:
            tokens: [b, s] ids (read on the first stage; the others take what `set_input_tensor` gave them). With context
                parallelism this rank's part of each row.
            positions: [b, s] position of each token; default 0, 1, 2 … in each segment.
            cache: keys and values of the earlier tokens; b is 1 and the row holds what the cache expects.
            only: places whose output is wanted, [n] in a single row or [b, s] bool; the last MLP and the head are spared the
                others. Not with sequence or context parallelism.
            segments: [b, length of the whole rows] document that each token belongs to; attention stays within it.
            branches: [b, s] never falling; 0 for the beginning of a row, k for its k-th continuation, which sees the beginning and itself:
                several texts with one beginning, which is computed once. Whole rows, without context parallelism.
            hidden: [s, b, h] for a block above others: what those made of the tokens, where no pipeline hands it over.
            dropout_key: (seed, step); None: no dropout.
            row_ids: numbers of the rows in the global batch, for dropout.

        Returns:
            last stage: logits [b, s, padded vocabulary / tp] of this tensor-parallel rank, or scalars [b, s];
            other stages: hidden states [s, b, h] ([s / tp, b, h] with sequence parallelism). With `only`, the last
            stage's output is of one row, [1, n, ...], row by row where there were several.
        """
        cp, length = self.groups.collection.cp, tokens.size(1)
        if positions is None:
            positions = torch.arange(length * cp.size(), device=tokens.device)[None]  # one row for all: cheaper rotary angles
            if segments is not None:
                positions = positions - _segment_starts(segments, positions)
            elif branches is not None:
                continues = branches > 0
                positions = positions - continues * (_segment_starts(branches, positions) - (~continues).sum(dim=1, keepdim=True))
                positions = positions.clamp(max=self.shape.config.max_sequence_length - 1)  # padding of a row beside a longer one may lie beyond
            positions = positions[:, cp.rank() * length : (cp.rank() + 1) * length]
        visible = None if branches is None else _visible(branches)
        self.current.value = ForwardPass(dropout_key, tuple(row_ids), segments, visible, cache, positions, only)
        if hidden is not None:
            self.set_input_tensor(hidden)
        return super().forward(tokens, positions, attention_mask=None)

    def _preprocess(self, input_ids: Tensor, position_ids: Tensor, **_):
        """Embedding alone: our attention turns queries and keys itself, by explicit positions (Megatron-core's count from 0 in every row)."""
        hidden = self.embedding(input_ids=input_ids, position_ids=position_ids) if self.pre_process else None
        return hidden, None, None, None, None, None

    def _postprocess(self, hidden_states: Tensor, **_) -> Tensor:
        if self.post_process and not self._spares_mlp:
            hidden_states = self._wanted(hidden_states)
        if self.has_scalar_head and self.post_process:
            if self.layout.sequence_parallel:
                # Every tensor-parallel rank computes the same scalars: each takes its own tokens' part of the gradient.
                hidden_states = gather_from_sequence_parallel_region(
                    hidden_states, tensor_parallel_output_grad=False, group=self.groups.collection.tp
                )
            return self.scalar_head(hidden_states).squeeze(-1).t().float().contiguous()
        if not self.post_process:
            return hidden_states
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        logits, _ = self.output_layer(hidden_states, weight=weight)
        return logits.transpose(0, 1)  # a view: the largest tensor of all is not copied, nor is its gradient

    def new_cache(self, num_rows: int, length: int) -> KeyValueCache:
        """For decoding that many texts at the same time, each of that many tokens at most; `ModelShape.cache_bytes` says its size."""
        layers = range(self._layer_offset + 1, self._layer_offset + 1 + len(self.decoder.layers))
        groups, device = self.shape.num_query_groups // self.groups.grid.tp, next(self.parameters()).device
        return KeyValueCache(layers, num_rows, length, groups=groups, size=self.shape.head_size, dtype=self.layout.dtype, device=device)

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
        """The copy of tied embeddings that this block must keep equal to another stage's, if there is one."""
        if not self.share_embeddings_and_output_weights or self.groups.grid.pp == 1:
            return None
        return self.shared_embedding_or_output_weight() if self.pre_process or self.post_process else None


def _segment_starts(segments: Tensor, places: Tensor) -> Tensor:
    """Place [b, length] at which each token's segment [b, length] begins in its row; segments never fall along it."""
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return (places * begins).cummax(dim=1).values


def _visible(branches: Tensor) -> Tensor:
    """[b, s] -> [b, 1, s, s] bool: tokens before, of the beginning or of the same continuation."""
    of_query, of_key = branches[:, :, None], branches[:, None, :]
    return ((of_key == 0) | (of_key == of_query)).tril()[:, None]


def _block_spec(config: TransformerConfig, num_layers: int) -> TransformerBlockSubmodules:
    """Layers of Megatron-core with our attention and norms; how many, we say."""
    layer = get_gpt_layer_local_spec(normalization=config.normalization)
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = Norm
    layer.submodules.self_attention.submodules.core_attention = CausalAttention
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=Norm)


def build_chunks(shape: ModelShape, groups: Groups, *, scalar_head: bool = False, layout: Layout = Layout()) -> list[GPT]:
    """All blocks of layers of this rank, in the order that a token passes them; a single one without virtual stages."""
    return [GPT(shape, groups, scalar_head=scalar_head, layout=layout, chunk=chunk) for chunk in range(layout.num_chunks)]
