"""report.html of a run: gates, stages, curves, and what the model says before and after PPO."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import yaml

from megagpt.config.chain import STAGES
from megagpt.data.python_docs import SOURCE as PYTHON_DOCS
from megagpt.report.gates import failures, show
from megagpt.report.memory import draw_memory
from megagpt.report.page import Html, document, element, identifier, join, picture, table, verdict
from megagpt.report.plots import PANELS, draw_stage
from megagpt.report.reward import draw_evaluation, evaluation_tables, read_evaluation
from megagpt.report.rlhf import doctor_table, draw_phases, sample_table
from megagpt.report.timeline import draw_timeline
from megagpt.runtime import atomic
from megagpt.runtime.metrics_file import read_metrics
from megagpt.runtime.run_folder import RunFolder

STAGE_TITLES = {
    "pretrain": "Pre-training", "sft": "Supervised fine-tuning", "reward": "Reward model", "dpo": "Direct preference optimization", "rlhf": "PPO",
}  # fmt: skip
OPTIONAL = {"dpo"}
"""Stages that nobody misses."""
MAX_SAMPLES = 3
DASH = "–"


def build_report(run: RunFolder) -> Path:
    """Write `<stage>/plots/*.png` and report.html from whatever the run has left so far; returns the page's path."""
    manifest = run.manifest
    metrics = {stage: read_metrics(run.path / stage / "metrics.jsonl") for stage in PANELS}
    body = [
        element("h1", f"Run {run.path.name}"),
        element("p", _dates(manifest), "soft"),
        *_missing(metrics),
        element("h2", "Gates"), _gates(run.gates),
        element("h2", "Stages"), _stages(run, manifest),
        *(piece for stage, (rows, torn) in metrics.items() if rows for piece in _curves(run, manifest, stage, rows, torn)),
        *_samples(run.path / "rlhf" / "samples.json"),
        *_data(run.path / "data" / "statistics.json"),
    ]  # fmt: skip
    run.path.mkdir(parents=True, exist_ok=True)
    path = run.path / "report.html"
    atomic.write_text(path, document(f"{run.path.name} – megagpt report", body))
    return path


def _dates(manifest: dict[str, dict[str, Any]]) -> str:
    written = time.strftime("report written %Y-%m-%d %H:%M UTC", time.gmtime())
    finished = max((entry["finished"] for entry in manifest.values()), default="")
    return f"last stage finished {finished[:16].replace('T', ' ')} UTC · {written}" if finished else written


def _missing(metrics: dict[str, tuple[list, int]]) -> list[Html]:
    absent = [STAGE_TITLES[stage] for stage, (rows, _) in metrics.items() if not rows and stage not in OPTIONAL]
    return [element("p", f"Missing, since nothing was recorded yet: {', '.join(absent)}.")] if absent else []


def _gates(gates: list[dict[str, Any]]) -> Html:
    if not gates:
        return element("p", "No gates recorded yet.")
    failed = failures(gates)
    summary = verdict(f"{len(failed)} of {len(gates)} failed", False) if failed else verdict(f"all {len(gates)} passed", True)
    rows = [
        (verdict(gate["verdict"], gate["verdict"] == "passed"), gate["stage"], gate["name"].replace("_", " "), show(gate["value"]), gate["bound"])
        for gate in gates
    ]
    return join([element("p", summary), table(("Verdict", "Stage", "Check", "Value", "Bound"), rows)])


def _stages(run: RunFolder, manifest: dict[str, dict[str, Any]]) -> Html:
    known = [stage for stage in dict.fromkeys([*STAGES, *manifest]) if stage in manifest or (run.path / stage).is_dir()]
    rows = []
    for stage in known:
        entry, folder = manifest.get(stage, {}), run.path / stage
        parents = [identifier(f"{role}: {_short(run, parent['path'])}") for role, parent in entry.get("parents", {}).items()]
        status = verdict("finished", True) if entry else verdict("not finished", False)
        rows.append((stage, status, _duration(folder), _layout(folder), Html("".join(parents)) or DASH, identifier(_short(run, entry.get("output", DASH)))))
    return table(("Stage", "State", "Duration", "Layout", "Parents", "Output"), rows) if rows else element("p", "No stage has started yet.")


def _short(run: RunFolder, path: str) -> str:
    """A path within the run folder, seen from there."""
    whole, root = Path(path).resolve(), run.path.resolve()
    return str(whole.relative_to(root)) if whole.is_relative_to(root) else path


