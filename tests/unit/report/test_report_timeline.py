"""The picture of who did what in a round of PPO."""

import json

import pytest
from matplotlib.image import imread

from megagpt.report.timeline import MAX_RANKS, draw_timeline, last_round, overlap_share
from megagpt.runtime.timeline import Span, chrome_trace


def a_round(step: int, begin: float, scorers: int = 1) -> list[list[Span]]:
    """The policy writes two parts of a second each; others score each within 0.6 s as it arrives; then it learns."""
    policy = [Span("generate", "policy", step, part, begin + part, begin + part + 1.0) for part in range(2)]
    policy.append(Span("train", "policy", step, None, begin + 2.6, begin + 4.0))
    score = [Span("score", "reward", step, part, begin + part + 1.0, begin + part + 1.6) for part in range(2)]
    return [policy, *[score] * scorers]


def events_of(ranks: list[list[Span]]) -> list[dict]:
    """All that last."""
    return [event for event in chrome_trace(ranks)["traceEvents"] if event["ph"] == "X"]


def test_report_timeline_share_of_scoring_that_was_hidden():
    """Part 0 is scored while part 1 is written, part 1 when nothing is."""
    assert overlap_share(last_round(events_of(a_round(1, 5.0, scorers=3)))) == pytest.approx(0.5)
    writing = [Span("generate", "policy", 1, 0, 0.0, 1.0), Span("generate", "policy", 1, 0, 0.5, 2.0)]  # two replicas: counted once where both write
    assert overlap_share(events_of([writing, [Span("score", "value", 1, 0, 0.5, 3.0)]])) == pytest.approx(1.5 / 2.5)
    assert overlap_share(events_of([writing])) is None


def test_report_timeline_takes_the_last_round_without_what_follows_it():
    evaluation = [[Span("evaluation", "", 2, None, 24.1, 30.0), Span("generate", "policy", 2, 0, 24.2, 26.0)], [Span("save", "", 2, None, 23.9, 24.0)]]
    begun = [[Span("generate", "policy", 3, 0, 40.0, 41.0)], []]
    ranks = [sum(parts, []) for parts in zip(a_round(1, 10.0), a_round(2, 20.0), evaluation, begun)]
    shown = last_round(events_of(ranks))
    assert {event["args"]["round"] for event in shown} == {2} and {event["cat"] for event in shown} == {"generate", "score", "train"}
    assert len(shown) == 5


@pytest.mark.parametrize("scorers", [2, 3 * MAX_RANKS])
def test_report_timeline_picture(tmp_path, scorers):
    (tmp_path / "timeline.json").write_text(json.dumps(chrome_trace(a_round(4, 1.0, scorers))))
    ((title, path),) = draw_timeline(tmp_path / "timeline.json", tmp_path / "plots")
    assert title == "Round 4, 4 s: 50% of the scoring ran while the policy wrote"
    pixels = imread(path)
    assert pixels.std() > 0.05 and pixels.shape[0] < pixels.shape[1]  # many ranks of two kinds are two rows


@pytest.mark.parametrize("text", [None, "{", "{}", '{"traceEvents": []}'])
def test_report_timeline_without_a_whole_trace(tmp_path, text):
    if text is not None:
        (tmp_path / "timeline.json").write_text(text)
    assert draw_timeline(tmp_path / "timeline.json", tmp_path / "plots") == [] and not (tmp_path / "plots").exists()
