"""What readers make their documents and problems with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megagpt.config.prepare import SourceConfig
from megagpt.data.records import Document
from megagpt.data.repair import repair_row, repair_surrogates
from megagpt.prepare.document import Problem
from megagpt.prepare.readers.unpack import Damaged

_MAX_REASON = 300


@dataclass(frozen=True, slots=True)
class Origin:
    """A file of a source."""

    source: SourceConfig
    name: str
    """The same on every machine."""

    def document(
        self, position: object, text: str, *, url: str = "", licence: str = "", date: str = "", meta: dict[str, Any] | None = None
    ) -> Document:
        """`position` None: the file is one document."""
        return Document(
            id=repair_surrogates(f"{self.source.name}/{self.name}" + ("" if position is None else f"#{position}")),
            text=repair_surrogates(text),
            source=self.source.name,
            url=repair_surrogates(url or self.name),
            licence=repair_surrogates(licence or self.source.licence),
            date=repair_surrogates(date),
            meta=repair_row(meta or {}),
        )

    def problem(self, position: str, error: object) -> Problem:
        return Problem(repair_surrogates(self.name), reason(position), reason(error))

    def attempt(self, position: str, make: Callable[[], Document | None]) -> Document | Problem | None:
        """What `make` gives, or why it gives nothing: one document that breaks a library costs that document only."""
        try:
            return make()
        except Exception as error:
            return self.problem(position, error)


def reason(error: object) -> str:
    """An exception as one line."""
    match error:
        case RecursionError():
            text = "nested too deeply"
        case MemoryError():
            text = "takes more memory than there is"
        case Damaged() | str():
            text = str(error)
        case _:
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    line = repair_surrogates(" ".join(text.split()))
    return line if len(line) <= _MAX_REASON else line[: _MAX_REASON - 1] + "…"
