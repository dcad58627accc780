"""Who is named, how often and among which words, before and after cleaning: one picture, a strip for each category."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from megagpt.prepare.representation import Row
from megagpt.report.plots import BLUE, GREY, STYLE, VERMILION

MAX_GROUPS = 12
"""Of a category; those that are named most."""
BEFORE, HEIGHT = "#9fc5de", 0.36
ROW_INCHES, HEAD_INCHES = 0.32, 0.75


def draw(table: Sequence[Row], path: Path) -> None:
    """Write the picture of the groups of a table (`megagpt.prepare.representation.table`); its terms are left to the table itself."""
    groups = [row for row in table if not row.term]
    categories = dict.fromkeys(row.category for row in groups)
    strips = [(category, _most_named([row for row in groups if row.category == category])) for category in categories]
    heights = [HEAD_INCHES + ROW_INCHES * len(rows) for _, rows in strips] or [HEAD_INCHES]
    with rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure = Figure(figsize=(9.0, sum(heights) + 0.7), dpi=160, layout="constrained")
        axes = figure.subplots(len(heights), 2, squeeze=False, gridspec_kw={"height_ratios": heights, "width_ratios": [3, 2]})
        bound = max([1.0, *(abs(value) for row in groups for value in row.sentiment if value is not None)])
        for (category, rows), (left, right) in zip(strips, axes, strict=True) if strips else ():
            num_left_out = sum(row.category == category for row in groups) - len(rows)
            title = category.replace("_", " ").capitalize() + (f", the {len(rows)} most named; {num_left_out} more" if num_left_out else "")
            _draw_counts(left, rows, title)
            _draw_sentiment(right, rows, min(bound * 1.08, 4.0))
        axes[-1][0].set_xlabel("mentions per million words (in brackets: documents before)")
        axes[-1][1].set_xlabel("valence of words around (−4 to 4)")
        handles = [
            Patch(color=BEFORE, label="before cleaning"), Patch(color=BLUE, label="after"),
            Line2D([], [], color=VERMILION, marker="s", linestyle="none", label="documents kept less often than others (ratio beside the bar)"),
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside upper left", ncols=3)
        figure.savefig(path)


def _most_named(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (-row.per_million[0], row.group))[:MAX_GROUPS]


def _draw_counts(axes: Axes, rows: list[Row], title: str) -> None:
    for place, row in enumerate(rows):
        before, after = row.per_million
        axes.barh(place - HEIGHT / 2, before, HEIGHT, color=BEFORE)
        axes.barh(place + HEIGHT / 2, after, HEIGHT, color=VERMILION if row.kept.is_flagged else BLUE)
        if row.kept.is_flagged:
            end = (max(before, after), place)
            axes.annotate(f"× {row.kept.ratio:.2f}", end, (5, 0), textcoords="offset points", va="center", color=VERMILION, fontsize=8.5)
    axes.set_title(title)
    axes.set_xmargin(0.1)
    _name_rows(axes, [f"{row.group.replace('_', ' ')}  ({row.documents[0]:,})" for row in rows])


def _draw_sentiment(axes: Axes, rows: list[Row], bound: float) -> None:
    axes.axvline(0, color=GREY, linewidth=0.9)
    for place, row in enumerate(rows):
        before, after = row.sentiment
        if before is not None and after is not None:
            axes.plot([before, after], [place, place], color=GREY, linewidth=1.2, zorder=2)
        for value, colour in ((before, BEFORE), (after, BLUE)):
            if value is not None:
                axes.plot(value, place, "o", color=colour, markersize=6, zorder=3)
    axes.set_xlim(-bound, bound)
    _name_rows(axes, [""] * len(rows))


def _name_rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)
