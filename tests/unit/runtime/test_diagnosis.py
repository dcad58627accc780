"""Who is named, from fabricated words of all ranks."""

from dataclasses import replace

import pytest

from megagpt.runtime.diagnosis import Beat, diagnose, slow_ranks

STACK = "data.py:5 read < trainer.py:9 fit"
AT_WORK = Beat(host="a", pid=123, step=12, phase="forward-backward", seconds=61.0, waits=0.0, stack=STACK, number=9, at_work=5)
WAITING = replace(AT_WORK, waits=61.0)
IN_DATA = replace(AT_WORK, phase="data")


def test_diagnosis_names_the_rank_that_is_in_no_collective():
    beats = [WAITING, WAITING, WAITING, IN_DATA]
    assert diagnose(beats, 60) == "rank 3 (a, pid 123) has been in data of step 12 for 61 s; ranks 0-2 wait for it"
    assert diagnose(beats, 60, with_stack=True).startswith("rank 3 (a, pid 123) has been in data of step 12 for 61 s, at " + STACK)


def test_diagnosis_says_nothing_before_its_time_or_while_all_work():
    assert diagnose([WAITING, IN_DATA], 62) is None
    assert diagnose([AT_WORK, IN_DATA], 1) is None


def test_diagnosis_names_silent_ranks_first():
    """A stopped process says nothing more: its last word was that it waited like the others."""
    beats = [WAITING, replace(WAITING, waits=2.0, silent=60.0, step=11), AT_WORK, WAITING]
    assert diagnose(beats, 60) == "rank 1 (a, pid 123) has not been heard of for 60 s, last in forward-backward of step 11; ranks 0, 3 wait for it"


def test_diagnosis_names_the_rank_behind_among_those_at_work():
    beats = [WAITING, AT_WORK, replace(AT_WORK, step=11)]
    assert diagnose(beats, 60).startswith("rank 2 ") and diagnose(beats, 60).endswith("; rank 0 waits for it")


def test_diagnosis_of_ranks_that_wait_for_each_other():
    beats = [WAITING, replace(WAITING, phase="evaluate", step=11), WAITING]
    assert diagnose(beats, 60) == "rank 1 (a, pid 123) has been in evaluate of step 11 for 61 s; ranks 0, 2 wait for it"
    assert diagnose([WAITING, WAITING], 60).endswith("; every rank waits in a collective")


def test_diagnosis_stays_one_readable_line_with_many_ranks():
    line = diagnose([WAITING] * 1000 + [IN_DATA] * 24, 60)
    assert line.endswith("; 20 more like these; ranks 0-999 wait for it") and "\n" not in line and len(line) < 500


@pytest.mark.parametrize(
    ("shares", "line"),
    [
        ([0.5, 0.5, 0.9, 0.45], "slow: rank 2 90% of the time at work, the median rank 50%: the others wait for it"),
        ([0.5, 0.6, 0.7, 0.5], None),
        ([0.02, 0.02, 0.08], None),  # a multiple, but of nothing
        ([0.9, 0.1, 0.9, 0.1, 0.1], "slow: rank 0 90%, rank 2 90% of the time at work, the median rank 10%: the others wait for them"),
    ],
)
def test_diagnosis_of_slow_ranks(shares, line):
    assert slow_ranks(shares) == line