def _layout(folder: Path) -> str:
    """How the stage's models were spread over ranks, from its config.yaml."""
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    if parallel := config.get("parallel"):
        sizes = _sizes(tp=parallel["tensor_parallel_size"], pp=parallel["pipeline_parallel_size"], dp=parallel["data_parallel_size"])
        return f"{sizes} · ZeRO {parallel['zero_stage']}"
    roles = [(role, grid) for role, grid in config.get("placement", {}).items() if grid is not None]
    return "\n".join(f"{role}: {_sizes(tp=grid['tp'], pp=grid['pp'])} on ranks {', '.join(map(str, grid['ranks']))}" for role, grid in roles) or DASH


def _sizes(**axes: int | None) -> str:
    return " · ".join(f"{axis} {size}" for axis, size in axes.items() if size)


def _duration(folder: Path) -> str:
    """What the chain measured, or the clock of the last metric."""
    if (folder / "finished.json").exists():
        seconds = json.loads((folder / "finished.json").read_text(encoding="utf-8"))["seconds"]
    elif rows := read_metrics(folder / "metrics.jsonl")[0]:
        seconds = rows[-1]["seconds"]
    else:
        return DASH
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _data(path: Path) -> list[Html]:
    if not path.exists():
        return []
    return [element("h2", "Data"), table(("What", "Counts"), _flatten("data", json.loads(path.read_text(encoding="utf-8"))))]


def _flatten(name: str, counts: dict[str, Any]) -> list[tuple[str, str]]:
    """One row for each mapping that holds plain values, of whatever depth; without the hashes, which are for machines."""
    plain = " · ".join(f"{key} {show(value)}" for key, value in counts.items() if key != "sha256" and not isinstance(value, dict))
    nested = [row for key, value in counts.items() if isinstance(value, dict) for row in _flatten(f"{name} / {key}".removeprefix("data / "), value)]
    return [(name, plain), *nested] if plain else nested


def _curves(run: RunFolder, manifest: dict[str, dict[str, Any]], stage: str, rows: list[dict[str, Any]], torn: int) -> list[Html]:
    facts = {name: value for name, value in manifest.get(stage, {}).items() if isinstance(value, (int, float))}
    lines = facts | {f"gate:{gate['name']}": gate["bound"].split()[-1] for gate in run.gates if gate["stage"] == stage}
    pictures = [picture(path, f"{panel.title}, {panel.y_label}") for panel, path in draw_stage(stage, rows, lines, run.path / stage / "plots")]
    evaluation = read_evaluation(run.path / stage) if stage == "reward" else None
    if evaluation is not None:
        pictures += [picture(path, title) for title, path in draw_evaluation(evaluation, run.path / stage / "plots")]
    if stage == "rlhf":
        pictures += [picture(path, title) for title, path in (*draw_phases(rows, run.path / stage / "plots"), *draw_memory(run.path / stage))]
    notes = [f"{name.replace('_', ' ')} {show(value)}" for name, value in facts.items()]
    if stage == "reward" and manifest.get("data", {}).get("source") == PYTHON_DOCS:
        notes.append("synthetic rankings: ordered by a rule, not by people")
    notes += [f"{torn} unreadable line{'s' * (torn > 1)} of metrics.jsonl left out"] if torn else []
    tables = [] if evaluation is None else evaluation_tables(evaluation)
    below = []
    if stage == "rlhf":
        below = [picture(path, title) for title, path in draw_timeline(run.path / stage / "timeline.json", run.path / stage / "plots")]
        below += [*doctor_table(rows), *sample_table(run.path / stage / "samples.jsonl")]
    return [element("h2", STAGE_TITLES[stage]), element("p", " · ".join(notes), "soft"), *tables, element("div", join(pictures), "grid"), *below]


def _samples(path: Path) -> list[Html]:
    if not path.exists():
        return []
    pieces = [element("h2", "Conversations before and after PPO"), element("p", "Prompts kept apart from training; scores by the reward model.", "soft")]
    for sample in json.loads(path.read_text(encoding="utf-8"))[:MAX_SAMPLES]:
        answers = []
        for when in ("before", "after"):
            said, score = sample[when]["text"] or "(no text)", sample[when]["score"]
            answers.append(element("div", join([element("h3", f"{when.capitalize()}: score {score:+.2f}"), element("p", said, "said")])))
        pieces.append(element("section", join([element("p", sample["prompt"], "said question"), element("div", join(answers), "grid")]), "talk"))
    return pieces
