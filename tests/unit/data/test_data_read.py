"""Files to rows to records: every bad input is one line that names file, line and rule."""

import gzip
import json
import random
from collections import Counter

import pyarrow
import pytest
from pyarrow import parquet

from megagpt.data import rows
from megagpt.data.errors import DataError
from megagpt.data.records import (
    Demonstration,
    Document,
    Ranking,
    prompt_id,
    read_demonstrations,
    read_documents,
    read_prompts,
    read_rankings,
    to_row,
)

ASKED = [{"role": "user", "content": "Why?"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "Because."}]
DEMONSTRATION = {"messages": ANSWERED}
JUDGED = {"instruction": "Do", "input": "", "response1": "a", "response2": "b", "annotator1": 1, "annotator2": 0}
RANKING = {"prompt": ASKED, "answers": ["a", "b", "c"], "ranks": [1, 0, None], "weight": 2, "annotator": "ann"}


def write(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def test_own_records_are_read_as_they_were_written(tmp_path):
    demonstration = Demonstration(tuple(ANSWERED), source="synthetic")
    ranking = Ranking(tuple(ASKED), ("a", "b"), (1, 0), slice="s", weight=0.5, annotator="rule", source="synthetic")
    document = Document("1", "text", "web", "http://x", "CC0", "2020", {"k": 1})
    assert read_demonstrations(write(tmp_path / "d.jsonl", to_row(demonstration))) == [demonstration]
    assert read_rankings(write(tmp_path / "r.jsonl", to_row(ranking))) == [ranking]
    assert list(read_documents(write(tmp_path / "t.jsonl", to_row(document)))) == [document]
    assert to_row(Demonstration(tuple(ANSWERED), where="f:1")) == {"messages": tuple(ANSWERED)}


def test_ranking_defaults(tmp_path):
    (ranking,) = read_rankings(write(tmp_path / "people.jsonl", RANKING))
    assert (ranking.slice, ranking.weight, ranking.ranks) == ("people", 2.0, (1, 0, None))
    assert ranking.where == f"{tmp_path}/people.jsonl:1"


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.json", "d.json.gz", "d.parquet"])
def test_all_containers_hold_the_same_rows(tmp_path, name):
    path = tmp_path / name
    lines = "\n".join([json.dumps(DEMONSTRATION), "", json.dumps(DEMONSTRATION)])
    content = (lines if "jsonl" in name else json.dumps([DEMONSTRATION] * 2)).encode()
    if name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist([DEMONSTRATION] * 2), path)
    else:
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert [record.messages for record in read_demonstrations(path)] == [tuple(ANSWERED)] * 2


def test_plain_text_is_one_document(tmp_path):
    (tmp_path / "book.txt.gz").write_bytes(gzip.compress("two\nlines é".encode()))
    assert list(read_documents(tmp_path / "book.txt.gz")) == [Document("book.txt.gz", "two\nlines é", source="book")]


def test_document_rows_keep_what_else_they_know(tmp_path):
    path = write(tmp_path / "c4.jsonl", {"text": "t", "url": "u", "timestamp": "2019", "lang": "en"}, {"text": "  "})
    dropped = Counter()
    (document,) = read_documents(path, dropped)
    assert document == Document("c4.jsonl:1", "t", source="c4", url="u", date="2019", meta={"lang": "en"})
    assert dropped == {"empty text": 1}


