"""Sentences with personal data of nobody, and sentences with what is easily taken for it. Faker makes both, from a seed.

Values that a rule decides about are made here as well as broken here: a card number with a wrong check digit is one of the finders' near-misses.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from faker import Faker

from megagpt.config.prepare import PersonalDataKind

LOCALES = ("en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "it_IT", "nl_NL", "pt_PT", "pl_PL")
ISSUERS = ("visa16", "mastercard", "amex", "discover", "jcb16", "diners", "maestro", "visa13", "visa19")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence that holds one value."""

    text: str
    start: int
    end: int
    kind: PersonalDataKind
    """What the value is, or what it only looks like."""
    real: bool
    """Whether a finder should mark it."""


def sentences(kind: PersonalDataKind, count: int, seed: int) -> list[Sentence]:
    """`count` sentences with a value of this kind and as many with a near-miss of it, over all locales."""
    chance = random.Random(f"{kind} {seed}")
    fakers = {}
    for locale in LOCALES:
        fakers[locale] = Faker("en_US" if kind == "CARD" else locale)  # some locales name issuers in other ways
        fakers[locale].seed_instance(f"{kind} {locale} {seed}")
    made = []
    for number in range(count):
        locale = LOCALES[number % len(LOCALES)]
        for real, values, frames in ((True, _VALUES[kind], _FRAMES[kind]), (False, _NEAR_MISSES[kind], None)):
            made.append(_sentence(kind, real, values, frames, fakers[locale], locale, chance))
    return made


def _sentence(kind, real: bool, values, frames, faker: Faker, locale: str, chance: random.Random) -> Sentence:
    if real:
        value, frame = values(faker, locale, chance), chance.choice(frames.get(locale, []) + frames["en_US"][: 2 if locale in frames else None])
    else:
        make, frame = chance.choice(values)
        value = make(faker, chance)
    before, behind = frame.split("{}")
    if chance.random() < 0.3:
        before = f"{faker.sentence()} {before}"
    return Sentence(before + value + behind, len(before), len(before) + len(value), kind, real)


# ---------------------------------------------------------------- values


def _email(faker: Faker, locale: str, chance: random.Random) -> str:
    address = faker.email(safe=chance.random() < 0.3)
    return chance.choice([address, address, address, address.replace("@", "+news@"), address.title(), address.upper()])


def _ip(faker: Faker, locale: str, chance: random.Random) -> str:
    return faker.ipv4_public() if chance.random() < 0.6 else chance.choice([str, str.upper])(_global_ipv6(chance))


def _global_ipv6(chance: random.Random) -> str:
    """Of the range that is given out (2000::/3), in full, or with `::` as routers have it."""
    parts = [f"{chance.choice(('2001', '2a02', '2600', '2a00', '2c0f'))}", *(f"{chance.randrange(0xD00, 1 << 16):x}" for _ in range(7))]
    return ":".join(parts) if chance.random() < 0.6 else ":".join(parts[: chance.randrange(2, 5)]) + f"::{chance.randrange(1, 1 << 16):x}"


def _phone(faker: Faker, locale: str, chance: random.Random) -> str:
    return faker.phone_number()


def _card(faker: Faker, locale: str, chance: random.Random) -> str:
    digits = faker.credit_card_number(chance.choice(ISSUERS[:6] * 3 + ISSUERS))
    return _grouped(digits, chance)


def _grouped(digits: str, chance: random.Random) -> str:
    mark = chance.choice(["", "", " ", "-"])
    if len(digits) == 15:
        return mark.join([digits[:4], digits[4:10], digits[10:]])
    return mark.join(digits[place : place + 4] for place in range(0, 16, 4)) if len(digits) == 16 else digits


def _iban(faker: Faker, locale: str, chance: random.Random) -> str:
    number = faker.iban()
    return number if chance.random() < 0.5 else " ".join(number[place : place + 4] for place in range(0, len(number), 4))


def _ssn(faker: Faker, locale: str, chance: random.Random) -> str:
    area = chance.choice([number for number in range(1, 900) if number != 666])
    return f"{area:03d}-{chance.randrange(1, 100):02d}-{chance.randrange(1, 10000):04d}"


_VALUES: dict[str, Callable] = {"EMAIL": _email, "IP": _ip, "PHONE": _phone, "CARD": _card, "IBAN": _iban, "SSN": _ssn}

# ---------------------------------------------------------------- frames

