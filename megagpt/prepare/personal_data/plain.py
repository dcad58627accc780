"""One spelling of digits and marks, so that every finder needs to know only the ASCII one."""

from __future__ import annotations

import functools
import unicodedata


def plain(text: str) -> str:
    """The text with decimal digits of all scripts, full-width forms, dashes and spaces as their ASCII characters: places stay the same."""
    if not text.isascii():
        for character in set(text):
            if character > "\x7f" and (same := _ascii(character)) != character:
                text = text.replace(character, same)
    return text


@functools.lru_cache(4096)
def _ascii(character: str) -> str:
    if "\uff01" <= character <= "\uff5e":  # full-width forms of ! to ~
        return chr(ord(character) - 0xFEE0)
    match unicodedata.category(character):
        case "Nd":
            return str(unicodedata.decimal(character))
        case "Pd":
            return "-"
        case "Zs":
            return " "
    return "-" if character == "\N{MINUS SIGN}" else character
