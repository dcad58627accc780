"""Steps by their names in the configuration; a module is imported where its step is used."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from megagpt.config.prepare import PrepareConfig
from megagpt.prepare.classifier import FACTS
from megagpt.prepare.evaluation_sets import find_files
from megagpt.prepare.identity_terms import read_terms
from megagpt.prepare.steps.step import Step
from megagpt.prepare.token_count import token_counter

CLEAN = ("encoding", "url", "language", "heuristics", "quality")
"""Those that come before duplicates are looked for: cheap, or needed to say which of them is the best."""
FINISH = ("toxicity", "personal_data", "decontamination")
"""Those that come behind: costly, or about the text as it will be."""
_CLASSES = {
    "encoding": "Encoding", "url": "Url", "language": "Language", "heuristics": "Heuristics", "quality": "Quality", "toxicity": "Toxicity",
    "personal_data": "PersonalData", "decontamination": "Decontamination",
}  # fmt: skip


_TOKENIZER_FILES = (".json", ".txt", ".model", ".bpe")
"""Of a folder that may hold a model's weights too."""


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


def check_steps(config: PrepareConfig, work: Path) -> None:
    """Make once what every task will make, so that what is missing is told before the work begins and not by the last phase.

    Raises:
        DataError, ConfigError, TokenizerError: as the steps.
    """
    build_steps((*CLEAN, *FINISH), config, work)
    token_counter(config.tokenizer)
    if config.steps.representation is not None:
        read_terms(config.steps.representation.terms)


def step_files(config: PrepareConfig) -> list[Path]:
    """Files beside the documents that the result depends on: models, lists, evaluation sets. Some may be missing.

    Raises:
        DataError: an evaluation set without a file.
    """
    steps, found = config.steps, []
    if (url := steps.url) is not None:
        found += [*url.domains, *url.urls, *url.words, *url.soft_words, *url.substrings]
    if steps.language is not None:
        found.append(steps.language.model)
    # The facts of a classifier hold the hash of its weights.
    found += [Path(step.classifier, FACTS) for step in (steps.quality, steps.toxicity) if step is not None]
    found += [path for evaluation in (steps.decontamination.sets if steps.decontamination is not None else ()) for path in find_files(evaluation)]
    if steps.representation is not None and steps.representation.terms is not None:
        found.append(steps.representation.terms)
    if config.tokenizer is not None:
        path = Path(config.tokenizer)
        found += sorted(file for file in path.iterdir() if file.suffix in _TOKENIZER_FILES) if path.is_dir() else [path]
    return list(map(Path, found))
