"""Print and store a configuration with every default filled in."""

from __future__ import annotations

import hashlib
from pathlib import Path

import yaml
from pydantic import BaseModel

from megagpt.runtime import atomic


def to_yaml(config: BaseModel) -> str:
    """The whole configuration as YAML, in the order of the schema."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def one_line(part: BaseModel | None) -> str | None:
    """A part of a configuration as one value that can be compared."""
    return None if part is None else str(part)


def content_hash(text: str) -> str:
    """Short SHA-256 of a text, for the manifest."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def store(config: BaseModel, original: str, folder: Path) -> None:
    """config.yaml (resolved) and config.original.yaml (as written, comments included) in a stage's folder."""
    atomic.write_text(folder / "config.yaml", to_yaml(config))
    if original:
        atomic.write_text(folder / "config.original.yaml", original)
