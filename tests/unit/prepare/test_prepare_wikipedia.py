import bz2
import gzip

import pytest

from megagpt.prepare.readers import wikipedia
from megagpt.prepare.readers.unpack import open_unpacked
from megagpt.prepare.readers.wikitext import to_text
from tests.helpers.readers import only_problem, read, read_bytes

HEAD = """<?xml version="1.0" encoding="{encoding}"?>
<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" xml:lang="de"><siteinfo><sitename>Wikipedia</sitename>
<base>https://de.wikipedia.org/wiki/Hauptseite</base>
<namespaces><namespace key="0" case="first-letter" /><namespace key="6" case="first-letter">Datei</namespace>
<namespace key="14" case="first-letter">Kategorie</namespace></namespaces></siteinfo>
"""
HIDDEN = {"file", "image", "category", "datei", "kategorie"}


def page(number: int, text: str = "Some '''bold''' text &amp; more, &lt;page&gt; as well.", namespace=0, redirect=False, title=None) -> str:
    mark = '<redirect title="Other" />' if redirect else ""
    return f"""  <page>
    <title>{title or f"Page {number}"}</title><ns>{namespace}</ns><id>{number}</id>{mark}
    <revision><id>7</id><timestamp>2020-01-0{number % 9 + 1}T00:00:00Z</timestamp><text xml:space="preserve">{text}</text></revision>
  </page>
"""


def dump(*pages: str, encoding="utf-8") -> bytes:
    return (HEAD.format(encoding=encoding) + "".join(pages) + "</mediawiki>\n").encode(encoding)


PAGES = [page(1, title="Straße &amp; Weg"), page(2, redirect=True), page(3, namespace=4), page(4), page(5, text="{{Infobox}}")]


@pytest.mark.parametrize("pack", [bytes, bz2.compress, gzip.compress])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_prepare_wikipedia_articles_of_a_dump(tmp_path, pack, encoding):
    documents, problems = read_bytes(tmp_path, pack(dump(*PAGES, encoding=encoding)), "wikipedia", "dewiki.xml")
    assert not problems
    assert [document.id for document in documents] == [f"corpus/dewiki.xml#{i}" for i in (1, 4, 5)]
    first = documents[0]
    assert (first.text, first.url) == ("Some bold text & more, <page> as well.", "https://de.wikipedia.org/wiki/Stra%C3%9Fe_&_Weg")
    assert (first.licence, first.date, first.meta) == ("CC-BY-SA-4.0", "2020-01-02T00:00:00Z", {"title": "Straße & Weg", "language": "de"})
    assert (documents[2].text, documents[2].meta["drop"]) == ("", "no_main_text")


def test_prepare_wikipedia_last_revision_of_a_history_is_read(tmp_path):
    history = page(1).replace("<revision>", "<revision><id>6</id><timestamp>2019</timestamp><text>Old.</text></revision><revision>", 1)
    assert [document.date for document in read_bytes(tmp_path, dump(history), "wikipedia", "a.xml")[0]] == ["2020-01-02T00:00:00Z"]


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("'''Bold''' ''italic'' and '''''both'''''.", "Bold italic and both."),
        ("[[Link]], [[Target|shown]], [[plural]]s, [[:Category:Named]], [[a:b|c]].", "Link, shown, plurals, Category:Named, c."),
        ("a [[File:x.png|thumb|Caption with [[link]]]] b[[Datei:y.jpg]] [[Kategorie:Z]] [[en:Page]] c", "a b c"),
        ("x<ref>gone</ref> y<ref name=a /> z{{cite web|url=q}} w<!-- gone -->.", "x y z w."),
        ("{| class=x\n|-\n| cell || cell\n|}\nAfter.", "After."),
        ("* one\n** two\n# three\n: four\n; five", "- one\n- two\n- three\nfour\nfive"),
        ("== Title ==\nText.\n=== Sub ===\nMore.", "Title\n\nText.\n\nSub\n\nMore."),
        ("Text.\n== Empty ==\n{{reflist}}\n== Nested ==\n=== Full ===\nMore.\n== End ==", "Text.\n\nNested\n\nFull\n\nMore."),
        ("[http://a.example shown] [http://a.example] http://b.example", "shown http://b.example"),
        ("A&nbsp;B &ndash; C &lt;d&gt;", "A B – C <d>"),
        ("{{lang|de|Haus}} {{nowrap|x y}} {{convert|5|km|mi}} 3{{ndash}}4 {{unknown|z}}", "Haus x y 5 km 3–4"),
        ("Name ({{IPA|x}}; {{lang-xy|z}}) is.", "Name is."),
        ("<math>E = mc^2</math> <nowiki>[[not]]</nowiki> H<sub>2</sub>O a<br/>b <gallery>x.png</gallery>", "E = mc^2 [[not]] H2O a\nb"),
        ("__NOTOC__ {{DISPLAYTITLE:x}} Text", "Text"),
        ("{{unclosed [[unclosed '''unclosed", "{{unclosed [[unclosed unclosed"),
    ],
)
def test_prepare_wikipedia_markup(markup, text):
    assert to_text(markup, HIDDEN) == text


