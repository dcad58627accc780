"""All finders over one text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from megagpt.config.prepare import PersonalDataConfig
from megagpt.prepare.personal_data.addresses import addresses
from megagpt.prepare.personal_data.internet import emails, ips
from megagpt.prepare.personal_data.names import names
from megagpt.prepare.personal_data.numbers import cards, ibans, ssns
from megagpt.prepare.personal_data.phones import phones
from megagpt.prepare.personal_data.plain import plain
from megagpt.prepare.personal_data.span import Span, without_overlaps

_DIGIT = re.compile("[0-9]")
_LONG_NUMBER = re.compile(r"[0-9](?:[^0-9\n]{0,4}[0-9]){6}")


def find(text: str, config: PersonalDataConfig) -> list[Span]:
    """Personal data of the kinds that the settings name, in order, without overlaps. Time is linear in the text.

    Raises:
        DataError: presidio or its model is asked for and not installed.
    """
    kinds = {*config.kinds, *(["NAME"] if config.engine == "presidio" else [])}
    return [span for span in without_overlaps(_spans(plain(text), config), len(text)) if span.kind in kinds]


def _spans(text: str, config: PersonalDataConfig) -> Iterator[Span]:
    """Costly finders run only where the text holds what they need at least. Kinds that were not asked for are found all the same where they keep a
    number from being taken for another kind."""
    yield from emails(text)
    if config.engine == "presidio":
        yield from names(text, config.presidio_model, config.presidio_language)
    if ":" in text or "." in text:
        yield from ips(text, public_only=config.ip_addresses == "public")
    if not _DIGIT.search(text):
        return
    if "ADDRESS" in config.kinds:
        yield from addresses(text)
    if _LONG_NUMBER.search(text):
        yield from ibans(text)
        yield from cards(text)
        yield from ssns(text)
        if "PHONE" in config.kinds:
            yield from phones(text, config.phone_regions)
