"""Where only some places of a model's output are wanted: they are what they are in the whole output, and so are the gradients."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from megagpt.engine.schedule_run import run_schedule
from megagpt.model.layout import Layout
from megagpt.parallel.grid import Grid
from tests.helpers.plain import plain_init
from tests.helpers.sharded import sharded_model
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny import tiny_model
from tests.helpers.tolerance import assert_tensors_close

LAYOUTS = {"one_rank": (Grid(), Layout()), "recomputed": (Grid(), Layout(recompute="full")), "tp2": (Grid(tp=2), Layout()), "pp2": (Grid(pp=2), Layout()),
           "head_alone": (Grid(pp=2), Layout(stage_layers=(2, 0)))}  # fmt: skip
LENGTH = 12


class Batch(NamedTuple):
    tokens: Tensor
    only: Tensor


def batch() -> Batch:
    random = torch.Generator().manual_seed(3)
    only = torch.rand(2, LENGTH, generator=random) < 0.4
    assert only.any(dim=1).all() and not only.all(dim=1).any()
    return Batch(torch.randint(101, (2, LENGTH), generator=random), only)


def outputs_and_gradients(family: str, grid: Grid, layout: Layout, dropout: float) -> tuple[dict[str, Tensor], dict[str, Tensor], list[int]]:
    """Of this rank: wanted outputs and gradients, picked out of the whole output and asked for alone; and the tokens in the last MLP of each."""
    found, tokens_in_mlp = [], []
    for asked in (False, True):
        model = sharded_model(tiny_model(family, True, num_layers=2, dropout=dropout), plain_init(tiny_model(family, True, num_layers=2), seed=1), grid, layout)
        model.train()
        if model.decoder.layers and model.post_process:
            model.decoder.layers[-1].mlp.register_forward_pre_hook(lambda _, args: tokens_in_mlp.append(args[0].numel() // args[0].size(-1)))
        here: dict[str, Tensor] = {}

        def forward_step(inner, part, asked=asked, here=here):
            def loss(output):
                here["output"] = (output if asked else output[part.only][None]).clone()
                return here["output"].square().sum(), {}

            return inner(part.tokens, only=part.only if asked else None, dropout_key=(1, 2) if dropout else None, row_ids=(0, 1)), loss

        run_schedule([model], [batch()], forward_step, rows=2, length=LENGTH, forward_only=False)
        found.append({name: tensor.detach() for name, tensor in here.items()} | {name: p.grad for name, p in model.named_parameters()})
    return (*found, tokens_in_mlp)


@pytest.mark.parametrize(
    ("family", "layout", "dropout"), [*(("gpt", layout, 0.0) for layout in LAYOUTS), ("llama", "tp2", 0.0), ("gpt", "one_rank", 0.2)]
)
def test_wanted_places_are_those_of_the_whole_output(family, layout, dropout):
    grid, cut = LAYOUTS[layout]
    seen = []
    for whole, asked, tokens_in_mlp in run_ranks(grid.size, outputs_and_gradients, family, grid, cut, dropout):
        assert_tensors_close(asked, whole)
        seen += tokens_in_mlp
    if layout != "head_alone":
        wanted = int(batch().only.sum()) if dropout == 0 else 2 * LENGTH
        assert set(seen) == {2 * LENGTH, wanted} and seen[0] == 2 * LENGTH and seen[-1] == wanted
