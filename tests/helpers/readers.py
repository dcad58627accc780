"""Files to documents and problems, as the readers of data preparation give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megagpt.config.prepare import SourceConfig
from megagpt.data.records import Document
from megagpt.prepare.document import Problem
from megagpt.prepare.readers.read import read_file


def read(path: Path, kind: str, name: str | None = None, **source: Any) -> tuple[list[Document], list[Problem]]:
    made = list(read_file(path, SourceConfig(name="corpus", kind=kind, files=[str(path)], **source), name or path.name))
    return [item for item in made if isinstance(item, Document)], [item for item in made if isinstance(item, Problem)]


def read_bytes(folder: Path, content: bytes, kind: str, name: str, **source: Any) -> tuple[list[Document], list[Problem]]:
    """Of a file with this content."""
    path = folder / name
    path.write_bytes(content)
    return read(path, kind, **source)


def only_document(made: tuple[list[Document], list[Problem]]) -> Document:
    documents, problems = made
    assert not problems and len(documents) == 1, made
    return documents[0]


def only_problem(made: tuple[list[Document], list[Problem]]) -> str:
    """As the user reads it; there is no document."""
    documents, problems = made
    assert not documents and len(problems) == 1, made
    assert "\n" not in str(problems[0])
    return str(problems[0])
