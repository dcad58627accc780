"""Where PPO reads the score of a response."""

from types import SimpleNamespace

import pytest
import torch

from megagpt.rlhf.experience import Rollout
from megagpt.rlhf.score import ScoringBatch, _reading, read_scores

SCALARS = torch.tensor([[9.0, 1.0, 2.0, 6.0, 9.0], [9.0, 9.0, 4.0, 9.0, 9.0]])
ROLLOUT = Rollout(
    torch.zeros(2, 5, dtype=torch.int64), prompt_lengths=torch.tensor([1, 2]), lengths=torch.tensor([4, 3]), stopped=torch.tensor([True, True])
)
BATCH = ScoringBatch(ROLLOUT.tokens, ROLLOUT.lengths, ROLLOUT.response_mask, None)


@pytest.mark.parametrize(("pooling", "expected"), [("last", [[6.0], [4.0]]), ("mean", [[3.0], [4.0]])])
def test_a_score_is_read_at_the_last_token_or_over_the_response(pooling, expected):
    assert read_scores(SCALARS, BATCH, pooling).tolist() == expected


def test_each_judge_is_read_as_it_was_trained_to_be():
    models, config = SimpleNamespace(pooling={"reward": "mean"}), SimpleNamespace(prompts=SimpleNamespace(max_prompt_length=2, max_response_length=3))
    read = {role: _reading(models, role, config).read(SCALARS, BATCH).tolist() for role in ("reward", "held_out")}
    assert read == {"reward": [[3.0], [4.0]], "held_out": [[6.0], [4.0]]}
