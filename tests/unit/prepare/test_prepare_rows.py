import gzip
import json
from datetime import date

import pyarrow
import pytest
from pyarrow import parquet

from megagpt.data import rows as plain_rows
from megagpt.prepare.readers import rows
from megagpt.prepare.readers.unpack import MAX_FILE_BYTES
from tests.helpers.readers import only_document, only_problem, read, read_bytes

ROWS = [
    {"text": "One.", "id": "x1", "url": "http://a.example", "license": "MIT", "timestamp": "2020-01-02", "meta": {"k": 1}, "score": 0.5},
    {"content": "Two."},
    {"raw_content": "Three.", "source": "elsewhere"},
]


def jsonl(*values) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def check_rows(documents):
    assert [document.text for document in documents] == ["One.", "Two.", "Three."]
    assert [document.id for document in documents] == [f"corpus/{documents[0].id.split('/')[1].split('#')[0]}#{i}" for i in (1, 2, 3)]
    first = documents[0]
    assert (first.url, first.licence, first.date, first.source) == ("http://a.example", "MIT", "2020-01-02", "corpus")
    assert first.meta == {"k": 1, "id": "x1", "score": 0.5} and documents[2].meta == {"source": "elsewhere"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", jsonl(*ROWS)),
        ("rows.jsonl.gz", gzip.compress(jsonl(*ROWS))),
        ("marked.jsonl", b"\xef\xbb\xbf" + jsonl(*ROWS)),
        ("array.json", json.dumps(ROWS, indent=2).encode()),
        ("array.json.gz", gzip.compress(json.dumps(ROWS).encode())),
        ("really_lines.json", jsonl(*ROWS)),
    ],
)
def test_prepare_rows_of_json(tmp_path, name, content):
    documents, problems = read_bytes(tmp_path, content, "rows", name)
    assert not problems
    check_rows(documents)


def test_prepare_rows_of_parquet_and_of_saved_data_sets(tmp_path):
    table = pyarrow.table(
        {"text": [f"Text {i}." for i in range(1000)], "license": ["MIT"] * 1000, "date": [date(2020, 1, 2)] * 1000, "n": list(range(1000))}
    )
    parquet.write_table(table, tmp_path / "shard.parquet", row_group_size=300)
    with pyarrow.ipc.new_stream(tmp_path / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table)
    with pyarrow.ipc.new_file(tmp_path / "file.arrow", table.schema) as file:
        file.write_table(table)
    (tmp_path / "state.json").write_text('{"_fingerprint": "1"}')
    for name in ("shard.parquet", "data-00000-of-00001.arrow", "file.arrow"):
        documents, problems = read(tmp_path / name, "rows")
        assert not problems and len(documents) == 1000, name
        last = documents[-1]
        assert (last.id, last.text, last.licence, last.date, last.meta) == (f"corpus/{name}#1000", "Text 999.", "MIT", "2020-01-02", {"n": 999})
    (tmp_path / "README.md").write_text("A card.")
    assert read(tmp_path / "state.json", "rows") == read(tmp_path / "README.md", "rows") == ([], [])


def test_prepare_rows_of_plain_text(tmp_path):
    text = "Erste Zeile.\r\n\r\nGrüße.\n"
    assert only_document(read_bytes(tmp_path, text.encode(), "rows", "a.txt")).text == "Erste Zeile.\n\nGrüße.\n"
    for name, content in {"a.cor": text.encode(), "b.cor": text.encode("utf-16"), "c.cor.gz": gzip.compress(text.encode())}.items():
        documents, problems = read_bytes(tmp_path, content, "rows", name, text_files="lines")
        assert not problems
        assert [(document.id, document.text) for document in documents] == [(f"corpus/{name}#1", "Erste Zeile."), (f"corpus/{name}#3", "Grüße.")]


