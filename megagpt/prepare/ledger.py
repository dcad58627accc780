"""The ledger: for each document that was seen, whether it was kept, by which rule not, and with which scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document

from megagpt.config.prepare import PrepareConfig
from megagpt.prepare.tables import LEDGER, Table, read_table, to_json
from megagpt.prepare.token_count import token_counter

EXCERPT_CHARACTERS = 400
"""Of each document's text, for the report's samples."""
LONGEST_SPAN = 320
"""Of personal data: an e-mail address (RFC 5321)."""


class Ledger(Table):
    """Rows of one task, in the order in which its documents were seen.

    Where personal data is looked for, excerpts hold placeholders too: a ledger is read by more people than a corpus is.
    """

    def __init__(self, path: Path, task: int, config: PrepareConfig) -> None:
        super().__init__(path, LEDGER)
        self._task, self._excerpt, self._num_tokens = task, _excerpts(config), token_counter(config.tokenizer)
        self.num_rows = 0

    def add(self, document: Document, dropped: tuple[str, str] | None, characters_before: int, tokens_before: int | None, **facts: Any) -> None:
        """The next document.

        Args:
            dropped: (step, reason).
            characters_before, tokens_before: as it was read.
            facts: further columns: split, cluster, kept_instead.
        """
        known = document.metadata
        step, reason = dropped or (None, None)
        super().add({
            "id": document.id, "source": known["source"], "url": known["url"], "task": self._task, "row": self.num_rows, "kept": dropped is None,
            "step": step, "reason": reason, "scores": sorted(known["scores"].items()), "notes": to_json(known["notes"]), "weight": known["weight"],
            "characters_before": characters_before, "characters_after": 0 if dropped else len(document.text),
            "tokens_before": tokens_before, "tokens_after": 0 if dropped else self._num_tokens(document.text),
            "excerpt": self._excerpt(document.text), **facts,
        })  # fmt: skip
        self.num_rows += 1

    def copy(self, row: dict[str, Any]) -> None:
        """A row of an earlier phase, as it was."""
        super().add(row)
        self.num_rows += 1


def read_ledger(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a task in order."""
    return read_table(path)


def _excerpts(config: PrepareConfig) -> Callable[[str], str]:
    """Text -> its beginning, without personal data where it is looked for: what the cut would part is found as a whole."""
    settings = config.steps.personal_data
    if settings is None:
        return lambda text: text[:EXCERPT_CHARACTERS]
    from megagpt.prepare.personal_data.find import find
    from megagpt.prepare.steps.personal_data import redact

    def excerpt(text: str) -> str:
        begin = text[: EXCERPT_CHARACTERS + LONGEST_SPAN]
        spans = [span for span in find(begin, settings) if span.start < EXCERPT_CHARACTERS]
        return redact(begin[: max([EXCERPT_CHARACTERS, *(span.end for span in spans)])], spans)

    return excerpt