_FRAMES: dict[str, dict[str, list[str]]] = {
    "EMAIL": {
        "en_US": ["Write to {} for details.", "<a href=\"mailto:{}\">mail</a>", "Contact: {}", "My address ({}) has changed", "cc: {}, thanks", "from={}&to=all"],
        "de_DE": ["Schreiben Sie an {}.", "E-Mail: {}"], "fr_FR": ["Écrivez à {} avant lundi.", "Courriel : {}"], "es_ES": ["Escriba a {}.", "Correo: {}"],
        "it_IT": ["Scrivi a {}!", "Posta: {}"], "nl_NL": ["Mail naar {} voor meer.", "E-mail: {}"],
    },
    "IP": {"en_US": [
        "Connection from {} closed.", "The server at {} did not answer", "ping {}", "client {} - - [12/Mar/2021:10:11:12 +0000] \"GET / HTTP/1.1\" 200",
        "{} was blocked after three tries", "Banned IP: {}.", "login failed for root ({})",
    ]},
    "PHONE": {
        "en_US": ["Call me at {} tomorrow.", "Phone: {}", "Tel. {}", "My mobile is {}.", "Fax {}", "You can reach us at {} from nine to five", "{} (office)", "Dial {} now"],
        "de_DE": ["Rufen Sie mich unter {} an.", "Telefon: {}", "Meine Handynummer ist {}.", "Tel.: {}"], "fr_FR": ["Téléphone : {}", "Appelez-moi au {}.", "Tél. {}"],
        "es_ES": ["Teléfono: {}", "Llámame al {}.", "Mi móvil es {}"], "it_IT": ["Telefono: {}", "Chiamami al {}.", "Cell. {}"],
        "nl_NL": ["Telefoon: {}", "Bel mij op {}.", "Mijn telefoonnummer is {}"], "pl_PL": ["Telefon: {}", "Proszę dzwonić: tel. {}"], "pt_PT": ["Telefone: {}", "Ligue para {}."],
    },
    "CARD": {
        "en_US": ["My card number is {}.", "Please block card {} at once", "Pay with credit card {}", "Visa {} was charged twice", "card: {}, valid 12/27"],
        "de_DE": ["Meine Kreditkarte {} ist weg.", "Kartennummer: {}"], "fr_FR": ["Ma carte bancaire {} est perdue.", "Carte : {}"], "es_ES": ["Mi tarjeta {} no funciona."],
        "it_IT": ["La mia carta di credito è {}."], "nl_NL": ["Mijn creditcard is {}."], "pl_PL": ["Moja karta {} zginęła."], "pt_PT": ["O meu cartão é {}."],
    },
    "IBAN": {
        "en_US": ["Please transfer it to {}.", "IBAN: {}", "The account {} is closed", "Account: {} (savings)"], "de_DE": ["Überweisen Sie auf {}.", "Konto {}"],
        "fr_FR": ["Mon compte : {}."], "es_ES": ["Mi cuenta es {}."], "it_IT": ["Il mio conto è {}."], "nl_NL": ["Maak het over op {}."],
    },
    "SSN": {"en_US": ["My SSN is {}.", "Social security number: {}", "He gave {} as his number", "SSN {}", "applicant {}, born 1970"]},
}  # fmt: skip

# ---------------------------------------------------------------- near-misses


def _wrong_digit(digits: str, chance: random.Random) -> str:
    """With another last digit: no checksum of one digit holds."""
    return digits[:-1] + chance.choice([digit for digit in "0123456789" if digit != digits[-1]])


def _wrong_iban(faker: Faker, chance: random.Random) -> str:
    """Two neighbouring digits that differ change places, which the remainder modulo 97 always shows."""
    number = faker.iban()
    places = [place for place in range(4, len(number) - 1) if number[place : place + 2].isdigit() and number[place] != number[place + 1]]
    place = chance.choice(places)
    return number[:place] + number[place + 1] + number[place] + number[place + 2 :]


def _digits(pattern: str) -> Callable[[Faker, random.Random], str]:
    """# is any digit, % one that is not 0."""
    return lambda faker, chance: faker.numerify(pattern)


