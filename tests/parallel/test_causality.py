"""Causality: what comes later changes nothing before it, to the last bit, in every layout and with the key/value cache."""

import pytest
import torch
import torch.distributed as dist

from megagpt.model.attention import KeyValueCache
from megagpt.model.gpt import GPT
from megagpt.parallel.grid import Grid
from tests.helpers.plain import plain_init
from tests.helpers.sharded import full_forward, sharded_model, whole_vocabulary
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny import tiny_model
from tests.helpers.tolerance import PADDED_LOGITS_ABSOLUTE

LENGTH = 12
LAYOUTS = pytest.mark.parametrize("grid", [Grid(), Grid(tp=2), Grid(pp=2), Grid(tp=2, pp=2)], ids=["tp1-pp1", "tp2-pp1", "tp1-pp2", "tp2-pp2"])
FAMILIES = pytest.mark.parametrize("family", ["gpt", "llama"])


def two_texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Row t of the second text differs from the first in token t + 1 only; one row for each t."""
    text = torch.randint(101, (1, LENGTH), generator=torch.Generator().manual_seed(5)).repeat(LENGTH - 1, 1)
    other = text.clone()
    rows = torch.arange(LENGTH - 1)
    other[rows, rows + 1] = (other[rows, rows + 1] + 1) % 101
    return text, other


def last_stage(results: list):
    return [result for result in results if result is not None]


def logits_of_both(config, state, grid) -> torch.Tensor | None:
    """[2, rows, s, V]."""
    model = sharded_model(config, state, grid)
    both = [full_forward(model, text) for text in two_texts()]
    return None if both[0] is None else torch.stack(both)


@torch.no_grad()
def cached_logits(model: GPT, tokens: torch.Tensor, first: int, cache: KeyValueCache) -> torch.Tensor | None:
    """Logits of `tokens` at positions first, first + 1, … through the cache, stage by stage."""
    groups, pp = model.groups, model.groups.collection.pp
    stages = dist.get_process_group_ranks(pp)
    if not groups.is_first_stage:
        hidden = torch.empty(tokens.shape[1], tokens.shape[0], model.config.hidden_size)
        dist.recv(hidden, stages[0], group=pp)
        model.set_input_tensor(hidden)
    output = model(tokens, first + torch.arange(tokens.shape[1]).expand_as(tokens), cache)
    if groups.is_last_stage:
        return whole_vocabulary(model, output)
    dist.send(output.contiguous(), stages[1], group=pp)
    return None


def decode_after_the_future(config, state, grid) -> torch.Tensor | None:
    """Fill the cache with a text and decode its tokens a second time, one by one, with the later ones still in the cache. [2, rows, s, V]."""
    model = sharded_model(config, state, grid).eval()
    both = []
    for text in two_texts():
        cache = KeyValueCache(len(text), LENGTH)
        cached_logits(model, text, 0, cache)
        both.append([cached_logits(model, text[:, t : t + 1], t, cache) for t in range(LENGTH)])
    return None if both[0][0] is None else torch.stack([torch.cat(steps, dim=1) for steps in both])


@pytest.mark.parametrize("pass_", [logits_of_both, decode_after_the_future], ids=["forward", "cache"])
@FAMILIES
@LAYOUTS
def test_causality_of_logits(grid, family, pass_):
    config = tiny_model(family, True)
    for both in last_stage(run_ranks(grid.size, pass_, config, plain_init(config, seed=1), grid)):
        for t in range(LENGTH - 1):
            before, after = both[:, t, : t + 1], both[:, t, t + 1 :]
            assert torch.equal(before[0], before[1]), f"token {t + 1} changed a logit up to {t}"
            assert (after[0] != after[1]).flatten(1).any(dim=1).all(), f"token {t + 1} has to matter from {t + 1} on"


@FAMILIES
@LAYOUTS
def test_causality_of_right_padding(grid, family):
    """A short row's logits do not depend on how far a longer row has padded it: to rounding, since other lengths mean other kernels."""
    config = tiny_model(family, True)
    text = two_texts()[0][:2]
    padded = torch.cat([text, torch.zeros(2, 4, dtype=torch.int64)], dim=1)
    short, long = (last_stage(run_ranks(grid.size, logits_of, config, plain_init(config, seed=1), grid, tokens))[0] for tokens in (text, padded))
    torch.testing.assert_close(long[:, :LENGTH], short, rtol=0, atol=PADDED_LOGITS_ABSOLUTE)


def logits_of(config, state, grid, tokens) -> torch.Tensor | None:
    return full_forward(sharded_model(config, state, grid), tokens)
