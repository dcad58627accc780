"""What the words around a number say that it is."""

from __future__ import annotations

import re
from typing import Literal

Said = Literal["PHONE", "CARD", "IBAN", "SSN", "IP", "VERSION", "OTHER"]

BEFORE = 48
"""Characters before a number in which its word is looked for."""
BEHIND = 16
"""And behind it: only phones are named there (`... office`, `... (fax)`)."""

# Stems match any ending, so that compounds and inflections count (Telefonnummer, teléfonos); languages are those of the address rules.
_STEMS = {
    "PHONE": r"tel[eé][fp]h?[oó]n|tel[eé]fax|(?:smart|mobil|cell?)(?:e?phone|telefon)|cell?ul[ao]r|mobi(?:e?l|le)|m[oó]vil|telem[oó]ve|handy|rufnum"
    r"|durchwahl|hotline|helpline|whats ?app|apelle|appele|chiam|telefo|zadzwo|kom[oó]rk|телефон|звон|τηλ[έε]φων|電話|手机|电话",
    "CARD": r"(?:credit|debit|kredit|bank|pin)[- ]?(?:card|karte|kaart|kort)|master ?card|maestro|american express|tarjeta|kart[eay]|cart[eaã]o?\b|kaart|карт",
    "SSN": r"social[- ]security|soc\.? ?sec",
    "OTHER": r"invoice|receipt|order|refer|tracking|ticket|serial|catalog|customer|article|population|coordinat|latitud|longitud|kilomet|bestel|rechnung"
    r"|artikel|auftrag|kunden|sendung|aktenzei|commande|factur|dossier|colis|pedido|expedient|ordine|fattura|codice|encomend|zam[oó]wien|заказ"
    r"|pri(?:ce|js|x\b)|preis|precio|prezzo",
}
_WORDS = {
    "PHONE": r"tel|t[eé]l|phones?|ph|cell|mob|fax|call(?:ed|ing|s)?|dial(?:led|ling)?|ring|text me|sms|toll[- ]free|desk|my (?:new )?number|portable|joindre"
    r"|reach (?:me|us|him|her|them)|contact (?:me|us|him|her|them)|ruf(?:en|t)?|anruf(?:en)?|ll[aá]m[ea](?:me|nos|r|rme)?|tfno|bel|bellen|gsm|ligue"
    r"|ligar|viber|тел|моб",
    "CARD": r"cards?|visa|amex|discover|diners(?: club)?|jcb|cc",
    "IBAN": r"ibans?",
    "SSN": r"ssns?|ss ?#",
    "IP": r"ips?|ipv[46]|addresse?s?|adresse|direcci[oó]n|indirizzo|adres|hosts?|servers?|dns|ping|gateway|proxy|client|subnet|port|routers?|login|logged in",
    "VERSION": r"v|ver|versions?|versi[oó]n|versione|versie|release|build|firmware|updates?|upgrades?|driver|kernel|section|chapter|clause|rule|sec|ch",
    "OTHER": r"isbns?|isbn-1[03]|issn|ean|upc|sku|ref|r[eé]f|no\. of|part|model|doi|arxiv|pmid|pmc|patent|case|pages?|pp|vol|lat|lon|lng|gps|totals?|lots?"
    r"|batch|hash|md5|sha|sha1|commit|id|ids|uuid|nr\. ?von|imei|vin|dated?|datum|fecha|data|score",
}  # fmt: skip
_NAMED = re.compile(
    "|".join(rf"(?P<{label}>\b(?:{words})(?!\w)" + (f"|{_STEMS[label]}" if label in _STEMS else "") + ")" for label, words in _WORDS.items()),
    re.IGNORECASE,
)
_NAMED_BEHIND = re.compile(r"[ ,]{0,2}[(\[]?(?:office|fax|mobile|cell|home|work|tel|telephone|phone|desk|direct|toll[- ]free|whatsapp)\b", re.IGNORECASE)


def said_before(text: str, start: int) -> Said | None:
    """The nearest word before the place that says what kind of number follows; None where no word does."""
    last = None
    for last in _NAMED.finditer(text, max(0, start - BEFORE), start):
        pass
    return last.lastgroup if last else None  # type: ignore[return-value]


def said_phone_behind(text: str, end: int) -> bool:
    """Whether the number is followed by what names a telephone."""
    return _NAMED_BEHIND.match(text, end, end + BEHIND) is not None
