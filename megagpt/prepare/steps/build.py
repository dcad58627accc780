"""Steps by their names in the configuration; a module is imported where its step is used."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from megagpt.config.prepare import PrepareConfig
from megagpt.prepare.steps.step import Step

CLEAN = ("encoding", "url", "language", "heuristics", "quality")
"""Those that come before duplicates are looked for: cheap, or needed to say which of them is the best."""
FINISH = ("toxicity", "personal_data", "decontamination")
"""Those that come behind: costly, or about the text as it will be."""
_CLASSES = {
    "encoding": "Encoding", "url": "Url", "language": "Language", "heuristics": "Heuristics", "quality": "Quality", "toxicity": "Toxicity",
    "personal_data": "PersonalData", "decontamination": "Decontamination",
}  # fmt: skip


def build_steps(names: tuple[str, ...], config: PrepareConfig, work: Path) -> list[Step]:
    """Those of these that the configuration asks for, in this order.

    Raises:
        DataError: a model or a list that a step needs is not there.
    """
    steps: list[Any] = []
    for name in names:
        settings = getattr(config.steps, name, None)
        if settings is not None:
            make = getattr(importlib.import_module(f"megagpt.prepare.steps.{name}"), _CLASSES[name])
            steps.append(make(settings, work) if name == "decontamination" else make(settings))
    return steps
