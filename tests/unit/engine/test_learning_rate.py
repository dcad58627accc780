"""Learning rate: linear warm-up, cosine to the floor, a pure function of progress."""

import math

import pytest

from megagpt.config.schema import OptimizerConfig
from megagpt.engine.schedule import due, learning_rate

CONFIG = OptimizerConfig(lr=2.0, min_lr_ratio=0.1, warmup_ratio=0.2)


@pytest.mark.parametrize(
    ("done", "rate"),
    [
        (0, 0.0),
        (50, 0.5),
        (200, 2.0),  # end of the warm-up
        (400, 0.2 + 1.8 * 0.5 * (1 + math.cos(math.pi / 4))),
        (600, 1.1),  # middle of the cosine
        (1000, 0.2),
        (1500, 0.2),  # past the end
    ],
)
def test_learning_rate_of_warmup_and_cosine(done, rate):
    assert learning_rate(CONFIG, done, total=1000) == pytest.approx(rate, abs=1e-12)


def test_learning_rate_rises_then_falls_without_a_jump():
    rates = [learning_rate(CONFIG, done, total=1000) for done in range(1001)]
    assert all(later > earlier for earlier, later in zip(rates[:200], rates[1:201]))
    assert all(later < earlier for earlier, later in zip(rates[200:], rates[201:]))
    assert max(abs(later - earlier) for earlier, later in zip(rates, rates[1:])) <= 0.01 + 1e-12, "the slope of the warm-up"


def test_learning_rate_is_a_pure_function_of_relative_progress():
    in_order = [learning_rate(CONFIG, done, total=10) for done in range(11)]
    backwards = [learning_rate(CONFIG, done, total=10) for done in reversed(range(11))]
    assert backwards[::-1] == in_order
    assert [learning_rate(CONFIG, 512 * done, total=5120) for done in range(11)] == pytest.approx(in_order), "tokens instead of steps"


def test_learning_rate_can_stay_constant():
    config = OptimizerConfig(lr=2.0, min_lr_ratio=1.0)
    assert {learning_rate(config, done, total=10) for done in range(12)} == {2.0}


def test_learning_rate_without_warmup_starts_at_the_peak():
    assert learning_rate(OptimizerConfig(lr=2.0), 0, total=10) == 2.0


def test_due_every_so_many_steps_but_never_at_the_last_nor_with_0():
    assert [step for step in range(1, 10) if due(3, step, 9)] == [3, 6]
    assert not any(due(0, step, 9) for step in range(1, 10))