BAD_LINES = {
    b"{": "malformed JSON",
    b"[1": "malformed JSON",
    b"3": "a row must be an object, found int",
    b"{}": "the row has no keys",
    b'{"txt": "a"}': "the row has keys txt; expected one of text, content",
    b'{"text": null}': "text must be a text, found NoneType",
    b'{"text": ["a"]}': "text must be a text, found list",
    b'{"text": " \\n"}': "text is empty",
    b'{"text": "\xff"}': "invalid UTF-8",
    b'{"text": ' + b"[" * 200_000 + b"]" * 200_000 + b"}": "JSON that cannot be read",
    b'{"text": "a", "n": ' + b"9" * 5000 + b"}": "JSON that cannot be read",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_prepare_rows_go_on_behind_a_bad_line(tmp_path, line):
    documents, problems = read_bytes(tmp_path, jsonl(ROWS[0]) + line + b"\n" + jsonl(ROWS[1]), "rows", "a.jsonl")
    assert [document.id for document in documents] == ["corpus/a.jsonl#1", "corpus/a.jsonl#3"]
    assert str(problems[0]).startswith("a.jsonl, line 2: ") and BAD_LINES[line] in str(problems[0]) and len(problems) == 1


def test_prepare_rows_pass_over_a_line_of_200_mb(tmp_path):
    """In 0.2 MB of gzip: the line is unpacked and dropped piece by piece."""
    import tracemalloc

    path = tmp_path / "long.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(jsonl(ROWS[0]) + b'{"text": "')
        for _ in range(200):
            file.write(b"a" * 1_000_000)
        file.write(b'"}\n' + jsonl(ROWS[1]))
    tracemalloc.start()
    documents, problems = read(path, "rows")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [document.text for document in documents] == ["One.", "Two."]
    assert [str(problem) for problem in problems] == ["long.jsonl.gz, line 2: a line over 64 MiB"]
    assert peak < 2.5 * plain_rows.MAX_LINE_BYTES


def test_prepare_rows_give_what_a_truncated_gzip_has(tmp_path):
    noise = [{"text": f"{i * 7919 % 100003} {i * i}"} for i in range(5000)]
    documents, problems = read_bytes(tmp_path, gzip.compress(jsonl(*noise))[:-2000], "rows", "cut.jsonl.gz")
    assert 1000 < len(documents) < 5000
    assert [document.text for document in documents] == [row["text"] for row in noise[: len(documents)]]
    assert [problem.reason for problem in problems] == ["truncated gzip file"]


def test_prepare_rows_go_on_in_the_next_gzip_member(tmp_path):
    """Damage in the middle of the file costs one member."""
    first, second, third = (gzip.compress(jsonl(*({"text": f"{part}{i}"} for i in range(500)))) for part in "abc")
    broken = second[:200] + bytes(100) + second[300:]
    documents, problems = read_bytes(tmp_path, first + broken + third, "rows", "m.jsonl.gz")
    texts = [document.text for document in documents]
    assert texts[:500] == [f"a{i}" for i in range(500)] and texts[-500:] == [f"c{i}" for i in range(500)]
    assert any("damaged gzip file" in problem.reason for problem in problems)


def test_prepare_rows_give_up_on_another_kind_of_file(tmp_path):
    documents, problems = read_bytes(tmp_path, b"some words\n" * 10_000, "rows", "a.jsonl")
    assert not documents and len(problems) == 101
    assert "100 lines one after another without a document; the rest is passed over" in str(problems[-1])


@pytest.mark.parametrize("lines", [{"text": ""}, {"title": "another schema"}], ids=["empty texts", "rows of another schema"])
def test_prepare_rows_many_bad_lines_are_no_other_kind_of_file(tmp_path, lines):
    """Rows that are sorted by length begin with empty texts, and files that were put together have rows of several schemas."""
    first = [] if lines == {"text": ""} else [{"text": "first"}]
    content = "".join(json.dumps(row) + "\n" for row in [*first, *[lines] * 300, {"text": "last"}]).encode()
    documents, problems = read_bytes(tmp_path, content, "rows", "a.jsonl")
    assert documents[-1].text == "last" and len(problems) == 300


@pytest.mark.parametrize(
    ("content", "texts", "reason"),
    [
        (b'[{"text": "a"}, {"text": "b"}, {"text"', ["a", "b"], "a.json, row 3: malformed JSON"),
        (b'[{"text": "a"}, {"txt": "b"}, {"text": "c"}]', ["a", "c"], "a.json, row 2: no text"),
        (b'[{"text": "a"}', ["a"], "a.json, row 2: malformed JSON: the array does not end"),
        (b'[{"text": "a"} {"text": "b"}]', ["a"], "a.json, row 2: malformed JSON"),
        (b"[]", [], "a.json: the file holds no rows"),
        (b"[" * 200_000, [], "a.json, row 1: malformed JSON: nested too deeply"),
    ],
)
def test_prepare_rows_of_a_damaged_array(tmp_path, content, texts, reason):
    documents, problems = read_bytes(tmp_path, content, "rows", "a.json")
    assert [document.text for document in documents] == texts
    assert len(problems) == 1 and str(problems[0]).startswith(reason)


def test_prepare_rows_of_damaged_tables(tmp_path):
    table = pyarrow.table({"text": [f"{i} {i * i}" for i in range(4000)]})
    parquet.write_table(table, tmp_path / "whole.parquet", row_group_size=1000, compression="gzip", use_dictionary=False)
    content = bytearray((tmp_path / "whole.parquet").read_bytes())
    groups = [parquet.ParquetFile(tmp_path / "whole.parquet").metadata.row_group(i).column(0) for i in range(4)]
    middle = groups[1].data_page_offset + groups[1].total_compressed_size // 2
    content[middle : middle + 200] = bytes(200)
    documents, problems = read_bytes(tmp_path, bytes(content), "rows", "broken.parquet")
    assert {document.id for document in documents} == {f"corpus/broken.parquet#{i}" for i in (*range(1, 1001), *range(2001, 4001))}
    assert len(problems) == 1 and "row group 2 is lost" in str(problems[0]) and problems[0].position == "row 1001"
    assert "damaged parquet file" in only_problem(read_bytes(tmp_path, bytes(content[:-100]), "rows", "cut.parquet"))
    parquet.write_table(pyarrow.table({"a": [1], "b": ["c"]}), tmp_path / "other.parquet")
    assert "no text: the columns are a, b; expected one of text" in only_problem(read(tmp_path / "other.parquet", "rows"))
    parquet.write_table(pyarrow.table({"text": [1, 2]}), tmp_path / "numbers.parquet")
    assert [problem.position for problem in read(tmp_path / "numbers.parquet", "rows")[1]] == ["row 1", "row 2"]
    assert "damaged Arrow file" in only_problem(read_bytes(tmp_path, b"no arrow", "rows", "a.arrow"))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b"", "the file is empty"),
        ("a.jsonl.gz", b"plain", "not a .gz file"),
        ("a.txt", b" \n", "no text"),
        ("a.txt", bytes(range(256)) * 20, "binary, not text"),
        ("a.txt.gz", gzip.compress(bytes(1000))[:-9], "truncated gzip file"),
        ("bomb.txt.gz", gzip.compress(bytes(MAX_FILE_BYTES + 10), 1), "more than 64 MiB"),
    ],
)
def test_prepare_rows_files_that_give_nothing(tmp_path, name, content, reason):
    assert reason in only_problem(read_bytes(tmp_path, content, "rows", name))


def test_prepare_rows_half_surrogates_are_replaced(tmp_path):
    document = only_document(read_bytes(tmp_path, b'{"text": "a\\ud83d", "url": "\\ud83d", "x": ["\\ud83d"]}\n', "rows", "a.jsonl"))
    assert (document.text, document.url, document.meta) == ("a\ufffd", "\ufffd", {"x": ["\ufffd"]})


def test_prepare_rows_know_each_text_column(tmp_path):
    made = read_bytes(tmp_path, jsonl(*({column: f"in {column}"} for column in rows.TEXT_COLUMNS)), "rows", "a.jsonl")
    assert [document.text for document in made[0]] == [f"in {column}" for column in rows.TEXT_COLUMNS] and not made[1]


def test_prepare_rows_missing_file_is_a_problem(tmp_path):
    assert "No such file" in only_problem(read(tmp_path / "gone.jsonl", "rows"))
