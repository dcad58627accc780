"""Initial weights: a function of (seed, canonical name), with the standard deviations of the papers."""

import pytest
import torch

from megagpt.model.init import initial_tensor
from megagpt.model.param_map import canonical_shapes
from megagpt.model.shape import ModelShape
from tests.helpers.tiny import tiny_model

SHAPE = ModelShape(tiny_model("gpt", False, hidden_size=128, init_std=0.03))
SIZES = canonical_shapes(SHAPE, scalar_head=True)


def initial(name: str, seed: int = 1) -> torch.Tensor:
    return initial_tensor(name, SIZES[name], SHAPE, seed)


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("embedding.tokens.weight", 0.03),
        ("embedding.positions.weight", 0.03),
        ("layers.0.attention.query.weight", 0.03),
        ("layers.3.mlp.up.weight", 0.03),
        ("layers.0.attention.output.weight", 0.03 / 8**0.5),
        ("layers.3.mlp.down.weight", 0.03 / 8**0.5),
        ("scalar_head.weight", 129**-0.5),
    ],
)
def test_initial_matrices_have_their_standard_deviation(name, std):
    numbers = initial(name)
    assert numbers.std().item() == pytest.approx(std, rel=4 / (2 * numbers.numel()) ** 0.5)  # four standard errors
    assert numbers.mean().item() == pytest.approx(0, abs=4 * std / numbers.numel() ** 0.5)


def test_initial_vectors_are_ones_and_zeros():
    for name in SIZES:
        if name.endswith("norm.weight"):
            assert torch.equal(initial(name), torch.ones(128))
        if name.endswith("bias"):
            assert initial(name).abs().sum() == 0


def test_initial_weights_depend_on_seed_and_name_alone():
    query, key = "layers.0.attention.query.weight", "layers.0.attention.key.weight"
    before = initial(query)
    torch.randn(7)  # another generator's state
    initial(key)
    assert torch.equal(initial(query), before)
    assert not torch.equal(initial(query, seed=2), before)
    assert not torch.equal(initial(query.replace("0", "1")), before)
