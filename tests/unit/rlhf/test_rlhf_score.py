"""Where PPO reads the score of a response."""

from types import SimpleNamespace

import pytest
import torch

from megagpt.rlhf.experience import Rollout
from megagpt.rlhf.score import ScoringBatch, _reading

SCALARS = torch.tensor([[9.0, 1.0, 2.0, 6.0, 9.0], [9.0, 9.0, 4.0, 9.0, 9.0]])
ROLLOUT = Rollout(
    torch.zeros(2, 5, dtype=torch.int64), prompt_lengths=torch.tensor([1, 2]), lengths=torch.tensor([4, 3]), stopped=torch.tensor([True, True])
)


@pytest.mark.parametrize(
    ("pooling", "expected"), [({"reward": "last"}, [[6.0], [4.0]]), ({"reward": "mean"}, [[3.0], [4.0]]), ({}, [[6.0], [4.0]])], ids=["last", "mean", "default"]
)
def test_a_judge_is_read_as_it_was_trained_to_be(pooling, expected):
    """At the last token, or over the response; only there is the model asked."""
    models, config = SimpleNamespace(pooling=pooling), SimpleNamespace(prompts=SimpleNamespace(max_prompt_length=2, max_response_length=3))
    reading = _reading(models, "reward", config)
    only = reading.places(ROLLOUT)
    assert reading.read(SCALARS[only][None], ScoringBatch(ROLLOUT.tokens, ROLLOUT.response_mask, only)).tolist() == expected
