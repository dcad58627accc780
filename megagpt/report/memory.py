"""Memory of a PPO job by rank and model: what was planned beside what was measured."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from megagpt.report.plots import BLUE, STYLE, VERMILION

COLOURS = {"policy": BLUE, "reference": "#56B4E9", "reward": VERMILION, "value": "#E69F00", "held_out": "#009E73"}  # of Okabe and Ito
MAX_RANKS = 16
WIDTH = 0.38
PLANNED_ALPHA = 0.45


def draw_memory(stage_folder: Path) -> list[tuple[str, Path]]:
    """Write `plots/memory.png` from the stage's memory.json, if there is one; returns what it shows, and its path."""
    file, path = stage_folder / "memory.json", stage_folder / "plots/memory.png"
    if not file.exists():
        return []
    facts = json.loads(file.read_text(encoding="utf-8"))
    ranks = facts["ranks"][:MAX_RANKS]
    unit, name = _unit(max(pair["predicted"] for rank in ranks for pair in rank["phases"].values()))
    title = "Memory by rank and model" + (f", first {MAX_RANKS} of {len(facts['ranks'])} ranks" if len(facts["ranks"]) > MAX_RANKS else "")
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.4), dpi=160, layout="constrained")
        axes = figure.add_subplot()
        for number, rank in enumerate(ranks):
            for kind, left, alpha in (("predicted", number - WIDTH / 2, PLANNED_ALPHA), ("measured", number + WIDTH / 2, 1.0)):
                below = 0.0
                for role, parts in rank["models"].items():
                    height = sum(pair[kind] for pair in parts.values()) / unit
                    axes.bar(left, height, WIDTH, bottom=below, color=COLOURS[role], alpha=alpha)
                    below += height
                peak = max((pair[kind] or 0 for pair in rank["phases"].values()), default=0) / unit
                axes.hlines(peak, left - WIDTH / 2, left + WIDTH / 2, color="black", alpha=alpha, linewidth=1.8)
        axes.set(title=title, xlabel="rank: planned (pale) and measured", ylabel=name, xticks=range(len(ranks)))
        held = [role for role in COLOURS if any(role in rank["models"] for rank in ranks)]
        handles = [Patch(color=COLOURS[role], label=role.replace("_", "-")) for role in held]
        figure.legend(handles=[*handles, Patch(color="black", label="highest phase")], loc="outside lower left", ncols=3)
        figure.savefig(path)
    return [(title, path)]


def _unit(num_bytes: float) -> tuple[float, str]:
    """GB, or MB for small models."""
    return (1e9, "GB") if num_bytes >= 1e9 else (1e6, "MB")
