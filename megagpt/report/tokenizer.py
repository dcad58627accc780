"""The page about a tokenizer: bytes a token by source and language, what it cannot spell, its longest tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from megagpt.report import page
from megagpt.report.plots import BLUE, GREY, STYLE
from megagpt.runtime import atomic
from megagpt.tokenizer.report import summary_line

MAX_BARS = 25
"""Sources or languages in a picture, those with the most text; the table has all."""


def write_tokenizer_report(report: Mapping[str, Any], title: str, folder: Path, name: str) -> Path:
    """Write `<name>.json` and `<name>.html`.

    Args:
        report: of `tokenizer_report`.
        name: of the files.

    Returns:
        The page.
    """
    atomic.write_json(folder / f"{name}.json", report)
    atomic.write_text(folder / f"{name}.html", page.document(title, _body(report, title)))
    return folder / f"{name}.html"


def _body(report: Mapping[str, Any], title: str) -> list[str]:
    exact = report["round_trip_failures"] == 0
    pieces = [
        page.element("h1", title),
        page.element("p", f"{summary_line(dict(report))}. {report['tokens_per_word'] or 0:.2f} tokens a word."),
        page.element("p", page.verdict("every text comes back" if exact else f"texts that do not come back: {report['round_trip_failures']:,}", exact)),
        page.element("p", f"{report['kind']}, SHA-256 {report['content_hash']}", "soft"),
    ]
    if report["texts"]:
        pieces += [_pictures(report), page.element("h2", "By source"), _sums(report["by_source"]), page.element("h2", "By language"), _sums(report["by_language"])]
        pieces.append(page.element("p", "Words are what stands between white space: tokens a word say little of languages that write without it.", "soft"))
    if not exact:
        pieces.append(page.element("h2", "Texts that do not come back"))
        rows = ([one["document"], one["position"], _visible(one["original"]), _visible(one["decoded"])] for one in report["failure_examples"])
        pieces.append(page.table(["document", "differs at character", "text from there", "decoded"], rows))
    pieces.append(page.element("h2", "What it cannot give back"))
    rows = ([one["what"], _visible(one["text"]), "refused" if one["decoded"] is None else _visible(one["decoded"])] for one in report["limits"])
    pieces.append(page.table(["kind of text", "tried", "what comes back"], rows))
    pieces.append(page.element("h2", "Longest tokens"))
    rows = ([one["id"], one["bytes"], one["count"], _visible(one["text"])] for one in report["longest_tokens"])
    pieces.append(page.table(["id", "bytes", "times in this text", "token"], rows))
    return pieces


def _sums(parts: Mapping[str, Mapping[str, Any]]) -> str:
    def cells(name: str, sums: Mapping[str, Any]) -> list[Any]:
        ratios = [sums[key] for key in ("bytes_per_token", "characters_per_token", "tokens_per_word")]
        numbers = (f"{sums[key]:,}" for key in ("texts", "bytes", "tokens"))
        return [name or "(none)", *numbers, *("–" if ratio is None else f"{ratio:.2f}" for ratio in ratios), sums["round_trip_failures"]]

    head = ["", "texts", "bytes", "tokens", "bytes / token", "characters / token", "tokens / word", "round-trip failures"]
    return page.table(head, (cells(name, sums) for name, sums in parts.items()))


def _visible(text: str) -> str:
    r"""Spaces at the edges and control characters so that one sees them: `\n`, `␣`."""
    shown = "".join(character if character.isprintable() else character.encode("unicode_escape").decode() for character in text)
    return shown.replace("  ", "␣␣") if shown == shown.strip() else "␣" * (len(shown) - len(shown.lstrip())) + shown.strip() + "␣" * (len(shown) - len(shown.rstrip()))


def _pictures(report: Mapping[str, Any]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        pictures = []
        for part, title in (("by_source", "Bytes a token, by source"), ("by_language", "Bytes a token, by language")):
            path = Path(folder, f"{part}.png")
            _bars({name or "(none)": sums["bytes_per_token"] or 0.0 for name, sums in report[part].items()}, report["bytes_per_token"], title, path)
            pictures.append(page.picture(path, title))
    return page.Html(f'<div class="grid">{page.join(pictures)}</div>')


def _bars(values: Mapping[str, float], mean: float, title: str, path: Path) -> None:
    shown = sorted(list(values.items())[:MAX_BARS], key=lambda one: one[1])
    with rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(5.2, max(1.6, 0.9 + 0.26 * len(shown))), dpi=160, layout="constrained")
        axes = figure.add_subplot()
        bars = axes.barh([name for name, _ in shown], [value for _, value in shown], color=BLUE, height=0.7)
        axes.bar_label(bars, fmt="%.2f", label_type="center", color="white", fontsize=8.5)
        axes.axvline(mean, color=GREY, linestyle="--", linewidth=1.3, label=f"all texts {mean:.2f}")
        axes.set(title=title, xlabel="bytes of UTF-8 / token")
        figure.legend(loc="outside lower left")
        figure.savefig(path, metadata={"Software": None})
