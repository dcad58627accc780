"""Telephone numbers: candidates by their form, then evidence, from an international prefix down to a word that announces one.

Whether a number can exist is asked of libphonenumber's tables (`phonenumbers`); its own matcher walks every digit of a text for every region, which
takes a hundred times as long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import phonenumbers

from megagpt.prepare.personal_data.context import NEXT, said_before, said_phone_behind
from megagpt.prepare.personal_data.span import Span

MIN_DIGITS, MAX_DIGITS = 7, 15
"""Of a number without its extension: a local one, and the longest of E.164."""
MAX_NATIONAL_DIGITS = 12
"""Of a national one with its trunk prefix 0."""
EXTENSION_DIGITS = 6
"""At most."""

# A number of groups that are separated by up to three marks; a candidate is cut into words at its spaces.
_CANDIDATE = re.compile(
    r"[+(0-9](?<![\w@#$€£¥%^*\\&?+][+(0-9])(?<!\w[-/][+(0-9])(?:(?<!\w[.,:][+(0-9])|(?<=\b(?:tel|fax)[.:][+(0-9]))(?:(?<=\d)|(?<=[+(])\(?\+?\d)\d{0,14}"
    r"(?:(?:[ .\-/]{1,3}\(?|\(|\)[ .\-/]{0,2}\(?)\d{1,15}){0,9}"
    r"(?P<extension>,? ?(?:x|ext\.?|extension|poste|-?dw) ?\.?:? ?\d{1,6})?(?!\d|[A-Za-z_@%€£$°]| ?(?:€|EUR|USD|GBP|%|°))",
    re.ASCII | re.IGNORECASE,
)
_WORD = re.compile(r"[^ ]+")
_INTERNATIONAL = re.compile(r"\(?(?:\+|00 ?(?=[1-9(])|011[ -](?=[1-9]))\(?[1-9]")
_NORTH_AMERICAN = re.compile(r"(?:1[ .-])?(?:\([2-9]\d{2}\)[ .-]?|[2-9]\d{2}([.-]))[2-9]\d{2}(?(1)\1|[ .-])\d{4}")
_TRUNK = re.compile(r"\(?0[1-9]\d*\)?(?:[ ./-]{1,3}\d+)*|\(0[1-9]\d*\)[ .-]*\d+(?:[ .-]\d+)*")
_DATE = re.compile(
    r"(?:1[5-9]|20)\d\d([./ -])(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12]\d|3[01])(?: \d{1,2})?|\d{1,2}([./-])\d{1,2}\2(?:1[5-9]|20)?\d\d(?: \d{1,2})?"
    r"|\d{1,2} \d{1,2} (?:1[5-9]|20)\d\d|(?:1[5-9]|20)\d\d ?[-/ ] ?(?:1[5-9]|20)\d\d|(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:[ .-]?\d{6})?"
)
_AMOUNT = re.compile(r"\d{1,3}(?:([. ])\d{3})(?:\1\d{3})*|\+?\d+\.\d+|\d+ ?- ?\d{1,6}")
_ISBN = re.compile(r"97[89][ -]?(?:\d[ -]?){9}\d")
_IN_ORDER = ("01234567890123456789", "98765432109876543210")


def phones(text: str, regions: tuple[str, ...]) -> Iterator[Span]:
    """Numbers that somebody can be called at.

    Args:
        regions: two-letter codes of the countries whose national numbers are known; international ones are known of all.
    """
    for candidate in _CANDIDATE.finditer(text):
        if sum(map(str.isdigit, candidate[0])) < MIN_DIGITS:
            continue
        yield from _numbers_within(text, candidate, regions)


def _numbers_within(text: str, candidate: re.Match[str], regions: tuple[str, ...]) -> Iterator[Span]:
    """The longest runs of words of a candidate that are numbers: `2 020 7946 0018 12` holds one."""
    words = [match.span() for match in _WORD.finditer(text, *candidate.span())]
    digits = [sum(map(str.isdigit, text[start:end])) for start, end in words]
    said = said_before(text, candidate.start())
    close = said_before(text, candidate.start(), NEXT) == "PHONE"
    after = said_phone_behind(text, candidate.end())
    first = 0
    while first < len(words):
        for last in range(len(words) - 1, first - 1, -1):
            if not MIN_DIGITS <= sum(digits[first : last + 1]) <= MAX_DIGITS + EXTENSION_DIGITS:
                continue
            start, end = words[first][0], words[last][1]
            while text[start] == "(" and text.count("(", start, end) > text.count(")", start, end):
                start += 1  # the number as a whole stands in brackets
            number = _without_extension(text, start, end, candidate)
            # A number in one piece may be a count of anything: its word must be near.
            named = (close if number.isdigit() else said == "PHONE") or (after and end == candidate.end())
            if _is_phone(number, regions, named=named, other=said not in (None, "PHONE") and not named):
                yield Span(start, end, "PHONE")
                first = last
                break
        first += 1


def _without_extension(text: str, start: int, end: int, candidate: re.Match[str]) -> str:
    extension = candidate.start("extension")
    return text[start : extension if start < extension < end else end]


def _is_phone(number: str, regions: tuple[str, ...], *, named: bool, other: bool) -> bool:
    """Args: number, in ASCII without its extension; named, a word says that it is one; other, a word says that it is something else."""
    digits = re.sub(r"\D", "", number)
    if not MIN_DIGITS <= len(digits) <= MAX_DIGITS or number.count("(") != number.count(")"):
        return False
    if len(set(digits)) < (2 if named else 4) or any(digits in order for order in _IN_ORDER):
        return False  # 0000000, 017777777777, 1234567890: examples
    if _DATE.fullmatch(number) or _ISBN.fullmatch(number):
        return False
    if _INTERNATIONAL.match(number) and (named or not _AMOUNT.fullmatch(number)):
        if _exists_abroad(number, grouped="+" in number and len(digits) + 1 < len(number), other=other):
            return True
    if named:
        return not _AMOUNT.fullmatch(number) or _exists(number, regions) or (len(digits) == MIN_DIGITS and number[3:4] == "-")
    if other or _AMOUNT.fullmatch(number):
        return False
    if _NORTH_AMERICAN.fullmatch(number):
        return not {"US", "CA"}.isdisjoint(regions)
    return _TRUNK.fullmatch(number) is not None and 9 <= len(digits) <= MAX_NATIONAL_DIGITS and _exists(number, regions)


def _exists_abroad(number: str, *, grouped: bool, other: bool) -> bool:
    """Whether its country has such numbers; where it is written in groups, whether they have that length."""
    significant = re.sub(r"\D", "", number.replace("(0)", ""))
    try:
        parsed = phonenumbers.parse("+" + (significant if "+" in number[:3] else significant.removeprefix("00").removeprefix("011")))
    except phonenumbers.NumberParseException:
        return False
    return phonenumbers.is_valid_number(parsed) or (grouped and not other and phonenumbers.is_possible_number(parsed))


def _exists(number: str, regions: tuple[str, ...]) -> bool:
    """Whether some region has this national number."""
    for region in regions:
        try:
            if phonenumbers.is_valid_number_for_region(phonenumbers.parse(number, region), region):
                return True
        except phonenumbers.NumberParseException:
            return False
    return False
