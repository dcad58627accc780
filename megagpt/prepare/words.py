"""Words, lines and sentences of a document, computed once however many rules ask for them.

datatrove's tokenizers want spaCy or one library for each language; this one is a regular expression behind the same interface, so that any of
datatrove's filters takes it too (`GopherQualityFilter(language=SPLITTER)`). A word is

- in scripts that write without spaces (Han, kana, Thai, Lao, Tibetan, Burmese, Khmer) a character with its marks,
- else a run of letters, marks and digits, joined by single apostrophes, hyphens and dots (`don't`, `well-known`, `3.5`, `www.example.org`),
- or a run of anything else that is no space.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from unicodedata import category

from datatrove.utils.text import PUNCTUATION_SET, TERMINAL_PUNCTUATION
from datatrove.utils.word_tokenizers import WordTokenizer

SPACELESS_LANGUAGES = frozenset({"bo", "dz", "ja", "km", "lo", "my", "th", "wuu", "yue", "zh"})
"""ISO 639 codes, as fastText's identification names them, of languages whose words are characters here."""
_SPACELESS = (
    (0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF),
)  # fmt: skip
_ASTRAL_SPACELESS = ((0x20000, 0x3FFFF),)
_ASTRAL_WORD = ((0x10000, 0x1CFFF), (0x1D400, 0x1D7FF), (0x1E000, 0x1EFFF))
"""Beyond the first 65,536 whole blocks are taken, since `re` looks those up one range after another: scripts of the past, letters of mathematics."""
_JOINERS = frozenset({0x00AD, 0x200C, 0x200D})
"""Invisible, inside of words: soft hyphen, zero-width non-joiner and joiner (Persian, Indic scripts, emoji)."""
_PUNCTUATION = "".join(sorted(PUNCTUATION_SET))


def _members(codes: Iterable[int]) -> str:
    """Of a character class, as ranges."""
    ordered = sorted(codes)
    firsts = [code for before, code in zip([-2, *ordered], ordered) if code != before + 1]
    lasts = [code for code, after in zip(ordered, [*ordered[1:], -2]) if code + 1 != after]
    return _ranges(zip(firsts, lasts, strict=True))


def _ranges(pairs: Iterable[tuple[int, int]]) -> str:
    return "".join(f"{re.escape(chr(first))}-{re.escape(chr(last))}" for first, last in pairs)


def _word_pattern() -> re.Pattern[str]:
    """Classes are made from Unicode's categories, because `\\w` of `re` leaves out combining marks, which cut words of Hindi or Arabic in two; `re`
    makes one table of each class, which is twice as fast as the `regex` library's properties."""
    spaceless = {code for first, last in _SPACELESS for code in range(first, last + 1)}
    kinds = [category(chr(code))[0] for code in range(0x10000)]
    marks = {code for code, kind in enumerate(kinds) if kind == "M"} | _JOINERS
    word = {code for code, kind in enumerate(kinds) if kind in "LMN"} | _JOINERS | {ord("_")}
    characters = {code for code in spaceless if kinds[code] in "LN"}

    one = f"[{_members(characters)}{_ranges(_ASTRAL_SPACELESS)}][{_members(marks)}]*"
    run = f"[{_members(word - characters)}{_ranges(_ASTRAL_WORD)}]+"
    other = f"[^\\s{_members(word)}{_ranges(_ASTRAL_WORD + _ASTRAL_SPACELESS)}]+"
    return re.compile(f"{run}(?:['’.\\-]{run})*|{one}|{other}")


_WORD = _word_pattern()
_SPACED = ".!?…‽"
_UNSPACED = "".join(sorted(mark for mark in TERMINAL_PUNCTUATION - set(_SPACED) if mark <= "\uffff"))
_CLOSERS = "[\"'”’»)\\]」』】]*"
_SENTENCE_END = re.compile(
    f"[{_SPACED}{_UNSPACED}\n]"  # one class in front, by which `re` skips ahead
    f"(?:(?<=[{_SPACED}])(?<!\\b[A-Z]\\.)[{_SPACED}]*{_CLOSERS}(?:\\s+|$)|(?<=[{_UNSPACED}])[{_UNSPACED}]*{_CLOSERS}\\s*|(?<=\n)\\s*)"
)
"""With the space behind it. A dot behind a single capital is an initial; marks of other scripts end a sentence without a space."""


class WordSplitter(WordTokenizer):
    """datatrove's interface; one splitter for all languages."""

    def word_tokenize(self, text: str) -> list[str]:
        """Together the words are all of the text but its spaces."""
        return _WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return [text[start:end].strip() for start, end in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of the sentences, which lie end to end and cover the text; none where there is nothing but space."""
        return list(self._spans(text))

    def count_sentences(self, text: str) -> int:
        """`len(span_tokenize(text))`."""
        return sum(1 for _ in self._spans(text))

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        start = 0
        for match in _SENTENCE_END.finditer(text, len(text) - len(text.lstrip())):
            yield start, match.end()
            start = match.end()
        if text[start:].strip():
            yield start, len(text)


SPLITTER = WordSplitter()


class TextView:
    """A text and what rules ask of it, each computed when first asked for."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def words(self) -> list[str]:
        return SPLITTER.word_tokenize(self.text)

    @cached_property
    def not_alphabetic(self) -> list[str]:
        """Words that are not of letters alone."""
        return [word for word in self.words if not word.isalpha()]

    @cached_property
    def punctuation(self) -> list[str]:
        """Words of nothing but what datatrove counts as punctuation (no letter is)."""
        return [word for word in self.not_alphabetic if not word.strip(_PUNCTUATION)]

    @cached_property
    def lines(self) -> list[str]:
        r"""Pieces between `\n` that are not blank."""
        return [line for line in self.text.split("\n") if line and not line.isspace()]

    @cached_property
    def all_lines(self) -> list[str]:
        """`splitlines()`: blank ones too, and cut at every character that Unicode knows for it."""
        return self.text.splitlines()


@lru_cache(maxsize=1)
def view(text: str) -> TextView:
    """The view of this text: the same one as long as nobody asks for another's, so that the rules and steps of a document share it."""
    return TextView(text)
