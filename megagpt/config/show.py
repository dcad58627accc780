"""Print and store a configuration with every default filled in."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel

from megagpt.runtime import atomic


def to_yaml(config: BaseModel) -> str:
    """The whole configuration as YAML, in the order of the schema."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def store(config: BaseModel, original: Path | None, folder: Path) -> None:
    """config.yaml (resolved) and config.original.yaml (as written, comments included) in a stage's folder."""
    atomic.write_text(folder / "config.yaml", to_yaml(config))
    if original is not None:
        atomic.write_bytes(folder / "config.original.yaml", original.read_bytes())