def test_half_surrogates_become_encodable(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a\\ud83d b"}')
    assert next(read_documents(tmp_path / "t.jsonl")).text == "a\ufffd b"


READERS = {
    "document": lambda path: list(read_documents(path)),
    "demonstration": read_demonstrations,
    "ranking": read_rankings,
    "prompt": read_prompts,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", r": the file is empty"),
        (b"\n\n", r": the file holds no rows"),
        (b'"x"\n\n{"messages": [}\n', r":3: malformed JSON: Expecting value \(column 15\)"),
        (b'"x"\n{"text": \n', r":2: malformed JSON: Expecting value \(column 9\)"),
        (b'"x"\n"\xff"\n', r":2: invalid UTF-8"),
        (b'"x"\n{"odd": 1, "keys": 2}\n', r":2: unknown shape of a \w+: keys odd, keys"),
        (b"[" * 100_000, r":1: JSON that cannot be read"),
    ],
    ids=["empty", "blank", "malformed", "cut", "utf8", "shape", "nested"],
)
def test_bad_files_name_file_and_line(tmp_path, monkeypatch, read, content, rule):
    path = tmp_path / "bad.jsonl"
    good_first_line = {
        READERS["document"]: {"text": "t"},
        read_demonstrations: DEMONSTRATION,
        read_rankings: RANKING,
        read_prompts: "Why?",
    }[read]
    path.write_bytes(content.replace(b'"x"\n', json.dumps(good_first_line).encode() + b"\n"))
    with pytest.raises(DataError, match=f"^{path}{rule}") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_overlong_line_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 1 << 20)
    path = write(tmp_path / "long.jsonl", {"text": "t"}, {"text": "x" * (1 << 20)})
    with pytest.raises(DataError, match="long.jsonl:2: a line over 1 MiB"):
        list(read_documents(path))


def test_missing_file_names_the_nearest(tmp_path):
    write(tmp_path / "rankings.jsonl", RANKING)
    with pytest.raises(DataError, match="rankins.jsonl: no such file; did you mean rankings.jsonl?"):
        read_rankings(tmp_path / "rankins.jsonl")
    with pytest.raises(DataError, match="there is no folder"):
        read_rankings(tmp_path / "nowhere" / "rankings.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        read_rankings(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("cut.jsonl.gz", gzip.compress(json.dumps(DEMONSTRATION).encode())[:-12], "damaged gzip file"),
        ("not.jsonl.gz", b"plain", "damaged gzip file"),
        ("not.parquet", b"PAR1 nothing PAR1", "damaged parquet file"),
        ("object.json", b"{}", "must hold one array"),
        ("table.csv", b"a,b", "unknown kind of file"),
    ],
    ids=["gzip-cut", "no-gzip", "no-parquet", "no-array", "csv"],
)
def test_damaged_files_are_named(tmp_path, name, content, rule):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}.*{rule}"):
        read_demonstrations(tmp_path / name)


@pytest.mark.parametrize(
    ("read", "row", "rule"),
    [
        (read_demonstrations, {"messages": "hi"}, "messages must be a list of messages, found str"),
        (read_demonstrations, {"messages": [*ANSWERED[:1], {"role": "assistant"}]}, r"messages\[1\] must be an object"),
        (
            read_demonstrations,
            {"messages": [{"role": "bot", "content": "x"}, *ANSWERED]},
            "role is 'bot', must be one of",
        ),
        (read_demonstrations, {"instruction": "Do", "output": 3}, r"messages\[1\].content must be a text, found int"),
        (read_rankings, RANKING | {"ranks": [0, 1]}, "lists of the same length"),
        (read_rankings, RANKING | {"ranks": [0, 1, "2"]}, "rank '2' must be an integer"),
        (read_rankings, RANKING | {"ranks": [0, 1, "="]}, r"rank '=' must be an integer from 0 \(best\), equal for tied answers, or null"),
        (read_rankings, RANKING | {"ranks": [0, 0.5, 1]}, "rank 0.5 must be an integer"),
        (read_rankings, RANKING | {"answers": ["a"], "ranks": [0]}, "a ranking of 1 answer; it takes two or more"),
        (read_rankings, RANKING | {"answers": [], "ranks": []}, "a ranking of 0 answers; it takes two or more"),
        (read_rankings, {"context": [], "ranked": [{"text": "a", "rank": 0}]}, "a ranking of 1 answer"),
        (read_rankings, JUDGED | {"annotator2": 3}, r"annotator2 is 3, must be 0 \(tie\), 1 or 2"),
        (read_rankings, JUDGED | {"annotator2": "tie"}, "annotator2 is 'tie', must be 0"),
        (read_rankings, JUDGED | {"annotator2": True}, "annotator2 is True, must be 0"),
        (read_rankings, RANKING | {"ranks": [0, 1, -1]}, "rank -1 must be"),
        (read_rankings, RANKING | {"ranks": [False, True, None]}, "rank False must be"),
        (read_rankings, RANKING | {"weight": 0}, "weight 0 must be a positive number"),
        (read_rankings, RANKING | {"answers": ["a", "b", 3]}, r"answers\[2\] must be a text"),
        (read_prompts, {"id": [1], "prompt": "Why?"}, "id must be a text, found list"),
    ],
)
def test_rows_of_wrong_types_name_the_field(tmp_path, read, row, rule):
    with pytest.raises(DataError, match=rf"x.jsonl:1: .*{rule}"):
        read(write(tmp_path / "x.jsonl", row))


