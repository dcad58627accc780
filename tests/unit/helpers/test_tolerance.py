"""The comparison says no where it has to."""

import pytest
import torch

from tests.helpers.tolerance import assert_tensors_close

ONE = {"mlp.up.weight": torch.ones(3)}


@pytest.mark.parametrize(
    ("actual", "text"),
    [
        ({"mlp.up.weight": torch.tensor([1.0, 1.0, float("nan")])}, "1 of 1 tensors"),
        ({"mlp.up.weight": torch.tensor([1.0, 1.0, float("inf")])}, "1 of 1 tensors"),
        ({"mlp.up.weight": torch.ones(3) * (1 + 2e-5)}, "relative 2.0"),
        ({"mlp.up.weight": torch.ones(1)}, "shapes differ"),
        ({}, "missing tensors: .'mlp.up.weight'"),
        (ONE | {"other": torch.ones(1)}, "unknown tensors: .'other'"),
    ],
    ids=["nan", "inf", "too_far", "broadcastable", "missing", "unknown"],
)
def test_tolerance_refuses(actual, text):
    with pytest.raises(AssertionError, match=text):
        assert_tensors_close(actual, ONE)


def test_tolerance_lists_the_worst_three():
    expected = {f"w{i}": torch.ones(1) for i in range(5)}
    actual = {f"w{i}": torch.ones(1) * (1 + 10.0**-i) for i in range(5)}
    with pytest.raises(AssertionError, match="(?s)5 of 5 .*w0.*w1.*w2") as failure:
        assert_tensors_close(actual, expected)
    assert "w3" not in str(failure.value)


def test_tolerance_takes_the_gradient_of_a_key_bias_absolutely():
    name = "layers.0.attention.key.bias"
    assert_tensors_close({name: torch.tensor([3e-9, -2e-9])}, {name: torch.tensor([-1e-9, 2e-9])})
    with pytest.raises(AssertionError):
        assert_tensors_close({name: torch.tensor([2e-8])}, {name: torch.tensor([0.0])})
    with pytest.raises(AssertionError):
        assert_tensors_close({"other": torch.tensor([1e-9])}, {"other": torch.tensor([0.0])})
