"""Files of evaluation sets to items: the texts of each question, prompt or sentence that training must not see."""

from __future__ import annotations

import csv
import difflib
import glob
import io
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megagpt.config.prepare import EvaluationSetConfig
from megagpt.data.errors import DataError
from megagpt.data.formats import Dropped, UnknownShape, to_demonstrations, to_prompts, to_rankings
from megagpt.data.rows import ROW_SUFFIXES, read_rows, read_text

DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True, slots=True)
class Item:
    """One question of an evaluation set."""

    set: str
    path: str
    line: int
    """Of a table: the row below the heading, from 1."""
    texts: tuple[str, ...]
    """Prompt, answers, columns: what documents are searched for, each by itself. NFC."""


def find_files(config: EvaluationSetConfig) -> list[Path]:
    """Files of a set in the order of their names.

    Raises:
        DataError: a name or pattern that finds nothing.
    """
    found: set[Path] = set()
    for pattern in config.files:
        paths = [path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file()]
        if not paths:
            raise DataError(pattern, f"no file of the evaluation set {config.name}")
        found.update(paths)
    return sorted(found)


def read_items(config: EvaluationSetConfig, path: Path) -> Iterator[Item]:
    """Items of one file. An evaluation set that cannot be read stops the work: a gap in it would go unseen.

    Raises:
        DataError: unreadable file, a column that is missing, rows of an unknown shape without `columns`.
    """
    ignore = re.compile(config.ignore) if config.ignore else None
    for line, texts in _read(config, path):
        texts = [unicodedata.normalize("NFC", ignore.sub("", text) if ignore else text) for text in texts]
        yield Item(config.name, str(path), line, tuple(text for text in texts if text.strip()))


def _read(config: EvaluationSetConfig, path: Path) -> Iterator[tuple[int, list[str]]]:
    name = path.name.removesuffix(".gz")
    if path.name.endswith(ROW_SUFFIXES):
        for line, row in read_rows(path):
            yield line, _columns(row, config.columns, path, line) if config.columns else _record_texts(row, path, line)
    elif (suffix := Path(name).suffix) in DELIMITERS:
        rows = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=DELIMITERS[suffix])
        if not config.columns:
            raise DataError(path, f"columns of the evaluation set {config.name} must name what is its text, of {', '.join(rows.fieldnames or [])}")
        for number, row in enumerate(rows, 1):
            yield number, _columns(row, config.columns, path, number)
    else:
        for number, text in enumerate(read_text(path).splitlines(), 1):
            if text.strip():
                yield number, [text]


def _columns(row: Any, columns: list[str], path: Path, line: int) -> list[str]:
    if not isinstance(row, dict):
        raise DataError(path, f"columns are named, and the row is a {type(row).__name__}", line)
    for column in columns:
        if column not in row:
            names = [str(name) for name in row]
            nearest = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
            raise DataError(path, f"no column {column!r}; {f'did you mean {nearest[0]}?' if nearest else 'there are ' + ', '.join(names)}", line)
    return [text for column in columns for text in _strings(row[column])]


def _record_texts(row: Any, path: Path, line: int) -> list[str]:
    """Texts of a document, demonstration, ranking or prompt in any of the shapes that are read for training."""
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        return [row["text"]]
    for convert in (to_rankings, to_demonstrations, to_prompts):
        try:
            made = [record for record in convert(row) if not isinstance(record, Dropped)]
        except UnknownShape:
            continue
        return [text for record in made for part in ("prompt", "messages", "answers") for text in _contents(record.get(part))]
    raise DataError(path, f"{UnknownShape(row, 'record')}; name the columns that are its text", line)


def _contents(value: Any) -> list[str]:
    """Of messages, what they say; of answers, themselves."""
    return _strings([part.get("content") if isinstance(part, dict) else part for part in value or []])


def _strings(value: Any) -> list[str]:
    """All texts in a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for part in value for text in _strings(part)]
    return [value] if isinstance(value, str) else []
