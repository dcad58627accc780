"""What a tokenizer cannot give back: found by trying, so that it holds for any vocabulary."""

from __future__ import annotations

from typing import NamedTuple

from megagpt.tokenizer.tokenizer import Tokenizer, TokenizerError

PROBES = {
    "a space in front": " a",
    "a space at the end": "a ",
    "several spaces": "a   b",
    "line breaks and tabs": "a\n\n\tb\r\n",
    "upper case": "Ab",
    "compatibility characters (NFKC would replace them)": "\ufb01 \u2460 \uff21 \u00bd",
    "accents apart from their letters (NFC would join them)": "e\u0301",
    "rare characters (without byte fallback they are unknown)": "\U00013080 \U0001f9ff \ue000 \ua9c1",
    "control characters": "\x00\x01\x7f",
    "joiners and byte-order marks": "a\u200d\ufeffb",
    "the character that sentencepiece writes for a space": "a\u2581b",
    "names of control tokens": "<|endoftext|><|end|></s><unk><pad>",
    "half a surrogate pair": "a\ud83d",
    "bytes that are no UTF-8 (as Python's surrogateescape reads them)": b"a\xff\xfe".decode("utf-8", "surrogateescape"),
}
"""Name of what is tried -> a text."""


class Limit(NamedTuple):
    """A kind of text that does not come back as it was."""

    what: str
    text: str
    """As JSON would spell it where UTF-8 cannot."""
    decoded: str | None
    """What comes back; None where the text is refused."""


def limits(tokenizer: Tokenizer) -> list[Limit]:
    """Every kind of text in PROBES that decode(encode(text)) changes, or that encode refuses."""
    found = []
    for what, text in PROBES.items():
        try:
            decoded = tokenizer.decode(tokenizer.encode(text))
        except TokenizerError:
            decoded = None
        if decoded != text:
            found.append(Limit(what, text.encode("utf-8", "backslashreplace").decode(), decoded))
    return found
