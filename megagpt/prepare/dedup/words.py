"""What counts as a word where documents are compared."""

from __future__ import annotations

import re

from datatrove.utils.word_tokenizers import WordTokenizer

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Thai, Lao, Burmese, Khmer, kana and Han, which put no space between words."""


class Words(WordTokenizer):
    """Runs of letters, digits and underscores (`\\w+`); each character by itself in scripts without spaces. The same for all languages: documents
    are only compared, and the rule of one language would cut copies apart that are taken for different ones."""

    find = staticmethod(re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+").findall)

    def word_tokenize(self, text: str) -> list[str]:
        return self.find(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return text.split("\n")

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError("MinHash does not ask for sentences")
