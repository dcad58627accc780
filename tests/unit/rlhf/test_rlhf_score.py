"""Where PPO reads the score of a response."""

import pytest
import torch

from megagpt.rlhf.score import ScoringBatch, read_scores

SCALARS = torch.tensor([[9.0, 1.0, 2.0, 6.0, 9.0], [9.0, 9.0, 4.0, 9.0, 9.0]])
BATCH = ScoringBatch(torch.zeros(2, 5, dtype=torch.int64), lengths=torch.tensor([4, 3]), prompt_lengths=torch.tensor([1, 2]))


@pytest.mark.parametrize(("pooling", "expected"), [("last", [[6.0], [4.0]]), ("mean", [[3.0], [4.0]])])
def test_a_score_is_read_at_the_last_token_or_over_the_response(pooling, expected):
    assert read_scores(SCALARS, BATCH, pooling).tolist() == expected
