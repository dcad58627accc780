"""Hashed n-grams equal a plain loop over characters and words, whatever stands in a text and beside it."""

import math
import random
import re

import numpy as np
import pytest

from megagpt.config.prepare import NgramsConfig
from megagpt.prepare.ngrams import Ngrams, WordList, normalise

BASE, CHAIN, TWO64 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 1 << 64
TEXTS = [
    "", " ", "a", "The cat  sat\ton the mat.\r\n\nIt sat.", "don\u2019t DON'T", "ÅÄÖ straße İstanbul", "吾輩は猫である。名前はまだ無い。", "😀 🏳️‍🌈 x",
    "lone \ud800 surrogate", "tel 123-456", "@user see https://example.org/a?b=c and mail me@example.org", "a" * 300, "a b " * 50, "\u00a0wide\u3000space",
]


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % TWO64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % TWO64
    return x ^ (x >> 31)


def polynomial(text: str) -> int:
    return sum((ord(letter) + 1) * BASE**place for place, letter in enumerate(text)) % TWO64


def plain_normal(text: str) -> str:
    text = re.sub(r"https?://\S+", "//", text)
    text = re.sub(r"@\w+", "@", text).lower().replace("\u2019", "'")
    text = "".join("0" if letter in "0123456789" else letter for letter in text)
    text = "".join(" " if (letter.isspace() or letter < " ") and letter != "\n" else letter for letter in f" {text} ")
    return re.sub(" +", " ", text)


def plain_words(text: str) -> list[str]:
    words = [""]
    for letter in text:
        if ord(letter) < 1 << 16 and (letter.isalnum() or letter == "'"):
            words[-1] += letter
        elif words[-1]:
            words.append("")
    return [word for word in words if word]


def plain_features(text: str, config: NgramsConfig) -> dict[int, float]:
    text = plain_normal(text)
    hashes = [mix(polynomial(text[i : i + n]) ^ n) for n in config.character_sizes for i in range(len(text) - n + 1)]
    words = [polynomial(word) for word in plain_words(text)]
    for n in range(1, config.max_words + 1):
        for i in range(len(words) - n + 1):
            chain = words[i]
            for k in range(1, n):
                chain = mix((chain * CHAIN + words[i + k]) % TWO64)
            hashes.append(mix(chain ^ (64 + n)))
    numbers = {one >> (64 - config.hash_bits) for one in hashes}
    return {number: 1 / math.sqrt(len(numbers)) for number in numbers}


def ours(ngrams: Ngrams, texts: list[str]) -> list[dict[int, float]]:
    found = ngrams.features(texts)
    rows = [{} for _ in texts]
    for row, number, value in zip(found.rows.tolist(), found.numbers.tolist(), found.values.tolist()):
        assert number not in rows[row], "a feature counts once"
        rows[row][number] = value
    return rows


@pytest.mark.parametrize(
    "config",
    [NgramsConfig(), NgramsConfig(character_sizes=[], max_words=4), NgramsConfig(character_sizes=[1, 8], max_words=0, hash_bits=24), NgramsConfig(hash_bits=8)],
)
def test_classifier_ngrams_equal_a_plain_loop(config):
    letters = random.Random(0)
    more = ["".join(letters.choices("aB 1'@/:\n.é猫", k=letters.randint(0, 60))) for _ in range(60)]
    texts = TEXTS + more
    together = ours(Ngrams(config), texts)
    for text, row in zip(texts, together):
        expected = plain_features(text, config)
        assert row.keys() == expected.keys(), repr(text)
        assert row == pytest.approx(expected, rel=1e-12)
        assert ours(Ngrams(config), [text]) == [row], "a text's features do not depend on those beside it"


def test_classifier_ngrams_of_many_rows_need_more_than_32_bits():
    config = NgramsConfig(hash_bits=24, character_sizes=[3], max_words=0)
    texts = [f"text {letter}{other}" for letter in "abcdefghijklmnopqrst" for other in "abcdefghijklmno"]
    assert len(texts) << config.hash_bits > 1 << 32
    assert ours(Ngrams(config), texts) == [pytest.approx(plain_features(text, config)) for text in texts]


def test_classifier_ngrams_of_ignored_words_are_those_of_the_text_without_them():
    ngrams = Ngrams(NgramsConfig(), ignored=("black", "gay"))
    texts = ["A Black man, gay or not", "nothing of it", "black", "blackbird gays", "GAY!gay black"]
    without = [re.sub(r"\b(black|gay)\b", "", text, flags=re.IGNORECASE) for text in texts]
    assert ours(ngrams, texts) == ours(Ngrams(NgramsConfig()), without)


def test_classifier_ngrams_word_lists():
    config = NgramsConfig(hash_bits=10)
    lists = {"one": WordList.of(["Bad", "very bad thing", "***"]), "none": WordList.of(["absent"]), "empty": WordList.of(["!!"])}
    assert [len(one.hashes) for one in lists.values()] == [2, 1, 0]
    ngrams = Ngrams(config, lists=lists)
    first, second, third = ours(ngrams, ["A bad, very bad thing.", "nothing", "bad"])
    assert ngrams.num_features == 1024 + 6
    assert {number: value for number, value in first.items() if number >= 1024} == {1024: 1.0, 1025: 3 / 5}  # bad, bad, very bad thing; of 5 words
    assert {number for number in second if number >= 1024} == set()
    assert {number: value for number, value in third.items() if number >= 1024} == {1024: 1.0, 1025: 1.0}


def test_classifier_sees_no_names_of_users_and_no_addresses():
    ngrams = Ngrams(NgramsConfig())
    one, other = ours(ngrams, ["@alice wrote 12 at https://a.example/b", "@bob  wrote 97 at http://c.example/d?e"])
    assert one == other
    assert "".join(map(chr, normalise(["@alice at http://x/y"]).codes)) == " @ at // "


def test_classifier_hash_spreads_evenly():
    config = NgramsConfig(hash_bits=8, character_sizes=[], max_words=1)
    numbers = [next(iter(row)) for row in ours(Ngrams(config), [f"word{chr(97 + i // 676 % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i % 26)}" for i in range(17576)])]
    counts = np.bincount(numbers, minlength=256)
    expected = len(numbers) / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 255 - 4 * math.sqrt(510) < chi_square < 255 + 4 * math.sqrt(510)  # mean and variance of chi-square with 255 degrees of freedom
