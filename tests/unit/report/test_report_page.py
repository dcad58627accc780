"""Pieces of the pages: everything is escaped, long names may break, texts are cut at a word."""

import html

from megagpt.report.page import identifier, prose


def test_identifier_is_escaped_and_breaks_at_its_parts():
    path = "crawl/<b>&'x'.warc#12"
    markup = identifier(path)
    assert markup.count("<wbr>") == 2 and "<b>" not in markup
    assert html.unescape(markup.replace("<wbr>", "").removeprefix('<div class="name">').removesuffix("</div>")) == path


def test_prose_is_cut_at_a_word_with_a_mark():
    assert prose("one\n two   <three>", 100) == '<div class="prose">one two &lt;three&gt;</div>'
    assert prose("one two three", 9) == '<div class="prose">one two …</div>'
    assert prose("unbroken", 4) == '<div class="prose">unbr …</div>'
