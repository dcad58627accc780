"""Bytes to text."""

from __future__ import annotations

import codecs
import re

from megagpt.prepare.readers.unpack import Damaged

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte-order marks; that of UTF-32 begins with that of UTF-16."""
_SAMPLE = 1 << 16
"""So many bytes are enough to guess from."""
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_SUPERSETS = {
    **dict.fromkeys(("iso-8859-1", "latin-1", "latin1", "us-ascii", "ascii"), "cp1252"),
    **dict.fromkeys(("gb2312", "gbk"), "gb18030"),
    **dict.fromkeys(("shift_jis", "shift-jis", "sjis", "x-sjis"), "cp932"),
}
"""What pages that declare the left ones are written in, by the WHATWG's table of labels."""


_COMMON = (
    "cp1252",
    "cp1250",
    "iso8859_2",
    "cp1251",
    "koi8_r",
    "cp932",
    "euc_jp",
    "gb18030",
    "big5",
    "cp949",
    "cp1253",
    "cp1254",
    "cp1255",
    "cp1256",
    "cp874",
)
"""What text that is no UTF-8 is written in, the commoner ones first; supersets stand for what they contain (cp1252 for Latin-1)."""
_SIGN_IN_WORD = re.compile(r"(?<=[^\W\d_])[^\w\s\x00-\x7f’‘‐–—…·](?=[^\W\d_])|(?<=[^\W\d_]{2})[¹²³]")
"""`rodz¹` and `wspó³nie` are Polish that was read in the wrong encoding."""


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
    """By charset-normalizer's measures of disorder and of likeness to a language, which are close for neighbours such as cp1250 and cp1252; among
    those, the encoding with the fewest signs inside of words, then the commoner one."""
    from charset_normalizer import from_bytes

    matches = list(from_bytes(content[:_SAMPLE], cp_isolation=list(_COMMON), enable_fallback=False))
    least, most = min((match.chaos for match in matches), default=0), max((match.coherence for match in matches), default=0)
    close = [match for match in matches if match.chaos <= least + 0.1 and match.coherence >= most - 0.2]
    names = [
        (len(_SIGN_IN_WORD.findall(str(match))), _COMMON.index(name)) for match in close for name in match.could_be_from_charset if name in _COMMON
    ]
    for _, place in sorted(names):
        if (text := _decode(content, _COMMON[place])) is not None:
            return text
    return _decode(content, "cp1252")


def _decode(content: bytes, encoding: str) -> str | None:
    try:
        return content.decode(encoding)
    except (UnicodeDecodeError, LookupError, ValueError):
        return None
