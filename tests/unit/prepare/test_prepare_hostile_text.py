"""Text that was made to stall a reader: time must stay in proportion to its length."""

from __future__ import annotations

import time

import pytest

from megagpt.prepare.readers import pdf, wikipedia
from megagpt.prepare.readers.latex import _argument
from megagpt.prepare.readers.troff_text import to_plain
from megagpt.prepare.readers.wikitext import to_text
from tests.helpers.readers import only_document, only_problem, read_bytes

SHORT, LONG = 8_000, 64_000
"""Characters. Eight times the text takes 64 times as long where the time grows with the square."""
SLACK = 24
AOZORA = "-" * 20 + "\n【テキスト中に現れる記号について】\n" + "-" * 20 + "\n"
PAGE = """<article xmlns:xlink="x"><body><p><inline-formula><tex-math>{}</tex-math></inline-formula>text</p></body></article>"""
READERS = {
    "markdown": lambda text, folder: read_bytes(folder, f"word {text}".encode(), "papers", "a.md"),
    "jats": lambda text, folder: read_bytes(folder, PAGE.format(text).encode(), "papers", "a.xml"),
    "man page": lambda text, folder: to_plain(text),
    "latex title": lambda text, folder: _argument(4 * text, "title"),
    "pdf": lambda text, folder: pdf.to_flowing_text([text]),
    "aozora": lambda text, folder: read_bytes(folder, (AOZORA + text).encode(), "books", "a.txt"),
    "wiki": lambda text, folder: to_text(text, set()),
    "wiki head": lambda text, folder: wikipedia._describe(text, wikipedia.Site()),
}
CASES = [
    ("markdown", "<!--"), ("jats", r"\documentclass"), ("man page", r"\["), ("man page", r"\*["), ("latex title", r"\title["),
    ("pdf", "a"), ("pdf", "well-\nknown "), ("pdf", "漢"), ("aozora", "《"), ("aozora", "［＃"), ("wiki", "<!--"), ("wiki", "<ref></x>"),
    ("wiki head", "<mediawiki "),
]  # fmt: skip


def seconds(reader, text, folder):
    times = []
    for _ in range(3):
        began = time.process_time()
        READERS[reader](text, folder)
        times.append(time.process_time() - began)
    return min(times)


@pytest.mark.parametrize(("reader", "unit"), CASES, ids=[f"{reader}: {unit!r}" for reader, unit in CASES])
def test_prepare_hostile_text_takes_time_in_proportion_to_its_length(reader, unit, tmp_path):
    short, long = (seconds(reader, unit * (size // len(unit)), tmp_path) for size in (SHORT, LONG))
    assert long < SLACK * max(short, 0.01)


def test_prepare_hostile_text_merged_keys_of_front_matter_are_not_multiplied(tmp_path):
    """Each line holds nine of the line before: ten lines would be billions of keys."""
    lines = ["a0: &a0 {k: v}", *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 10))]
    content = "\n".join(["---", *lines, "title: Yes", "date: 2020-01-02", "license:", "---", "", "Text."]).encode()
    document = only_document(read_bytes(tmp_path, content, "papers", "a.md"))
    assert document.text == "Text." and document.meta == {"title": "Yes"} and document.date == "2020-01-02" and document.licence == ""


@pytest.mark.parametrize("unit", ["{{a|", "[[a|", "[http://a b ", "<b>", "{|\n|-\n"])
@pytest.mark.parametrize("closers", ["", "}}]]</b>|}\n"])
def test_prepare_hostile_text_brackets_before_much_text_cost_their_page(tmp_path, unit, closers):
    """The parser would read all the text again for each; what closes nothing, in front of them, does not hide them."""
    markup = (closers * 300 + unit * 300 + "word " * 30_000).replace("<", "&lt;")
    page = f"<mediawiki><page><title>A</title><ns>0</ns><id>1</id><revision><text>{markup}</text></revision></page></mediawiki>"
    assert "300" in only_problem(read_bytes(tmp_path, page.encode(), "wikipedia", "a.xml"))


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("a<!-- b --> c <!-- that never ends", "a c <!-- that never ends"),
        ("Say <nowiki><!--</nowiki> first.", "Say <!-- first."),
        ("A<ref name=a>one</ref> b<ref name=a/> c.", "A b c."),
        ("A<ref>see <ref name=a/> <i>there</i></ref> b.", "A b."),
        ("A<ref>one <b>two</b></ref> b<REF>three</REF > c.", "A b c."),
    ],
)
def test_prepare_hostile_text_references_and_comments_go(markup, text):
    assert to_text(markup, set()) == text


def test_prepare_hostile_text_comments_of_markdown_that_do_not_end_are_text(tmp_path):
    document = only_document(read_bytes(tmp_path, b"a <!-- gone\n--> b. Comments begin with `<!--`.\n\nMore.", "papers", "a.md"))
    assert document.text == "a  b. Comments begin with `<!--`.\n\nMore."
