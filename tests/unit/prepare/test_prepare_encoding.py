"""Encoding repair: what is repaired is noted, what needs no repair is untouched, and lines that ftfy is not asked about are those it leaves alone."""

import random
import unicodedata

import ftfy
import pytest

from megagpt.config.prepare import EncodingConfig
from megagpt.prepare.steps.encoding import Encoding
from tests.helpers.flow import flowing

FTFY = ftfy.TextFixerConfig(
    unescape_html="auto", fix_latin_ligatures=False, fix_character_width=False, uncurl_quotes=False, fix_line_breaks=False, normalization=None
)


def repaired(text: str, config: EncodingConfig | None = None, kind: str = "web") -> tuple[str, list[str], str | None]:
    document = flowing(text, kind=kind)
    reason = Encoding(config or EncodingConfig())(document)
    return document.text, document.metadata["notes"].get("encoding", []), reason


@pytest.mark.parametrize(
    ("text", "expected", "repairs"),
    [
        ("plain text & more, 5 < 6\n", "plain text & more, 5 < 6\n", []),
        ("“quotes” and ﬁ stay", "“quotes” and ﬁ stay", []),
        ("schÃ¶n und grÃ¼n", "schön und grün", ["mojibake"]),
        ("donâ€™t", "don’t", ["mojibake"]),
        ("one\x85two", "one…two", ["mojibake"]),
        ("bread &amp; butter &eacute;", "bread & butter é", ["html_entities"]),
        ("a\r\nb\rc", "a\nb\nc", ["line_endings"]),
        ("nul\x00 and bell\x07 and \ufeffmark", "nul and bell and mark", ["control_characters"]),
        ("\x1b[31mred\x1b[0m", "red", ["control_characters"]),
        ("pair \ud83d\ude00", "pair 😀", ["surrogates"]),
        ("cafe\u0301", "café", ["normal_form"]),
        ("schÃ¶n &amp; gut\r\n\x00", "schön & gut\n", ["control_characters", "html_entities", "line_endings", "mojibake"]),
    ],
)
def test_encoding_repairs_and_notes(text, expected, repairs):
    assert repaired(text) == (expected, repairs, None)


def test_encoding_leaves_entities_behind_a_tag():
    """As ftfy: who writes `<` writes HTML, and means what it says."""
    assert repaired("&lt;\n<b>&amp;</b>\n&amp;")[0] == "<\n<b>&amp;</b>\n&amp;"


def test_encoding_settings_switch_repairs_off():
    text = "schÃ¶n &amp; cafe\u0301"
    assert repaired(text, EncodingConfig(mojibake=False, html_entities=False, normal_form=None)) == (text, [], None)
    assert repaired("ﬁ²", EncodingConfig(normal_form="NFKC"))[0] == "fi2"


def test_encoding_leaves_programs_as_they_are():
    text = 'MOJIBAKE = "schÃ¶n"\r\nENTITY = "&amp;"\n'
    assert repaired(text, kind="code") == (text.replace("\r", ""), ["line_endings"], None)


def test_encoding_drops_what_no_decoder_could_read():
    assert repaired("a" * 99 + "\ufffd") [2] is None
    assert repaired("a" * 98 + "\ufffd" * 2)[2] == "undecodable"
    assert repaired("a" * 98 + "\ufffd" * 2, EncodingConfig(max_undecodable=0.5))[2] is None
    assert repaired("")[2] is None


def test_encoding_is_ftfy_on_random_text():
    """Fragments of wrong and of right text at every distance from each other."""
    fragments = [
        "schÃ¶n", "donâ€™t", "â€œ", "Ã", "Ã ", "à²", "œ", "É°", "×²", "½", "é", "“", "”", "’", "£", "…", "abc", " ", "  ", "The end.", "\n", "\n",
        "<", "&amp;", "&nbsp;", "&", ";", "\x80", "\x85", "\x00", "\x1b[1m", "\ud83d", "\ude00", "\ufeff", "日本", "Москва", "РњРѕСЃРєРІР°",
        "ЕЎ", "ā€", "\u2028", "\x0c",
    ]  # fmt: skip
    generator, step, changed = random.Random(0), Encoding(EncodingConfig()), 0
    for _ in range(3000):
        text = "".join(generator.choices(fragments, k=generator.randint(1, 12)))
        expected = ftfy.fix_text(text, FTFY)
        assert step.fix(text, set()) == expected
        changed += text != expected
    assert 500 < changed < 3000


def test_encoding_result_is_in_normal_form():
    generator = random.Random(1)
    for _ in range(100):
        text = "".join(generator.choices(["e", "\u0301", "é", "ﬁ", "가", "\u1100", "\u1161", " ", "Å"], k=8))
        assert unicodedata.is_normalized("NFC", repaired(text)[0])
