"""Pictures and tables of a reward model's `evaluation.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from megagpt.report.page import Html, element, table
from megagpt.report.plots import BLUE, GREY, STYLE, VERMILION

DASH = "–"


def read_evaluation(stage_folder: Path) -> dict[str, Any] | None:
    """None where the stage left none."""
    path = stage_folder / "evaluation.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def draw_evaluation(evaluation: dict[str, Any], folder: Path) -> list[tuple[str, Path]]:
    """Write `<folder>/calibration.png` and `length_bias.png`; returns what each shows, and its path."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, title, draw in (
        ("calibration", "Calibration on held-out pairs", _reliability), ("length_bias", "Accuracy by length difference", _length_bias),
    ):  # fmt: skip
        with rc_context(STYLE):
            figure = Figure(figsize=(5.2, 3.4), dpi=160, layout="constrained")
            draw(figure, evaluation, title)
            figure.savefig(folder / f"{name}.png")
        drawn.append((title, folder / f"{name}.png"))
    return drawn


def evaluation_tables(evaluation: dict[str, Any]) -> list[Html]:
    """Accuracy of all held-out pairs and of each slice, and the other figures that no picture shows."""
    rates = {"all": evaluation["pair_accuracy"], **evaluation["slices"]}
    length = {"preferred answer is longer": evaluation["length"]["better_is_longer"], "preferred answer is shorter": evaluation["length"]["better_is_shorter"]}
    rows = [(name, *_rate(rate)) for name, rate in {**rates, **length}.items() if rate is not None]
    return [table(("Held-out pairs", "Prompts", "Pairs", "In the annotators' order", "95 % interval"), rows), element("p", " · ".join(_notes(evaluation)), "soft")]


def _notes(evaluation: dict[str, Any]) -> list[str]:
    tau, agreement, wins = evaluation["kendall_tau_b"], evaluation["agreement"], evaluation["length"]["longer_wins"]
    notes = [f"Kendall τ-b {tau['value']:.3f} over {tau['rankings']} rankings of 3 answers or more"] if tau else []
    if wins:
        notes.append(f"the longer answer wins {wins['annotators']:.0%} of pairs with annotators, {wins['model']:.0%} with the model")
    if evaluation["length"]["score_correlation"] is not None:
        notes.append(f"correlation of score and length within a prompt {evaluation['length']['score_correlation']:+.2f}")
    if agreement:
        kappa = DASH if agreement["kappa"] is None else f"{agreement['kappa']:.2f}"
        notes.append(f"two annotators agree on {agreement['agreement']:.0%} of {agreement['pairs']} pairs, Fleiss' κ {kappa}")
    return notes


def _rate(rate: dict[str, Any]) -> tuple[str, ...]:
    return (f"{rate['prompts']:,}", f"{rate['pairs']:,}", f"{rate['value']:.3f}", "{:.3f} to {:.3f}".format(*rate["interval"]))


def _reliability(figure: Figure, evaluation: dict[str, Any], title: str) -> None:
    """How often annotators agree over how sure the model is; below, how often it is that sure."""
    calibration = evaluation["calibration"]
    bins = [one for one in calibration["bins"] if one["pairs"]]
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0.5, 1], [0.5, 1], color=GREY, linestyle="--", linewidth=1.3, label="calibrated")
    top.plot([one["confidence"] for one in bins], [one["agreement"] for one in bins], "o-", color=VERMILION, markersize=4.5, linewidth=1.3, label="model")
    top.set(title=f"{title}: ECE {calibration['ece']:.3f}", ylabel="annotators agree", xlim=(0.495, 1.005))
    top.legend(loc="upper left")
    width = bins[0]["to"] - bins[0]["from"]
    bottom.bar([one["from"] + width / 2 for one in bins], [one["share"] for one in bins], width=0.9 * width, color=BLUE)
    bottom.set(xlabel="the model's confidence σ(|Δ|)", ylabel="of pairs")
    for axes in (top, bottom):
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _length_bias(figure: Figure, evaluation: dict[str, Any], title: str) -> None:
    """A model that goes by length is right where the preferred answer is longer and wrong where it is shorter."""
    bins, axes = evaluation["length"]["bins"], figure.add_subplot()
    values = [one["value"] for one in bins]
    reach = [[one["value"] - one["interval"][0] for one in bins], [one["interval"][1] - one["value"] for one in bins]]
    axes.errorbar(range(len(bins)), values, yerr=reach, fmt="o", color=VERMILION, markersize=5, elinewidth=1.3, capsize=3, label="model, 95 % interval")
    axes.axhline(evaluation["pair_accuracy"]["value"], color=BLUE, linewidth=1.3, label="all pairs")
    axes.axhline(0.5, color=GREY, linestyle="--", linewidth=1.3, label="by chance")
    axes.set_xticks(range(len(bins)), [f"{one['from']:+.0f}\nto {one['to']:+.0f}" for one in bins])
    axes.set(title=title, xlabel="preferred answer longer by (characters)", ylabel="in the annotators' order", ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.legend(loc="outside lower left", ncols=3)
