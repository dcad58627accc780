"""What flows through the steps: datatrove's document, and what is known of it beside its text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datatrove.data import Document

from megagpt.data import records


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a file that gives no document; the run goes on behind it."""

    path: str
    position: str
    """Line, record or byte, with its unit: `line 7`, `record 3 (byte 1024)`; empty: the file as a whole."""
    reason: str
    """One line."""

    def __str__(self) -> str:
        return f"{self.path}{f', {self.position}' if self.position else ''}: {self.reason}"


def to_flow(document: records.Document) -> Document:
    """A record as the steps want it: `source`, `url`, `licence`, `date` and `meta` in its metadata; `scores` (name -> number) and `notes` (name ->
    anything that JSON has) are what steps find out."""
    known = {name: getattr(document, name) for name in ("source", "url", "licence", "date")}
    return Document(text=document.text, id=document.id, metadata={**known, "meta": dict(document.meta), "scores": {}, "notes": {}})


def from_flow(document: Document) -> records.Document:
    """Without what steps found out."""
    known: dict[str, Any] = {name: document.metadata[name] for name in ("source", "url", "licence", "date")}
    return records.Document(id=document.id, text=document.text, meta=document.metadata["meta"], **known)
