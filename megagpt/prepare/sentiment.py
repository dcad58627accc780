"""Valence of English words, from the lexicon of VADER (Hutto and Gilbert 2014), which the package vaderSentiment carries.

Its rules for whole sentences are left aside but for negation: what is counted here are words around a term, many millions of times.
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np

from megagpt.prepare.word_numbers import WORD

SCALE = 1000
"""Valences are integers, in thousandths of the lexicon's scale from -4 to 4: their sums do not depend on the order."""
NEGATED = -74
"""A word within three words after a negation counts so much of its valence, in hundredths (VADER's N_SCALAR)."""
REACH = 3


def read_lexicon() -> dict[str, int]:
    """Word in normal form -> valence; without smileys and phrases. The lexicon has tenths, which become thousandths exactly."""
    lexicon = {}
    for line in (files("vaderSentiment") / "vader_lexicon.txt").read_text(encoding="utf-8").splitlines():
        word, mean, *_ = line.split("\t")
        if WORD.fullmatch(word) and not word.isdigit():
            lexicon[word.lower()] = round(float(mean) * SCALE)
    return lexicon


def read_negations() -> list[str]:
    """`not`, `never`, `don't` and the like, in normal form."""
    from vaderSentiment.vaderSentiment import NEGATE

    return [word for word in NEGATE if WORD.fullmatch(word)]


def valences(lexicon: np.ndarray, is_negation: np.ndarray) -> np.ndarray:
    """Valence of each word of a text in its surroundings; [words], thousandths.

    Args:
        lexicon: that of each word alone, [words], thousandths.
        is_negation: [words], bool.
    """
    is_negated = np.zeros(len(lexicon), bool)
    for distance in range(1, REACH + 1):
        is_negated[distance:] |= is_negation[:-distance]
    return np.where(is_negated, lexicon * NEGATED // 100, lexicon)
