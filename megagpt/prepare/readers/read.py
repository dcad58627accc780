"""Files of any kind to documents. Nothing that a file holds ends the run."""

from __future__ import annotations

import importlib
import stat
from collections.abc import Iterator
from pathlib import Path

from megagpt.config.prepare import SourceConfig
from megagpt.data.records import Document
from megagpt.prepare.document import Problem
from megagpt.prepare.readers.origin import Origin


def read_file(path: Path, source: SourceConfig, name: str) -> Iterator[Document | Problem]:
    """Documents of a file, in its order, and a problem for each part of it that gives none.

    A document that is known to be of no use (a generated file, a page without a text of its own) has `meta["drop"]`, the reason's code.

    Args:
        path: where the file is.
        source: what it belongs to.
        name: what it is called in ids and problems, the same on every machine: ids are `<source>/<name>#<position>`.
    """
    origin = Origin(source, name)
    try:
        if not stat.S_ISREG((status := path.stat()).st_mode):
            yield origin.problem("", "not a regular file")
            return
        if status.st_size == 0:
            yield origin.problem("", "the file is empty")
            return
        reader = importlib.import_module(f"megagpt.prepare.readers.{source.kind}")  # its libraries are loaded where they are used only
        yield from reader.read(path, origin)
    except Exception as error:  # a parser's own crash among them, RecursionError and MemoryError too
        yield origin.problem("", error)
