"""Keys and values of the tokens so far, preallocated: rows of slots that decoding fills and reads without copying them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class KeyValueCache:
    """Keys and values of one stage's layers: place p of a row holds the token at position p of whatever text that row holds now.

    A pass brings new tokens, packed one after the other without padding: first one token each of the rows that go on, then
    whole prompts that start in rows of their own. `expect` says which they are; every layer then calls `attend`.

    Args:
        layers: global numbers of the stage's layers.
        groups: key/value heads that this rank holds.
        size: numbers of one head's key.
    """

    def __init__(
        self, layers: range, num_rows: int, length: int, *, groups: int, size: int,
        dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
    ) -> None:
        # Zeros, not uninitialised memory: a masked NaN would still poison the product with the values.
        self._store = torch.zeros(len(layers), num_rows, groups, 2, length, size, dtype=dtype, device=device)
        self._first_layer = layers.start
        self._prompts: list[tuple[Tensor, int, int]] = []
        self.expect([], [], [])

    @property
    def num_bytes(self) -> int:
        return self._store.numel() * self._store.element_size()

    @property
    def device(self) -> torch.device:
        return self._store.device

    def copy(self, row: int, others: Sequence[int], length: int) -> None:
        """The first `length` places of a row, in all layers, become those of other rows as well."""
        for other in others:
            self._store[:, other, :, :, :length] = self._store[:, row, :, :, :length]

    def expect(self, rows: Sequence[int], positions: Sequence[int], prompts: Sequence[tuple[int, int]]) -> None:
        """What the next pass brings.

        Args:
            rows, positions: of the tokens that go on, one a row, rows ascending.
            prompts: (row, number of tokens) of each prompt; neighbours of equal length are attended to together.
        """
        device, self._num_going_on, self._going_on = self._store.device, len(rows), None
        if rows:
            self._rows, self._positions = torch.tensor(rows, device=device), torch.tensor(positions, device=device)
            self._num_rows, self._longest = rows[-1] + 1, max(positions) + 1
            if len(rows) < self._num_rows:
                # What lies between them is read as well and its results are thrown away: cheaper than a copy of the others.
                self._going_on = self._rows
            same = self._going_on is None and min(positions) == max(positions)
            self._mask = None if same else self._mask_of_rows()
            # Of every layer: what is read, and where the new pairs go if that is one place for all.
            self._read = self._store[:, : self._num_rows, :, :, : self._longest].unbind(0)
            self._write = self._store[:, : self._num_rows, :, :, positions[0]].unbind(0) if same else None
        self._prompts, begin, same = [], len(rows), []
        for number, (row, length) in enumerate(prompts):
            same.append(row)
            if number + 1 == len(prompts) or prompts[number + 1][1] != length:
                self._prompts.append((torch.tensor(same, device=device), begin, length))
                begin, same = begin + len(same) * length, []

    def _mask_of_rows(self) -> Tensor:
        """0 where a row may look, at places up to its own position; -inf elsewhere. [rows, 1, 1, longest]"""
        ends = self._positions
        if self._going_on is not None:
            ends = ends.new_zeros(self._num_rows).index_put((self._rows,), ends)
        hidden = torch.arange(self._longest, device=ends.device) > ends[:, None]
        return torch.zeros(hidden.shape, dtype=self._store.dtype, device=ends.device).masked_fill_(hidden, float("-inf"))[:, None, None]

    def attend(self, layer: int, query: Tensor, pairs: Tensor, scale: float) -> Tensor:
        """Store the new keys and values of a layer, and attend from every new token to its text so far.

        Args:
            layer: its global number.
            query: [t, groups, heads of each, d]
            pairs: [t, groups, 2, d], key and value.

        Returns:
            [t, groups, heads of each, d]
        """
        number, parts = layer - self._first_layer, []
        if self._num_going_on:
            self._put(number, pairs[: self._num_going_on])
            parts.append(self._one_token_a_row(*self._read[number].unbind(2), query[: self._num_going_on], scale))
        for rows, begin, length in self._prompts:
            end = begin + len(rows) * length
            fresh = pairs[begin:end].unflatten(0, (-1, length)).permute(0, 2, 3, 1, 4)  # [prompts, groups, 2, length, d]
            self._store[number, rows, :, :, :length] = fresh
            asked = query[begin:end].unflatten(0, (-1, length)).flatten(2, 3).transpose(1, 2)
            found = F.scaled_dot_product_attention(
                asked, fresh[:, :, 0], fresh[:, :, 1], is_causal=True, scale=scale, enable_gqa=asked.size(1) != fresh.size(1)
            )
            parts.append(found.transpose(1, 2).flatten(0, 1).view_as(query[begin:end]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _put(self, number: int, pairs: Tensor) -> None:
        if self._write is not None:
            self._write[number].copy_(pairs)
        else:
            self._store[number][self._rows, :, :, self._positions] = pairs

    def _one_token_a_row(self, keys: Tensor, values: Tensor, query: Tensor, scale: float) -> Tensor:
        """query [n, groups, heads of each, d] of the rows that go on -> the same shape, reading no further than the longest of them."""
        if self._going_on is not None:
            query = query.new_zeros(self._num_rows, *query.shape[1:]).index_put((self._going_on,), query)
        # The heads that share a key stand as if they were tokens of a row, so that no key is repeated for them.
        found = F.scaled_dot_product_attention(query, keys, values, attn_mask=self._mask, scale=scale)
        return found if self._going_on is None else found[self._going_on]
