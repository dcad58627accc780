"""Where personal data stands in a text: places and kinds, never the words themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from megagpt.config.prepare import PersonalDataKind

CERTAINTY: tuple[PersonalDataKind, ...] = ("EMAIL", "IBAN", "CARD", "IP", "SSN", "PHONE", "ADDRESS", "NAME")
"""What wins where two kinds claim the same characters: an unmistakable mark or a checksum before a form, a form before a guess."""


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """`text[start:end]` is personal data of this kind."""

    start: int
    end: int
    kind: PersonalDataKind


def without_overlaps(spans: Iterable[Span], length: int) -> list[Span]:
    """The most certain kind wins, then the longer span, then the earlier one; in order of the text.

    Args:
        spans: in any order.
        length: of the text; time and memory are linear in it.
    """
    ranked = sorted(spans, key=lambda span: (CERTAINTY.index(span.kind), span.start - span.end, span.start))
    if not ranked:
        return []
    taken, kept = bytearray(length), []
    for span in ranked:
        if taken.find(1, span.start, span.end) < 0:
            taken[span.start : span.end] = b"\1" * (span.end - span.start)
            kept.append(span)
    return sorted(kept)