def test_wrong_document_text_names_the_field(tmp_path):
    with pytest.raises(DataError, match="x.jsonl:1: text must be a text, found int"):
        list(read_documents(write(tmp_path / "x.jsonl", {"text": 1})))


def test_unusable_rows_are_dropped_with_a_reason(tmp_path):
    dropped = Counter()
    alike, silent, unranked, only_one = (
        RANKING | {"answers": ["a", "b", "a"]},
        RANKING | {"answers": ["a", " ", "b"]},
        RANKING | {"ranks": [None] * 3},
        RANKING | {"ranks": [None, 0, None]},
    )
    read_rankings(write(tmp_path / "r.jsonl", RANKING, alike, silent, unranked, only_one), dropped)
    assert dropped == {"fewer than two answers are ranked": 2, "two answers are equal": 1, "empty answer": 1}

    dropped = Counter()
    read_demonstrations(
        write(tmp_path / "d.jsonl", DEMONSTRATION, {"messages": ASKED}, {"messages": ANSWERED[1:]}), dropped
    )
    assert dropped == {"no answer": 1, "starts with an answer": 1}


def test_a_file_of_unusable_rows_is_refused_with_the_reasons(tmp_path):
    with pytest.raises(DataError, match=r"no usable row \(no answer: 2\)"):
        read_demonstrations(write(tmp_path / "d.jsonl", {"messages": ASKED}, {"messages": ASKED}))


def test_prompts_have_stable_ids_and_repeats_are_dropped(tmp_path):
    dropped = Counter()
    prompts = read_prompts(write(tmp_path / "p.jsonl", "Why?", {"id": 7, "prompt": ASKED}, "Why?", "How?"), dropped)
    assert [prompt.id for prompt in prompts] == [prompt_id(tuple(ASKED)), "7", prompts[2].id]
    assert dropped == {"repeated id": 1}


def test_failed_writes_leave_the_old_file(tmp_path):
    path = tmp_path / "x.jsonl"
    assert rows.write_rows(path, [{"a": 1}, {"a": 2}]) == 2

    def broken():
        yield {"a": 3}
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        rows.write_rows(path, broken())
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_parquet_rows_are_read_a_few_at_a_time(tmp_path):
    """One group of 40 MB of rows in small pages: what Arrow holds at any moment is a small part of it."""
    texts = [random.Random(number).randbytes(100_000).hex() for number in range(200)]
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "d.parquet", compression="zstd", use_dictionary=False, write_batch_size=8)
    before, most = pyarrow.total_allocated_bytes(), 0
    for number, document in enumerate(read_documents(tmp_path / "d.parquet")):
        assert document.text == texts[number]
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert number == 199 and most < 3 * rows.PARQUET_BYTES


def test_parquet_rows_of_any_size_come_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "PARQUET_BYTES", 1000)
    texts = ["x" * (number * 37 % 2000) + str(number) for number in range(100)]
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "d.parquet", row_group_size=30)
    assert [document.text for document in read_documents(tmp_path / "d.parquet")] == texts
    assert [line for line, _ in rows.read_rows(tmp_path / "d.parquet")] == list(range(1, 101))


@pytest.mark.parametrize(("meta", "known"), [('{"language": "en", "n": [1]}', {"language": "en", "n": [1]}), ("", {}), ("[1]", {}), ("[" * 10_000, {}), (None, {})])
def test_document_meta_may_be_json(tmp_path, meta, known):
    """As columns hold it: keys differ from row to row."""
    parquet.write_table(pyarrow.table({"id": ["a"], "text": ["b"], "meta": pyarrow.array([meta], pyarrow.string()), "weight": [0.5]}), tmp_path / "d.parquet")
    (document,) = read_documents(tmp_path / "d.parquet")
    assert document.meta == known | {"weight": 0.5}
