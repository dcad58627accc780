"""Several documents in one row, told apart by segments and positions: each gets the logits and gradients that it has alone."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from megagpt.engine.deepspeed_scope import join_world
from megagpt.engine.schedule_run import run_schedule
from megagpt.model.layout import Layout
from megagpt.parallel.grid import Grid
from tests.helpers.plain import PlainGPT, plain_init
from tests.helpers.sharded import sharded_model, whole_vocabulary
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny import tiny_batches, tiny_model

LENGTHS = [6, 10]
LAYOUTS = {"one_rank": (Grid(), Layout()), "recomputed": (Grid(), Layout(recompute="full")), "tp2_sequence": (Grid(tp=2), Layout(sequence_parallel=True)),
           "cp2": (Grid(cp=2), Layout()), "tp2_cp2": (Grid(tp=2, cp=2), Layout(recompute="selective"))}  # fmt: skip


class PackedBatch(NamedTuple):
    tokens: Tensor
    positions: Tensor
    segments: Tensor


def packed_batch() -> PackedBatch:
    """Two rows of 16 tokens, each a document of 6 and one of 10."""
    tokens = tiny_batches(1, rows=4)[0].tokens[:2]
    positions = torch.cat([torch.arange(length) for length in LENGTHS]).expand(2, -1)
    segments = torch.cat([torch.full((length,), number) for number, length in enumerate(LENGTHS)]).expand(2, -1)
    return PackedBatch(tokens, positions, segments)


def packed_forward_and_backward(family: str, grid: Grid, layout: Layout) -> tuple[Tensor, Tensor]:
    """This rank's logits [2, 16 / cp, V], and the gradient of the sum of their squares for the first layer's first norm, over all ranks."""
    join_world()  # Ulysses talks through DeepSpeed's communication layer, which an engine would have started
    config = tiny_model(family, True, num_layers=2)
    model = sharded_model(config, plain_init(config, seed=1), grid, layout)
    cp = model.groups.collection.cp
    here = slice(cp.rank() * 16 // cp.size(), (cp.rank() + 1) * 16 // cp.size())
    batch = packed_batch()
    mine = PackedBatch(batch.tokens[:, here], batch.positions[:, here], batch.segments)
    outputs = []

    def forward_step(inner, part):
        def loss(logits):
            outputs.append(whole_vocabulary(model, logits.detach()))
            return logits.square().sum() / cp.size(), {}  # the schedule multiplies by cp

        return inner(part.tokens, part.positions, segments=part.segments), loss

    run_schedule([model], [mine], forward_step, rows=2, length=16, forward_only=False)
    gradient = model.decoder.layers[0].input_layernorm.weight.grad
    if layout.sequence_parallel:
        torch.distributed.all_reduce(gradient, group=model.groups.collection.tp)
    torch.distributed.all_reduce(gradient, group=cp)
    return outputs[0], gradient


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_packed_documents_do_not_see_each_other(family, layout):
    grid, cut = LAYOUTS[layout]
    results = run_ranks(grid.size, packed_forward_and_backward, family, grid, cut)
    by_part = [results[cp * grid.tp][0] for cp in range(grid.cp)]  # ranks: tp changes fastest
    config = tiny_model(family, True, num_layers=2)
    plain = PlainGPT(config)
    plain.load_state_dict(plain_init(config, seed=1))
    alone = torch.cat([plain(document) for document in packed_batch().tokens.split(LENGTHS, dim=1)], dim=1)
    torch.testing.assert_close(torch.cat(by_part, dim=1), alone.detach(), rtol=0, atol=1e-5)
    alone.square().sum().backward()
    expected = plain.layers[0].attention_norm.weight.grad
    for _, gradient in results:
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
