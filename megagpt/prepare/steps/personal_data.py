"""Personal data: redacted, or a reason to drop the document."""

from __future__ import annotations

import re
from collections import Counter

import phonenumbers
from datatrove.data import Document

from megagpt.config.load import ConfigError
from megagpt.config.prepare import PersonalDataConfig
from megagpt.prepare.personal_data.find import find
from megagpt.prepare.personal_data.names import load
from megagpt.prepare.personal_data.span import Span

_DIGIT, _CAPITAL, _SMALL = re.compile(r"\d"), re.compile(r"[^\W\d_a-zß-öø-ÿ]"), re.compile(r"[a-zß-öø-ÿ]")


class PersonalData:
    """Writes placeholders over personal data; notes how many of each kind there were, never which.

    Raises:
        ConfigError: a region that libphonenumber does not know.
        DataError: presidio or its model is asked for and not installed.
    """

    name = "personal_data"

    def __init__(self, config: PersonalDataConfig) -> None:
        if unknown := sorted(set(config.phone_regions) - phonenumbers.SUPPORTED_REGIONS):
            raise ConfigError(f"steps.personal_data.phone_regions: {unknown[0]!r} is no region of libphonenumber; two-letter codes such as US, GB, DE")
        if config.engine == "presidio":
            load(config.presidio_model, config.presidio_language)
        self.config = config

    def __call__(self, document: Document) -> str | None:
        """`personal_data` where there is more of a kind than its limit; else None, with the text redacted."""
        spans = find(document.text, self.config)
        if not spans:
            return None
        counts = Counter(span.kind for span in spans)
        document.metadata["notes"][self.name] = dict(sorted(counts.items()))
        if any(counts[kind] > limit for kind, limit in self.config.drop_above.items()):
            return self.name
        document.text = redact(document.text, spans, keep_form=self.config.replacement == "form")
        return None


def redact(text: str, spans: list[Span], *, keep_form: bool = False) -> str:
    """The text with `<EMAIL>` and the like in place of the spans, or with something of the same form that belongs to nobody."""
    parts, end = [], 0
    for span in spans:
        parts += [text[end : span.start], _same_form(text[span.start : span.end], span.kind) if keep_form else f"<{span.kind}>"]
        end = span.end
    return "".join([*parts, text[end:]])


def _same_form(found: str, kind: str) -> str:
    """Addresses that are set aside for documentation (RFC 2606, 5737, 3849); of the rest the digits become 0 and the letters x."""
    if kind == "EMAIL":
        return "name@example.com"
    if kind == "IP":
        return "2001:db8::1" if ":" in found else "192.0.2.1"
    return _SMALL.sub("x", _CAPITAL.sub("X", _DIGIT.sub("0", found)))
