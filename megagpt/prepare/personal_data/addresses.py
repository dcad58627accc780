"""Postal addresses: a street with its number, a place with its postcode, and both together over several lines."""

from __future__ import annotations

import re
from collections.abc import Iterator

from megagpt.prepare.personal_data.span import Span

_WORD = r"[A-ZÀ-ÖØ-ÞĀ-Ž][\w'’-]{0,24}"
_SMALL = r"(?:de la|de las|de los|de l['’]|de|del|della|delle|dei|degli|du|des|d['’]|dos|das|da|do|la|le|les|van de|van den|van der|van|von der|von|am|an der)"
_NAME = rf"(?:(?:{_SMALL}[ ]?)?{_WORD}\.?)(?: (?:{_SMALL} ?)?{_WORD}\.?){{0,3}}"
_NUMBER = r"\d{1,5}(?: ?[A-Za-z]\b)?(?:[-/]\d{1,4}[A-Za-z]?)?"
_UNIT = r"(?:,? (?:Apt|Apartment|Suite|Ste|Unit|Flat|Floor|Fl|Room|Rm)\b\.? ?#?\w{1,6}|,? #\d{1,5})"
_ENGLISH = (
    "Street|St|Avenue|Ave|Av|Road|Rd|Boulevard|Blvd|Drive|Dr|Lane|Ln|Court|Ct|Place|Pl|Square|Sq|Terrace|Ter|Way|Parkway|Pkwy|Highway|Hwy|Circle|Cir|Trail|Trl"
    "|Close|Crescent|Cres|Gardens|Grove|Mews|Row|Green|Walk|Hill|Rise|Parade|Quay|Turnpike|Expressway|Plaza|Alley|Loop|Path|Ridge|Broadway|Esplanade"
)
_STATES = (
    "AL|AK|AZ|AR|CA|CO|CT|DE|FL|GA|HI|ID|IL|IN|IA|KS|KY|LA|ME|MD|MA|MI|MN|MS|MO|MT|NE|NV|NH|NJ|NM|NY|NC|ND|OH|OK|OR|PA|RI|SC|SD|TN|TX|UT|VT|VA|WA|WV|WI|WY|DC|PR"
)

_STREETS = [
    # 221B Baker Street; 1600 N. Main St., Apt. 5
    rf"(?<![\w.,$€£-])(?P<number>\d{{1,5}}[A-Za-z]?(?:-\d{{1,4}})?),? (?:(?:[NSEW]|[NS][EW]|North|South|East|West)\b\.? )?(?:(?:{_WORD}|\d{{1,3}}(?:st|nd|rd|th))\.? ){{1,4}}?(?:{_ENGLISH})\b\.?{_UNIT}?",
    # Hauptstraße 12a, Am Alten Markt 3; Kerkstraat 5, Lange Voorhout 3
    rf"\b(?:{_WORD}[ -]){{0,3}}(?:[A-ZÄÖÜ][\w.-]{{0,30}})?(?i:straße|strasse|str\.|weg|gasse|allee|platz|damm|ufer|straat|laan|plein|gracht|kade|singel|dijk|steeg) {_NUMBER}(?![\w.,]\d)",
    # 12 bis, rue de la Paix
    rf"(?<![\w.,-])\d{{1,4}}(?: ?(?:bis|ter|quater))?,? (?i:rue|avenue|av\.|boulevard|bd|place|chemin|allée|impasse|quai|route|cours|passage|square) {_NAME}",
    # Calle Mayor 5, 2º B; Via Roma, 12; Rua Augusta, 100; C/ Alcalá 20
    rf"\b(?:Calle|C/|C\.|Avenida|Avda\.?|Plaza|Paseo|Ronda|Camino|Carrer|Cuesta|Via|Viale|Piazza|Piazzale|Corso|Largo|Vicolo|Strada|Borgo|Rua|Travessa|Praça|ul\.) ?{_NAME},? (?:n[º°o.]\.? ?|núm\. ?)?{_NUMBER}(?:,? (?:Piso|Puerta|Piano|Apt\.?|Interno) ?\w{{1,4}}){{0,2}}(?![.,]\d)",
    r"\bP\.? ?O\.? ?Box \d{1,6}\b|\bPostfach \d[\d ]{1,7}\b|\bPostbus \d{1,6}\b|\bApartado de Correos \d{1,6}\b",
]
_STREET = [re.compile(pattern) for pattern in _STREETS]
_US_PLACE = rf"(?:{_WORD}\.? ){{0,2}}{_WORD},? (?:{_STATES})\.? {{1,2}}\d{{5}}(?:-\d{{4}})?(?![\w-])"
_UK_CODE = r"(?:[A-PR-UWYZ]\d{1,2}|[A-PR-UWYZ][A-HK-Y]\d{1,2}|[A-PR-UWYZ]\d[A-HJKPSTUW]|[A-PR-UWYZ][A-HK-Y]\d[A-Z]) ?\d[ABD-HJLNP-UW-Z]{2}(?!\w)"
_PLACE = re.compile(rf"\b(?:{_US_PLACE}|{_UK_CODE})")
_CODE_AND_TOWN = re.compile(rf"[,\s]{{1,3}}(?:[A-Z]{{1,2}}-)?(?:\d{{4}} ?[A-Z]{{2}}\b,?\s{{1,2}}|\d{{4,5}},?\s{{1,2}}){_NAME}(?: \([A-Z]{{2}}\))?|[,\s]{{1,3}}{_NAME},\s?\d{{4,5}}\b")
"""Behind a street of the continent; alone, a number and a name are too many things."""
_LINE_BEFORE = re.compile(rf"(?<![\w.,$-])\d{{1,5}} (?:{_WORD}\.? ){{0,3}}{_WORD}\.?{_UNIT}?[,\s]{{1,3}}$")
_BETWEEN = re.compile(rf"[\s,]{{0,4}}(?:{_WORD}[\s,]{{1,3}}){{0,3}}")
_YEAR = re.compile(r"(?:1[6-9]|20)\d\d")
_DATED = re.compile(r"\b(?:in|since|by|of|from|until|till|after|before|during|around|circa|early|late|mid|the|and|to|\w+ \d{1,2},) $|[(,–-]$", re.IGNORECASE)
LONGEST_GAP = 60
"""Characters between a street and its postcode: the name of a town or two."""


def addresses(text: str) -> Iterator[Span]:
    """Streets with a number (English, German, Dutch, French, Spanish, Italian, Portuguese forms), post boxes, US `Town, ST 12345` and UK postcodes; joined
    where they follow each other."""
    parts = sorted([*_streets(text), *_places(text)])
    start = end = None
    for left, right in parts:
        if end is not None and left - end <= LONGEST_GAP and (left <= end or _BETWEEN.fullmatch(text, end, left)):
            end = max(end, right)
            continue
        if start is not None:
            yield Span(start, end, "ADDRESS")
        start, end = left, right
    if start is not None:
        yield Span(start, end, "ADDRESS")


def _streets(text: str) -> Iterator[tuple[int, int]]:
    for pattern in _STREET:
        for match in pattern.finditer(text):
            number = match.groupdict().get("number")
            # `In 1987 Wall Street fell`
            if number and _YEAR.fullmatch(number) and _DATED.search(text, max(0, match.start() - 16), match.start()):
                continue
            town = _CODE_AND_TOWN.match(text, match.end())
            yield match.start(), town.end() if town else match.end()


def _places(text: str) -> Iterator[tuple[int, int]]:
    for match in _PLACE.finditer(text):
        before = _LINE_BEFORE.search(text, max(0, match.start() - 100), match.start())
        yield before.start() if before else match.start(), match.end()
