"""Books: plain text, with the frame that Project Gutenberg puts around its books removed, and EPUB."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from megagpt.data.records import Document
from megagpt.prepare.document import Problem
from megagpt.prepare.readers.decode import decode
from megagpt.prepare.readers.epub import read_epub
from megagpt.prepare.readers.origin import Origin
from megagpt.prepare.readers.unpack import Damaged, read_whole

_ZIP = b"PK\x03\x04"
_START = re.compile(r"^\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG EBOOK.*?\*\*\*[^\n]*\n", re.MULTILINE | re.IGNORECASE | re.DOTALL)
_END = re.compile(
    r"^(?:\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG EBOOK|End of (?:the |this )?Project Gutenberg(?:'s|’s)? )", re.MULTILINE | re.IGNORECASE
)
_START_REACH = 20_000
"""The header is near the beginning: characters."""
_FIELD = re.compile(r"^(Title|Author|Language|Release date|Posting date): *(.+)$", re.MULTILINE | re.IGNORECASE)
_NUMBER = re.compile(r"\[e?(?:book|text) ?#(\d+)\]", re.IGNORECASE)
_AOZORA_NOTES = re.compile(r"^-{20,}\n【テキスト中に現れる記号について】\n.*?^-{20,}\n", re.MULTILINE | re.DOTALL)
_AOZORA_END = re.compile(r"^底本：", re.MULTILINE)
_AOZORA_MARKS = re.compile(r"《[^《》\n]*》|｜|［＃[^［］\n]*］")
"""Readings of characters, where what they belong to begins, and notes to the printer."""
PUBLIC_DOMAIN = "Public domain in the USA"
"""What the frame of a Project Gutenberg book says of it, but for the few with a copyright."""


def read(path: Path, origin: Origin) -> Iterator[Document | Problem]:
    """A file is one book and one document."""
    content = read_whole(path)
    if content.startswith(_ZIP):
        yield from read_epub(content, origin)
    elif path.suffix == ".epub":
        raise Damaged("not an EPUB file: it is no zip archive")
    else:
        yield _plain(decode(content), origin)


def _plain(text: str, origin: Origin) -> Document:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    start = _START.search(text[:_START_REACH])
    if start is None:
        if not text.strip():
            raise Damaged("no text")
        if _AOZORA_NOTES.search(text[:_START_REACH]):
            text = _without_aozora_marks(text)
        return origin.document(None, text.strip("\n"))
    head, body = text[: start.start()], text[start.end() :]
    if end := _END.search(body):
        body = body[: end.start()]
    known = {name.lower().replace(" ", "_"): value.strip() for name, value in _FIELD.findall(head)}
    date = re.sub(r"\s*\[.*", "", known.pop("release_date", known.pop("posting_date", "")))
    if not body.strip():
        raise Damaged("nothing between the header and the footer of Project Gutenberg")
    number = _NUMBER.search(head)
    return origin.document(
        None,
        body.strip("\n"),
        url=f"https://www.gutenberg.org/ebooks/{number[1]}" if number else "",
        licence="copyrighted" if re.search(r"copyrighted Project Gutenberg", head, re.IGNORECASE) else PUBLIC_DOMAIN,
        date=date,
        meta=known,
    )


def _without_aozora_marks(text: str) -> str:
    """A book of Aozora Bunko (https://www.aozora.gr.jp) without the explanation of its marks, the marks, and what it was copied from."""
    text = _AOZORA_NOTES.sub("", text, count=1)
    ends = [found.start() for found in _AOZORA_END.finditer(text)]
    return _AOZORA_MARKS.sub("", text[: ends[-1]] if ends else text)
