"""Documents, paragraphs and lines as duplicates see them."""

from __future__ import annotations

from collections.abc import Container, Iterator

import xxhash


def normal(text: str) -> str:
    """Without the differences that do not count: case, and spacing of any kind and length."""
    return " ".join(text.casefold().split())


def halves(text: str) -> tuple[int, int]:
    """128-bit hash of a text as two unsigned 64-bit numbers."""
    number = xxhash.xxh3_128_intdigest(text.encode())
    return number >> 64, number & (1 << 64) - 1


def paragraphs(lines: list[str]) -> Iterator[tuple[int, int]]:
    """First line and the one behind the last of each run of lines that are not blank."""
    start = None
    for number, line in enumerate(lines):
        blank = not line or line.isspace()
        if start is None and not blank:
            start = number
        elif start is not None and blank:
            yield start, number
            start = None
    if start is not None:
        yield start, len(lines)


def passages(kind: str, lines: list[str]) -> Iterator[str]:
    """The `paragraphs` or the `lines` of a text in order, a paragraph with its lines joined by spaces."""
    return iter(lines) if kind == "lines" else (" ".join(lines[start:end]) for start, end in paragraphs(lines))


def without(text: str, cut_paragraphs: Container[int], cut_lines: Container[int]) -> str:
    """The text without the paragraphs and lines of these numbers, and without the blank lines that would meet where one is gone."""
    lines = text.split("\n")
    gone = {line for number, (start, end) in enumerate(paragraphs(lines)) if number in cut_paragraphs for line in range(start, end)}
    kept: list[str] = []
    after_cut = False
    for number, line in enumerate(lines):
        if number in gone or number in cut_lines:
            after_cut = True
        elif after_cut and not line.strip() and not (kept and kept[-1].strip()):
            continue
        else:
            kept.append(line)
            after_cut = False
    if after_cut:
        while kept and not kept[-1].strip():
            kept.pop()
    return "\n".join(kept)
