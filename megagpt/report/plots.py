"""The curves of each stage: which metrics share a picture, and how a picture is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from megagpt.runtime.metrics_file import read_metrics

BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#666666"  # blue and vermilion of Okabe and Ito: apart in every common colour blindness
DASHES = ("--", ":", "-.")
STYLE = {
    "font.size": 9.5, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888", "axes.labelcolor": "#333333",
    "xtick.color": "#888888", "ytick.color": "#888888", "xtick.labelcolor": "#333333", "ytick.labelcolor": "#333333",
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#e4e4e4", "grid.linewidth": 0.7, "axes.axisbelow": True,
    "legend.frameon": False, "legend.fontsize": 9, "legend.handlelength": 1.6, "lines.linewidth": 1.8,
}  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """One picture.

    Args:
        train, held_out: keys in metrics.jsonl of the training and the held-out curve; empty for none.
        lines: (fact, label) of horizontal lines; facts are the numbers of the stage's manifest entry, and `gate:<name>` is a bound.
        cut_below: where the y axis ends if values fall below it.
        is_setting: exact rather than noisy: drawn as it is, and not at all where it never changes.
        x: key of the horizontal axis; for the held-out curve `eval_<x>` unless it is the step.
    """

    name: str
    title: str
    y_label: str
    train: str = ""
    held_out: str = ""
    lines: tuple[tuple[str, str], ...] = ()
    cut_below: float | None = None
    is_setting: bool = False
    x: str = "step"
    x_label: str = "optimizer step"


SHARED = (
    Panel("grad_norm", "Gradient norm before clipping", "global L2 norm", "grad_norm"),
    Panel("lr", "Learning rate", "learning rate", "lr", is_setting=True),
    Panel("loss_scale", "Loss scale", "factor", "loss_scale", is_setting=True),
    Panel("batch_size", "Batch size", "rows / step", "batch_size", is_setting=True),
    Panel("tokens_per_s", "Throughput", "tokens / s, whole job", "tokens_per_s"),
    Panel("tflops_per_device", "Model FLOPs", "TFLOP/s per device", "tflops_per_device"),
    Panel("memory", "Memory of rank 0", "GiB", "memory_gib", is_setting=True),
)
"""For every stage but PPO, after its own."""
ROUND = {"x_label": "PPO round"}
PANELS = {
    "pretrain": (
        Panel("loss", "Pre-training loss", "nats / token", "loss", "eval_loss", (("unigram_cross_entropy", "unigram cross-entropy"),)),
        *SHARED,
    ),
    "sft": (Panel("loss", "Loss on response tokens", "nats / token", "loss", "eval_loss"), *SHARED),
    "reward": (
        Panel("loss", "Ranking loss", "nats / pair", "loss"),
        Panel(
            "accuracy", "Pairs in the annotator's order", "share of pairs", "accuracy", "eval_accuracy",
            (("gate:pair_accuracy", "bound"), ("longer_answer_floor", "longer answer"), ("overlap_floor", "overlap with the prompt")),
        ),
        *SHARED,
    ),
    "dpo": (
        Panel("loss", "Preference loss", "nats / pair", "loss", "eval_loss"),
        Panel(
            "accuracy", "Pairs in the annotator's order by the implicit reward", "share of pairs", "accuracy", "eval_accuracy",
            (("gate:implicit_pair_accuracy", "bound"),),
        ),
        Panel("margin", "Implicit reward of the better answer less the other's", "nats × β", "margin", "eval_margin"),
        Panel("chosen_reward", "Implicit reward of the better answer", "nats × β", "chosen_reward", "eval_chosen_reward"),
        *SHARED,
    ),
    "rlhf": (
        Panel("reward", "Reward-model score", "normalised score", "reward", "eval_reward", **ROUND),
        Panel("kl", "KL from the SFT model", "nats / response", "kl", "eval_kl", (("gate:kl", "bound"),), **ROUND),
        Panel("reward_against_kl", "Reward bought with KL", "normalised score", "reward", "eval_reward", x="kl", x_label="KL from the SFT model (nats / response)"),
        Panel("held_out_against_kl", "What a held-out reward model says", "its score", held_out="eval_held_out_reward", x="kl", x_label="KL from the SFT model (nats / response)"),
        Panel("win_rate", "Answers preferred to those of the start", "share of held-out prompts", held_out="eval_win_rate", **ROUND),
        Panel("entropy", "Entropy of the policy", "nats / token", "policy_entropy", **ROUND),
        Panel("length", "Response length", "tokens / response", "length", "eval_length", **ROUND),
        Panel("clip_fraction", "Clipped ratios", "share of response tokens", "policy_clip_fraction", **ROUND),
        Panel("value_loss", "Value loss", "per response token", "value_loss", **ROUND),
        Panel("explained_variance", "Variance of returns explained by the value model", "share of variance", "explained_variance", cut_below=-1.0, **ROUND),
    ),
}  # fmt: skip


def draw_folder(stage_folder: Path) -> None:
    """The curves of a stage, finished or not, from its metrics.jsonl to its plots/."""
    draw_stage(stage_folder.name, read_metrics(stage_folder / "metrics.jsonl")[0], {}, stage_folder / "plots")


def draw_stage(stage: str, rows: list[dict[str, Any]], facts: dict[str, float], folder: Path) -> list[tuple[Panel, Path]]:
    """Write `<folder>/<name>.png` of every panel whose metrics were recorded."""
    drawn = []
    for panel in PANELS.get(stage, ()):
        train = points(rows, panel.x, panel.train)
        held_out = points(rows, panel.x if panel.x == "step" else f"eval_{panel.x}", panel.held_out)
        if len(train) + len(held_out) and not (panel.is_setting and np.ptp(train[:, 1]) == 0):
            folder.mkdir(parents=True, exist_ok=True)
            _draw(panel, train, held_out, facts, folder / f"{panel.name}.png")
            drawn.append((panel, folder / f"{panel.name}.png"))
    return drawn


def points(rows: list[dict[str, Any]], x: str, y: str) -> np.ndarray:
    """(x, y) of the rows that carry both, in order of steps, the last row of a step winning; [n, 2], without what is not finite."""
    found = {row["step"]: (row[x], row[y]) for row in rows if x in row and y in row}
    values = np.array([found[step] for step in sorted(found)], dtype=float).reshape(-1, 2)
    return values[np.isfinite(values).all(axis=1)]


def smooth(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Centred mean over a twentieth of the curve, over fewer points at its ends; and the width of the window."""
    width = len(values) // 20 | 1
    ones = np.ones(width)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same"), width


