"""The tiny model and the awkward batches on which sharded training is compared with the plain reference."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from megagpt.config.schema import ModelConfig


def tiny_model(family: str, tied: bool, **overrides) -> ModelConfig:
    """Four layers for up to four pipeline stages; heads, groups and MLP divisible by 4 for tensor parallelism up to 4.

    101 words are divisible by nothing, so that every tp > 1 pads the vocabulary. `llama` has 8 query heads in 4 groups.
    """
    sizes = {"num_layers": 4, "hidden_size": 32, "max_sequence_length": 16, "vocab_size": 101, "num_query_groups": 4}
    sizes["num_attention_heads"] = 4 if family == "gpt" else 8
    return ModelConfig(**(sizes | {"family": family, "tie_embeddings": tied} | overrides))


class TinyBatch(NamedTuple):
    """Rows of one optimizer step over all replicas; b = rows, s = seq."""

    tokens: Tensor  # [b, s] int64
    labels: Tensor  # [b, s] int64, the next tokens
    loss_mask: Tensor  # [b, s] float32, 1 where the label counts


def tiny_batches(steps: int, rows: int = 16, seq: int = 16, vocab: int = 101, seed: int = 0) -> list[TinyBatch]:
    """Random tokens under uneven masks: each row counts between one and all of its labels, and some rows count none.

    Which rows are empty alternates from step to step. With `microbatches` cutting 16 rows into 4 microbatches for each replica:

        step       empty rows      dp 1                 dp 2                         dp 4
        0, 3, …    first quarter   microbatch 0         microbatches 0, 1 of rank 0  all of rank 0
        1, 4, …    last half       microbatches 2, 3    all of rank 1                all of ranks 2, 3
        2, 5, …    none
    """
    if rows % 4:
        raise ValueError(f"rows {rows}: must be a multiple of 4")
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for step in range(steps):
        text = torch.randint(vocab, (rows, seq + 1), generator=generator)
        num_valid = torch.randint(1, seq + 1, (rows, 1), generator=generator)
        # The num_valid positions of a row that drew the smallest numbers: holes anywhere, not only at the ends.
        loss_mask = (torch.rand(rows, seq, generator=generator).argsort(dim=1).argsort(dim=1) < num_valid).float()
        empty = [slice(0, rows // 4), slice(rows // 2, rows), slice(0, 0)][step % 3]
        loss_mask[empty] = 0
        batches.append(TinyBatch(text[:, :-1].contiguous(), text[:, 1:].contiguous(), loss_mask))
    return batches


def microbatches(batch: TinyBatch, dp_rank: int, dp: int, num_microbatches: int = 4) -> list[TinyBatch]:
    """The consecutive rows of one replica, cut into microbatches of equal size."""
    rows = batch.tokens.shape[0]
    if rows % (dp * num_microbatches):
        raise ValueError(f"{rows} rows do not make {num_microbatches} microbatches for each of {dp} replicas")
    mine = (part.chunk(dp)[dp_rank].chunk(num_microbatches) for part in batch)
    return [TinyBatch(*parts) for parts in zip(*mine, strict=True)]
