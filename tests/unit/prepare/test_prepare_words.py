"""Words and sentences: what they are in each script, and that nothing of a text is lost."""

import random
import re

import pytest
from datatrove.utils.text import PUNCTUATION_SET, split_into_sentences, split_into_words

from megagpt.prepare.words import SPLITTER, view


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop: it's well-known!", ["Don't", "stop", ":", "it's", "well-known", "!"]),
        ("3.5 of www.example.org (foo), 'x'", ["3.5", "of", "www.example.org", "(", "foo", "),", "'", "x", "'"]),
        ("a -- b ... c…", ["a", "--", "b", "...", "c", "…"]),
        ("हिन्दी में लिखा", ["हिन्दी", "में", "लिखा"]),
        ("العَرَبِيَّة لغة", ["العَرَبِيَّة", "لغة"]),
        ("日本語です。", ["日", "本", "語", "で", "す", "。"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("𠀀𠀁 and 𝒜b 👍🏽", ["𠀀", "𠀁", "and", "𝒜b", "👍🏽"]),
        ("می‌خواهم", ["می‌خواهم"]),
        (" \n\t", []),
    ],
)
def test_words_of_scripts(text, words):
    assert SPLITTER.word_tokenize(text) == words


def test_words_are_all_of_the_text_but_its_spaces():
    alphabet = [*"abcÄß'’.-_,;!? \n\t\r\x00\x1c\u00a0\u200b\u200d\u0301\ufeff\ud800\ufffd", "日", "ท", "ี", "ि", "ह", "𝒜", "𠀀", "👍"]
    generator = random.Random(0)
    for _ in range(300):
        text = "".join(generator.choices(alphabet, k=generator.randint(0, 40)))
        assert "".join(SPLITTER.word_tokenize(text)) == re.sub(r"\s", "", text)
        spans = SPLITTER.span_tokenize(text)
        if text.strip():
            assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])] and not text[spans[-1][1] :].strip()
            assert all(text[start:end].strip() for start, end in spans)
        assert SPLITTER.count_sentences(text) == len(spans)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ('\n\nHello J. Smith. How are you?! "Fine." Yes', ["Hello J. Smith.", "How are you?!", '"Fine."', "Yes"]),
        ("A heading\n\nIt costs 3.50 at www.example.org today.", ["A heading", "It costs 3.50 at www.example.org today."]),
        ("今日は。元気？そう", ["今日は。", "元気？", "そう"]),
        ("   ", []),
    ],
)
def test_words_sentences(text, sentences):
    assert SPLITTER.sent_tokenize(text) == sentences


def test_words_go_through_the_interface_of_datatrove():
    text = "One sentence. And another, isn't it?"
    assert split_into_words(text, SPLITTER) == ["One", "sentence", ".", "And", "another", ",", "isn't", "it", "?"]
    assert [sentence.strip() for sentence in split_into_sentences(text, SPLITTER)] == ["One sentence.", "And another, isn't it?"]


def test_words_punctuation_holds_no_letter():
    """What lets the view look for punctuation among the words that are not of letters alone."""
    assert not any(character.isalpha() for character in PUNCTUATION_SET)
    assert view("a . b-c …! 1 €").punctuation == [".", "…!"]


def test_words_are_shared_as_long_as_the_text_is_the_same():
    first = view("some words here")
    assert view("".join(["some words", " here"])) is first
    assert view("other words") is not first
