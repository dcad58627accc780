"""The one exception for data that cannot be used."""

from __future__ import annotations

import difflib
from pathlib import Path

from megagpt.runtime.errors import Foreseen


class DataError(Foreseen, ValueError):
    """Unusable data. The message is one line: file, line (or row) where known, and the rule that is broken."""

    def __init__(self, path: str | Path, rule: str, line: int | None = None):
        super().__init__(f"{path}: {rule}" if line is None else f"{path}:{line}: {rule}")
        self._made_of = path, rule, line

    def __reduce__(self):
        return DataError, self._made_of  # between processes: the message alone would not make one


def require_file(path: Path) -> None:
    """Refuse a path that is no file, with the nearest name that exists beside it; refuse an empty file.

    Raises:
        DataError: missing, a folder, or of size 0.
    """
    if path.is_dir():
        raise DataError(path, "is a folder, expected a file")
    if not path.exists():
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        nearest = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.5)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        where = "" if path.parent.is_dir() else f" (there is no folder {path.parent})"
        raise DataError(path, f"no such file{where}{hint}")
    if path.stat().st_size == 0:
        raise DataError(path, "the file is empty")
