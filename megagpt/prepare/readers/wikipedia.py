"""Dumps of MediaWiki (`<wiki>-<date>-pages-articles.xml.bz2`): articles in plain text."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from urllib.parse import quote

from lxml import etree

from megagpt.data.records import Document
from megagpt.prepare.document import Problem
from megagpt.prepare.readers.origin import Origin
from megagpt.prepare.readers.unpack import ByteStream, Damaged, open_unpacked, size
from megagpt.prepare.readers.wikitext import to_text

MAX_PAGE_CHARACTERS = 32 << 20
"""MediaWiki allows 2 MiB a revision; dumps of whole histories have many in a page."""
MAX_HEAD_CHARACTERS = 1 << 16
LICENCE = "CC-BY-SA-4.0"
"""Of Wikipedias since June 2023; it was 3.0 before, which allows the use under later versions."""
_BLOCK = 1 << 20
_OPEN, _CLOSE = "<page>", "</page>"
_ENCODING = re.compile(rb"""^<\?xml[^>]{0,100}encoding=["']([A-Za-z0-9._-]+)["']""")
_BROKEN = re.compile("[\udc80-\udcff]")
_FILE, _CATEGORY = 6, 14


@dataclass(frozen=True, slots=True)
class Page:
    id: str
    title: str
    namespace: int
    redirect: bool
    date: str
    """Of its last revision, ISO 8601."""
    markup: str


@dataclass(slots=True)
class Site:
    base: str = ""
    """Address of its articles, up to the title."""
    language: str = ""
    hidden: set[str] = field(default_factory=lambda: {"file", "image", "media", "category"})
    """Names of the namespaces whose links are no text of the article (lower case): files and categories, in English and in the site's language."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A page that cannot be read."""

    number: int
    reason: str


def read(path: Path, origin: Origin) -> Iterator[Document | Problem]:
    """Articles (`#<page id>`): pages of the main namespace that are no redirects. Others are passed over."""
    with open_unpacked(path) as stream:
        site = Site()
        for number, page in enumerate(find_pages(stream, site), 1):
            if isinstance(page, Lost):
                yield origin.problem(f"page {page.number}", page.reason)
            elif page.namespace == 0 and not page.redirect:
                made = origin.attempt(f"page {number} ({page.title})", lambda: _document(page, site, origin))
                if made is not None:
                    yield made


def find_pages(stream: ByteStream, site: Site) -> Iterator[Page | Lost]:
    """Pages in their order, of every namespace; `site` is filled before the first one. Memory holds one page, and damage costs the pages it lies in.

    Pages are cut out by their tags, which the text inside cannot contain: there `<` is `&lt;`.
    """
    number = 0
    for part in _parts(stream):
        if isinstance(part, Lost):
            number += 1
            yield Lost(number, part.reason)
        elif number == 0 and not part.startswith(_OPEN):
            _describe(part, site)
        else:
            number += 1
            try:
                yield _parse(part)
            except (Damaged, etree.XMLSyntaxError) as error:
                yield Lost(number, str(error))
    if not number:
        yield Lost(1, "no <page>: not a dump of MediaWiki")


def _parts(stream: ByteStream) -> Iterator[str | Lost]:
    """What stands before the first page, and each page from `<page>` to `</page>`."""
    text, begun, searched = "", False, 0
    for block in _blocks(stream):
        if isinstance(block, Lost):
            yield block
            text, searched = "", 0
            continue
        text += block
        while True:
            if not begun and (first := text.find(_OPEN)) >= 0:
                yield text[:first]
                text, begun = text[first:], True
            end = text.find(_CLOSE, searched)
            if end < 0:
                break
            start = text.rfind(_OPEN, 0, end)
            if text.find(_OPEN, 0, end) != start:
                yield Lost(0, "a page that does not end")
            if start >= 0:
                yield text[start : end + len(_CLOSE)]
            text, searched = text[end + len(_CLOSE) :], 0
        searched = max(0, len(text) - len(_CLOSE))
        if len(text) > MAX_PAGE_CHARACTERS:
            if begun:
                yield Lost(0, f"more than {size(MAX_PAGE_CHARACTERS)} without the end of a page")
            text, searched = text[-len(_OPEN) :], 0
    if _OPEN in text:
        yield Lost(0, "the file ends inside a page")


def _blocks(stream: ByteStream) -> Iterator[str | Lost]:
    decoder = None
    while True:
        try:
            block = stream.read(_BLOCK)
        except Damaged as error:
            yield Lost(0, str(error))
            if not stream.skip_damage():
                return
            continue
        if not block:
            return
        decoder = decoder or _decoder(block)
        yield decoder.decode(block)


def _decoder(start: bytes) -> codecs.IncrementalDecoder:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return codecs.getincrementaldecoder("utf-16")("replace")
    declared = _ENCODING.match(start)
    name = declared[1].decode("ascii").lower() if declared else "utf-8"
    return codecs.getincrementaldecoder("utf-8-sig" if name in ("utf-8", "utf8") else name)("surrogateescape")


def _parse(text: str) -> Page:
    if _BROKEN.search(text):
        raise Damaged("bytes that are not in the dump's encoding")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=True)  # sizes are limited above
    page = etree.fromstring(text, parser)
    revisions = page.findall("revision")
    if not revisions:
        raise Damaged("a page without a revision")
    namespace = (page.findtext("ns") or "0").strip()
    return Page(
        id=(page.findtext("id") or "").strip() or (page.findtext("title") or ""),
        title=page.findtext("title") or "",
        namespace=int(namespace) if re.fullmatch(r"-?\d+", namespace) else 0,
        redirect=page.find("redirect") is not None,
        date=revisions[-1].findtext("timestamp") or "",
        markup=revisions[-1].findtext("text") or "",
    )


def _describe(head: str, site: Site) -> None:
    """From what stands before the first page, a few thousand characters."""
    head = head[:MAX_HEAD_CHARACTERS]
    if base := re.search(r"<base>([^<]*/)[^/<]*</base>", head):
        site.base = unescape(base[1])
    if language := re.search(r"""<mediawiki[^>]*xml:lang=["']([\w-]+)""", head):
        site.language = language[1]
    for key, name in re.findall(r"""<namespace key=["'](-?\d+)["'][^>/]*>([^<]*)<""", head):
        if int(key) in (_FILE, _CATEGORY):
            site.hidden.add(unescape(name).lower())


def _document(page: Page, site: Site, origin: Origin) -> Document:
    text = to_text(page.markup, site.hidden)
    meta = {"title": page.title} | ({"language": site.language} if site.language else {})
    if not text:
        meta["drop"] = "no_main_text"
    url = site.base + quote(page.title.replace(" ", "_"), safe="/:(),'!*@$&;=+-._~") if site.base else ""
    return origin.document(page.id, text, url=url, licence=origin.source.licence or LICENCE, date=page.date, meta=meta)
