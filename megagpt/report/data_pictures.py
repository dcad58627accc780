"""Pictures of data preparation: the funnel of each source, and the distribution of each score."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from megagpt.report.plots import BLUE, GREY, STYLE, VERMILION

STEPS = {
    "reader": "#999999", "encoding": "#666666", "url": "#F0E442", "language": "#56B4E9", "heuristics": "#E69F00", "quality": "#D55E00",
    "duplicates": "#009E73", "toxicity": "#CC79A7", "personal_data": "#8C564B", "decontamination": "#332288",
}  # fmt: skip
"""A colour for each step, the same in every report (Okabe and Ito, and three more)."""


def draw_funnel(sources: dict[str, Any], path: Path) -> Path:
    """Each source a bar: its documents that were kept, and those that each step dropped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [name for name, figures in sources.items() if figures["seen"]]
    with rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(9, 1.5 + 0.42 * len(names)), dpi=160, layout="constrained")
        axes, left = figure.add_subplot(), dict.fromkeys(names, 0.0)
        parts = [("kept", BLUE, {name: sources[name]["kept"] for name in names})]
        parts += [(step, colour, {name: sum(sources[name]["dropped"].get(step, {}).values()) for name in names}) for step, colour in STEPS.items()]
        for label, colour, counts in parts:
            if not any(counts.values()):
                continue
            shares = {name: counts[name] / sources[name]["seen"] for name in names}
            axes.barh(names, [shares[name] for name in names], left=[left[name] for name in names], color=colour, label=label, height=0.62)
            left = {name: left[name] + shares[name] for name in names}
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_title("Documents of each source: kept, and dropped by each step")
        for place, name in enumerate(names):
            axes.text(1.005, place, f"{sources[name]['seen']:,}", va="center", fontsize=8.5, color=GREY)
        if names:
            figure.legend(loc="outside lower center", ncols=6, fontsize=8.5)
        figure.savefig(path)
    return path


def draw_scores(histograms: dict[str, Any], folder: Path) -> list[tuple[str, Path]]:
    """One picture for each score; returns (name, path)."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, found in histograms.items():
        with rc_context(STYLE):
            figure = Figure(figsize=(4.6, 2.8), dpi=160, layout="constrained")
            axes, bins = figure.add_subplot(), len(found["kept"])
            width = (found["high"] - found["low"]) / bins
            edges = [found["low"] + width * number for number in range(bins)]
            axes.bar(edges, found["kept"], width, align="edge", color=BLUE, label="kept")
            axes.bar(edges, found["dropped"], width, bottom=found["kept"], align="edge", color=VERMILION, label="dropped by any step")
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
            axes.set_title(name.replace("_", " "))
            if found["is_log"]:
                powers = range(math.floor(found["low"]), math.ceil(found["high"]) + 1)
                axes.set_xticks([math.log10(1 + 10**power) for power in powers], [f"{10**power:,}" for power in powers])
            axes.set_ylabel("documents")
            axes.legend()
            path = folder / f"score_{name}.png"
            figure.savefig(path)
        drawn.append((name, path))
    return drawn
