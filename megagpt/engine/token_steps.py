"""One optimizer step and one evaluation of the next-token loss; pre-training and SFT differ only in their rows and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from megagpt.data.batch import EncodedRow, TokenBatch, collate, encoded_row
from megagpt.engine.build import Engine
from megagpt.engine.schedule_run import infer
from megagpt.model.token_loss import token_nll
from megagpt.parallel.collectives import sum_reports
from megagpt.parallel.route import replica_rows


def replica_batches(rows: Sequence[EncodedRow], engine: Engine, micro_batch_size: int, pad_id: int, device: torch.device) -> list[TokenBatch]:
    """This replica's microbatches of a global batch, all padded to the longest row of the whole batch.

    With context parallelism each rank gets its part of every row.

    Args:
        rows: the global batch, the same on every rank. Rows without a valid token are added until it divides evenly; they
            weigh nothing, since losses divide by the number of valid tokens.
    """
    grid, place, layout = engine.groups.grid, engine.groups.coordinates, engine.model.layout
    # The interleaved schedule wants as many microbatches as the pipeline has ranks, or a multiple.
    unit = micro_batch_size * grid.dp * (grid.pp if layout.num_chunks > 1 else 1)
    padded = [*rows, *[encoded_row([pad_id], [0])] * (-len(rows) % unit)]
    length = max(len(row) for row in padded) - 1
    length += -length % layout.ranks_per_row(grid)
    mine = replica_rows(len(padded), grid, place.dp)
    batches = [
        collate(padded[i : i + micro_batch_size], list(range(i, i + micro_batch_size)), length, pad_id).to(device)
        for i in range(mine.start, mine.stop, micro_batch_size)
    ]
    return [part_of_rows(batch, place.cp, grid.cp) for batch in batches]


def part_of_rows(batch: TokenBatch, place: int, number: int) -> TokenBatch:
    """The place-th of `number` equal parts of each row; the segments stay whole, since attention sees all tokens."""
    length = batch.tokens.size(1) // number
    here = slice(place * length, (place + 1) * length)
    return replace(batch, tokens=batch.tokens[:, here], labels=batch.labels[:, here], loss_mask=batch.loss_mask[:, here])


def count_targets(rows: Sequence[EncodedRow]) -> int:
    """Valid next-token targets of a global batch (a row's first token is nobody's target)."""
    return sum(int(row.loss_mask[1:].sum()) for row in rows)


def train_step(
    engine: Engine, batches: Sequence[TokenBatch], num_targets: int, lr: float, dropout_key: tuple[int, int] | None,
    phase: Callable[[str], AbstractContextManager] = nullcontext,
) -> dict[str, float]:
    """Gradients of the mean loss over all valid tokens of the global batch, then one update.

    Args:
        phase: names what goes on within a block, for the watchdog.

    Returns:
        `loss` (nats a token), `grad_norm` (before clipping), `lr`, and with FP16 `loss_scale`, on every rank.
    """

    def loss(logits: Tensor, batch: TokenBatch):
        nll = token_nll(engine.model, logits, batch.labels, batch.loss_mask)
        return nll, {"nll": nll.detach()}

    rows, length = batches[0].tokens.shape
    length *= engine.groups.grid.cp
    with phase("forward-backward"):
        reports = engine.accumulate(batches, loss, denominator=num_targets, rows=rows, length=length, dropout_key=dropout_key)
        total = sum_reports(engine.groups, reports, ("nll",))["nll"]
    scale = engine.loss_scale
    with phase("optimizer"):
        norm = engine.step(lr)
    scaled = {"loss_scale": scale} if engine.model.layout.dtype == torch.float16 else {}
    return {"loss": total / num_targets, "grad_norm": norm, "lr": lr} | scaled


def evaluate(engine: Engine, rows: Sequence[EncodedRow], micro_batch_size: int, pad_id: int, device: torch.device) -> float:
    """Mean loss over the valid tokens of the rows, without dropout; nats a token, on every rank."""

    def read(logits: Tensor, batch: TokenBatch):
        return {"nll": token_nll(engine.model, logits, batch.labels, batch.loss_mask)}

    batches = replica_batches(rows, engine, micro_batch_size, pad_id, device)
    with engine.scope():
        reports = infer(engine.models, batches, read, rows=micro_batch_size, length=batches[0].tokens.size(1) * engine.groups.grid.cp)
    return sum_reports(engine.groups, reports, ("nll",))["nll"] / count_targets(rows)
