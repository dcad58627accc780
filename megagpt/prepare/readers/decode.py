"""Bytes to text."""

from __future__ import annotations

import codecs
import re

from megagpt.prepare.readers.unpack import Damaged

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
"""Byte-order marks; that of UTF-32 begins with that of UTF-16."""
_SAMPLE = 1 << 16
"""So many bytes are enough to guess from."""
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_SUPERSETS = {"iso-8859-1": "cp1252", "latin-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252", "ascii": "cp1252", "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932",
              "shift-jis": "cp932", "sjis": "cp932", "x-sjis": "cp932"}
"""What pages that declare the left ones are written in, by the WHATWG's table of labels."""


def decode(content: bytes, declared: str | None = None) -> str:
    """Text of bytes: by their byte-order mark, else as UTF-8, else as `declared`, else by a guess from the bytes (charset-normalizer).

    UTF-8 comes before what is declared, since no other text of some length is valid UTF-8 by accident.

    Raises:
        Damaged: binary bytes, or nothing fits.
    """
    for mark, name in _MARKS:
        if content.startswith(mark):
            text = _decode(content, name)
            if text is None:
                raise Damaged(f"begins with the byte-order mark of {name.upper()} and is not {name.upper()}")
            return text.removeprefix("\ufeff")
    text = _decode(content, "utf-8")
    if text is not None and "\0" not in text:
        return text
    if declared:
        text = _decode(content, _SUPERSETS.get(declared.strip().lower(), declared.strip()))
        if text is not None and "\0" not in text:
            return text
    if is_binary(content):
        raise Damaged("binary, not text")
    text = _guess(content)
    if text is None:
        raise Damaged("no known encoding fits")
    return text


def is_binary(content: bytes) -> bool:
    """Whether more than one byte in a hundred of the beginning is a control character that text has no use for."""
    sample = content[:_SAMPLE]
    return len(_BINARY.findall(sample)) > len(sample) / 100


def _guess(content: bytes) -> str | None:
    from charset_normalizer import from_bytes

    best = from_bytes(content[:_SAMPLE], enable_fallback=False).best()
    text = _decode(content, best.encoding) if best is not None else None
    return text if text is not None else _decode(content, "cp1252")


def _decode(content: bytes, encoding: str) -> str | None:
    try:
        return content.decode(encoding)
    except (UnicodeDecodeError, LookupError, ValueError):
        return None
