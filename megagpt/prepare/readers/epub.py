"""EPUB: a zip archive of XHTML chapters in the order of its spine (EPUB 3.3, https://www.w3.org/TR/epub-33).

Archives come from anywhere. Nothing is written to disk, nothing is fetched, entities are not resolved, and what an archive unpacks to is limited.
"""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from urllib.parse import unquote

from lxml import etree

from megagpt.data.records import Document
from megagpt.prepare.document import Problem
from megagpt.prepare.readers import licences
from megagpt.prepare.readers.html import MAX_MANUAL_BYTES, decode_page, parse_page, whole_text
from megagpt.prepare.readers.origin import Origin
from megagpt.prepare.readers.unpack import Damaged, size

MAX_BOOK_BYTES = 128 << 20
"""Of all parts that are read, unpacked."""
MAX_ENTRIES = 20_000
MAX_RATIO = 200
"""Deflate packs prose 3 times and markup 20 times; what unpacks to more was made to fill a disk."""
_RATIO_FROM = 1 << 20
_CHAPTERS = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml")
_OPF = "{http://www.idpf.org/2007/opf}"
_DC = "{http://purl.org/dc/elements/1.1/}"
_ENCRYPTION = "META-INF/encryption.xml"
_FONTS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
"""Ways to disguise fonts; any other encryption is of what would be read."""


def read_epub(content: bytes, origin: Origin) -> Iterator[Document | Problem]:
    """One document of all chapters; a problem for each chapter that cannot be read."""
    book = _Archive(content)
    package_name = _package_name(book)
    _refuse_encrypted(book)
    package = _parse_xml(book.read(package_name), package_name)
    folder = posixpath.dirname(package_name)
    chapters, problems = [], []
    for number, name in enumerate(_spine(package, folder), 1):
        try:
            chapters.append(whole_text(parse_page(decode_page(book.read(name), limit=MAX_MANUAL_BYTES))))
        except (Damaged, etree.LxmlError, RecursionError) as error:
            problems.append(origin.problem(f"chapter {number} ({name})", error))
    yield from problems
    text = "\n\n".join(chapter for chapter in chapters if chapter.strip())
    if not text:
        raise Damaged("an EPUB without text")
    yield _document(package, text, origin)


class _Archive:
    """Parts of a zip archive by their names, in memory."""

    def __init__(self, content: bytes):
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(content))
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise Damaged(f"damaged zip archive ({error})") from error
        entries = self._zip.infolist()
        if len(entries) > MAX_ENTRIES:
            raise Damaged(f"an archive of {len(entries)} parts, more than {MAX_ENTRIES}")
        for entry in entries:
            if unsafe := _unsafe(entry):
                raise Damaged(f"unsafe archive: {unsafe}")
        self._entries = {entry.filename: entry for entry in entries}
        self._left = MAX_BOOK_BYTES

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def read(self, name: str) -> bytes:
        if name not in self._entries:
            raise Damaged(f"the archive has no part {name}")
        entry = self._entries[name]
        if entry.flag_bits & 1:
            raise Damaged(f"{name} has a password")
        try:
            with self._zip.open(entry) as part:
                content = part.read(self._left + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
            raise Damaged(f"damaged part {name} ({error})") from error
        self._left -= len(content)
        if self._left < 0:
            raise Damaged(f"more than {size(MAX_BOOK_BYTES)} in one book")
        return content


def _unsafe(entry: zipfile.ZipInfo) -> str:
    """What makes a part one that no book has: it would be written outside its folder, is a link, or unpacks to far more than it is."""
    name = entry.orig_filename.replace("\\", "/")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        return f"a part with the name {name!r}"
    if (entry.external_attr >> 16) & 0o170000 == 0o120000:
        return f"{name!r} is a link"
    if entry.file_size > max(_RATIO_FROM, MAX_RATIO * entry.compress_size):
        return f"{name!r} unpacks from {entry.compress_size} bytes to {entry.file_size}"
    return ""


def _package_name(book: _Archive) -> str:
    container = _parse_xml(book.read("META-INF/container.xml"), "META-INF/container.xml")
    for rootfile in container.iter("{*}rootfile"):
        if path := rootfile.get("full-path"):
            return path
    raise Damaged("META-INF/container.xml names no package")


def _refuse_encrypted(book: _Archive) -> None:
    if _ENCRYPTION not in book:
        return
    encryption = _parse_xml(book.read(_ENCRYPTION), _ENCRYPTION)
    if any(method.get("Algorithm") not in _FONTS for method in encryption.iter("{*}EncryptionMethod")):
        raise Damaged("encrypted (DRM)")


def _spine(package: etree._Element, folder: str) -> Iterator[str]:
    """Names of the chapters in the order they are read in."""
    items = {item.get("id"): item for item in package.iter(f"{_OPF}item")}
    for reference in package.iter(f"{_OPF}itemref"):
        item = items.get(reference.get("idref"))
        if item is None or item.get("media-type") not in _CHAPTERS or "nav" in (item.get("properties") or "").split():
            continue
        yield posixpath.normpath(posixpath.join(folder, unquote(item.get("href") or "")))


def _document(package: etree._Element, text: str, origin: Origin) -> Document:
    def known(name: str) -> str:
        return " ".join((package.findtext(f".//{_DC}{name}") or "").split())

    rights = known("rights")
    meta = {name: value for name, value in (("title", known("title")), ("author", known("creator")), ("language", known("language"))) if value}
    return origin.document(None, text, licence=licences.from_url(rights) or rights, date=known("date"), meta=meta)


def _parse_xml(content: bytes, name: str) -> etree._Element:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        return etree.fromstring(content, parser)
    except etree.XMLSyntaxError as error:
        raise Damaged(f"{name} is no XML ({error})") from error
