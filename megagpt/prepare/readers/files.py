"""Which files a source has."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from megagpt.config.prepare import SourceConfig
from megagpt.data.errors import DataError

_SIGNS = "*?["


def find_files(source: SourceConfig) -> list[Path]:
    """Files of a source in order of their names, each once (by its real path; of several names the first stays).

    A folder gives all files below it, a pattern those whose names fit (`**` is any number of folders). Both leave out hidden files and folders
    (`.git`), and follow no links: a link leads out of the folder, round in a circle, or to what is found without it. A file that is named itself may
    be a link.

    Raises:
        DataError: an entry matches no file, or a folder that may not be read.
    """
    found: dict[str, Path] = {}
    for entry in source.files:
        paths = sorted(_match(entry))
        if not paths:
            raise DataError(entry, f"source {source.name}: {_nothing(entry)}")
        for path in paths:
            real = os.path.realpath(path)
            found[real] = min(path, found.get(real, path))
    return sorted(found.values())


def _match(entry: str) -> Iterator[Path]:
    path = Path(entry)
    if path.is_dir():
        yield from _below(path)
    elif path.is_file():
        yield path
    elif _is_pattern(entry):
        folder = _fixed_part(path)
        signs = path.parts[len(folder.parts) :]
        yield from (found for found in _below(folder) if _fits(found.parts[len(folder.parts) :], signs))


def _below(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:  # to pass over what may not be read would leave out a part of the corpus
        raise DataError(folder, f"cannot be listed ({error.strerror})") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _below(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield Path(entry.path)


def _fits(names: tuple[str, ...], signs: tuple[str, ...]) -> bool:
    if not signs:
        return not names
    if signs[0] == "**":
        return any(_fits(names[i:], signs[1:]) for i in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], signs[0]) and _fits(names[1:], signs[1:])


def _fixed_part(pattern: Path) -> Path:
    """The folder that a pattern starts from: `crawl/**/*.gz` gives crawl."""
    return Path(*pattern.parts[: next(i for i, part in enumerate(pattern.parts) if _is_pattern(part))])


def _is_pattern(text: str) -> bool:
    return any(sign in text for sign in _SIGNS)


def _nothing(entry: str) -> str:
    path = Path(entry)
    if path.is_dir():
        return "a folder without files (hidden ones and links are left out)"
    if path.exists():
        return "neither a file nor a folder"
    if _is_pattern(entry):
        return "a pattern that matches no file (hidden ones and links are left out)"
    if not path.parent.is_dir():
        return f"no such file or folder (there is no folder {path.parent})"
    nearest = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1, cutoff=0.5)
    return f"no such file or folder{f'; did you mean {nearest[0]}?' if nearest else ''}"
