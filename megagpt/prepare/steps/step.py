"""The one shape of all steps."""

from __future__ import annotations

from typing import Protocol

from datatrove.data import Document


class Step(Protocol):
    """A rule for one document. Made once in each task; keeps nothing from one document to the next, since tasks may be cut anywhere.

    `name` is that of its settings in `StepsConfig`.
    """

    name: str

    def __call__(self, document: Document) -> str | None:
        """Keep the document (None) or drop it: the reason's code, lower case with underscores, which the ledger shows.

        May change `document.text`, put numbers into `document.metadata["scores"]` and anything that JSON has into `document.metadata["notes"]`.
        """
