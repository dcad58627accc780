"""What the curves of a PPO run do not show: where its time went, what the doctor said, what the policy says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from megagpt.report.page import Html, element, table
from megagpt.report.plots import BLUE, GREY, STYLE, VERMILION, points
from megagpt.runtime.metrics_file import read_metrics

PHASES = {"rollout": BLUE, "score": GREY, "update": VERMILION}
MAX_ROWS = 12


def draw_phases(rows: list[dict[str, Any]], folder: Path) -> list[tuple[str, Path]]:
    """Write `<folder>/phases.png`: seconds of each phase of every round; returns what it shows, and its path."""
    seconds = {name: points(rows, "step", f"{name}_seconds") for name in PHASES}
    if not len(seconds["rollout"]) or len({len(values) for values in seconds.values()}) > 1:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    title = "Time of a round by phase"
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.4), dpi=160, layout="constrained")
        axes = figure.add_subplot()
        rounds, below = seconds["rollout"][:, 0], 0
        for name, colour in PHASES.items():
            axes.bar(rounds, seconds[name][:, 1], width=0.85, bottom=below, color=colour, label=name)
            below = below + seconds[name][:, 1]
        axes.set(title=title, xlabel="PPO round", ylabel="seconds (score: beyond the rollout)")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        figure.legend(loc="outside lower left", ncols=len(PHASES))
        figure.savefig(folder / "phases.png")
    return [(title, folder / "phases.png")]


def doctor_table(rows: list[dict[str, Any]]) -> list[Html]:
    """What the doctor said, the last of it last."""
    said = [(row["step"], *row["doctor"].split(": ", 1)) for row in rows if "doctor" in row]
    if not said:
        return []
    head = f"The doctor spoke {len(said)} times" + (f"; the last {MAX_ROWS}:" if len(said) > MAX_ROWS else ":")
    return [element("h3", head), table(("Round", "Sign", "What it means"), said[-MAX_ROWS:])]


def sample_table(path: Path) -> list[Html]:
    """Answers of the last evaluation in samples.jsonl, with reward, KL and length."""
    rows = read_metrics(path)[0]
    if not rows:
        return []
    last = [row for row in rows if row["step"] == rows[-1]["step"]][:MAX_ROWS]
    cells = [(f"{row['score']:+.2f}", f"{row['kl']:.2f}", row["length"], f"{row['prompt']}\n→ {row['answer'] or '(no text)'}") for row in last]
    return [element("h3", f"Answers on held-out prompts after round {rows[-1]['step']}"), table(("Reward", "KL, nats", "Tokens", "Prompt and answer"), cells)]
