"""How well a tokenizer fits texts: compression by source and language, what it cannot give back, and what its vocabulary is made of."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from megagpt.tokenizer.limits import limits
from megagpt.tokenizer.tokenizer import Tokenizer

MAX_EXAMPLES = 5
"""Round-trip failures that the report shows."""
LONGEST_TOKENS = 30
EXCERPT_CHARACTERS = 80
SCRIPT_LETTERS = 200
"""Letters of a text that tell its script, where its language is not known."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A text to measure on."""

    text: str
    source: str = ""
    language: str = ""
    """Code of the language; where it is empty the report says the script (`Latin script`)."""
    document: str = ""
    """Id, for examples of failures."""


@dataclass
class _Tally:
    """Sums over texts."""

    texts: int = 0
    bytes: int = 0
    characters: int = 0
    words: int = 0
    tokens: int = 0
    round_trip_failures: int = 0

    def add(self, text: str, num_tokens: int, failed: bool) -> None:
        self.texts += 1
        self.bytes += len(text.encode())
        self.characters += len(text)
        self.words += len(text.split())
        self.tokens += num_tokens
        self.round_trip_failures += failed

    def summary(self) -> dict[str, Any]:
        return {
            "texts": self.texts,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "bytes_per_token": _ratio(self.bytes, self.tokens),
            "characters_per_token": _ratio(self.characters, self.tokens),
            "tokens_per_word": _ratio(self.tokens, self.words),
            "round_trip_failures": self.round_trip_failures,
        }


def tokenizer_report(tokenizer: Tokenizer, samples: Iterable[Sample]) -> dict[str, Any]:
    """Measure a tokenizer on texts.

    Returns:
        A JSON-ready dict: kind, vocab_size, content_hash; over all texts, and in `by_source` and `by_language` for each: texts, bytes (UTF-8),
        tokens, bytes_per_token, characters_per_token, tokens_per_word (fertility; words are what stands between white space, so it says little of
        Chinese or Japanese), round_trip_failures (texts whose decode(encode) differs); failure_examples; used_ids (ids that occur);
        longest_tokens of the vocabulary with how often they occur; limits (`limits.py`).
    """
    everything, by_source, by_language = _Tally(), {}, {}
    counts: Counter[int] = Counter()
    examples: list[dict[str, Any]] = []
    for sample in samples:
        ids = tokenizer.encode(sample.text)
        counts.update(ids)
        decoded = tokenizer.decode(ids)
        failed = decoded != sample.text
        if failed and len(examples) < MAX_EXAMPLES:
            examples.append({"document": sample.document, "source": sample.source, **_difference(sample.text, decoded)})
        language = sample.language or script(sample.text)
        for tally in (everything, by_source.setdefault(sample.source, _Tally()), by_language.setdefault(language, _Tally())):
            tally.add(sample.text, len(ids), failed)
    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "content_hash": tokenizer.content_hash,
        **everything.summary(),
        "used_ids": len(counts),
        "failure_examples": examples,
        "by_source": _by_size(by_source),
        "by_language": _by_size(by_language),
        "longest_tokens": _longest_tokens(tokenizer, counts),
        "limits": [limit._asdict() for limit in limits(tokenizer)],
    }


def summary_line(report: dict[str, Any]) -> str:
    """The report in one line."""
    return (
        f"{report['vocab_size']:,} ids, {report['bytes_per_token']} bytes a token (texts: {report['texts']:,}, bytes: {report['bytes']:,}), "
        f"{report['used_ids']:,} ids used, round-trip failures: {report['round_trip_failures']:,}"
    )


def script(text: str) -> str:
    """The script of most of a text's first letters (`Latin script`, `Cyrillic script`), from the names that Unicode gives them."""
    letters = (character for character in text if character.isalpha())
    names = Counter(unicodedata.name(letter, "unknown").split()[0] for letter, _ in zip(letters, range(SCRIPT_LETTERS), strict=False))
    if not names:
        return "no letters"
    name = max(sorted(names), key=names.__getitem__)
    return f"{name if name == 'CJK' else name.capitalize()} script"


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _by_size(tallies: dict[str, _Tally]) -> dict[str, dict[str, Any]]:
    order = sorted(tallies, key=lambda name: (-tallies[name].bytes, name))
    return {name: tallies[name].summary() for name in order}


def _longest_tokens(tokenizer: Tokenizer, counts: Counter[int]) -> list[dict[str, Any]]:
    """Tokens that stand for the most bytes; long ones that hardly occur tell of text that was there many times when the vocabulary was learned."""
    control = set(tokenizer.special_ids.values())
    texts = ((number, tokenizer.decode([number])) for number in range(tokenizer.own_size) if number not in control)
    order = sorted(texts, key=lambda one: (-len(one[1].encode()), one[0]))
    return [{"id": number, "text": text, "bytes": len(text.encode()), "count": counts[number]} for number, text in order[:LONGEST_TOKENS]]


def _difference(text: str, decoded: str) -> dict[str, Any]:
    """Where a text and its decoded form part."""
    position = next(
        (i for i, (a, b) in enumerate(zip(text, decoded, strict=False)) if a != b), min(len(text), len(decoded))
    )
    window = slice(position, position + EXCERPT_CHARACTERS)
    return {"position": position, "original": text[window], "decoded": decoded[window]}
