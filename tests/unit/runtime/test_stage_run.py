"""When a stage evaluates and saves, and what it does when it is asked to stop."""

import signal

import pytest
import torch

from megagpt.config.schema import BatchConfig, EveryConfig, RecordsConfig, RunConfig, SftConfig
from megagpt.runtime.stage_run import StageRun
from megagpt.runtime.stop_request import Stopped, listening
from tests.helpers.spawn import run_ranks

CONFIG = SftConfig(
    run=RunConfig(name="r"), batch=BatchConfig(micro_batch_size=1, global_batch_size=1), data=RecordsConfig(train=["none"], max_length=8),
    every=EveryConfig(save=4),
)


def stage_run(folder, config=CONFIG) -> StageRun:
    return StageRun(config, folder, total_steps=9, resume_step=0, device=torch.device("cpu"))


def test_stage_run_due_every_so_many_steps_but_never_at_the_last_nor_with_0(tmp_path):
    around = stage_run(tmp_path)
    assert [step for step in range(1, 10) if around.due(3, step)] == [3, 6]
    assert not any(around.due(0, step) for step in range(1, 10))


def steps_until_stopped(folder, asked_at: int, asked_rank: int) -> tuple[list[int], int, str]:
    """Steps that were saved, how often they were waited for, and what was raised; one rank gets SIGUSR1 during a step."""
    saved, waits = [], []
    with listening(), stage_run(folder) as around:
        for step in range(1, 10):
            with around.step(step):
                if step == asked_at and torch.distributed.get_rank() == asked_rank:
                    signal.raise_signal(signal.SIGUSR1)
            around.record(step, {"loss": 1.0})
            try:
                around.end_step(step, saved.append, lambda: waits.append(step))
            except Stopped as stopped:
                return saved, len(waits), str(stopped)
    return saved, len(waits), ""


@pytest.mark.parametrize(("asked_at", "saved"), [(6, [4, 6]), (4, [4]), (9, [4, 8])], ids=["between", "when_due_anyway", "at_the_end"])
def test_stage_run_stops_on_all_ranks_after_the_step_in_which_one_was_asked(tmp_path, asked_at, saved):
    for found in run_ranks(2, steps_until_stopped, tmp_path, asked_at, 1):
        message = "" if asked_at == 9 else f"sft: stopped on request after step {asked_at}; the same command goes on from there"
        assert found == (saved, int(asked_at < 9), message)


def test_stage_run_does_not_promise_that_a_command_which_starts_anew_goes_on(tmp_path):
    never = CONFIG.model_copy(update={"run": RunConfig(name="r", resume="never")})
    (message,) = run_ranks(1, message_of_a_stop, tmp_path, never)
    assert message == "sft: stopped on request after step 2; go on with run.resume=auto"


def message_of_a_stop(folder, config) -> str:
    with listening(), stage_run(folder, config) as around:
        signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(Stopped) as stopped:
            around.end_step(2, lambda _: None, lambda: None)
    return str(stopped.value)
