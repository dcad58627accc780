"""One spelling of digits and marks, so that every finder needs to know only the ASCII one."""

from __future__ import annotations

import re
import unicodedata

_SPACES = "\u00a0\u2000-\u200a\u202f\u205f\u3000"
_DASHES = "\u2010-\u2015\u2212\ufe58\ufe63"
_ODD = re.compile(rf"[{_SPACES}{_DASHES}\uff01-\uff5e]|(?![0-9])\d")
_DASH = re.compile(f"[{_DASHES}]")


def plain(text: str) -> str:
    """The text with decimal digits of all scripts, full-width forms, dashes and spaces as their ASCII characters: places stay the same."""
    return text if text.isascii() else _ODD.sub(_ascii, text)


def _ascii(match: re.Match[str]) -> str:
    character = match[0]
    if "\uff01" <= character <= "\uff5e":
        return chr(ord(character) - 0xFEE0)
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    return "-" if _DASH.match(character) else " "
