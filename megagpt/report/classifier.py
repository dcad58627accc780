"""report.html of a trained classifier: how well it separates, whom it is unfair to, and its most certain errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from megagpt.report.page import Html, document, element, join, picture, table
from megagpt.report.plots import BLUE, GREY, STYLE, VERMILION
from megagpt.runtime import atomic

DASH = "–"
COLOURS = {"labels as they are": VERMILION, "mitigated": BLUE}
MIN_SLICE = 10
"""A false-positive rate of fewer harmless texts is not drawn."""


def build_classifier_report(folder: Path) -> Path:
    """Write plots/*.png and report.html from the folder's report.json; returns the page's path."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    pictures = draw_classifier(report, folder / "plots")
    body = [
        element("h1", f"Classifier of {report['purpose']}"),
        *(element("p", line, "soft") for line in summary(report)),
        element("h2", "On held-out text"),
        element("div", join(picture(path, title) for title, path in pictures[:3]), "grid"),
        *(_quality(report) if report["purpose"] == "quality" else _toxicity(report, pictures[3:])),
        *_failures(report), *_left_out(report),
    ]  # fmt: skip
    path = folder / "report.html"
    atomic.write_text(path, document(f"Classifier of {report['purpose']} – megagpt report", body))
    return path


def summary(report: dict[str, Any]) -> list[str]:
    """The figures that matter most, a line each."""
    held_out = report["held_out"]
    low, high = report["classes"]
    lines = [
        f"held out: {held_out['texts'][1]:,} {high} against {held_out['texts'][0]:,} {low}; ROC-AUC {held_out['roc_auc']:.4f}, average precision "
        f"{held_out['average_precision'][1]:.4f} ({high}) and {held_out['average_precision'][0]:.4f} ({low}), calibration error "
        f"{held_out['calibration']['error']:.3f} at a share of {report['prior']:g} {high}"
    ]
    if report["purpose"] == "quality":
        lines.append(f"length of the document alone: ROC-AUC {report['length_alone']:.4f}")
        lines += [
            f"{name} ({one['label']}): {one['documents']:,} documents{_sites(one['sites'])}, ROC-AUC {_show(one['roc_auc'])}; never seen in training "
            f"{_show(one['unseen_roc_auc'])}"
            for name, one in report["sources"].items()
        ]
    else:
        lines += [_fairness(name, one, report["report_rate"]) for name, one in report["variants"].items()]
    return lines


def _fairness(name: str, variant: dict[str, Any], report_rate: float) -> str:
    rates = ", ".join(f"{one} {_percent(variant['slices'][one]['false_positives'])}" for one in variant["at_thresholds"][0]["rates"])
    sentences = variant["sentences"]
    return (
        f"{name}: ROC-AUC {variant['held_out']['roc_auc']:.4f}; false positives where {report_rate:.0%} of all harmless texts are flagged: {rates}; "
        f"harmless sentences score {sentences['dialect']:.2f} in African American English and {sentences['standard']:.2f} in standard English, with "
        f"groups named they differ by up to {sentences['spread']:.2f}"
    )


def draw_classifier(report: dict[str, Any], folder: Path) -> list[tuple[str, Path]]:
    """Write roc.png, scores.png, calibration.png and, for toxicity, slices.png and sentences.png; returns what each shows, and its path."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [
        _draw("ROC curve", folder / "roc.png", (4.4, 3.6), _roc, report),
        _draw("Scores by class", folder / "scores.png", (4.4, 3.6), _scores, report),
        _draw("Calibration", folder / "calibration.png", (4.4, 3.6), _calibration, report),
    ]
    if report["purpose"] == "toxicity":
        drawn.append(_draw("Harmless texts that are flagged", folder / "slices.png", (7.2, 5.2), _slices, report))
        drawn.append(_draw("Mean score of harmless sentences", folder / "sentences.png", (7.2, 5.2), _sentences, report))
    return drawn


def _draw(title: str, path: Path, size: tuple[float, float], draw: Callable[[Any, dict[str, Any]], None], report: dict[str, Any]) -> tuple[str, Path]:
    with rc_context(STYLE):
        figure = Figure(figsize=size, dpi=160, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title)
        draw(axes, report)
        figure.savefig(path)
    return title, path


def _roc(axes: Any, report: dict[str, Any]) -> None:
    for name, one in report.get("variants", {"": report}).items():
        curve = one["held_out"]["roc"]
        label = f"{name or 'held out'}: AUC {one['held_out']['roc_auc']:.3f}"
        axes.plot(curve["false_positive"], curve["true_positive"], color=COLOURS.get(name, BLUE), label=label)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    low, high = report["classes"]
    axes.set(xlabel=f"share of {low} above a threshold", ylabel=f"share of {high} above it", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.legend(loc="lower right")


def _scores(axes: Any, report: dict[str, Any]) -> None:
    histogram = report["held_out"]["histogram"]
    for name, counts, colour in zip(report["classes"], histogram["counts"], (VERMILION, BLUE)):
        axes.stairs([count / max(sum(counts), 1) for count in counts], histogram["edges"], color=colour, fill=True, alpha=0.5, label=name)
    axes.set(xlabel=f"score: probability of {report['classes'][1]}", ylabel="share of its class")
    axes.legend()


def _calibration(axes: Any, report: dict[str, Any]) -> None:
    bins = report["held_out"]["calibration"]["bins"]
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="calibrated")
    axes.plot([one["said"] for one in bins], [one["true"] for one in bins], "o-", color=BLUE, markersize=4, label="this classifier")
    axes.set(xlabel="score", ylabel=f"share of {report['classes'][1]}", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.legend(loc="upper left")


def _slices(axes: Any, report: dict[str, Any]) -> None:
    """False-positive rates with their 95 % intervals, before and after."""
    variants = report["variants"]
    first = next(iter(variants.values()))["slices"]
    names = [name for name, one in first.items() if one["false_positives"]["texts"] >= MIN_SLICE]
    height = 0.8 / len(variants)
    for number, (variant, one) in enumerate(variants.items()):
        rates = [one["slices"][name]["false_positives"] for name in names]
        places = [place + (number - (len(variants) - 1) / 2) * height for place in range(len(names))]
        errors = [[rate["value"] - rate["interval"][0] for rate in rates], [rate["interval"][1] - rate["value"] for rate in rates]]
        style = {"color": COLOURS[variant], "ecolor": GREY, "error_kw": {"linewidth": 0.9}, "label": variant}
        axes.barh(places, [rate["value"] for rate in rates], height, xerr=errors, **style)
    axes.axvline(report["report_rate"], color=GREY, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(names)), [f"{name}, {first[name]['false_positives']['texts']:,}" for name in names])
    axes.set_xlabel(f"false-positive rate (95 % interval) where {report['report_rate']:.0%} of all are flagged")
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    axes.legend(loc="lower right")


def _sentences(axes: Any, report: dict[str, Any]) -> None:
    rows = {}
    for variant, one in report["variants"].items():
        scores = one["sentences"]
        rows[variant] = {"in African American English": scores["dialect"], "the same in standard English": scores["standard"], **scores["groups"]}
    names = list(next(iter(rows.values())))
    height = 0.8 / len(rows)
    for number, (variant, values) in enumerate(rows.items()):
        places = [place + (number - (len(rows) - 1) / 2) * height for place in range(len(names))]
        axes.barh(places, list(values.values()), height, color=COLOURS[variant], label=variant)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("score")
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    axes.legend(loc="lower right")


def _quality(report: dict[str, Any]) -> list[Html]:
    head = ("Source", "Class", "Documents", "Held out", "Windows", "Sites", "Mean score", "ROC-AUC", "ROC-AUC, source never seen")
    rows = [
        (name, one["label"], f"{one['documents']:,}", f"{one['held_out']:,}", f"{one['windows']:,}", DASH if one["sites"] is None else one["sites"],
         _show(one["mean_score"]), _show(one["roc_auc"]), _show(one["unseen_roc_auc"]))
        for name, one in report["sources"].items()
    ]  # fmt: skip
    note = (
        "Each source against the held-out documents of the other class. Pages of one site share their menus and stand on both sides of the split, "
        "which flatters a crawl of few sites. The last column is of classifiers that were trained without the source: the nearer it comes to the one "
        "before, the more of the difference is quality rather than topic."
    )
    return [element("h2", "By source"), table(head, rows), element("p", note, "soft")]


def _toxicity(report: dict[str, Any], pictures: list[tuple[str, Path]]) -> list[Html]:
    variants = report["variants"]
    first = next(iter(variants.values()))
    head = ("Slice", "Texts", "Labelled toxic", "Harmless", *(f"{kind}, {name}" for name in variants for kind in ("False positives", "Found")))
    rows = []
    for name, one in first["slices"].items():
        if one["texts"]:
            figures = [_interval(variant["slices"][name][kind]) for variant in variants.values() for kind in ("false_positives", "true_positives")]
            rows.append((name, f"{one['texts']:,}", f"{one['labelled_toxic']:.0%}", f"{one['false_positives']['texts']:,}", *figures))
    note = (
        f"At the threshold where {report['report_rate']:.0%} of all harmless texts are flagged; each text is judged by a classifier that did not "
        "learn from its part of the data. Nobody's dialect is known: the first slice is of texts with features that linguists describe for African "
        "American English and that spelling shows. The labels lean the same way, so that rates measured against them say less than the whole."
    )
    dialects, by_threshold = list(first["at_thresholds"][0]["rates"]), []
    for rows_of_variants in zip(*(one["at_thresholds"] for one in variants.values())):
        rates = [_interval(row["rates"][name]) for row in rows_of_variants for name in dialects]
        by_threshold.append((f"{rows_of_variants[0]['threshold']:g}", *rates))
    threshold_head = ("Score that is enough", *(f"{name}, {variant}" for variant in variants for name in dialects))
    by_label = [(name, *(_show(one["by_label"][name]) for one in variants.values())) for name in first["by_label"]]
    return [
        element("h2", "By dialect and group"), element("div", join(picture(path, title) for title, path in pictures), "grid"),
        table(head, rows), element("p", note, "soft"),
        element("h2", "False positives by dialect at thresholds of the step"), table(threshold_head, by_threshold),
        element("h2", "By label"), table(("ROC-AUC against all harmless texts", *variants), by_label),
    ]  # fmt: skip


def _failures(report: dict[str, Any]) -> list[Html]:
    pieces = []
    for name, other, failures in zip(report["classes"], reversed(report["classes"]), report["failures"]):
        rows = [(f"{one['score']:.3f}", one["source"], one["excerpt"]) for one in failures]
        shown = table(("Score", "Source", "Excerpt"), rows) if rows else element("p", "None.")
        pieces += [element("h2", f"Most certain errors: {name}, judged {other}"), shown]
    return pieces


def _left_out(report: dict[str, Any]) -> list[Html]:
    lines = [f"{count:,} {reason}" for reason, count in report["left_out"].items()] + [f"given up: {line}" for line in report.get("problems", [])]
    return [element("h2", "Left out"), *(element("p", line) for line in lines)] if lines else []


def _sites(number: int | None) -> str:
    return "" if number is None else f" of {number} sites"


def _show(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"


def _percent(rate: dict[str, Any]) -> str:
    return DASH if rate["value"] is None else f"{rate['value']:.1%}"


def _interval(rate: dict[str, Any]) -> str:
    return DASH if rate["value"] is None else f"{rate['value']:.1%}\n({rate['interval'][0]:.0%}\u00a0to\u00a0{rate['interval'][1]:.0%})"
