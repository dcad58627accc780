"""Causality: what comes later changes nothing before it, to the last bit, in every layout and with the key/value cache."""

import pytest
import torch
import torch.distributed as dist

from megagpt.model.decode import Decoder
from megagpt.model.gpt import GPT
from megagpt.model.key_value_cache import KeyValueCache
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
def cached_logits(model: GPT, tokens: torch.Tensor, positions: torch.Tensor, cache: KeyValueCache) -> torch.Tensor | None:
    """Logits [rows, s, V] of `tokens` [rows, s], whole prompts or one token a row, through the cache and stage by stage."""
    groups, pp = model.groups, model.groups.collection.pp
    stages, (num_rows, length), hidden = dist.get_process_group_ranks(pp), tokens.shape, None
    if not groups.is_first_stage:
        hidden = torch.empty(tokens.numel(), 1, model.config.hidden_size)
        dist.recv(hidden, stages[0], group=pp)
    if length == 1:
        cache.expect(range(num_rows), positions.flatten().tolist(), [])
    else:
        cache.expect([], [], [(row, length) for row in range(num_rows)])
    output = Decoder(model)(tokens.reshape(1, -1), positions.reshape(1, -1), cache, torch.arange(tokens.numel()), hidden)
    if groups.is_last_stage:
        return whole_vocabulary(model, output).unflatten(1, tokens.shape)[0]
    dist.send(output.contiguous(), stages[1], group=pp)
    return None


def decode_after_the_future(config, state, grid) -> torch.Tensor | None:
    """Fill the cache with a text and decode its tokens a second time, one by one, with the later ones still in the cache. [2, rows, s, V].

    The rows are at different tokens, so that the later ones lie within what is read for the row that is farthest.
    """
    model, both = sharded_model(config, state, grid).eval(), []
    for text in two_texts():
        cache, rows = model.new_cache(len(text), LENGTH), torch.arange(len(text))[:, None]
        cached_logits(model, text, torch.arange(LENGTH).expand_as(text), cache)
        steps = [(rows + step) % LENGTH for step in range(LENGTH)]
        logits = [cached_logits(model, text.gather(1, places), places, cache) for places in steps]
        if logits[0] is not None:
            both.append(torch.cat(logits, dim=1)[rows, torch.cat(steps, dim=1).argsort(dim=1)])
    return torch.stack(both) if both else None


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
