"""Words of a text, and each word as a number, so that what is asked about words is asked of arrays."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Kana and ideographs: written without spaces, so that each of them counts as a word."""
WORD = re.compile(rf"[^\W_{_ALONE}]++(?:['’][^\W_{_ALONE}]++)*+|[{_ALONE}]")
"""Letters and digits, with the apostrophes between them (`don't`); all other punctuation parts words."""

MAX_REMEMBERED = 1 << 18
"""Different words that are remembered, some 30 MB of them; then the memory begins anew."""
MAX_REMEMBERED_LENGTH = 64
"""Longer ones, which come once, are not remembered; characters."""


class WordNumbers:
    """The numbers of a text's words by a rule that depends on the word alone; words are remembered, since most of a text is words seen before."""

    def __init__(self, number: Callable[[str], int], dtype: type[np.generic]):
        self._numbers = _Remembered(number)
        self._dtype = dtype

    def __call__(self, text: str) -> np.ndarray:
        """`number(word)` of every word as it is written; [words]."""
        words = WORD.findall(text)
        return np.fromiter(map(self._numbers.__getitem__, words), self._dtype, len(words))


class _Remembered(dict[str, int]):
    def __init__(self, number: Callable[[str], int]):
        super().__init__()
        self._number = number

    def __missing__(self, word: str) -> int:
        number = self._number(word)
        if len(word) <= MAX_REMEMBERED_LENGTH:
            if len(self) >= MAX_REMEMBERED:
                self.clear()
            self[word] = number
        return number
