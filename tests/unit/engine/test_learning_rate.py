"""Learning rate: linear warm-up, cosine to the floor, a pure function of progress."""

import math

import pytest

from megagpt.config.schema import BatchRampConfig, OptimizerConfig, PretrainBatchConfig
from megagpt.engine.schedule import batch_size, learning_rate, run_steps

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


# The numbers of GPT-3 (Brown et al. 2020, section 2.3 and appendix B).
GPT3 = OptimizerConfig(lr=0.6e-4, min_lr_ratio=0.1, warmup_tokens=375_000_000, decay_tokens=260_000_000_000)
GPT3_BATCH = PretrainBatchConfig(
    micro_batch_size=1, global_batch_size=1536, ramp=BatchRampConfig(initial_batch_size=16, increment=16, tokens=12_000_000_000)
)


def test_learning_rate_of_gpt3_in_tokens():
    assert learning_rate(GPT3, 187_500_000, 300e9) == pytest.approx(0.3e-4)
    assert learning_rate(GPT3, 375_000_000, 300e9) == pytest.approx(0.6e-4)
    middle = (375e6 + 260e9) / 2
    assert learning_rate(GPT3, middle, 300e9) == pytest.approx(0.6e-4 * (0.1 + 0.9 / 2))
    assert learning_rate(GPT3, 260e9, 300e9) == learning_rate(GPT3, 300e9, 300e9) == pytest.approx(0.6e-5)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("linear", [2.0, 1.55, 1.1, 0.65, 0.2]), ("wsd", [2.0, 2.0, 1.64, 0.92, 0.2]), ("constant", [2.0, 2.0, 2.0, 2.0, 2.0])],
)
def test_learning_rate_schedules_after_the_warmup(schedule, expected):
    config = OptimizerConfig(lr=2.0, min_lr_ratio=0.1, warmup_ratio=0.2, schedule=schedule, wsd_decay_ratio=0.5)
    assert [learning_rate(config, done, 100) for done in (20, 40, 60, 80, 100)] == pytest.approx(expected)


def test_learning_rate_warms_up_over_a_fraction_of_the_run_not_of_the_schedule():
    config = OptimizerConfig(lr=2.0, min_lr_ratio=0.0, warmup_ratio=0.2, schedule="linear", decay_tokens=60)
    assert [learning_rate(config, done, 100) for done in (10, 20, 40, 60, 100)] == pytest.approx([1.0, 2.0, 1.0, 0.0, 0.0])


@pytest.mark.parametrize("ratio", [0.8, 1.0])
def test_learning_rate_of_wsd_never_falls_before_the_end_of_the_warmup(ratio):
    config = OptimizerConfig(lr=2.0, min_lr_ratio=0.0, warmup_ratio=0.2, schedule="wsd", wsd_decay_ratio=ratio)
    assert [learning_rate(config, done, 100) for done in (10, 20, 60, 100)] == pytest.approx([1.0, 2.0, 1.0, 0.0])


def test_batch_ramp_of_gpt3_starts_at_32k_tokens_and_ends_at_3_2m():
    assert batch_size(GPT3_BATCH, 0) * 2048 == 32_768
    assert batch_size(GPT3_BATCH, 12_000_000_000) * 2048 == 3_145_728  # "3.2M"
    assert batch_size(GPT3_BATCH, 6_000_000_000) == 16 + 16 * 47  # half of the 95 increments
    assert batch_size(GPT3_BATCH, 300_000_000_000) == 1536
    assert batch_size(GPT3_BATCH.model_copy(update={"ramp": None}), 0) == 1536


def test_batch_ramp_steps_read_every_row_once_and_in_order():
    batch = PretrainBatchConfig(micro_batch_size=2, global_batch_size=12, ramp=BatchRampConfig(initial_batch_size=4, increment=4, tokens=400))
    steps = list(run_steps(batch, train_tokens=1000, sequence_length=10))
    assert [row for rows in steps for row in rows] == list(range(steps[-1].stop))
    assert [len(rows) for rows in steps] == [4, 4, 4, 4, 4, 8, 8, 8, 12, 12, 12, 12]
    assert steps[-1].stop * 10 <= 1000 < steps[-1].stop * 10 + 120
    # Neither the microbatches nor the replicas take part in it.
    assert list(run_steps(batch.model_copy(update={"micro_batch_size": 1}), 1000, 10)) == steps
    # A longer run begins the same way.
    assert list(run_steps(batch, 2000, 10))[: len(steps)] == steps


@pytest.mark.parametrize("ramp_tokens", [1, 55, 130, 400, 5000])
@pytest.mark.parametrize("sequence_length", [1, 7, 64])
def test_run_steps_follow_the_batch_size_step_by_step(ramp_tokens, sequence_length):
    batch = PretrainBatchConfig(micro_batch_size=1, global_batch_size=17, ramp=BatchRampConfig(initial_batch_size=2, increment=3, tokens=ramp_tokens))
    rows = 0
    for step in (steps := run_steps(batch, 3000, sequence_length)):
        assert step == range(rows, rows + batch_size(batch, rows * sequence_length))
        rows = step.stop
    assert rows * sequence_length <= 3000 < (rows + batch_size(batch, rows * sequence_length)) * sequence_length
    assert len(steps) == sum(1 for _ in steps)


def test_run_steps_of_gpt3_are_found_without_counting_up_to_them():
    steps = run_steps(GPT3_BATCH, 300_000_000_000, 2048)
    assert len(steps.batch_sizes) == 96, "one stretch for each size"
    assert len(steps) > 100_000 and steps[-1] == steps[len(steps) - 1] and len(steps[-1]) == 1536
    assert steps[50_000].start == steps[49_999].stop
    for step in (len(steps), -len(steps) - 1):
        with pytest.raises(IndexError, match=f"step {step} of"):
            steps[step]