def _draw(panel: Panel, train: np.ndarray, held_out: np.ndarray, facts: dict[str, float], path: Path) -> None:
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.4), dpi=160, layout="constrained")
        axes = figure.add_subplot()
        if panel.is_setting:
            axes.plot(*train.T, color=BLUE, drawstyle="steps-post")
        else:
            (_curves if panel.x == "step" else _path)(axes, train, held_out)
        known = [(label, float(facts[fact])) for fact, label in panel.lines if fact in facts]
        for (label, value), dashes in zip(known, DASHES):
            axes.axhline(value, color=GREY, linestyle=dashes, linewidth=1.3, label=f"{label} {value:.3g}")
        y_label, lowest = panel.y_label, min(values[:, 1].min() for values in (train, held_out) if len(values))
        if panel.cut_below is not None and lowest < panel.cut_below:
            axes.set_ylim(bottom=panel.cut_below)
            y_label += f" (cut at {panel.cut_below:g})"
        if max(axes.get_ylim()) >= 10_000:
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))  # 120k
        axes.set(title=panel.title, xlabel=panel.x_label, ylabel=y_label)
        if panel.x == "step":
            axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower left", ncols=2)
        figure.savefig(path)


def _curves(axes: Axes, train: np.ndarray, held_out: np.ndarray) -> None:
    """Metrics over steps: training faint with its smoothed curve on top, held-out with a marker at each measurement."""
    if len(train):
        smoothed, width = smooth(train[:, 1])
        if width > 1:
            axes.plot(*train.T, color=BLUE, alpha=0.25, linewidth=0.8)
        axes.plot(train[:, 0], smoothed, "-" if len(train) > 1 else "o", color=BLUE, label="training" + (f", mean of {width} steps" if width > 1 else ""))
    if len(held_out):
        axes.plot(*held_out.T, "o-", color=VERMILION, markersize=4.5, linewidth=1.3, label="held-out")


def _path(axes: Axes, train: np.ndarray, held_out: np.ndarray) -> None:
    """One metric against another: training rounds as points, the held-out measurements joined in their order."""
    if len(train):
        axes.plot(*train.T, "o", color=BLUE, alpha=0.35, markersize=4, markeredgewidth=0, label="training rounds")
    if len(held_out):
        axes.plot(*held_out.T, "o-", color=VERMILION, markersize=5, linewidth=1.3, label="held-out, in order of rounds")
        axes.margins(0.1)
        for text, point in (("start", held_out[0]), ("end", held_out[-1]))[: len(held_out)]:
            axes.annotate(text, point, xytext=(0, 7), textcoords="offset points", ha="center", color=VERMILION)
