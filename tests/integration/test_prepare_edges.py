"""Data preparation at its edges: columns, names, sources and settings that real corpora have now and then."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from megagpt.cli.main import main
from megagpt.config.prepare import NgramsConfig, WindowsConfig
from megagpt.prepare.classifier import Classifier, save_classifier
from megagpt.prepare.ngrams import Ngrams
from tests.helpers.prepare_corpus import article, write_config


def write_rows(path: Path, *rows: dict) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def prepare(folder: Path, sources: list[dict], steps: dict, root: Path | None = None) -> int:
    config = {"stage": "prepare", "run": {"name": "r", "root": str(root or folder / "runs")}, "sources": sources, "steps": steps, "executor": {"workers": 1}}
    return main(["data", "run", "--config", str(write_config(folder / "prepare.yaml", config))]) or 0


def ledger(folder: Path, root: Path | None = None) -> dict[str, dict]:
    files = sorted(((root or folder / "runs") / "r/prepare/ledger").iterdir())
    return {row["id"]: row for file in files for row in parquet.ParquetFile(file).read().to_pylist()}


def statistics(folder: Path) -> dict:
    return json.loads((folder / "runs/r/prepare/statistics.json").read_text())["sources"]


def rows_of(name: str, *files: str, **more) -> dict:
    return {"name": name, "kind": "rows", "files": list(files), **more}


def articles(count: int) -> list[str]:
    source = random.Random(5)
    return [article(source) for _ in range(count)]


def test_prepare_edges_a_column_called_drop_is_the_rows_own(tmp_path):
    one, two, three = articles(3)
    files = write_rows(tmp_path / "a.jsonl", {"text": one, "drop": False}, {"text": two, "drop": "mine"}, {"text": three, "meta": {"drop": 3}})
    assert prepare(tmp_path, [rows_of("a", files)], {}) == 0
    assert [row["kept"] for row in ledger(tmp_path).values()] == [True] * 3


def test_prepare_edges_a_run_folder_may_have_any_name(tmp_path):
    """Quotation marks and signs of patterns, which databases and globs would read otherwise."""
    root, (text, other) = tmp_path / "it's [a-z]* run?", articles(2)
    files = write_rows(tmp_path / "a.jsonl", {"text": text}, {"text": text}, {"text": other}, {})
    steps = {"exact_duplicates": {"tasks": 1}, "near_duplicates": {"tasks": 1, "buckets": 1}}
    assert prepare(tmp_path, [rows_of("a", files)], steps, root) == 0
    assert [row["kept"] for row in ledger(tmp_path, root).values()] == [True, False, True]
    assert main(["data", "report", "--run", str(root / "r")]) in (0, None)
    assert main(["data", "why", "a/a.jsonl#2", "--run", str(root / "r")]) in (0, None)
    page = (root / "r/prepare/data.html").read_text()
    assert "duplicate_document" in page and "no text" in page


def test_prepare_edges_a_source_that_gives_nothing_is_told(tmp_path, capsys):
    (tmp_path / "b.jsonl").write_text("\n\n")  # neither a document nor a problem
    (tmp_path / "c.jsonl").write_text("")
    sources = [rows_of("a", write_rows(tmp_path / "a.jsonl", {"text": articles(1)[0]})), rows_of("b", str(tmp_path / "b.jsonl")), rows_of("c", str(tmp_path / "c.jsonl"))]
    assert prepare(tmp_path, sources, {}) == 0
    assert {name: (figures["seen"], figures["problems"]) for name, figures in statistics(tmp_path).items()} == {"a": (1, 0), "b": (0, 0), "c": (0, 1)}
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:4]] == ["a", "b", "c"]
    assert main(["data", "report", "--run", str(tmp_path / "runs/r")]) in (0, None)


def test_prepare_edges_a_corpus_of_nothing_is_told_too(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    steps = {"heuristics": {}, "exact_duplicates": {"lines": {}}, "near_duplicates": {}, "representation": {"reweighting": {}}}
    assert prepare(tmp_path, [rows_of("a", str(tmp_path / "a.jsonl"))], steps) == 0
    assert statistics(tmp_path)["a"]["problems"] == 1
    assert main(["data", "report", "--run", str(tmp_path / "runs/r")]) in (0, None)


def test_prepare_edges_nothing_left_after_cuts_is_no_document(tmp_path):
    paragraph = "A paragraph that stands in two documents."
    files = write_rows(tmp_path / "a.jsonl", {"text": paragraph}, {"text": paragraph + "\n\nAnd more."}, {"text": paragraph})
    steps = {"exact_duplicates": {"documents": False, "paragraphs": {"min_characters": 10}, "min_characters_left": 0}}
    assert prepare(tmp_path, [rows_of("a", files)], steps) == 0
    assert [(row["kept"], row["reason"]) for row in ledger(tmp_path).values()] == [(True, None), (True, None), (False, "duplicate_paragraphs")]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"language": {"model": "nope.ftz"}}, "nope.ftz: no such file"),
        ({"url": {"domains": ["nope.txt"]}}, "nope.txt: no such file"),
        ({"personal_data": {"phone_regions": ["XX"]}}, "'XX' is no region"),
        ({"personal_data": {"drop_above": {"NAME": 1}}}, "NAME is not looked for; engine: presidio finds it"),
        ({"personal_data": {"kinds": ["EMAIL"], "drop_above": {"SSN": 1}}}, "SSN is not looked for; add it to steps.personal_data.kinds"),
        ({"representation": {"terms": "nope.yaml"}}, "nope.yaml"),
    ],
)
def test_prepare_edges_what_a_step_lacks_is_told_before_the_work(tmp_path, capsys, steps, message):
    assert prepare(tmp_path, [rows_of("a", write_rows(tmp_path / "a.jsonl", {"text": "words"}))], steps) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert not (tmp_path / "runs/r/prepare/work/tasks").exists()


def test_prepare_edges_another_model_or_list_starts_anew(tmp_path):
    """An evaluation set and a list of URLs under the same name, with another content."""
    (text,) = articles(1)
    sources = [rows_of("a", write_rows(tmp_path / "a.jsonl", {"text": text, "url": "http://a.org/x"}, {"text": text + " Other.", "url": "http://b.org/x"}))]
    domains, evaluation = tmp_path / "domains.txt", tmp_path / "set.txt"
    domains.write_text("c.org\n")
    evaluation.write_text("one two three four five six seven eight nine ten eleven twelve thirteen\n")
    sets = [{"name": "e", "files": [str(evaluation)]}]
    steps = {"url": {"domains": [str(domains)], "datatrove_lists": False}, "decontamination": {"sets": sets, "action": "drop"}}

    def reasons():
        assert prepare(tmp_path, sources, steps) == 0
        return [row["reason"] for row in ledger(tmp_path).values()]

    assert reasons() == [None, None]
    assert main(["data", "report", "--run", str(tmp_path / "runs/r")]) == 0
    page = tmp_path / "runs/r/prepare/data.html"
    assert page.exists()
    domains.write_text("a.org\n")
    assert reasons() == ["url_domain", None]
    assert not page.exists()  # it told of the other run
    evaluation.write_text(" ".join(text.split()[:20]) + "\n")
    assert reasons() == ["url_domain", "contaminated"]


def test_prepare_edges_excerpts_hold_no_part_of_an_address(tmp_path):
    """Where an excerpt ends, in what is dropped before redaction and in what is not."""
    texts = ["x " * (200 - back) + "write to somebody.or.other@mail.example.com " + "and more " * 40 for back in range(4, 24, 2)]
    short = [text.replace("and more ", "") for text in texts]
    assert prepare(tmp_path, [rows_of("a", write_rows(tmp_path / "a.jsonl", *({"text": text} for text in texts + short)))], {"heuristics": {}, "personal_data": {}}) == 0
    excerpts = [row["excerpt"] for row in ledger(tmp_path).values()]
    assert len(excerpts) == 20 and not any("somebody" in excerpt or "example" in excerpt for excerpt in excerpts)
    assert sum("<EMAIL>" in excerpt for excerpt in excerpts) > 5 and all(len(excerpt) < 420 for excerpt in excerpts)


def test_prepare_edges_of_copies_the_one_of_a_trusted_kind_is_kept(tmp_path):
    """An article of an encyclopaedia, whose kind no classifier judges, and its copy in a crawl, which one does."""
    ngrams = Ngrams(NgramsConfig(hash_bits=10, character_sizes=[], max_words=1))
    weights = np.zeros(ngrams.num_features, np.float32)
    save_classifier(Classifier("quality", ngrams, WindowsConfig(), weights, 3.0, 1.0, 0.0), tmp_path / "quality")  # all text is good: 0.95
    (text,) = articles(1)
    files = [write_rows(tmp_path / f"{name}.jsonl", {"text": text}) for name in "ab"]
    sources = [rows_of("crawl", files[0], judged_as="web"), rows_of("articles", files[1], judged_as="wikipedia")]
    steps = {"quality": {"classifier": str(tmp_path / "quality"), "keep": "threshold"}, "exact_duplicates": {"tasks": 1}}
    assert prepare(tmp_path, sources, steps) == 0
    assert {id: row["kept"] for id, row in ledger(tmp_path).items()} == {"crawl/a.jsonl#1": False, "articles/b.jsonl#1": True}


def test_prepare_edges_copies_do_not_make_a_phrase_common(tmp_path):
    """What an evaluation set asks stands in one document and twenty copies of it: one is kept, and it must not keep the question."""
    text, other = articles(2)
    (tmp_path / "set.txt").write_text(" ".join(text.split()[:20]) + "\n")
    files = write_rows(tmp_path / "a.jsonl", *[{"text": text}] * 20, {"text": other})
    sets = {"sets": [{"name": "e", "files": [str(tmp_path / "set.txt")]}], "action": "drop", "max_documents": 10}
    assert prepare(tmp_path, [rows_of("a", files)], {"exact_duplicates": {"tasks": 1}, "decontamination": sets}) == 0
    reasons = [row["reason"] for row in ledger(tmp_path).values()]
    assert sorted(set(reasons), key=str) == [None, "contaminated", "duplicate_document"] and reasons.count("contaminated") == 1
