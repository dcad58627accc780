"""Our model, on one rank and tensor-parallel, computes the logits of transformers' GPT-2 and Llama."""

import pytest
import torch

from megagpt.parallel.grid import Grid
from tests.helpers.huggingface import huggingface_model
from tests.helpers.plain import plain_init
from tests.helpers.sharded import full_forward, sharded_model
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny import tiny_model
from tests.helpers.tolerance import LOGITS_ABSOLUTE


def logits_on_grid(config, state, grid, tokens) -> torch.Tensor:
    return full_forward(sharded_model(config, state, grid), tokens)


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("gpt", {}),
        ("llama", {}),
        ("llama", {"num_query_groups": 8}),
        ("llama", {"num_query_groups": 2, "rotary_base": 500, "norm_epsilon": 1e-3}),
    ],
    ids=["gpt", "llama", "llama_no_groups", "llama_other_numbers"],
)
def test_huggingface_logits_equal_ours(family, overrides, tied, tp):
    config = tiny_model(family, tied, **overrides)
    state = plain_init(config, seed=1)
    tokens = torch.randint(config.vocab_size, (3, config.max_sequence_length))
    with torch.no_grad():
        theirs = huggingface_model(config, state)(tokens).logits

    for ours in run_ranks(tp, logits_on_grid, config, state, Grid(tp=tp), tokens):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max().item() < LOGITS_ABSOLUTE
