"""Postal addresses: a street with its number, a place with its postcode, and both together over several lines.

Patterns begin with what is rare in texts, or end with it and are completed to the left, so that the search for them runs fast.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from megagpt.prepare.personal_data.span import Span

LONGEST_NAME = 80
"""Characters of a street or town before the part by which it is recognised."""
LONGEST_GAP = 60
"""Characters between a street and its postcode: the name of a town or two."""

_WORD = r"[A-ZÀ-ÖØ-ÞĀ-Ž][\w'’-]{0,24}"
_SMALL = (
    r"(?:de la|de las|de los|de l['’]|de|del|della|delle|dei|degli|du|des|d['’]|dos|das|da|do|la|le|les|van de|van den|van der|van|von der|von|am|an der)"
)
_NAME = rf"(?:(?:{_SMALL} ?)?{_WORD}\.?)(?: (?:{_SMALL} ?)?{_WORD}\.?){{0,3}}"
_NUMBER = r"\d{1,5}(?: ?[A-Za-z]\b)?(?:[-/]\d{1,4}[A-Za-z]?)?"
_UNIT = r"(?:,? (?:Apt|Apartment|Suite|Ste|Unit|Flat|Floor|Fl|Room|Rm)\b\.? ?#?\w{1,6}|,? #\d{1,5})"

# ---------------------------------------------------------------- streets

_NOTHING_ELSE = "Street|St|Avenue|Ave?|Road|Rd|Boulevard|Blvd|Drive|Dr|Lane|Ln|Highway|Hwy|Parkway|Pkwy|Broadway"
"""Streets only, unlike `2015 Victory Parade` and `2001 Supreme Court`."""
_ENGLISH = (
    f"{_NOTHING_ELSE}|Court|Ct|Place|Pl|Square|Sq|Terrace|Ter|Way|Circle|Cir|Trail|Trl|Close|Crescent|Cres|Gardens|Grove|Mews|Row|Green|Walk|Hill|Rise"
    "|Parade|Quay|Turnpike|Expressway|Plaza|Alley|Loop|Path|Ridge|Esplanade"
)
_ENGLISH_STREET = re.compile(  # 221B Baker Street; 1600 N. Main St., Apt. 5
    rf"[0-9](?<![\w.,$€£-][0-9])\d{{0,4}}[A-Za-z]?(?:-\d{{1,4}})? (?:(?:[NSEW]|[NS][EW]|North|South|East|West)\b\.? )?"
    rf"(?:(?:{_WORD}|\d{{1,3}}(?:st|nd|rd|th))\.? ){{0,4}}?(?P<sort>{_ENGLISH})\b\.?{_UNIT}?"
)
_FRENCH_STREET = re.compile(  # 12 bis, rue de la Paix
    r"[0-9](?<![\w.,-][0-9])\d{0,3}(?: ?(?:bis|ter|quater))?,? "
    rf"(?i:rue|avenue|av\.|boulevard|bd|place|chemin|allée|impasse|quai|route|cours|passage|square) {_NAME}"
)
_ROMANCE_STREET = re.compile(  # Calle Mayor 5, Piso 2; Via Roma, 12; Rua Augusta, 100; C/ Alcalá 20
    r"(?:Calle|C/|Avenida|Avda|Plaza|Paseo|Ronda|Camino|Carrer|Cuesta|Via|Viale|Piazza|Piazzale|Corso|Largo|Vicolo|Strada|Borgo|Rua|Travessa|Praça|ul\.)\.? ?"
    rf"{_NAME},? (?:n[º°o.]\.? ?|núm\. ?)?{_NUMBER}(?:,? (?:Piso|Puerta|Piano|Apt\.?|Interno) ?\w{{1,4}}){{0,2}}(?![.,]\d)"
)
_BOX = re.compile(r"(?:P\.? ?O\.? ?Box|Postfach|Postbus|Apartado de Correos) \d(?:[\d ]{0,6}\d)?\b")
_GERMANIC = "traße trasse tr. weg gasse allee platz damm ufer straat laan plein gracht kade singel dijk steeg".split()
_GERMANIC_SORTS = tuple(f"{form} " for sort in _GERMANIC for form in ([f"S{sort}", f"s{sort}"] if sort[0] == "t" else [sort, sort.title()]))
_GERMANIC_NUMBER = re.compile(r"[0-9](?<=[a-z.] [0-9])(?<!\d[0-9])\d{0,4}(?: ?[A-Za-z]\b)?(?:[-/]\d{1,4}[A-Za-z]?)?(?![\w.,]\d)")
_GERMANIC_NAME = re.compile(rf"\b(?:{_WORD}[ -]){{0,3}}{_WORD}\.? $")  # Hauptstraße, Otto-Hahn-Platz, Lange Kerkstraat
_YEAR = re.compile(r"(?:1[6-9]|20)\d\d ")
_STREET_ONLY = re.compile(_NOTHING_ELSE)
_DATED = re.compile(
    r"\b(?:in|since|by|of|from|until|till|after|before|during|around|circa|early|late|mid|the|and|to|\w+ \d{1,2},) $|[(,–-]$", re.IGNORECASE
)


def _streets(text: str) -> Iterator[tuple[int, int]]:
    for match in _ENGLISH_STREET.finditer(text):
        if not _is_year(text, match):
            yield match.span()
    for match in itertools.chain(_FRENCH_STREET.finditer(text), _ROMANCE_STREET.finditer(text), _BOX.finditer(text)):
        if not text[match.start() - 1 : match.start()].isalnum():
            yield match.span()
    for number in _GERMANIC_NUMBER.finditer(text):
        if text.endswith(_GERMANIC_SORTS, max(0, number.start() - LONGEST_NAME), number.start()):
            name = _GERMANIC_NAME.search(text, max(0, number.start() - LONGEST_NAME), number.start())
            if name:
                yield name.start(), number.end()


def _is_year(text: str, street: re.Match[str]) -> bool:
    """`In 1987 Wall Street fell`, `the 2015 Victory Parade`."""
    if not _YEAR.match(street[0]):
        return False
    return not _STREET_ONLY.fullmatch(street["sort"]) or _DATED.search(text, max(0, street.start() - 16), street.start()) is not None


# ---------------------------------------------------------------- places

_STATE = re.compile(
    "(?:A[KLRZ]|C[AOT]|D[CE]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|P[AR]|RI|S[CD]|T[NX]|UT|V[AT]|W[AIVY])[^A-Z]"
)  # of the United States
_AREA = re.compile(  # of British postcodes
    r"(?:A[BL]|B[ABDHLNRST]?|C[ABFHMORTVW]|D[ADEGHLNTY]|E[CHNX]?|F[KY]|G[LUY]?|H[ADGPRSUX]|I[GMPV]|JE|K[ATWY]|L[ADELNSU]?|M[EKL]?|N[EGNPRW]?|O[LX]|P[AEHLOR]"
    r"|R[GHM]|S[AEGKLMNOPRSTWY]?|T[ADFNQRSW]|UB|W[ACDFNRSV]?|YO|ZE)\d"
)
_CODE = re.compile(r"[A-Z]{1,2}(?:\.? {1,2}\d{5}(?:-\d{4})?(?![\w-])|(?:\d\d?|\d[A-Z]) \d[ABD-HJLNP-UW-Z]{2}(?!\w))")
_TOWN = re.compile(rf"\b(?:{_WORD}\.? ){{0,2}}{_WORD},? $")
_LINE_BEFORE = re.compile(rf"(?<![\w.,$-])\d{{1,5}} (?:{_WORD}\.? ){{0,3}}{_WORD}\.?{_UNIT}?[,\s]{{1,3}}$")
"""Before a town with its postcode any name with a number is a street."""
_CODE_AND_TOWN = re.compile(
    rf"[,\s]{{1,3}}(?:[A-Z]{{1,2}}-)?(?:\d{{4}} ?[A-Z]{{2}}\b,?\s{{1,2}}|\d{{4,5}},?\s{{1,2}}){_NAME}(?: \([A-Z]{{2}}\))?|[,\s]{{1,3}}{_NAME},\s?\d{{4,5}}\b"
)
"""Behind a street of the continent. Alone, a number and a name are too many things."""
_BETWEEN = re.compile(rf"[\s,]{{0,4}}(?:{_WORD}[\s,]{{1,3}}){{0,3}}")


def _places(text: str) -> Iterator[tuple[int, int]]:
    """`Springfield, IL 62704` and `SW1A 1AA`, with the line of the street before."""
    for code in _CODE.finditer(text):
        start = code.start()
        before = text[start - 1 : start]
        if before.isalnum() or before == "#":
            continue
        if _STATE.match(text, start) and (town := _TOWN.search(text, max(0, start - LONGEST_NAME), start)):
            start = town.start()
        elif not _AREA.match(text, start):
            continue
        line = _LINE_BEFORE.search(text, max(0, start - LONGEST_NAME), start)
        yield line.start() if line else start, code.end()


def addresses(text: str) -> Iterator[Span]:
    """Streets with a number (English, German, Dutch, French, Spanish, Italian, Portuguese forms), post boxes, towns of the United States with state and
    ZIP code, British postcodes; joined where they follow each other."""
    parts = []
    for start, end in _streets(text):
        town = _CODE_AND_TOWN.match(text, end)
        parts.append((start, town.end() if town else end))
    joined: list[tuple[int, int]] = []
    for start, end in sorted([*parts, *_places(text)]):
        if joined and _follows(text, joined[-1][1], start):
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    for start, end in joined:
        yield Span(start, end - (text[end - 1] == "."), "ADDRESS")  # it may end the sentence as well as an abbreviation


def _follows(text: str, end: int, start: int) -> bool:
    """Whether nothing, or the name of a town, stands between two parts of an address."""
    return start <= end or (start - end <= LONGEST_GAP and _BETWEEN.fullmatch(text, end, start) is not None)