_DATES = [
    (lambda faker, chance: faker.date(), "It happened on {}."), (lambda faker, chance: faker.date("%d.%m.%Y"), "am {} in Berlin"),
    (lambda faker, chance: faker.date("%m/%d/%Y"), "updated {} by hand"), (lambda faker, chance: faker.date("%Y-%m-%d %H:%M:%S"), "{} INFO started"),
    (_digits("19##-20##"), "the years {} in brief"),
]  # fmt: skip
_IDENTIFIERS = [
    (lambda faker, chance: faker.isbn13(), "ISBN {}, paperback"), (lambda faker, chance: faker.isbn10(), "ISBN: {}"), (_digits("%##-%##-####"), "Order number {} has shipped"),
    (_digits("%#########"), "Invoice no. {}"), (lambda faker, chance: faker.sha1(), "commit {}"), (lambda faker, chance: faker.md5(), "md5 {} ok"),
    (lambda faker, chance: faker.uuid4(), "request {} failed"), (_digits("############"), "tracking id {}"), (lambda faker, chance: faker.ean13(), "EAN {}"),
]  # fmt: skip
_AMOUNTS = [
    (_digits("%,###,###"), "a population of {} people"), (_digits("%.###.###,##"), "Der Preis beträgt {} €"), (_digits("$%,###.##"), "for {} only"),
    (_digits("%#.######, -%#.######"), "found near {} by boat"), (_digits("%## ###"), "etwa {} Einwohner"), (_digits("%.########"), "a ratio of {} or so"),
    (_digits("%# ### ### €"), "un budget de {} par an"), (_digits("%##-%##"), "pages {} of the book"),
]  # fmt: skip
_NEAR_MISSES: dict[str, list[tuple[Callable[[Faker, random.Random], str], str]]] = {
    "EMAIL": [
        (lambda faker, chance: f"@{faker.user_name()}", "thanks to {} for this"), (lambda faker, chance: f"icon@{chance.randrange(2, 4)}x.png", "see {}"),
        (lambda faker, chance: f"{faker.word()}@{faker.numerify('%.##.#')}", "npm install {}"), (lambda faker, chance: f"git@github.com:{faker.user_name()}/code.git", "git clone {}"),
        (lambda faker, chance: f"@{faker.word()}.setter", "    {}\n    def value(self): ..."), (lambda faker, chance: f"{faker.word()} @ {faker.numerify('%#')} km/h", "we went {} then"),
        (lambda faker, chance: f"{faker.word()}@{faker.word()}", "the name {} alone"), (lambda faker, chance: f"A@{faker.random_letter()}.mean()", "loss = {}"),
    ],
    "IP": [
        (_digits("%.#.%"), "upgrade to {} today"), (_digits("%.%.##.%#"), "version {} is out"), (_digits("v%.%#.%.#"), "tagged {}"), (_digits("%.#.%.#"), "see section {} below"),
        (_digits("%.%.%.%.%.%#"), "the OID {}"), (lambda faker, chance: faker.time(), "at {} sharp"), (lambda faker, chance: faker.mac_address(), "device {} joined"),
        (lambda faker, chance: f"{chance.randrange(300, 999)}.{faker.numerify('%#.%#.%#')}", "the address {} is wrong"), (lambda faker, chance: "std::vector", "a {}<int>"),
        (_digits("Chrome/%##.0.#.%#"), "Mozilla/5.0 {} Safari"), (lambda faker, chance: chance.choice(["127.0.0.1", "192.168.1.7", "10.0.0.12", "255.255.255.0", "::1"]), "listens on {}"),
    ],
    "PHONE": [*_DATES, *_IDENTIFIERS, *_AMOUNTS, (lambda faker, chance: faker.ipv4_public(), "client {} left")],
    "CARD": [
        (lambda faker, chance: _wrong_digit(faker.credit_card_number("visa16"), chance), "My card number is {}."),
        (lambda faker, chance: _grouped(_wrong_digit(faker.credit_card_number("mastercard"), chance), chance), "credit card {}"),
        (lambda faker, chance: _wrong_digit(faker.credit_card_number("amex"), chance), "Please block card {}"), (_digits("9###############"), "card {}"),
        (_digits("1############"), "timestamp {}"), *_IDENTIFIERS, *_DATES, (_digits("%###-%###-%###"), "key {}"),
    ],
    "IBAN": [
        (_wrong_iban, "IBAN: {}"), (_wrong_iban, "Please transfer it to {}."), (lambda faker, chance: f"XX{faker.iban()[2:]}", "IBAN {}"),
        (lambda faker, chance: faker.iban()[:-1], "Account: {}"), (lambda faker, chance: f"{faker.iban()}7", "Konto {}"), *_IDENTIFIERS,
    ],
    "SSN": [
        (_digits("000-%#-%###"), "SSN {}"), (_digits("666-%#-%###"), "My SSN is {}."), (_digits("9##-%#-%###"), "Social security number: {}"), (_digits("%##-00-%###"), "SSN {}"),
        (_digits("%##-%#-0000"), "SSN {}"), *_IDENTIFIERS, *_DATES, (_digits("#####-####"), "ZIP {}"), (_digits("%##-%##-####"), "call {}"),
    ],
}  # fmt: skip
