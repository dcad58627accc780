"""Repair of text that is to become training data."""

from __future__ import annotations

import re
from typing import Any

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f\ufeff]")
"""Control characters that are no tab and no newline, and stray byte-order marks."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def repair_text(text: str) -> str:
    r"""One kind of line ending (`\n`), no control characters, no half surrogate pairs."""
    return repair_surrogates(_CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))


def repair_surrogates(text: str) -> str:
    r"""JSON may spell half of a surrogate pair (`\ud83d`), which no tokenizer can encode: it becomes U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()  # many times faster than the pattern, and nearly every text passes
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text)
    return text


def repair_row(row: Any) -> Any:
    """`repair_text` for every text in a JSON value; keys stay."""
    if isinstance(row, str):
        return repair_text(row)
    if isinstance(row, dict):
        return {key: repair_row(value) for key, value in row.items()}
    if isinstance(row, list | tuple):
        return [repair_row(value) for value in row]
    return row
