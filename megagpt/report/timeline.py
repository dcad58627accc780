"""The picture of a trace of PPO: which rank did what in a round, and how much of the scoring hid behind the writing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from megagpt.report.plots import BLUE, STYLE, VERMILION

Event = dict[str, Any]
COLOURS = {
    "generate": BLUE, "score reference": "#56B4E9", "score reward": "#009E73", "score value": "#E69F00", "score policy": "#CC79A7",
    "train policy": VERMILION, "train value": "#F0A878", "refresh": "#222222", "wait": "#c9cdd2",
}  # fmt: skip
"""Of Okabe and Ito, as all pictures here; `wait` recedes."""
MAX_RANKS = 16
"""Of more than these, one of each kind is shown."""


def draw_timeline(trace: Path, folder: Path) -> list[tuple[str, Path]]:
    """Write `<folder>/timeline.png`, the last round of a trace on every rank; returns what it shows, and its path."""
    try:
        events = last_round(json.loads(trace.read_text(encoding="utf-8"))["traceEvents"])
    except (OSError, ValueError, KeyError):  # none yet, or none that can be read
        return []
    if not events:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    zero, ranks = min(event["ts"] for event in events), _shown_ranks(events)
    seconds = max(event["ts"] + event["dur"] for event in events) / 1e6 - zero / 1e6
    share = overlap_share(events)
    title = f"Round {events[0]['args']['round']}, {seconds:.2g} s"
    title += f": {share:.0%} of the scoring ran while the policy wrote" if share is not None else ""
    with rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure = Figure(figsize=(10.6, 1.6 + 0.5 * len(ranks)), dpi=160, layout="constrained")
        axes = figure.add_subplot()
        for event in events:
            if event["pid"] in ranks:
                _draw(axes, event, ranks.index(event["pid"]), zero, seconds)
        axes.set(title=title, xlabel="seconds since the round began (numbers: parts of the rollout)")
        axes.set(xlim=(0, seconds), ylim=(len(ranks) - 0.4, -0.6))
        axes.set_yticks(range(len(ranks)), [f"rank {rank}\n{_roles(events, rank)}" for rank in ranks])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        used = [name for name in COLOURS if any(_phase(event) == name for event in events)]
        figure.legend(handles=[Patch(color=COLOURS[name], label=name) for name in used], loc="outside lower left", ncols=min(len(used), 9))
        figure.savefig(folder / "timeline.png")
    return [(title, folder / "timeline.png")]


def last_round(events: list[Event]) -> list[Event]:
    """Complete events of the last round that was trained on, up to the end of its training: evaluations come later."""
    complete = [event for event in events if event["ph"] == "X"]
    trained = [event for event in complete if event["cat"] == "train"]
    if not trained:
        return []
    number = max(event["args"]["round"] for event in trained)
    of_round = [event for event in complete if event["args"]["round"] == number]
    end = max(event["ts"] + event["dur"] for event in of_round if event["cat"] in ("train", "refresh"))
    return [event for event in of_round if event["ts"] < end and event["cat"] not in ("save", "evaluation")]


def overlap_share(events: list[Event]) -> float | None:
    """Share of the time that models of any rank scored in which some rank wrote; None where nothing was scored."""
    writing = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event["cat"] == "generate")
    merged: list[list[float]] = []
    for start, end in writing:
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    total = hidden = 0.0
    for event in events:
        if event["cat"] == "score":
            start, end = event["ts"], event["ts"] + event["dur"]
            total += end - start
            hidden += sum(max(0.0, min(end, until) - max(start, since)) for since, until in merged)
    return hidden / total if total > 0 else None


def _shown_ranks(events: list[Event]) -> list[int]:
    """All of them, or one for each kind of work."""
    ranks = sorted({event["pid"] for event in events})
    if len(ranks) <= MAX_RANKS:
        return ranks
    kinds: dict[frozenset[str], int] = {}
    for rank in ranks:
        kinds.setdefault(frozenset(event["name"] for event in events if event["pid"] == rank), rank)
    return sorted(kinds.values())[:MAX_RANKS]


def _roles(events: list[Event], rank: int) -> str:
    """The models that a rank worked with, first things first."""
    return ", ".join(dict.fromkeys(event["name"].split()[-1] for event in events if event["pid"] == rank and event["cat"] not in ("wait", "advantages")))


def _phase(event: Event) -> str:
    return next((name for name in COLOURS if name in (event["name"], event["cat"])), "wait")


def _draw(axes, event: Event, row: int, zero: float, seconds: float) -> None:
    """One bar, with the number of its part where there is room."""
    phase, start, width = _phase(event), (event["ts"] - zero) / 1e6, event["dur"] / 1e6
    height = 0.14 if phase == "wait" else 0.72
    axes.barh(row, width, left=start, height=height, color=COLOURS[phase], edgecolor="white", linewidth=0.5 if width > 0.004 * seconds else 0)
    if phase != "wait" and "part" in event["args"] and width > 0.025 * seconds:
        axes.text(start + width / 2, row, str(event["args"]["part"]), ha="center", va="center", fontsize=8, color="white", fontweight="bold")
