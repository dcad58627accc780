"""Words that name groups of people (the package's table, and what a user's file adds), and where they are in a text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from megagpt.config.load import ConfigError, read_yaml
from megagpt.prepare.word_numbers import WORD, WordNumbers

TABLE = Path(__file__).parent / "identity_terms.yaml"
PERSONS = frozenset(
    "people person persons man men woman women boy boys girl girls guy guys male males female females lady ladies gentleman gentlemen child children "
    "kid kids baby babies teen teens teenager teenagers youth youths adult adults student students pupil pupils family families couple couples "
    "community communities citizen citizens neighbor neighbors neighbour neighbours resident residents population populations immigrant immigrants "
    "migrant migrants refugee refugees voter voters worker workers individual individuals folk folks parent parents mother mothers father fathers "
    "friend friends wife husband girlfriend boyfriend doctor doctors nurse nurses teacher teachers professor professors lawyer lawyers artist "
    "artists actor actors actress actresses singer singers rapper rappers musician musicians writer writers author authors poet poets athlete "
    "athletes player players politician politicians leader leaders president soldier soldiers officer officers driver drivers farmer farmers "
    "businessman businessmen candidate candidates employee employees customer customers patient patients prisoner "
    "prisoners victim victims suspect suspects veteran veterans american americans".split()
)
"""What may stand for `*` at the end of a term."""
PRONOUNS, COPULAS = frozenset("i he she they we you who".split()), frozenset("is was are were am be been being".split())
"""A term with `*` counts behind one of each too: "she is blind", but not "it is old"."""
CONTRACTIONS = frozenset("i'm he she they're we're you're who".split())
"""And behind both in one word, which lose `'s` in normal form."""


@dataclass(frozen=True, slots=True)
class Term:
    """A way to name members of a group."""

    category: str
    group: str
    text: str
    """As it stands in the table."""
    words: tuple[str, ...]
    """Normal form of its words, without `*`."""
    is_adjective: bool
    """Counts only where it says something of persons: before a word of PERSONS, or behind a pronoun and a copula."""

    @property
    def group_key(self) -> str:
        return f"{self.category}/{self.group}"

    @property
    def key(self) -> str:
        return f"{self.group_key}/{self.text}"


def normal(word: str) -> str:
    """Lower case, typewriter apostrophe, without the `'s` of a possessive: `Women’s` is `women`."""
    return word.lower().replace("’", "'").removesuffix("'s")


def read_terms(file: str | None) -> list[Term]:
    """Terms of the package and of a user's file, in the order of their keys.

    Raises:
        ConfigError: unreadable file, or one of another shape.
    """
    paths = [TABLE, Path(file)] if file else [TABLE]
    terms = {term.key: term for found in (_own_terms(), _read(Path(file)) if file else ()) for term in found}
    owner: dict[tuple[str, tuple[str, ...], bool], Term] = {}
    for term in terms.values():
        other = owner.setdefault((term.category, term.words, term.is_adjective), term)
        if other is not term:
            where = f"{term.category}.{other.group} and {term.group}"
            raise ConfigError(f"{paths[-1]}: {term.text!r} is in {where} (as {other.text!r}); one of them must go")
    return [terms[key] for key in sorted(terms)]


class TermFinder:
    """Finds terms in the numbers of a text's words; further words may have numbers too."""

    def __init__(self, terms: list[Term], further: Iterable[str] = ()):
        """`further`: words in normal form that need a number of their own."""
        self.terms = terms
        known = {word for term in terms for word in term.words} | PERSONS | PRONOUNS | COPULAS | CONTRACTIONS | set(further)
        self.vocabulary = {word: number for number, word in enumerate(sorted(known), 1)}
        self.numbers = WordNumbers(lambda word: self.vocabulary.get(normal(word), 0), np.int32)
        """Text -> number of each word, 0 for words that are not in the vocabulary; [words]."""
        self._persons, self._pronouns, self._copulas, self._contractions = (
            frozenset(self.vocabulary[word] for word in words) for words in (PERSONS, PRONOUNS, COPULAS, CONTRACTIONS)
        )
        self._at: dict[int, list[tuple[int, str, tuple[int, ...], bool]]] = {}
        longest_first = sorted(enumerate(terms), key=lambda pair: (len(pair[1].words), pair[1].is_adjective), reverse=True)
        for place, term in longest_first:
            first, *rest = (self.vocabulary[word] for word in term.words)
            self._at.setdefault(first, []).append((place, term.category, tuple(rest), term.is_adjective))
        self._begins = self.mask(term.words[0] for term in terms)

    def mask(self, words: Iterable[str]) -> np.ndarray:
        """Whether a word of the vocabulary is one of these; [vocabulary + 1], bool."""
        mask = np.zeros(len(self.vocabulary) + 1, bool)
        mask[[self.vocabulary[word] for word in words]] = True
        return mask

    def find(self, numbers: np.ndarray) -> np.ndarray:
        """Terms of a text in the order in which they begin: (place in `terms`, first word, word behind the last); [found, 3].

        In a category the longest term that begins at a word is taken, and no other begins before its end.
        """
        candidates = np.flatnonzero(self._begins[numbers]).tolist()
        if not candidates:
            return np.zeros((0, 3), np.int64)
        words = numbers.tolist()
        found, ends = [], {}
        for begin in candidates:
            for place, category, rest, is_adjective in self._at[words[begin]]:
                end = begin + 1 + len(rest)
                if ends.get(category, 0) > begin or (rest and tuple(words[begin + 1 : end]) != rest):
                    continue
                if is_adjective and not self._is_of_person(words, begin, end):
                    continue
                ends[category] = end
                found.append((place, begin, end))
        return np.array(found, np.int64).reshape(-1, 3)

    def _is_of_person(self, words: list[int], begin: int, end: int) -> bool:
        before = words[max(begin - 2, 0) : begin]
        is_before_person = end < len(words) and words[end] in self._persons
        is_predicate = len(before) == 2 and before[0] in self._pronouns and before[1] in self._copulas
        return is_before_person or is_predicate or (bool(before) and before[-1] in self._contractions)


@lru_cache(maxsize=1)
def _own_terms() -> tuple[Term, ...]:
    return tuple(_read(TABLE))


def _read(path: Path) -> list[Term]:
    terms = []
    for category, groups in read_yaml(path).items():
        for group, texts in _groups(path, category, groups):
            if not isinstance(texts, list):
                raise ConfigError(f"{path}: {category}.{group} is {texts!r}; it must be a list of terms")
            terms += [_term(path, category, group, text) for text in texts]
    return terms


def _groups(path: Path, category: str, groups: Any) -> list[tuple[str, Any]]:
    if not isinstance(groups, dict):
        raise ConfigError(f"{path}: {category} is {groups!r}; it must be group -> list of terms")
    for name in (category, *groups):
        if "/" in name:
            raise ConfigError(f"{path}: the name {name!r} has a slash, which parts category, group and term in counts")
    return list(groups.items())


def _term(path: Path, category: str, group: str, text: Any) -> Term:
    words = tuple(map(normal, WORD.findall(text))) if isinstance(text, str) else ()
    if not words:
        raise ConfigError(f"{path}: {category}.{group} has the term {text!r}; a term must have a word (quote what YAML reads as something else)")
    return Term(category, group, text, words, text.rstrip().endswith("*"))
