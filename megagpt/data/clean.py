"""Steps that documents pass through, as blocks of a datatrove pipeline.

A filter answers with the reason when it drops a document; datatrove counts reasons as `dropped_<reason>`.
"""

from __future__ import annotations

import hashlib

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.formatters.base import BaseFormatter

from megagpt.data.repair import repair_text
from megagpt.data.split import share


class RepairText(BaseFormatter):
    name = "repair text"

    def format(self, text: str) -> str:
        return repair_text(text)


class DropShort(BaseFilter):
    """Drops documents of fewer than `min_characters` characters, spaces at the ends not counted."""

    name = "drop short"

    def __init__(self, min_characters: int):
        super().__init__()
        self.min_characters = min_characters

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        return len(doc.text.strip()) >= self.min_characters or (False, "too_short")


class DropRepeated(BaseFilter):
    """Drops all but the first of documents that are equal but for case and spacing. Holds 16 bytes a document."""

    name = "drop repeated"

    def __init__(self):
        super().__init__()
        self._seen: set[bytes] = set()

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        normal = " ".join(doc.text.casefold().split())
        digest = hashlib.sha256(normal.encode()).digest()[:16]
        if digest in self._seen:
            return False, "repeated"
        self._seen.add(digest)
        return True


class HoldOut(PipelineStep):
    """Marks documents by a hash of their id: `metadata["split"]` is `train` or `valid`.

    About `valid_fraction` of them are `valid`, and always the one with the smallest hash, so that a small corpus has a
    validation set too; this document is passed on last.
    """

    type = "split"
    name = "hold out"

    def __init__(self, valid_fraction: float):
        super().__init__()
        self.valid_fraction = valid_fraction

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        smallest: Document | None = None
        smallest_share = 1.0
        for document in data:
            number = share(document.id)
            document.metadata["split"] = "valid" if number < self.valid_fraction else "train"
            if number < smallest_share:
                document, smallest, smallest_share = smallest, document, number
            if document is not None:
                yield document
        if smallest is not None:
            smallest.metadata["split"] = "valid"
            yield smallest
