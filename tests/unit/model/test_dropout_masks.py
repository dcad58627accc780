"""Dropout masks: a function of (seed, step, layer, place, row, element) and of nothing else; active in training only."""

import pytest
import torch

from megagpt.model.attention import CausalAttention
from megagpt.model.dropout import ATTENTION, ATTENTION_RESIDUAL, EMBEDDING, MLP_RESIDUAL, BiasDropoutAdd, Dropout, DropoutState
from megagpt.model.forward_pass import CurrentPass, ForwardPass

SHAPE = (16, 8)  # positions, features
LIKE = torch.zeros(())


def state_of(probability, rows=(), seed=1, step=2, shard=(0, 1)) -> DropoutState:
    """In the middle of a pass over these rows."""
    current = CurrentPass()
    current.value = ForwardPass(dropout_key=(seed, step), row_ids=tuple(rows))
    return DropoutState(probability, current, shard)


def masks(rows, seed=1, step=2, layer=3, place=MLP_RESIDUAL, part=0, probability=0.25) -> torch.Tensor:
    return state_of(probability, rows, seed, step).masks(layer, place, SHAPE, LIKE, part)


@pytest.mark.parametrize("cut", [[[0, 1, 2, 3]], [[0], [1], [2], [3]], [[2, 3], [0, 1]], [[3, 1, 0, 2]]])
def test_dropout_masks_do_not_depend_on_the_microbatches(cut):
    whole = masks([0, 1, 2, 3])
    for rows in cut:
        assert torch.equal(masks(rows), whole[rows])


def test_dropout_masks_differ_wherever_the_key_does():
    keys = [{}, {"seed": 2}, {"step": 3}, {"layer": 4}, {"part": 1}, {"rows": [1]}]
    keys += [{"place": place} for place in (EMBEDDING, ATTENTION, ATTENTION_RESIDUAL)]
    flat = [masks(**({"rows": [0]} | key)).flatten() for key in keys]
    for i in range(len(flat)):
        for j in range(i):
            agree = (flat[i] == flat[j]).float().mean().item()
            assert 0.4 < agree < 0.85, f"{keys[i]} and {keys[j]}: independent masks agree in 62.5 % of 128 places"


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expectation(probability):
    drawn = masks(range(200), probability=probability)  # 25600 numbers
    assert drawn.unique().tolist() == pytest.approx([0.0, 1 / (1 - probability)])
    standard_error = (probability / (1 - probability) / drawn.numel()) ** 0.5
    assert drawn.mean().item() == pytest.approx(1.0, abs=4 * standard_error)


def test_dropout_is_active_in_training_only():
    hidden = torch.ones(16, 2, 8)  # [s, b, h]
    layer = Dropout(state_of(0.5, [7, 8]), 3, MLP_RESIDUAL)
    assert torch.equal(layer(hidden), masks([7, 8], probability=0.5).transpose(0, 1))
    layer.eval()
    assert torch.equal(layer(hidden), hidden)


def test_dropout_is_off_at_probability_0_and_in_a_pass_without_a_key():
    hidden = torch.randn(16, 2, 8)
    assert torch.equal(Dropout(state_of(0.0, [7, 8]), 3, EMBEDDING)(hidden), hidden)
    assert torch.equal(Dropout(DropoutState(0.5, CurrentPass()), 3, EMBEDDING)(hidden), hidden)


@pytest.mark.parametrize("number", [2, 4])
def test_dropout_of_a_part_of_each_row_is_that_part_of_the_whole_rows_masks(number):
    whole = masks([7, 8], probability=0.5).transpose(0, 1)
    for place in range(number):
        layer = Dropout(state_of(0.5, [7, 8], shard=(place, number)), 3, MLP_RESIDUAL)
        assert torch.equal(layer(torch.ones(16 // number, 2, 8)), whole.chunk(number)[place])


@pytest.mark.parametrize("biased", [True, False])
def test_dropout_applies_to_the_branch_and_spares_the_residual(biased):
    state, branch, residual = state_of(0.5, [7]), torch.randn(16, 1, 8), torch.randn(16, 1, 8)
    bias = torch.randn(8) if biased else None
    kept = masks([7], probability=0.5).transpose(0, 1)
    output = BiasDropoutAdd(state, 3, MLP_RESIDUAL)(training=True, fused=False)((branch, bias), residual, 0.0)
    assert torch.equal(output, residual + (branch + bias if biased else branch) * kept)


class GivenMasks(DropoutState):
    """[heads, b, s, s] from outside; also notes for which places it was asked."""

    def __init__(self, by_head: torch.Tensor):
        current = CurrentPass()
        current.value = ForwardPass(dropout_key=(1, 2))
        super().__init__(0.5, current)
        self.by_head, self.asked = by_head, []

    def masks(self, layer, place, shape, like, part=0):
        self.asked.append((layer, place, shape, part))
        return self.by_head.transpose(0, 1)


def attention_with(masks: GivenMasks, tp_rank: int = 0) -> CausalAttention:
    attention = CausalAttention.__new__(CausalAttention)  # its constructor wants process groups
    torch.nn.Module.__init__(attention)
    attention.layer_number, attention.softmax_scale, attention.heads_part, attention._over_ranks = 5, None, tp_rank, None
    attention.dropout_state, attention.current, attention.rotary_table = masks, masks.current, None
    return attention


@pytest.mark.parametrize("num_groups", [4, 2, 1])
def test_dropout_attention_is_the_attention_without_dropout_where_nothing_is_dropped(num_groups):
    attention = attention_with(GivenMasks(torch.ones(4, 2, 6, 6)))
    query, key, value = (torch.randn(6, 2, heads, 8) for heads in (4, num_groups, num_groups))  # [s, b, heads, d]
    written_out = attention.train()(query, key, value)
    torch.testing.assert_close(written_out, attention.eval()(query, key, value))


def test_dropout_attention_drops_the_weights_of_each_head_by_its_global_number():
    by_head = torch.rand(4, 2, 6, 6)
    masks = GivenMasks(by_head)
    query, key, value = (torch.randn(6, 2, 4, 8) for _ in range(3))
    context = attention_with(masks, tp_rank=1).train()(query, key, value)
    assert masks.asked == [(5, ATTENTION, (4, 6, 6), 1)], "four heads on each rank: those of rank 1 are the second part of each row's elements"
    for row in range(2):
        for head in range(4):
            scores = query[:, row, head] @ key[:, row, head].T / 8**0.5
            weights = scores.masked_fill(torch.ones(6, 6).triu(1) > 0, float("-inf")).softmax(dim=-1) * by_head[head, row]
            torch.testing.assert_close(context[:, row].unflatten(-1, (4, 8))[:, head], weights @ value[:, row, head])
