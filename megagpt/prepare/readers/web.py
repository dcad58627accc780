"""Crawls: WARC and ARC files, and the WET files that hold their text.

Records are found here and parsed by warcio: its own iterator stops at the first damage, prints what it finds, and gives half a payload as if it were
whole where a gzip member is cut.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from warcio.bufferedreaders import ChunkedDataReader
from warcio.recordloader import ArcWarcRecord, ArcWarcRecordLoader

from megagpt.data.records import Document
from megagpt.prepare.document import Problem
from megagpt.prepare.readers.decode import is_binary
from megagpt.prepare.readers.html import MAX_PAGE_BYTES, decode_page, main_text, page_licence, page_title, parse_page
from megagpt.prepare.readers.origin import Origin, reason
from megagpt.prepare.readers.unpack import ByteStream, Damaged, open_unpacked, size, unpack

logging.getLogger("warcio").setLevel(logging.ERROR)  # it warns of spaces in addresses

MAX_RECORD_BYTES = 32 << 20
"""A longer record is passed over; crawls hold films."""
_MAX_HEADER_LINE = 1 << 16
_MAX_HEADER_BYTES = 1 << 20
_ARC_RECORD = re.compile(rb"(filedesc|https?|dns|ftp):\S.* [0-9A-Za-z.:]+ \d{8,20} \S+ -?\w+\s*$")
"""The line that begins a record of an ARC file: address, IP address, date, type, length."""
_BEGINNING = re.compile(rb"\n(?=WARC/[01]\.\d+\r?\n)")
_HTML_TYPES = ("text/html", "application/xhtml+xml")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([A-Za-z0-9_.:-]+)", re.IGNORECASE)
_PAGE_RECORDS = ("response", "resource", "conversion")
_PAGE_SCHEMES = ("http://", "https://", "ftp://")


@dataclass(frozen=True, slots=True)
class Damage:
    """A place where records are lost."""

    byte: int
    """Of the unpacked file."""
    reason: str


def read(path: Path, origin: Origin) -> Iterator[Document | Problem]:
    """Pages of successful responses (`#<number of the record>`), with address and date of their capture.

    Requests, revisits and whatever is no page are passed over. A page without a main text has `meta["drop"] = "no_main_text"`.
    """
    number, whole = 0, True
    with open_unpacked(path) as stream:
        for found in find_records(stream):
            if isinstance(found, Damage):
                whole = False
                yield origin.problem(f"record {number + 1} (byte {found.byte})", found.reason)
                continue
            number += 1
            made = origin.attempt(f"record {number}", lambda: _document(found, origin, number))
            if made is not None:
                yield made
        if whole and stream.members not in (None, number):
            yield origin.problem("", f"{number} records in {stream.members} gzip members: a web archive has one for each; read as one stream")


def find_records(stream: ByteStream) -> Iterator[ArcWarcRecord | Damage]:
    """Records of a WARC or ARC file in their order, whole; behind damage the next one that can be found."""
    loader = ArcWarcRecordLoader(verify_http=False, arc2warc=False)
    known = None
    while True:
        start = stream.tell()
        try:
            line = stream.readline(_MAX_HEADER_LINE)
            start = stream.tell() - len(line)
            if not line:
                return
            if not line.strip():
                continue
            if not _begins(line):
                yield Damage(start, f"{'no record begins here' if known else 'neither WARC nor ARC: it begins with'} {_shown(line)}")
                _find_next(stream)
                continue
            known = "warc" if line.startswith(b"WARC/") else "arc"
            record = _parse(loader, stream, line, known)
            if isinstance(record, str):
                yield Damage(start, record)
                _find_next(stream)
            else:
                yield record
        except Damaged as error:
            yield Damage(start, str(error))
            if not stream.skip_damage():
                return
            _find_next(stream)
        except Exception as error:  # headers that warcio's parsers were not written for
            yield Damage(start, reason(error))
            _find_next(stream)


def _parse(loader: ArcWarcRecordLoader, stream: ByteStream, line: bytes, known: str) -> ArcWarcRecord | str:
    """The record that begins with `line`, its payload in memory; or what is wrong with it."""
    limited = _Headers(stream)
    record = loader.parse_record_stream(limited, line, known, no_record_parse=True)
    length = record.rec_headers.get_header("length" if known == "arc" else "Content-Length")
    if not (length or "").strip().isdecimal():
        return f"the record's length is {length!r}"
    if record.length > MAX_RECORD_BYTES:
        left = record.length
        while left and (part := stream.read(min(left, 1 << 20))):
            left -= len(part)
        return f"a record of {size(record.length)}, more than {size(MAX_RECORD_BYTES)}"
    payload = stream.read(record.length)
    if len(payload) < record.length:
        stream.raise_damage()
        return f"cut off: {len(payload)} of {record.length} bytes"
    after = stream.readline(_MAX_HEADER_LINE)
    if after.strip() and not (known == "arc" and _begins(after)):
        # Its length is wrong: too short, or so long that the beginning of the next record is in it.
        stream.give_back(after)
        if inside := _BEGINNING.search(payload):
            stream.give_back(payload[inside.start() + 1 :])
        if record.rec_type in _PAGE_RECORDS:
            return f"its length, {record.length} bytes, does not end where the record ends"
        _find_next(stream)  # it costs no page
        return record
    stream.give_back(after)
    body = io.BytesIO(payload)
    record.raw_stream = body
    uri = record.rec_headers.get_header("uri" if known == "arc" else "WARC-Target-URI") or ""
    try:
        record.http_headers = loader.load_http_headers(record.rec_type, uri, body, record.length)
    except EOFError:
        record.http_headers = None
    return record


def _document(record: ArcWarcRecord, origin: Origin, number: int) -> Document | None:
    if record.rec_type not in _PAGE_RECORDS:
        return None
    arc = record.format == "arc"
    url = (record.rec_headers.get_header("uri" if arc else "WARC-Target-URI") or "").strip("<>")
    if not url:
        raise Damaged("a record without its address")
    if not url.startswith(_PAGE_SCHEMES):
        return None
    headers = record.http_headers
    if record.rec_type == "response" and not (headers and re.fullmatch(r"20[0-35]", headers.get_statuscode() or "")):
        return None
    stated = (headers.get_header("Content-Type") if headers else record.rec_headers.get_header("Content-Type")) or ""
    kind = stated.partition(";")[0].strip().lower()
    if kind and kind not in (*_HTML_TYPES, "text/plain"):
        return None
    content = _content(record)
    if not kind and not re.search(rb"<html|<!doctype html", content[:1024], re.IGNORECASE):
        return None
    charset = _CHARSET.search(stated)
    page = decode_page(content, charset[1] if charset else None)
    date = record.rec_headers.get_header("archive-date" if arc else "WARC-Date") or ""
    meta = {"truncated": cut} if (cut := record.rec_headers.get_header("WARC-Truncated")) else {}
    if kind == "text/plain":
        text, licence = page, ""
    else:
        tree = parse_page(page) if page.strip() else None
        if tree is None:
            raise Damaged("a page of no bytes")
        licence = page_licence(tree)
        text = main_text(page)
        if title := page_title(tree):
            meta["title"] = title
    if not text.strip():
        meta["drop"] = "no_main_text"
    return origin.document(number, text, url=url, licence=licence, date=_iso_date(date) if arc else date, meta=meta)


def _content(record: ArcWarcRecord) -> bytes:
    """The payload as it was before it was sent: without chunks, unpacked (many crawlers store it so and leave the headers as they were)."""
    headers, stream = record.http_headers, record.raw_stream
    if headers and (headers.get_header("Transfer-Encoding") or "").lower() == "chunked":
        stream = ChunkedDataReader(stream)
    content = stream.read(MAX_PAGE_BYTES + 1)
    packed = (headers.get_header("Content-Encoding") or "").lower() if headers else ""
    if (packed in ("gzip", "x-gzip") and content.startswith(b"\x1f\x8b")) or (packed == "deflate" and content.startswith(b"\x78")):
        return unpack(content, MAX_PAGE_BYTES + 1)
    if packed in ("br", "zstd") and is_binary(content):
        raise Damaged(f"a page packed with {packed}")
    return content


class _Headers:
    """Header lines of one record, limited in length and number."""

    def __init__(self, stream: ByteStream):
        self._stream = stream
        self._left = _MAX_HEADER_BYTES

    def readline(self, limit: int = _MAX_HEADER_LINE) -> bytes:
        line = self._stream.readline(min(limit, _MAX_HEADER_LINE))
        self._left -= len(line)
        if self._left < 0:
            raise Damaged(f"a record with more than {size(_MAX_HEADER_BYTES)} of headers")
        return line

    def read(self, count: int) -> bytes:
        return self._stream.read(count)


def _begins(line: bytes) -> bool:
    return bool(re.match(rb"WARC/[01]\.\d+\s*$", line) or _ARC_RECORD.match(line))


def _find_next(stream: ByteStream) -> bool:
    """To the next line that begins a record; whether there is one."""
    while line := _next_line(stream):
        if _begins(line):
            stream.give_back(line)
            return True
    return False


def _next_line(stream: ByteStream) -> bytes:
    while True:
        try:
            return stream.readline(_MAX_HEADER_LINE)
        except Damaged:
            if not stream.skip_damage():
                return b""


def _shown(line: bytes) -> str:
    return repr(line[:40].rstrip())[1:]


def _iso_date(digits: str) -> str:
    """`20140301123456` as 2014-03-01T12:34:56Z."""
    parts = re.match(r"(\d{4})(\d\d)(\d\d)(\d\d)?(\d\d)?(\d\d)?", digits)
    if not parts:
        return digits
    year, month, day, hour, minute, second = (part or "00" for part in parts.groups())
    return f"{year}-{month}-{day}T{hour}:{minute}:{second}Z"
