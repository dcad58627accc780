"""Files of documents that a configuration names: themselves, folders, patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from megagpt.data.errors import DataError, require_file
from megagpt.data.rows import ROW_SUFFIXES

SUFFIXES = (*ROW_SUFFIXES, ".txt", ".txt.gz")
"""What is taken from a folder; a file that is named may be called as it likes."""


def find_files(names: Iterable[str], roots: Sequence[Path] = (Path(),)) -> list[Path]:
    """The files behind names, in the order of the names, those of one name sorted.

    Args:
        names: each a file, a folder (every file below it of the kinds in SUFFIXES; what begins with a dot or an underscore is passed over) or a
            pattern (`news/**/*.parquet`), which finds what it finds in a shell.
        roots: where relative names begin; the first root that has one counts.

    Raises:
        DataError: a name that no file stands behind.
    """
    return [file for name in names for file in _files_of(name, roots)]


def _files_of(name: str, roots: Sequence[Path]) -> list[Path]:
    for path in (root / name for root in roots):
        if path.is_dir():
            return _below(path)
        if path.exists():
            require_file(path)
            return [path]
        if glob.has_magic(name) and (found := sorted(filter(Path.is_file, map(Path, glob.glob(str(path), recursive=True))))):
            return found
    if glob.has_magic(name):
        raise DataError(name, "no file matches this pattern")
    require_file(roots[0] / name)  # refuses it, with the nearest name that is there
    return []


def _below(folder: Path) -> list[Path]:
    found = []
    for place, folders, files in os.walk(folder):  # links to folders are not followed: they may go round in circles
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        found += [Path(place, name) for name in files if name.endswith(SUFFIXES) and not name.startswith((".", "_"))]
    if not found:
        raise DataError(folder, f"no documents in this folder; it may hold {', '.join(SUFFIXES)}")
    return sorted(found)
