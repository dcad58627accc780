"""Whatever a file holds, reading it ends with documents and problems, never with an exception."""

import gzip
import json
import os
import random
from pathlib import Path
from typing import get_args

import pytest

from megagpt.config.prepare import SourceConfig
from megagpt.prepare.document import Problem
from megagpt.prepare.readers import rows, web
from megagpt.prepare.readers.read import read_file
from megagpt.prepare.readers.unpack import Damaged, open_unpacked
from tests.helpers.readers import only_document, only_problem, read, read_bytes

KINDS = get_args(SourceConfig.model_fields["kind"].annotation)
JSONL = b"".join(json.dumps({"text": f"Text {i}."}).encode() + b"\n" for i in range(20))


@pytest.mark.parametrize("kind", KINDS)
def test_prepare_read_files_that_every_kind_refuses(tmp_path, kind):
    assert "a.xml: the file is empty" == only_problem(read_bytes(tmp_path, b"", kind, "a.xml"))
    assert "No such file" in only_problem(read(tmp_path / "missing.xml", kind))
    assert "not a regular file" in only_problem(read(tmp_path, kind))
    os.mkfifo(tmp_path / "pipe.xml")
    assert "not a regular file" in only_problem(read(tmp_path / "pipe.xml", kind))
    (tmp_path / "loop.xml").symlink_to(tmp_path / "loop.xml")
    assert "loop" in only_problem(read(tmp_path / "loop.xml", kind))


@pytest.mark.parametrize("error", [RecursionError(), MemoryError(), SystemError("a parser's own"), KeyError("x"), OSError("Input/output error")])
def test_prepare_read_error_of_a_library_is_a_problem(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(rows, "parse_json", fail)
    documents, problems = read_bytes(tmp_path, JSONL, "rows", "a.jsonl")
    assert not documents and len(problems) == 20 and problems[6].position == "line 7"  # one document each
    monkeypatch.setattr(rows, "read", fail)
    assert only_problem(read_bytes(tmp_path, JSONL, "rows", "a.jsonl")).startswith("a.jsonl: ")  # the whole file


def test_prepare_read_stop_of_the_run_is_no_problem(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(rows, "parse_json", stop)
    with pytest.raises(KeyboardInterrupt):
        read_bytes(tmp_path, JSONL, "rows", "a.jsonl")


def test_prepare_read_names_that_are_no_text(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.txt"))
    path.write_text("Words.")
    document = only_document(read(path, "books"))
    assert document.id == "corpus/b\ufffd.txt"
    assert json.dumps(document.id, ensure_ascii=False).encode()


def test_prepare_read_reasons_are_short_lines(tmp_path):
    message = only_problem(read_bytes(tmp_path, b'{"' + b"k" * 100_000 + b'": 1}\n', "rows", "a.jsonl"))
    assert len(message) < 400


SAMPLES = {
    ("rows", "a.jsonl.gz"): gzip.compress(JSONL),
    ("rows", "a.json"): json.dumps([{"text": "a"}] * 9).encode(),
    ("books", "a.txt"): "Größe und Maß. ".encode("cp1252") * 20,
    ("wikipedia", "a.xml"): b"<mediawiki>" + b"<page><title>T</title><ns>0</ns><id>1</id><revision><text>A [[b]] {{c}}</text></revision></page>" * 5,
    ("papers", "a.html"): b"<html><body><h1>A</h1><p>B</p><table><tr><td>C</td></tr></table><ul><li>D</ul></body></html>" * 3,
    ("papers", "a.tex"): rb"\begin{document}\section{A} $x$ \begin{itemize}\item B\end{itemize} \'e \end{document}",
    ("papers", "a.1"): b'.TH A 1\n.SH B\n.TP\n.B c\nd\n.if n \\{\\\n.br\n.\\}\n.TS\nl.\na\tb\n.TE\n.de X\n..\n"',
    ("papers", "a.nxml"): b"<article><front><article-meta/></front><body><sec><title>A</title><p>B</p></sec></body></article>",
    ("web", "a.warc"): b"".join(
        b"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://a.example/\r\n"
        b"Content-Type: text/plain\r\nContent-Length: 6\r\n\r\nWords.\r\n\r\n"
        for _ in range(5)
    ),
    ("code", "a.py"): b"# SPDX-License-Identifier: MIT\nx = 1\n" * 5,
}


@pytest.mark.parametrize(("kind", "name"), SAMPLES, ids=[name for _, name in SAMPLES])
def test_prepare_read_random_damage_never_raises(tmp_path, kind, name):
    source, path, whole = SourceConfig(name="corpus", kind=kind, files=["x"]), tmp_path / name, SAMPLES[kind, name]
    path.write_bytes(whole)
    assert not any(isinstance(item, Problem) for item in read_file(path, source, name))
    draw = random.Random(6)
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 2, 8))):
            place = draw.randrange(len(content) or 1)
            match draw.randrange(4):
                case 0:
                    content[place : place + 1] = draw.randbytes(1)
                case 1:
                    del content[place : place + draw.randrange(1, 30)]
                case 2:
                    content[place:place] = content[draw.randrange(len(content) or 1) :][:40]
                case 3:
                    content[place:place] = draw.randbytes(12)
        path.write_bytes(content)
        for item in read_file(path, source, name):
            assert "\n" not in str(item) if isinstance(item, Problem) else item.text or item.meta["drop"]


# ---------------------------------------------------------------- the stream below


def test_prepare_read_stream_takes_bytes_back(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one\ntwo\nthree")
    with open_unpacked(path) as stream:
        assert (stream.read(2), stream.tell()) == (b"on", 2)
        stream.give_back(b"on")
        assert (stream.readline(), stream.tell()) == (b"one\n", 4)
        stream.give_back(b"e\n")
        assert [stream.readline(), stream.readline(2), stream.readline(), stream.read(9), stream.readline()] == [b"e\n", b"tw", b"o\n", b"three", b""]
        stream.give_back(b"left")
        assert (stream.read(2), stream.readline(1), stream.readline(), stream.tell()) == (b"le", b"f", b"t", 13)


def test_prepare_read_stream_of_gzip_members_with_damage_and_padding(tmp_path):
    path = tmp_path / "a.gz"
    first, second, third = (gzip.compress(draw) for draw in (b"first\n", random.Random(1).randbytes(5000), b"third\n"))
    path.write_bytes(first + bytes(512) + second[:100] + bytes(50) + second[150:] + third)
    with open_unpacked(path) as stream:
        assert stream.readline() == b"first\n"
        with pytest.raises(Damaged, match="damaged gzip file"):
            while stream.read(1 << 16):
                pass
        found = b""
        while stream.skip_damage():  # bytes of the second member may look like a beginning
            try:
                found = stream.readline()
                break
            except Damaged:
                continue
        assert found == b"third\n" and stream.read(1) == b""


def test_prepare_read_web_knows_records_by_their_first_line():
    begins = [
        b"WARC/1.0\r\n",
        b"WARC/0.18\n",
        b"http://a b/c 1.2.3.4 20140102030405 text/html 12\n",
        b"dns:a.example 1.2.3.4 20140102030405 text/dns 5\n",
    ]
    assert all(map(web._begins, begins))
    assert not any(map(web._begins, [b"HTTP/1.1 200 OK\r\n", b"WARC/1.0 and words\r\n", b"see http://a.example/ for more\n", b"\r\n"]))
