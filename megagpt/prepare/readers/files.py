"""Which files a source has."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from megagpt.config.prepare import SourceConfig
from megagpt.data.errors import DataError

_PATTERN = "*?["


def find_files(source: SourceConfig) -> list[Path]:
    """Files of a source in order of their names, each once, whatever its names (compared by real path; the first name stays).

    Of folders and patterns, hidden files and folders (`.git`) are left out, and so are links that lead out of the folder, to nothing, or round in a
    circle: a folder gives the files that lie in it, wherever the run is started. A file that is named itself may be a link to anywhere.

    Raises:
        DataError: an entry matches no file.
    """
    found: dict[str, Path] = {}
    for entry in source.files:
        paths = sorted(_match(entry))
        if not paths:
            raise DataError(entry, f"source {source.name}: {_nothing(entry)}")
        for path in paths:
            found.setdefault(os.path.realpath(path), path)
    return sorted(found.values())


def _match(entry: str) -> Iterator[Path]:
    path = Path(entry)
    if path.is_dir():
        yield from _below(path, os.path.realpath(path), frozenset())
    elif path.exists():
        yield path
    elif any(sign in entry for sign in _PATTERN):
        folder = os.path.realpath(_fixed_part(entry))
        for name in glob.iglob(entry, recursive=True):  # `*` and `**` pass over hidden names
            if os.path.isfile(name) and _inside(name, folder):
                yield Path(name)


def _below(folder: Path, root: str, parents: frozenset[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in parents:  # a link to a folder that holds it
        return
    for entry in os.scandir(folder):
        if entry.name.startswith(".") or not _inside(entry.path, root):
            continue
        if os.path.isdir(entry.path):
            yield from _below(Path(entry.path), root, parents | {real})
        elif os.path.isfile(entry.path):  # neither a socket nor a link to nothing
            yield Path(entry.path)


def _inside(path: str, root: str) -> bool:
    return os.path.realpath(path).startswith(root.rstrip(os.sep) + os.sep)


def _fixed_part(pattern: str) -> Path:
    """The folder that a pattern starts from: `crawl/**/*.gz` gives crawl."""
    parts = Path(pattern).parts
    return Path(*parts[: next(i for i, part in enumerate(parts) if any(sign in part for sign in _PATTERN))])


def _nothing(entry: str) -> str:
    path = Path(entry)
    if path.is_dir():
        return "a folder without files"
    if any(sign in entry for sign in _PATTERN):
        return "a pattern that matches no file"
    parent = path.parent
    if not parent.is_dir():
        return f"no such file or folder (there is no folder {parent})"
    nearest = difflib.get_close_matches(path.name, os.listdir(parent), n=1, cutoff=0.5)
    return f"no such file or folder{f'; did you mean {nearest[0]}?' if nearest else ''}"
