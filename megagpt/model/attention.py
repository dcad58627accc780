"""Core attention of our Megatron-core layers: causal scaled-dot-product attention, with a key/value cache for decoding.

Megatron-core's own core attention takes buffers from its global parallel state, which four models cannot share, and its
static cache wants all rows of a batch at the same position; here every row has its own position.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megagpt.kernels import flash_attention, select
from megagpt.kernels.masked_softmax import masked_softmax
from megagpt.kernels.rotary import rotary, rotary_table
from megagpt.model.dropout import ATTENTION, DropoutState
from megagpt.model.forward_pass import CurrentPass


class RotaryTable:
    """Cosines and sines of all positions of a model, made on each device where they are asked for."""

    def __init__(self, max_position: int, size: int, base: float) -> None:
        self._make = functools.cache(functools.partial(rotary_table, max_position, size, base))

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return self._make(device)


class CausalAttention(MegatronModule):
    """softmax(q k^T / sqrt(d) + causal mask) v over this rank's heads (Vaswani et al. 2017, eq. 1).

    In a training or scoring pass the rows start at position 0 and padding stands on the right, so the causal mask alone
    keeps padding away from every real token. Where rows hold several documents, attention stays within each.

    With context parallelism each rank holds a part of every row's tokens. DeepSpeed-Ulysses (Jacobs et al. 2023, section
    3.1) exchanges it for all tokens of a part of the heads, and exchanges the result back.
    """

    def __init__(
        self, config, layer_number: int, attn_mask_type=None, attention_type=None, attention_dropout=None,
        softmax_scale: float | None = None, cp_comm_type=None, pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        self.layer_number, self.softmax_scale = layer_number, softmax_scale
        cp = pg_collection.cp
        self.heads_part = pg_collection.tp.rank() * cp.size() + cp.rank()
        """This rank's place among all ranks that hold different heads."""
        self.current: CurrentPass | None = None
        self.rotary_table: RotaryTable | None = None
        self.dropout_state: DropoutState | None = None
        self._over_ranks = None
        if cp.size() > 1:
            from deepspeed.sequence.layer import DistributedAttention  # seconds to import, and few models need it

            self._over_ranks = DistributedAttention(self._attend, cp, scatter_idx=2, gather_idx=1)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask=None, **_) -> Tensor:
        """query [s, b, heads, d], key and value [s, b, groups, d] -> [s, b, heads * d]."""
        if self.rotary_table is not None:
            positions, table = self.current.value.positions.t(), self.rotary_table.on(query.device)
            query, key = rotary(query, positions, table), rotary(key, positions, table)
        rows = [x.transpose(0, 1) for x in (query, key, value)]
        context = self._attend(*rows) if self._over_ranks is None else self._over_ranks(*(x.contiguous() for x in rows), 0)
        return context.transpose(0, 1).flatten(2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [b, s, heads, d], key and value [b, s, groups, d] with all tokens of the rows -> [b, s, heads, d]."""
        now, drops = self.current.value, self.training and self.dropout_state.active
        mask = now.visible
        if now.cache is not None:
            pairs, asked = torch.stack((key[0], value[0]), dim=2), query[0].unflatten(1, (key.size(2), -1))
            return now.cache.attend(self.layer_number, asked, pairs, self.softmax_scale or query.size(-1) ** -0.5).flatten(1, 2)[None]
        if now.segments is not None and not drops and select.flash_attention_runs(query):
            return flash_attention.within_documents(query, key, value, now.segments, self.softmax_scale)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        if now.segments is not None:
            same = now.segments[:, :, None] == now.segments[:, None, :]
            mask = same.tril()[:, None]
        if drops:
            context = self._with_dropout(query, key, value, mask)
        else:
            grouped = query.size(1) != key.size(1)
            context = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=mask is None, scale=self.softmax_scale, enable_gqa=grouped
            )
        return context.transpose(1, 2)

    def _with_dropout(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """The same written out, since SDPA draws its dropout mask from a stream. [b, heads, s, d]"""
        batch, heads, length, size = query.shape
        key, value = (x.repeat_interleave(heads // x.size(1), dim=1) for x in (key, value))
        scores, scale = query @ key.transpose(2, 3), self.softmax_scale or size**-0.5
        if mask is None:
            weights = masked_softmax(scores, scale, causal=True)
        else:
            weights = (scores * scale).masked_fill(~mask, float("-inf")).softmax(dim=-1)
        # The masks of all global heads, of which this rank holds some.
        return (weights * self.dropout_state.masks(self.layer_number, ATTENTION, (heads, length, length), weights, self.heads_part)) @ value
