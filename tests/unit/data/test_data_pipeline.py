"""A folder of files to cleaned, split records; cleaning steps."""

import datetime
import json
from pathlib import Path

import pyarrow
import pytest
from datatrove.data import Document as DatatroveDocument
from pyarrow import parquet

from megagpt.config.schema import DataConfig, RunConfig
from megagpt.data.clean import DropRepeated, DropShort, HoldOut
from megagpt.data.errors import DataError
from megagpt.data.pipeline import run_data
from megagpt.data.records import read_demonstrations, read_documents, read_prompts, read_rankings
from megagpt.data.repair import repair_row, repair_text
from megagpt.data.split import prompt_key

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


def config(folder, **overrides):
    values = {"run": RunConfig(name="t"), "source": str(folder), "valid_fraction": 0.2, "min_characters": 10}
    return DataConfig(**(values | overrides))


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "source"
    demonstrations = [{"instruction": f"Question {i}?\r\n", "output": f"The answer is {i}."} for i in range(60)]
    rankings = [
        {"prompt": f"question {i}?", "chosen": f"Better {i}.", "rejected": f"Worse {i}."} for i in range(30, 90)
    ]
    write(source / "demonstrations_a.jsonl", demonstrations[:30] + demonstrations[:3])
    write(source / "demonstrations" / "b.jsonl", demonstrations[30:])
    write(source / "rankings.jsonl", rankings)
    return source


def read_sides(folder, kind, reader):
    return [list(reader(folder / f"{kind}.{side}.jsonl")) for side in ("train", "valid")]


def test_folder_gives_all_kinds_with_their_defaults(folder, tmp_path):
    statistics = run_data(config(folder), tmp_path / "out")
    train, valid = read_sides(tmp_path / "out", "demonstrations", read_demonstrations)
    assert len(train) + len(valid) == 60
    assert statistics["demonstrations"]["dropped"] == {"repeated": 3}
    prompts = [prompt for side in read_sides(tmp_path / "out", "prompts", read_prompts) for prompt in side]
    _, ranked = read_sides(tmp_path / "out", "rankings", read_rankings)
    held_out = {prompt_key(r.prompt) for r in ranked} | {prompt_key(d.messages) for d in valid}
    assert {prompt_key(prompt.prompt) for prompt in prompts} == held_out
    documents = [
        document.text for side in read_sides(tmp_path / "out", "documents", read_documents) for document in side
    ]
    assert sorted(documents) == sorted(f"{d.messages[0]['content']}\n\n{d.messages[1]['content']}" for d in train)


def test_the_same_question_is_on_one_side_in_all_kinds(folder, tmp_path):
    run_data(config(folder), tmp_path / "out")
    shown = read_sides(tmp_path / "out", "demonstrations", read_demonstrations)
    ranked = read_sides(tmp_path / "out", "rankings", read_rankings)
    sides = [
        {prompt_key(d.messages) for d in shown[side]} | {prompt_key(r.prompt) for r in ranked[side]} for side in (0, 1)
    ]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_files_in_the_folder_replace_the_defaults(folder, tmp_path):
    write(folder / "prompts.jsonl", ["Say one.", "Say two.", "Say three."])
    (folder / "documents").mkdir()
    for i in range(3):
        (folder / "documents" / f"{i}.txt").write_text(f"A plain text file, number {i}.\r\nThat is all.\x0c")
    statistics = run_data(config(folder, max_documents=2), tmp_path / "out")
    assert (statistics["documents"]["train"], statistics["documents"]["valid"]) == (1, 1)
    assert statistics["prompts"]["train"] + statistics["prompts"]["valid"] == 3
    (document,) = read_documents(tmp_path / "out" / "documents.valid.jsonl")
    assert document.text.endswith("\nThat is all.")


def test_all_kinds_are_repaired(folder, tmp_path):
    run_data(config(folder), tmp_path / "out")
    for file in (tmp_path / "out").glob("*.jsonl"):
        assert "\\r" not in file.read_text()


def test_what_the_source_knows_besides_is_kept_and_writable(folder, tmp_path):
    seen = datetime.datetime(2020, 1, 2)
    rows = [{"id": f"{i}\ud83d", "text": f"a document, number {i}", "seen": seen} for i in range(2)]
    table = pyarrow.Table.from_pylist([row | {"id": str(i)} for i, row in enumerate(rows)])
    parquet.write_table(table, folder / "documents_a.parquet")
    write(folder / "documents_b.jsonl", [row | {"seen": "\ud83d", "text": row["text"] + " b"} for row in rows])
    run_data(config(folder), tmp_path / "out")
    documents = [document for side in read_sides(tmp_path / "out", "documents", read_documents) for document in side]
    assert {document.id for document in documents} == {"0", "1", "0\ufffd", "1\ufffd"}
    assert {document.meta["seen"] for document in documents} == {"2020-01-02 00:00:00", "?"}


