"""What flows through the steps: datatrove's document, and what is known of it beside its text."""

from __future__ import annotations

from dataclasses import dataclass

from datatrove.data import Document

from megagpt.config.prepare import SourceConfig
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


def to_flow(document: records.Document, source: SourceConfig) -> Document:
    """A record as the steps want it. Its metadata holds `source`, `kind`, `url`, `licence`, `date`, `meta`, `language` where the source names it, and
    `drop`, the reason, where its reader calls it useless (`meta["drop"]`; the column of that name in a data set's rows is theirs);
    what steps find out goes into `scores` (name -> number), `notes` (name -> anything that JSON has) and `weight` (how often it should be seen, 1.0 at
    first; steps multiply)."""
    kind = source.judged_as or source.kind
    known = {"source": source.name, "kind": kind, "url": document.url, "licence": document.licence or source.licence, "date": document.date}
    if source.language is not None:
        known["language"] = source.language
    meta = dict(document.meta)
    if source.kind != "rows" and (drop := meta.pop("drop", None)) is not None:
        known["drop"] = drop
    return Document(text=document.text, id=document.id, metadata={**known, "meta": meta, "scores": {}, "notes": {}, "weight": 1.0})