def test_prepare_wikipedia_damage_costs_the_pages_it_lies_in(tmp_path):
    broken = [
        page(2).replace("</title>", "</tite>"),
        page(3).split("</revision>")[0],
        page(5).replace("Some", "So\udcffme"),
        page(6).replace("revision>", "other>"),
    ]
    content = (HEAD.format(encoding="utf-8") + page(1) + broken[0] + broken[1] + page(4) + broken[2] + broken[3] + page(7)).encode(
        "utf-8", "surrogateescape"
    )
    documents, problems = read_bytes(tmp_path, content, "wikipedia", "a.xml")
    assert [document.id.split("#")[1] for document in documents] == ["1", "4", "7"]
    reasons = [
        "Opening and ending tag mismatch",
        "a page that does not end",
        "bytes that are not in the dump's encoding",
        "a page without a revision",
    ]
    assert len(problems) == 4 and all(expected in str(problem) for expected, problem in zip(reasons, problems, strict=True))


@pytest.mark.parametrize("sign", ["[[a|", "{{", "[http://a ", "&lt;b&gt;", "{|\n|"])
def test_prepare_wikipedia_brackets_that_nothing_closes_cost_their_page(tmp_path, sign):
    """The parser would take minutes."""
    documents, problems = read_bytes(tmp_path, dump(page(1, sign * 50_000), page(2), page(3, sign * 20)), "wikipedia", "a.xml")
    assert [document.id.split("#")[1] for document in documents][-2:] == ["2", "3"]
    assert len(problems) == 1 and "more than 2000" in str(problems[0]) and problems[0].position == "page 1 (Page 1)"


def test_prepare_wikipedia_cut_dumps_give_the_pages_before(tmp_path):
    text = "".join(f"{i * 7919 % 10007} " for i in range(3_000))
    whole = dump(*(page(i, text[i * 100 :] * 2 if i < 29 else text) for i in range(1, 30)))
    for name, content in {"a.xml": whole[:-3000], "a.xml.gz": gzip.compress(whole)[:-2000], "a.xml.bz2": bz2.compress(whole, 1)[:-2000]}.items():
        documents, problems = read_bytes(tmp_path, content, "wikipedia", name)
        assert 10 < len(documents) < 29, name
        assert "ends inside a page" in str(problems[-1]) if name == "a.xml" else "truncated" in str(problems[0])


def test_prepare_wikipedia_memory_holds_one_page(tmp_path, monkeypatch):
    import tracemalloc

    path = tmp_path / "a.xml.gz"
    path.write_bytes(gzip.compress(dump(*(page(i, "words " * 10_000, namespace=4) for i in range(1, 300))), 1))
    tracemalloc.start()
    count = 0
    with open_unpacked(path) as stream:
        for _ in wikipedia.find_pages(stream, wikipedia.Site()):
            count += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 299 and peak < 9 << 20  # of 18 MB
    monkeypatch.setattr(wikipedia, "MAX_PAGE_CHARACTERS", 1 << 20)
    documents, problems = read_bytes(tmp_path, dump(page(1), page(2, "a" * (3 << 20)), page(3)), "wikipedia", "b.xml")
    assert [document.id.split("#")[1] for document in documents] == ["1", "3"] and "more than 1 MiB without the end of a page" in str(problems[0])


def test_prepare_wikipedia_external_entities_are_not_read(tmp_path):
    (tmp_path / "secret").write_text("SECRET")
    evil = dump(page(1, "a &x; b")).replace(b"<mediawiki", f'<!DOCTYPE m [<!ENTITY x SYSTEM "file://{tmp_path}/secret">]><mediawiki'.encode(), 1)
    documents, problems = read_bytes(tmp_path, evil, "wikipedia", "a.xml")
    assert "SECRET" not in str((documents, problems))


@pytest.mark.parametrize("content", [b"words", b"<html></html>", gzip.compress(b"words"), dump()])
def test_prepare_wikipedia_files_that_are_no_dump(tmp_path, content):
    assert "no <page>: not a dump of MediaWiki" in only_problem(read_bytes(tmp_path, content, "wikipedia", "a.xml"))


def test_prepare_wikipedia_missing_file_is_a_problem(tmp_path):
    assert "No such file" in only_problem(read(tmp_path / "gone.xml", "wikipedia"))