def test_every_annotator_is_kept_and_a_repeated_one_is_not(folder, tmp_path):
    judged = {"prompt": "judged by two", "answers": ["a", "b"]}
    marks = [("x", [0, 1]), ("y", [1, 0]), ("z", [0, 0]), ("x", [0, 1])]
    write(folder / "rankings.jsonl", [judged | {"annotator": who, "ranks": ranks} for who, ranks in marks] + [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    statistics = run_data(config(folder), tmp_path / "out")
    kept = [record for side in read_sides(tmp_path / "out", "rankings", read_rankings) for record in side if record.annotator]
    assert [(record.annotator, list(record.ranks)) for record in kept] == marks[:3]
    assert statistics["rankings"]["dropped"] == {"repeated": 1}


def test_documents_are_dropped_with_reasons(folder, tmp_path):
    texts = ["long enough to keep", "Long  enough\nto KEEP", "short", "another one to keep"]
    write(folder / "documents.jsonl", [{"text": text} for text in texts])
    statistics = run_data(config(folder), tmp_path / "out")
    assert statistics["documents"] == {"train": 1, "valid": 1, "dropped": {"too_short": 1, "repeated": 1}}


@pytest.mark.parametrize("missing", ["demonstrations", "rankings"])
def test_needed_kinds_are_named(tmp_path, missing):
    kind = {"demonstrations": "rankings", "rankings": "demonstrations"}[missing]
    write(tmp_path / f"{kind}.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    with pytest.raises(DataError, match=f"{tmp_path}: no file or folder here has a name that begins with '{missing}'"):
        run_data(config(tmp_path), tmp_path / "out")


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder; source must be `python-docs` or a folder"):
        run_data(config(tmp_path / "nowhere"), tmp_path / "out")


def test_one_question_cannot_be_split(tmp_path):
    write(tmp_path / "demonstrations.jsonl", [{"instruction": "q", "output": "a"}])
    write(tmp_path / "rankings.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    with pytest.raises(DataError, match="1 different prompts cannot be split"):
        run_data(config(tmp_path), tmp_path / "out")


def test_failure_leaves_earlier_output_alone(folder, tmp_path):
    out = tmp_path / "out"
    run_data(config(folder), out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    (folder / "documents.jsonl").write_text('{"text": "a first document that is fine"}\n{"text": 3}\n')
    with pytest.raises(DataError, match="documents.jsonl:2: text must be a text"):
        run_data(config(folder), out)
    (folder / "documents.jsonl").write_text('{"text": "a single document"}\n')
    with pytest.raises(DataError, match="needs 2 documents at least, 1 are left"):
        run_data(config(folder), out)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
def test_real_public_files_run_through(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name, file in {
        "demonstrations.jsonl": "sft_self_instruct/seed_tasks.jsonl",
        "rankings_oasst.jsonl": "oasst_trees/kway_rankings.jsonl",
        "rankings_hh.jsonl.gz": "hh_rlhf/helpful-base.jsonl.gz",
        "prompts.jsonl": "oasst_prompts/prompt_lottery_en_250_text.jsonl",
        "documents.txt.gz": "pretrain_books/tinyshakespeare.txt.gz",
        "documents_c4.jsonl.gz": "pretrain_c4/c4_demo.jsonl.gz",
    }.items():
        (source / name).symlink_to(SHARED / file)
    statistics = run_data(config(source), tmp_path / "out")
    kept = {kind: statistics[kind]["train"] + statistics[kind]["valid"] for kind in ("demonstrations", "rankings")}
    assert kept == {"demonstrations": 175, "rankings": 165 + 1864}
    assert statistics["prompts"]["train"] + statistics["prompts"]["valid"] == 250
    slices = {r.slice for side in read_sides(tmp_path / "out", "rankings", read_rankings) for r in side}
    assert slices == {"rankings_oasst", "rankings_hh"}


def test_repair_keeps_what_is_text():
    assert repair_text("a\r\nb\rc\td\n\ufeffé\x00\x1f\ud83d👍") == "a\nb\nc\td\né\ufffd👍"
    assert repair_row({"a\r": ["b\r", {"c": 1}, None]}) == {"a\r": ["b\n", {"c": 1}, None]}


def run(step, *texts):
    documents = [DatatroveDocument(text=text, id=text) for text in texts]
    return [document.text for document in step.run(iter(documents))], step.stats


def test_short_documents_are_dropped_with_the_reason():
    kept, stats = run(DropShort(3), "abc", "  ab  ")
    assert kept == ["abc"]
    assert stats["dropped_too_short"].total == 1


def test_repeated_documents_are_dropped_with_the_reason():
    kept, stats = run(DropRepeated(), "One two", "one\n TWO", "one two three")
    assert kept == ["One two", "one two three"]
    assert stats["dropped_repeated"].total == 1


@pytest.mark.parametrize("fraction", [1e-9, 0.3])
def test_hold_out_marks_about_a_fraction_and_one_at_least(fraction):
    documents = [DatatroveDocument(text="x", id=str(i)) for i in range(1000)]
    marked = {document.id: document.metadata["split"] for document in HoldOut(fraction).run(iter(documents))}
    assert len(marked) == 1000
    valid = {id for id, split in marked.items() if split == "valid"}
    assert len(valid) == 1 if fraction < 0.1 else 250 < len(valid) < 350
    again = {d.id for d in HoldOut(0.3).run(reversed(documents)) if d.metadata["split"] == "valid"}
    assert valid <= again
