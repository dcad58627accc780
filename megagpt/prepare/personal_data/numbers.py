"""Numbers with a rule of their own: payment cards, bank accounts, social security."""

from __future__ import annotations

import re
from collections.abc import Iterator

from megagpt.prepare.personal_data.context import said_before, said_card_behind
from megagpt.prepare.personal_data.phones import MAX_DIGITS
from megagpt.prepare.personal_data.span import Span

# ---------------------------------------------------------------- cards

_CARD = re.compile(
    r"[0-9](?<![\w/&?][0-9])(?<!\d[.-][0-9])(?:\d{11,18}|\d{3}(?P<fours>[ .-])\d{4}(?P=fours)\d{4}(?P=fours)\d{4}(?:(?P=fours)\d{3})?|\d{3}(?P<six>[ .-])\d{6}(?P=six)\d{4,5})"
    r"(?!\w|[.-]\d)",
    re.ASCII,
)
_ISSUERS: list[tuple[range, set[int], bool]] = [
    # First numbers, lengths, and whether these and the checksum are enough without a word. Of other numbers one in ten passes Luhn, and short ones
    # (EAN, times in milliseconds) and those of Maestro's wide ranges are frequent.
    (range(400000, 500000), {16, 19}, True),  # Visa
    (range(400000, 500000), {13}, False),
    (range(510000, 560000), {16}, True),  # Mastercard
    (range(222100, 272100), {16}, True),
    (range(340000, 350000), {15}, True),  # American Express
    (range(370000, 380000), {15}, True),
    (range(300000, 306000), {14, 16}, True),  # Diners Club
    (range(309500, 309600), {14, 16}, True),
    (range(360000, 370000), {14, 16}, True),
    (range(380000, 400000), {14, 16}, True),
    (range(601100, 601200), {16, 19}, True),  # Discover
    (range(644000, 660000), {16, 19}, True),
    (range(350000, 360000), {16, 19}, True),  # JCB (3528 to 3589, and what examples write)
    (range(213100, 213200), {15}, True),
    (range(180000, 180100), {15}, True),
    (range(620000, 630000), {16, 17, 18, 19}, True),  # UnionPay
    (range(220000, 220500), {16}, True),  # Mir
    (range(500000, 510000), set(range(12, 20)), False),  # Maestro, RuPay, Elo
    (range(560000, 590000), set(range(12, 20)), False),
    (range(600000, 700000), set(range(12, 20)), False),
    (range(810000, 830000), {16}, False),  # RuPay, UnionPay
]


def cards(text: str) -> Iterator[Span]:
    """Numbers of payment cards: first digits and length of an issuer (ISO/IEC 7812), and Luhn's checksum."""
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if not luhn(digits):
            continue
        certain = {sure for first, lengths, sure in _ISSUERS if int(digits[:6]) in first and len(digits) in lengths}
        if not certain:
            continue
        said = said_before(text, match.start())
        grouped = len(digits) < len(match[0])
        named = said == "CARD" or said_card_behind(text, match.end())
        other = said in ("OTHER", "VERSION") or (said == "PHONE" and len(digits) <= MAX_DIGITS)
        if named or (True in certain and (grouped or not other)):
            yield Span(match.start(), match.end(), "CARD")


def luhn(digits: str) -> bool:
    """Whether the last digit is the one that Luhn's rule asks for (ISO/IEC 7812-1, annex B)."""
    doubled = [2 * int(digit) for digit in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(number - 9 * (number > 9) for number in doubled)) % 10 == 0


# ---------------------------------------------------------------- IBAN

_LENGTHS = {
    country: int(length)
    for length, countries in (
        (15, "NO"), (16, "BE"), (18, "DK FI FO GL NL SD FK"), (19, "MK SI"), (20, "AT BA EE KZ LT LU XK MN"), (21, "CH CR HR LI LV"),
        (22, "BG BH DE GB GE IE ME RS VA"), (23, "AE GI IL IQ OM TL SO"), (24, "AD CZ ES MD PK RO SA SE SK TN VG"), (25, "LY PT ST"), (26, "IS TR"),
        (27, "BI DJ FR GR IT MC MR SM"), (28, "AL AZ BY CY DO GT HN HU LB NI PL SV"), (29, "BR EG PS QA UA"), (30, "JO KW MU YE"), (31, "MT SC"),
        (32, "LC"), (33, "RU"),
    )
    for country in countries.split()
}  # fmt: skip
"""Characters in all (ISO 13616, the registry of SWIFT)."""
_IBAN = re.compile(r"[0-9](?:(?<=(?<![A-Za-z0-9])[A-Za-z]{2}[0-9])|(?<=(?<![A-Za-z0-9])[A-Za-z]{2}[ -][0-9]))[0-9](?=[ -]?[A-Za-z0-9])", re.ASCII)
_REST = {length: re.compile(rf"(?:[ -]?[A-Za-z0-9]){{{length - 4}}}(?![A-Za-z0-9])", re.ASCII) for length in set(_LENGTHS.values())}
_REGULAR = re.compile(r"[A-Za-z0-9]+|[A-Za-z0-9]{4}(?:([ -])[A-Za-z0-9]{4})(?:\1[A-Za-z0-9]{4})*(?:\1[A-Za-z0-9]{1,3})?", re.ASCII)


def ibans(text: str) -> Iterator[Span]:
    """Account numbers: the length of their country and the remainder 1 modulo 97 (ISO 7064). In one piece or in fours; in other groups where the word
    IBAN stands before it."""
    for check in _IBAN.finditer(text):
        start = check.start() - (2 if text[check.start() - 1].isalpha() else 3)
        length = _LENGTHS.get(text[start : start + 2].upper())
        rest = length and _REST[length].match(text, check.end())
        if not rest:
            continue
        written = text[start : rest.end()]
        number = re.sub("[ -]", "", written)
        if not (number.isupper() or number.islower()) or not remainder_is_one(number.upper()):
            continue
        if _REGULAR.fullmatch(written) or said_before(text, start) == "IBAN":
            yield Span(start, rest.end(), "IBAN")


def remainder_is_one(number: str) -> bool:
    """Whether the number, its first four characters moved to the end and letters read as 10 to 35, leaves 1 modulo 97 (check digits 02 to 98)."""
    return 2 <= int(number[2:4]) <= 98 and int("".join(str(int(character, 36)) for character in number[4:] + number[:4])) % 97 == 1


# ---------------------------------------------------------------- SSN

_SSN = re.compile(r"[0-8](?<!\w[0-8])(?<![\w/][.-][0-8])(?<!\d[ /][0-8])(?<!/[0-8])(?!(?<=0)00|(?<=6)66)\d{2}(?P<mark>[ -]?)(?!00)\d{2}(?P=mark)(?!0000)\d{4}(?!\w|[./-]\d)", re.ASCII)


def ssns(text: str) -> Iterator[Span]:
    """Social security numbers of the United States: no area 000, 666 or 9xx, no group 00, no serial 0000 (the Administration's rules of 2011).
    With hyphens the form says enough, with spaces or none a word must."""
    for match in _SSN.finditer(text):
        said = said_before(text, match.start())
        if said == "SSN" or (match["mark"] == "-" and said not in ("OTHER", "VERSION", "PHONE")):
            yield Span(match.start(), match.end(), "SSN")
