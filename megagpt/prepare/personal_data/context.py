"""What the words around a number say that it is."""

from __future__ import annotations

import functools
import re
from typing import Literal

Said = Literal["PHONE", "CARD", "IBAN", "SSN", "IP", "VERSION", "OTHER"]

BEFORE = 48
"""Characters before a number, of its own paragraph, in which its word is looked for."""
NEXT = 24
"""And in which `order`, `version` and the like are believed, with nothing but `number` and the like between: these words are in every text."""
BEHIND = 16
"""And behind it, where telephones and cards are named (`... (fax)`, `... exp 12/27`)."""

# Whole words in small letters, digits left out (`ipv` is IPv4). Languages: those of the address rules, and a few words of others.
_WORDS: dict[Said, str] = {
    "PHONE": "tel tél reach contact contacts kontakt contacto contatto phone phones ph cell mob fax call calls called calling dial dialled dialed dialling ring sms desk portable joindre ruf rufen anruf"
    " anrufen anrufe llama llame llámame llámeme llamar tfno bel bellen gsm ligue ligar viber тел моб τηλ 電話 电话 手机",
    "CARD": "card cards cvv cvc charge charged charges pay paid payment visa amex mastercard maestro discover diners jcb cc carta carte cartão kaart karta karty kart karte tarjeta tarjetas",
    "IBAN": "iban ibans",
    "SSN": "ssn ssns ss",
    "IP": "ip ips ipv address addresses addr adresse direcciones dirección indirizzo adres host hosts server servers dns ping gateway proxy client subnet port"
    " router routers login",
    "VERSION": "v ver version versions versión versione versie release build firmware update updates upgrade driver kernel section sections chapter chapters clause rule sec ch",
    "OTHER": "isbn issn ean upc sku ref réf part model doi arxiv pmid pmc patent case page pages pp vol lat lon lng gps total totals lot batch hash md sha"
    " commit id ids uuid imei date dated datum fecha price prices prix precio prezzo preis",
}
_PHRASES: dict[Said, str] = {
    "PHONE": "text me,toll free,my number,new number",
    "CARD": "american express",
    "SSN": "social security,soc sec",
    "IP": "logged in",
}
# Parts of words, so that compounds and inflections count: Telefonnummer, teléfonos, Bestellnummer.
_PARTS: dict[Said, str] = {
    "PHONE": "tel[eé](?:f[oó]|pho)|tel[eé]fax|phone|cellul|celular|mobi(?:l|el)|m[oó]vil|telem[oó]ve|handy|rufnum|durchwahl|hotline|helpline|whatsapp|appele"
    "|chiam|zadzwo|kom[oó]rk|телефон|звон|τηλέφων",
    "CARD": "(?:credit|debit|kredit|bank|pin)(?:card|kart|kaart|kort)|karten|карт",
    "OTHER": "invoice|receipt|order|refer|tracking|ticket|serial|catalog|customer|article|population|coordinat|latitud|longitud|kilomet|bestel|rechnung"
    "|artikel|auftrag|kunden|sendung|aktenzei|commande|factur|dossier|colis|pedido|expedient|ordin|fattura|codice|encomend|zam[oó]wien|заказ",
}
_BETWEEN = set("number numbers no nr num n id code is was are the a of our your my nummer numéro número numero numer ist est es è jest near at".split())
_LABELS = {word: said for said, words in _WORDS.items() for word in words.split()} | {
    phrase: said for said, phrases in _PHRASES.items() for phrase in phrases.split(",")
}
_ANY_PART = re.compile("|".join(f"(?P<{said}>{parts})" for said, parts in _PARTS.items()))
_LETTERS = re.compile(r"[^\W\d_]+")
_PHONE_BEHIND = re.compile(r"[ ,]{0,2}[(\[]?(?:office|fax|mobile|cell|home|work|tel|telephone|phone|desk|direct|toll[- ]free|whatsapp)\b", re.IGNORECASE)

_CARD_BEHIND = re.compile(r"[ ,]{0,2}[(\[]?(?:exp|valid|cv[vc]|card|visa|mastercard|amex)", re.IGNORECASE)


def said_before(text: str, start: int, within: int = BEFORE) -> Said | None:
    """The nearest word before the place that says what kind of number follows; None where none of so many characters does."""
    left = max(0, start - within)
    left = max(left, text.rfind("\n\n", left, start))
    words = list(_LETTERS.finditer(text, left, start))
    alone = True
    for place in range(len(words) - 1, -1, -1):
        word = words[place]
        said = (place > 0 and _LABELS.get(f"{words[place - 1][0]} {word[0]}".lower())) or _said(word[0])
        if said and (said not in ("OTHER", "VERSION") or (alone and start - word.end() < NEXT)):
            return said
        alone = alone and word[0].lower() in _BETWEEN
    return None


@functools.lru_cache(1 << 14)
def _said(word: str) -> Said | None:
    word = word.lower()
    part = _ANY_PART.search(word)
    return _LABELS.get(word) or (part.lastgroup if part else None)  # type: ignore[return-value]


def said_card_behind(text: str, end: int) -> bool:
    """Whether the number is followed by what else is printed on a card."""
    return _CARD_BEHIND.match(text, end, end + BEHIND) is not None


def said_phone_behind(text: str, end: int) -> bool:
    """Whether the number is followed by what names a telephone."""
    return _PHONE_BEHIND.match(text, end, end + BEHIND) is not None
