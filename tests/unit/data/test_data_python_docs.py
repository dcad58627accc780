"""The corpus of the Python installation: parsing, questions, the ranking rule, and what is held out of what."""

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from megagpt.config.schema import DataConfig, RunConfig
from megagpt.data import python_docs, synthetic
from megagpt.data.errors import DataError
from megagpt.data.pipeline import run_data
from megagpt.data.records import Ranking, read_demonstrations, read_documents, read_prompts, read_rankings
from megagpt.data.split import prompt_key

SOURCE = '''"""Module é docstring."""
import os

def copy(src: str, dst, *, follow=True) -> None:
    """Copy a file to the place that dst names.

    >>> copy("a", "b")
    """

if os.name == "posix":
    def link(a, b=None, /, *rest, **more): "Link one file to the other one é."; return 1

class Box:
    """A box."""

    def open(self, key: int = 3):
        """Open the box with the key that is given."""
        def inner():
            """Copy a file to the place that dst names.

            >>> copy("a", "b")
            """
        return inner

    @staticmethod
    def make(size):
        """Make a box of this size and return it."""

    @property
    def size(self):
        """Nobody asks about properties in these questions."""

    def _private(self):
        """Nobody asks about private methods in these questions."""
'''


@pytest.fixture
def library(tmp_path):
    (tmp_path / "pkg" / "test").mkdir(parents=True)
    (tmp_path / "box.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "_hidden.py").write_text('def f():\n    """A documented function of a private module."""\n')
    (tmp_path / "pkg" / "__init__.py").write_bytes(b'# -*- coding: latin-1 -*-\nname = "\xe9"\r\n')
    (tmp_path / "pkg" / "test" / "test_x.py").write_text("x = 1\n")
    (tmp_path / "broken.py").write_text("def (:\n")
    return tmp_path


def test_modules_are_parsed_and_unreadable_ones_counted(library):
    dropped = Counter()
    modules = python_docs.read_modules(library, dropped)
    assert [module.name for module in modules] == ["_hidden", "box", "pkg"]
    assert dropped == {"unreadable source": 1}
    assert modules[2].text == '# -*- coding: latin-1 -*-\nname = "é"\n'


def test_library_without_sources_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no standard-library sources"):
        python_docs.read_modules(tmp_path)


def test_functions_are_public_and_documented(library):
    functions = [function for module in python_docs.read_modules(library) for function in module.functions]
    assert {function.name: function.signature for function in functions} == {
        "copy": "(src, dst, *, follow=True)",
        "link": "(a, b=None, /, *rest, **more)",
        "Box.open": "(key=3)",
        "Box.make": "(size)",
    }
    assert {function.module for function in functions} == {"box"}


def test_held_out_docstrings_are_cut_wherever_they_stand(library):
    module = next(module for module in python_docs.read_modules(library) if module.name == "box")
    held_out = {function.docstring for function in module.functions if function.name in ("copy", "link")}
    documents = {document.id: document.text for document in python_docs.to_documents([module], held_out.__contains__)}
    text = documents["source/box"]
    ast.parse(text)
    assert "Copy a file" not in text and "Link one" not in text
    assert "*rest, **more): ...; return 1" in text
    assert "Open the box" in text and "Module é docstring" in text
    assert {name: text for name, text in documents.items() if name.startswith("reference/")}


def test_giant_sources_are_no_documents(library, monkeypatch):
    monkeypatch.setattr(python_docs, "MAX_SOURCE_CHARACTERS", 10)
    documents = python_docs.to_documents(python_docs.read_modules(library), bool)
    assert not [document for document in documents if document.id.startswith("source/")]


@pytest.mark.parametrize(
    ("docstring", "answer"),
    [
        ("Copy a file. Then stop.\n\nMore.", "Copy a file. Then stop."),
        ("Copy a\nfile", "Copy a file."),
        ("Copy these:\n\n- a\n- b", "Copy these."),
        ("Copy a file.\n>>> copy()\n", "Copy a file."),
        ("Copy a file.\n    indented(example)\n", "Copy a file."),
        (
            "Copy a file of version 3.11 now. " + "And a sentence that does not fit any more. " * 9,
            "Copy a file of version 3.11 now.",
        ),
        ("word " * 100, ""),
    ],
)
def test_answers_are_the_first_sentences_that_fit(docstring, answer):
    assert synthetic.first_sentences(docstring, 60) == answer


def examples(modules=3, functions=4):
    dropped = Counter()
    made = synthetic.make_examples(
        (
            python_docs.Function(f"m{m}", f"f{f}", "(x)", f"Number{m}{f} gives{f} back{m} the things that x counts.")
            for m in range(modules)
            for f in range(functions)
        ),
        400,
        400,
        dropped,
    )
    assert not dropped
    return made


def test_examples_leave_out_what_makes_no_question_and_answer():
    dropped = Counter()
    good = python_docs.Function("m", "good", "(x)", "Return all of the things that x counts.")
    functions = [
        good,
        python_docs.Function("m", "alias", "(x)", good.docstring),
        python_docs.Function("m", "short", "(x)", "See good."),
        python_docs.Function("m", "long", "(" + "x" * 400 + ")", good.docstring + " Again."),
    ]
    made = synthetic.make_examples(functions, 400, 400, dropped)
    assert [example.key for example in made] == ["m.good"]
    assert "m" in made[0].question and "good(x)" in made[0].question
    assert dropped == {
        "same answer as another function": 1,
        "no answer of a fitting length": 1,
        "question too long": 1,
    }


def best_first(ranking: Ranking):
    return [ranking.answers[ranking.ranks.index(rank)] for rank in range(4)]


def is_cut(answer, whole):
    return whole.startswith(answer) and len(answer.split()) < len(whole.split()) and answer[-1] not in ".!?"


def test_rankings_follow_the_rule():
    made = examples()
    by_question = {example.question: example for example in made}
    rankings = synthetic.rankings(made, made, Counter())
    assert len(rankings) == len(made)
    for ranking in rankings:
        example = by_question[ranking.prompt[0]["content"]]
        right, cut, sibling, shuffled = best_first(ranking)
        assert right == example.answer
        assert is_cut(cut, right)
        siblings = [o.answer for o in made if o.module == example.module and o is not example]
        assert any(is_cut(sibling, answer) for answer in siblings)
        others = [o.answer for o in made if o.module != example.module]
        assert sorted(shuffled.split()) in [sorted(answer.split()) for answer in others]
        assert shuffled not in others
        assert (ranking.annotator, ranking.source, ranking.slice) == ("rule", "synthetic", "python-docs-synthetic")
    assert len({ranking.ranks for ranking in rankings}) > 4  # the place of an answer says nothing about its rank


def test_functions_without_siblings_make_no_ranking():
    dropped = Counter()
    made = examples(modules=3, functions=1)
    assert synthetic.rankings(made, made, dropped) == []
    assert dropped == {"no other function in its module": 3}


CONFIG = DataConfig(run=RunConfig(name="t"), source="python-docs", valid_fraction=0.05)


@pytest.fixture(scope="module")
def modules():
    return python_docs.read_modules()


@pytest.fixture(scope="module")
def corpus(modules, tmp_path_factory):
    folder = tmp_path_factory.mktemp("python-docs")
    with pytest.MonkeyPatch.context() as patch:  # parsed once for this file; the other process parses for itself
        patch.setattr(python_docs, "read_modules", lambda dropped: modules)
        return folder, run_data(CONFIG, folder)


def test_corpus_is_large_enough_and_complete(corpus):
    folder, statistics = corpus
    assert json.loads((folder / "statistics.json").read_text()) == statistics
    assert statistics["demonstrations"]["train"] > 1500
    assert statistics["rankings"]["train"] > 1500
    assert statistics["prompts"]["train"] > 150
    assert 3e6 < statistics["files"]["documents.train.jsonl"]["bytes"] < 6e6
    assert all(statistics[kind]["valid"] for kind in ("documents", "demonstrations", "rankings", "prompts"))
    assert sorted(path.name for path in folder.iterdir()) == sorted([*statistics["files"], "statistics.json"])


def test_corpus_is_the_same_in_another_process(corpus, tmp_path):
    script = (
        "import sys; from megagpt.config.schema import DataConfig; from megagpt.data.pipeline import run_data;"
        "run_data(DataConfig.model_validate_json(sys.argv[1]), sys.argv[2])"
    )
    root = Path(__file__).resolve().parents[3]
    subprocess.run(
        [sys.executable, "-c", script, CONFIG.model_dump_json(), str(tmp_path)],
        check=True,
        cwd=root,
        env=os.environ | {"PYTHONHASHSEED": "4321"},
    )
    assert json.loads((tmp_path / "statistics.json").read_text()) == corpus[1]


def test_prompt_functions_are_in_nothing_else(corpus, modules):
    folder, _ = corpus
    asked = {prompt.id for side in ("train", "valid") for prompt in read_prompts(folder / f"prompts.{side}.jsonl")}
    questions = {}
    for side in ("train", "valid"):
        prompts = {prompt_key(p.prompt) for p in read_prompts(folder / f"prompts.{side}.jsonl")}
        shown = {prompt_key(d.messages) for d in read_demonstrations(folder / f"demonstrations.{side}.jsonl")}
        ranked = {prompt_key(r.prompt) for r in read_rankings(folder / f"rankings.{side}.jsonl")}
        assert ranked < shown
        questions[side] = shown | prompts
        assert not prompts & shown
    assert not questions["train"] & questions["valid"]

    functions = {f"{f.module}.{f.name}": f for module in modules for f in module.functions}
    answers = {synthetic.first_sentences(functions[key].docstring, 400) for key in asked}
    trained_on = {
        answer
        for side in ("train", "valid")
        for ranking in read_rankings(folder / f"rankings.{side}.jsonl")
        for answer in ranking.answers
    } | {
        demonstration.messages[-1]["content"]
        for side in ("train", "valid")
        for demonstration in read_demonstrations(folder / f"demonstrations.{side}.jsonl")
    }
    assert not answers & trained_on


def test_held_out_docstrings_are_in_no_document(corpus):
    folder, _ = corpus
    held_out = {record.messages[-1]["content"] for record in read_demonstrations(folder / "demonstrations.valid.jsonl")}
    docstrings = set()
    for side in ("train", "valid"):
        for document in read_documents(folder / f"documents.{side}.jsonl"):
            if document.id.startswith("source/"):
                docstrings |= {
                    synthetic.first_sentences(ast.get_docstring(node) or "", 400)
                    for node in ast.walk(ast.parse(document.text))
                    if isinstance(node, ast.FunctionDef)
                }
    assert len(docstrings) > 1000
    assert not held_out & docstrings
