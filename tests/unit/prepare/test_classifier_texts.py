"""What classifiers learn from: files as they are, each text once, windows of a document on one side."""

import gzip
import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from megagpt.config.prepare import TextFiles, TrainQualityConfig, TrainToxicityConfig, WordListConfig
from megagpt.config.schema import RunConfig
from megagpt.data.errors import DataError
from megagpt.data.records import Document
from megagpt.prepare.training.quality import _windows
from megagpt.prepare.training.texts import MIN_CHARACTERS, Read, _all_text, copy_key, host, read_labelled, read_sources, read_word_list

LONG = "A sentence that is not about anything in particular goes on and on. " * 5


def source(*files: Path | str, **settings) -> list[TextFiles]:
    return [TextFiles(name="one", files=list(map(str, files)), **settings)]


def write_warc(path: Path, pages: list[str]) -> bytes:
    buffer = io.BytesIO()
    writer = WARCWriter(buffer, gzip=True)
    for number, page in enumerate(pages):
        for status, kind in (("200 OK", "text/html; charset=utf-8"), ("404 Not Found", "text/html"), ("200 OK", "image/png")):
            headers = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
            url = f"http://www.site{number}.example/{status[:3]}{kind[:5]}"
            writer.write_record(writer.create_warc_record(url, "response", payload=io.BytesIO(page.encode()), http_headers=headers))
    path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def test_classifier_texts_of_a_web_archive_have_menus_and_no_scripts(tmp_path):
    write_warc(tmp_path / "a.warc.gz", [f"<html><body><nav>Home | Menu</nav><script>var x</script><p>{LONG} é{n}</p></body></html>" for n in range(2)])
    read = Read()
    found = read_sources(source(tmp_path / "*.warc.gz"), read)["one"]
    assert len(found) == 2 and not read.problems
    assert all(document.text.startswith("Home | Menu\nA sentence") and "var x" not in document.text for document in found)
    assert {document.text[-2:] for document in found} == {"é0", "é1"} and {host(document) for document in found} == {"site0.example", "site1.example"}


@pytest.mark.parametrize(
    ("media", "page"),
    [
        ("text/html; charset=ISO-8859-1", "<p>é</p>".encode("latin-1")), ("text/html", "<p>é</p>".encode()), ("text/html", "<p>é</p>".encode("latin-1")),
        ("text/html", '<meta charset="cp1251"><p>é</p>'.encode("cp1251", "xmlcharrefreplace")), ("text/html; charset=klingon", "<p>é</p>".encode()),
    ],
)  # fmt: skip
def test_classifier_texts_are_decoded_as_http_or_the_page_says(media, page):
    assert _all_text(page, media) == "é"


def test_classifier_texts_go_on_behind_a_broken_file(tmp_path):
    whole = write_warc(tmp_path / "a.warc.gz", [f"<p>{LONG} {n}</p>" for n in range(20)])
    (tmp_path / "a.warc.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.warc.gz").write_bytes(gzip.compress(b"no archive at all"))
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": LONG + "from c"}) + "\n{broken\n")
    read = Read()
    found = read_sources(source(tmp_path / "*"), read)["one"]
    assert 5 < len(found) < 20 and any(document.text.endswith("from c") for document in found)
    assert len(read.problems) >= 2 and all("\n" not in line for line in read.problems)
    assert "c.jsonl:2: malformed JSON" in " ".join(read.problems)
    assert sorted(read.files) == ["a.warc.gz", "b.warc.gz", "c.jsonl"]


def test_classifier_texts_are_used_once_whatever_source_has_them(tmp_path):
    (tmp_path / "a.txt").write_text(f"{LONG}one\n{LONG.upper()}ONE\n{LONG}two\nshort\n\n")
    (tmp_path / "b.txt").write_text(f"{LONG}two\n{LONG}three")
    read = Read()
    found = read_sources([TextFiles(name=name, files=[str(tmp_path / f"{name}.txt")], document="line") for name in "ab"], read)
    assert sorted(document.text[-3:] for document in found["a"]) == ["one", "two"] and [document.text[-5:] for document in found["b"]] == ["three"]
    assert read.left_out == {"repeated text": 2, f"shorter than {MIN_CHARACTERS} characters": 1}


def test_classifier_texts_of_a_large_source_are_chosen_by_their_ids_not_by_their_order(tmp_path):
    rows = [json.dumps({"id": str(n), "text": f"{LONG}{n}"}) for n in range(100)]
    chosen = []
    for name, order in (("a", rows), ("b", random.Random(0).sample(rows, 100))):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(order))
        chosen.append([document.id for document in read_sources(source(tmp_path / f"{name}.jsonl", max_documents=10), Read())["one"]])
    assert chosen[0] == chosen[1] and len(set(chosen[0])) == 10
    assert np.mean(list(map(int, chosen[0]))) > 15


