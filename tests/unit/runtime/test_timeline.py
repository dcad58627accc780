"""Spans of work, and the trace that viewers open."""

import time

import pytest

from megagpt.runtime.timeline import KEPT_ROUNDS, Span, Timeline, chrome_trace


def test_timeline_measures_by_a_clock_that_all_processes_share():
    timeline, before = Timeline(), time.time()
    timeline.start_round(7)
    with timeline.span("score", "reward", 2):
        time.sleep(0.02)
    (span,) = timeline.spans
    assert (span.kind, span.role, span.step, span.part) == ("score", "reward", 7, 2)
    assert 0.02 <= span.end - span.start < 0.5 and before - 0.1 < span.start < span.end < time.time() + 0.1


def test_timeline_tells_a_watchdog_and_leaves_out_what_failed():
    told = []

    class Watch:
        def __init__(self, name):
            told.append(name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            told.append("over")

    timeline = Timeline(tell=Watch)
    with timeline.span("save"):
        pass
    with pytest.raises(KeyError), timeline.span("train", "policy"):
        raise KeyError
    assert told == ["save", "over", "train policy", "over"] and [span.kind for span in timeline.spans] == ["save"]


def test_timeline_keeps_the_last_rounds():
    timeline = Timeline()
    for step in range(1, 20):
        timeline.start_round(step)
        with timeline.span("train", "value"), timeline.span("wait"):
            pass
    assert [span.step for span in timeline.spans] == [step for step in range(20 - KEPT_ROUNDS, 20) for _ in range(2)]


def test_timeline_as_a_chrome_trace():
    """Trace Event Format: complete events with microseconds, and names of processes and threads."""
    ranks = [[Span("evaluation", "", 1, None, 10.0, 12.0), Span("generate", "policy", 1, 0, 10.5, 11.0)], [], [Span("wait", "", 2, None, 9.5, 9.75)]]
    trace = chrome_trace(ranks)
    complete = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert [(event["name"], event["pid"], event["ts"], event["dur"], event["args"]) for event in complete] == [
        ("evaluation", 0, 0.5e6, 2e6, {"round": 1}),
        ("generate policy", 0, 1e6, 0.5e6, {"round": 1, "part": 0}),
        ("wait", 2, 0.0, 0.25e6, {"round": 2}),
    ]
    names = {(event["pid"], event.get("tid")): event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"}
    assert [names[rank, None] for rank in range(3)] == ["rank 0", "rank 1", "rank 2"]
    assert [names[event["pid"], event["tid"]] for event in complete] == ["stage", "policy", "stage"]
    assert chrome_trace([[], []])["traceEvents"]
