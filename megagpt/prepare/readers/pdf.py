"""Text of PDF files, with pypdf."""

from __future__ import annotations

import io
import logging
import re
from collections import Counter
from collections.abc import Iterator

from pypdf import PdfReader
from pypdf.errors import PyPdfError

from megagpt.data.records import Document
from megagpt.prepare.document import Problem
from megagpt.prepare.readers.origin import Origin, reason
from megagpt.prepare.readers.unpack import Damaged

logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what it repairs silently

MAX_PAGES = 5000
MAX_PAGE_CHARACTERS = 1 << 20
_EDGE_LINES = 3
"""So many lines at the top and at the bottom of a page may be its header and footer."""
_HYPHEN = re.compile(r"(?<!\w)(\w++)[-‐\xad]\n(\w+)")
_HYPHENATED = re.compile(r"(?<!\w)(?=(\w++-\w+))")
"""Of `state-of-the-art` each two neighbours."""
_DATE = re.compile(r"D:(\d{4})(\d\d)?(\d\d)?")


def read_pdf(content: bytes, origin: Origin) -> Iterator[Document | Problem]:
    """One document of all pages that can be read, without headers and footers that are repeated on pages, words joined that were parted at line ends.

    A problem for each page that cannot be read.
    """
    try:
        reader = PdfReader(io.BytesIO(content), strict=False)
        if reader.is_encrypted:
            raise Damaged("encrypted")
        count = len(reader.pages)
    except PyPdfError as error:
        raise Damaged(f"damaged PDF ({reason(str(error))})") from error
    if count > MAX_PAGES:
        raise Damaged(f"{count} pages, more than {MAX_PAGES}")
    pages = []
    for number in range(count):
        try:
            text = reader.pages[number].extract_text()
            if len(text) > MAX_PAGE_CHARACTERS:
                raise Damaged(f"more than {MAX_PAGE_CHARACTERS} characters on a page")
            pages.append(text)
        except Exception as error:  # pypdf meets damage with whatever its code runs into
            yield origin.problem(f"page {number + 1}", error)
    text = to_flowing_text(pages)
    if not text:
        raise Damaged("no text on its pages (scanned?)")
    yield origin.document(None, text, date=_date(reader), meta=_known(reader))


def to_flowing_text(pages: list[str]) -> str:
    """Text of pages as one: without repeated headers and footers, parted words joined, lines that go on in lower case joined to the one before."""
    text = "\n".join("\n".join(lines) for lines in _without_edges([page.splitlines() for page in pages]))
    hyphenated = set(_HYPHENATED.findall(text))
    text = _HYPHEN.sub(lambda found: _joined(found, hyphenated), text)
    text = re.sub(r"(?<=[^\s.:;!?])[ \t]*\n(?=[a-zà-öø-ÿ(])", " ", text)
    lines = (re.sub(r"[ \t\xa0]+", " ", line).strip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _joined(found: re.Match[str], hyphenated: set[str]) -> str:
    """`exam-` + `ple` is example; `well-` + `known` stays well-known where the text has that elsewhere, and so do numbers and names."""
    first, second = found[1], found[2]
    keep = not second[0].islower() or first[-1].isdigit() or f"{first}-{second}" in hyphenated
    return f"{first}-{second}" if keep else first + second


def _without_edges(pages: list[list[str]]) -> list[list[str]]:
    """Without the lines at the edges of pages (of three or more) that are repeated: on half of the pages, or on three with a number that may be the
    page's, and without numbers alone."""
    if len(pages) < 3:
        return pages
    edges = [_edge_places(page) for page in pages]
    counts = Counter(mask for page, places in zip(pages, edges, strict=True) for mask in {_mask(page[i]) for i in places})
    repeated = {mask for mask, count in counts.items() if count >= 3 and (count * 2 >= len(pages) or "#" in mask)}
    return [
        [line for i, line in enumerate(page) if i not in places or _mask(line) not in repeated] for page, places in zip(pages, edges, strict=True)
    ]


def _edge_places(page: list[str]) -> set[int]:
    full = [i for i, line in enumerate(page) if line.strip()]
    return {*full[:_EDGE_LINES], *full[-_EDGE_LINES:]}


def _mask(line: str) -> str:
    return re.sub(r"\d+|\b[ivxlc]+\b", "#", " ".join(line.split()))


def _known(reader: PdfReader) -> dict[str, str]:
    try:
        found = {"title": reader.metadata.title, "author": reader.metadata.author} if reader.metadata else {}
    except Exception:  # damage in what is only said about it
        return {}
    return {name: str(value).strip() for name, value in found.items() if value and str(value).strip()}


def _date(reader: PdfReader) -> str:
    try:
        raw = str((reader.metadata or {}).get("/CreationDate") or "")
    except Exception:
        return ""
    found = _DATE.match(raw)
    return "-".join(part for part in found.groups() if part) if found else ""