@pytest.mark.parametrize(
    ("files", "message"),
    [(["nowhere.txt"], "nowhere.txt: no such file"), (["*.none"], r"\*.none: no file matches"), (["empty.txt"], "'one' has no usable document .*1 shorter than 200")],
)
def test_classifier_texts_that_are_missing_are_named(tmp_path, monkeypatch, files, message):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("too short")
    with pytest.raises(DataError, match=message):
        read_sources(source(*files), Read())


def quality_config(**settings) -> TrainQualityConfig:
    sources = {name: [{"name": name, "files": ["x"]}] for name in ("reference", "raw")}
    return TrainQualityConfig(run=RunConfig(name="x"), **sources, **settings)


def test_classifier_split_keeps_windows_of_a_document_together():
    documents = {name: [Document(id=f"{name}{n}", text=f"{name} {n} " * 3000) for n in range(12)] for name in ("reference", "raw")}
    windows = _windows(documents, quality_config(max_windows_per_document=7, windows={"characters": 100, "most": 3}))
    assert np.bincount(windows.owner).tolist() == [7] * 24 and len(windows.texts) == 168
    for text, owner in zip(windows.texts, windows.owner):
        assert text in windows.documents[owner].text
    for label in (0, 1):
        assert 0 < windows.held_out[windows.labels == label].sum() < 12
    again = _windows({name: some[::-1] for name, some in documents.items()}, quality_config(max_windows_per_document=1))
    sides = [{document.id for document, out in zip(one.documents, one.held_out) if out} for one in (windows, again)]
    assert sides[0] == sides[1], "a document's side does not depend on those beside it"


def test_classifier_split_refuses_a_class_that_cannot_be_held_out():
    documents = {"reference": [Document(id="a", text=LONG)], "raw": [Document(id=str(n), text=LONG + str(n)) for n in range(5)]}
    with pytest.raises(DataError, match="reference: each source is one document, and none can be held out"):
        _windows(documents, quality_config())


def toxicity_config(path: Path) -> TrainToxicityConfig:
    return TrainToxicityConfig(run=RunConfig(name="x"), files=[str(path)])


def test_classifier_labelled_rows(tmp_path):
    rows = [("a &lt; b", "neither"), ("RT @x: You  Fool!", "offensive"), ("you fool http://t.co/1", "hate"), (" ", "neither"), ("?", "unsure")]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows))
    read = Read()
    found = read_labelled(toxicity_config(tmp_path / "a.jsonl"), read)
    assert [(one.text, one.label) for one in found] == [("a < b", "neither"), ("RT @x: You  Fool!", "offensive"), ("you fool http://t.co/1", "hate")]
    assert found[1].key == found[2].key == copy_key("You fool") != found[0].key
    assert read.left_out == {"empty text": 1, "label 'unsure' is neither toxic nor not_toxic": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "label": "hate"}], r"no row of label neither \(not_toxic\); found: hate"),
        ([{"text": "a", "label": "x"}], r"no row of label hate or offensive \(toxic\); found: none of the two"),
        ([{"text": "a"}], "a.jsonl:1: expected an object with text and label"),
        ([{"text": 3, "label": "hate"}], "a.jsonl:1: expected an object"),
    ],
)
def test_classifier_labelled_rows_that_are_wrong_are_named(tmp_path, rows, message):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=message):
        read_labelled(toxicity_config(tmp_path / "a.jsonl"), Read())


def test_classifier_word_list_files(tmp_path):
    for name, text in (("plain.txt", "one\n two words \n\n"), ("tabs.txt", "general\tOne\t1\ngeneral\ttwo words\t2\nshort\n"), ("table.csv", 'text,rank\none,1\n"two words",2\n')):
        (tmp_path / name).write_text(text)
    expected = ["one", "two words"]
    assert read_word_list(WordListConfig(name="a", path=str(tmp_path / "plain.txt"))) == expected
    assert [term.lower() for term in read_word_list(WordListConfig(name="a", path=str(tmp_path / "tabs.txt"), column=1))] == expected
    assert read_word_list(WordListConfig(name="a", path=str(tmp_path / "table.csv"))) == expected
    with pytest.raises(DataError, match="no term in column 7"):
        read_word_list(WordListConfig(name="a", path=str(tmp_path / "tabs.txt"), column=7))
