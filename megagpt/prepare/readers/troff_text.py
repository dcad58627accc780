"""Escapes of troff (groff_char(7), groff(7)) to Unicode."""

from __future__ import annotations

import re
import unicodedata

_SIGNS = {
    "aq": "'", "dq": '"', "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "em": "—", "en": "–", "hy": "-", "mi": "−", "bu": "•", "co": "©", "rg": "®",
    "tm": "™",
    "->": "→", "<-": "←", "<>": "↔", "ua": "↑", "da": "↓", ">=": "≥", "<=": "≤", "!=": "≠", "==": "≡", "~=": "≈", "~~": "≈", "mu": "×", "di": "÷",
    "+-": "±",
    "de": "°", "rs": "\\", "bv": "│", "br": "│", "ba": "|", "or": "|", "ti": "~", "ha": "^", "ga": "`", "at": "@", "sh": "#", "Do": "$", "lB": "[",
    "rB": "]",
    "lC": "{", "rC": "}", "la": "⟨", "ra": "⟩", "fm": "′", "sd": "″", "ss": "ß", "AE": "Æ", "ae": "æ", "OE": "Œ", "oe": "œ", "Eu": "€", "eu": "€",
    "Po": "£",
    "Ye": "¥", "ct": "¢", "Fo": "«", "Fc": "»", "fo": "‹", "fc": "›", "sc": "§", "ps": "¶", "dg": "†", "dd": "‡", "ul": "_", "sl": "/", "eq": "=",
    "pl": "+",
    "**": "*", "if": "∞", "12": "½", "14": "¼", "34": "¾", "S1": "¹", "S2": "²", "S3": "³", "/o": "ø", "/O": "Ø", "oa": "å", "oA": "Å", "r!": "¡",
    "r?": "¿",
    "*a": "α", "*b": "β", "*g": "γ", "*d": "δ", "*e": "ε", "*l": "λ", "*m": "μ", "*p": "π", "*s": "σ", "*S": "Σ", "*W": "Ω", "mc": "µ", "OK": "✓",
    "el": "…",
    "ci": "○", "sq": "□", "Bq": "„", "bq": "‚", "rh": "☞", "lh": "☜", "es": "∅", "mo": "∈", "no": "¬", "lf": "⌊", "Of": "ª", "Om": "º",
}
_ACCENTS = {"'": "\u0301", "`": "\u0300", "^": "\u0302", ":": "\u0308", "~": "\u0303", ",": "\u0327", "v": "\u030c", "o": "\u030a"}
_ESCAPE = re.compile(
    r"""\\(?:
    (?P<comment>["\#].*)
    | \((?P<two>..) | \[(?P<long>[^\]\\\n]*)\]
    | \*(?:\((?P<string2>..)|\[(?P<string_long>[^\]\\\n]*)\]|(?P<string1>.))
    | f(?:\(..|\[[^\]\\\n]*\]|.) | F(?:\(..|\[[^\]\\\n]*\]|.)
    | s(?:[+-]?\(?[0-9]{1,2}|[+-]?\[[^\]\\\n]*\]|[+-]?'[^'\n]*')
    | n[+-]?(?:\(..|\[[^\]\\\n]*\]|.) | [gkmMVY](?:\(..|\[[^\]\\\n]*\]|.)
    | [hvwlLDbxXRSH]'[^'\n]*' | [oNC]'(?P<quoted>[^'\n]*)'
    | (?P<one>.) | $
    )""",
    re.VERBOSE,
)
_ONE = {"-": "-", "e": "\\", "\\": "\\", "~": " ", " ": " ", "0": " ", "t": "\t", "'": "´", "`": "`", "_": "_", ".": ".", '"': ""}


def to_plain(text: str, strings: dict[str, str] | None = None) -> str:
    """Text of a line without its escapes: signs by their names, `\\fB` and other changes of font gone, strings (`\\*(xx`) as they were defined."""
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda found: _meaning(found, strings or {}), text)


def split_arguments(text: str) -> list[str]:
    """Arguments of a request: parted by blanks, quoted with `"`, in which `""` is one quotation mark. A comment ends them."""
    text = re.sub(r'(?<!\\)((?:\\\\)*)\\".*', r"\1", text)
    found = re.findall(r'"((?:[^"]|"")*)(?:"|$)\S*|((?:\\.|[^\s"\\]|(?<=\S)")+)', text)
    return [quoted.replace('""', '"') if not bare else bare for quoted, bare in found]


def _meaning(found: re.Match[str], strings: dict[str, str]) -> str:
    if (name := found["two"] or found["long"]) is not None:
        return _sign(name)
    if (name := found["string2"] or found["string_long"] or found["string1"]) is not None:
        return strings.get(name, "")
    if found["one"] is not None:
        return _ONE.get(found["one"], "" if found["one"] in "&)/,|^:%!?cdrupza{}E" else found["one"])
    return (found["quoted"] or "")[:1] if found["quoted"] is not None and not found["quoted"].isdecimal() else ""


def _sign(name: str) -> str:
    if name in _SIGNS:
        return _SIGNS[name]
    if code := re.fullmatch(r"u([0-9A-F]{4,6})(?:_[0-9A-F_]+)?", name):
        return chr(int(code[1], 16)) if int(code[1], 16) < 0x110000 else ""
    if len(name) == 2 and name[0] in _ACCENTS and name[1].isalpha():
        return unicodedata.normalize("NFC", name[1] + _ACCENTS[name[0]])
    return ""
