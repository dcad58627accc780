"""Where records come from: the Python installation, or a folder of files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from megagpt.config.schema import DataConfig
from megagpt.data import python_docs, synthetic
from megagpt.data.errors import DataError
from megagpt.data.records import (
    Demonstration,
    Document,
    Prompt,
    Ranking,
    prompt_id,
    read_demonstrations,
    read_documents,
    read_prompts,
    read_rankings,
)
from megagpt.data.split import Split, held_out_keys, prompt_key, share, split_by

KINDS = ("documents", "demonstrations", "rankings", "prompts")
PROMPT_FRACTION = 0.1
"""Share of the functions that only PPO asks about (`python-docs`)."""

Record = TypeVar("Record", Demonstration, Ranking, Prompt)


@dataclass(frozen=True)
class Corpus:
    """Records of all kinds; documents are still to be cleaned and split."""

    documents: Callable[[], Iterator[Document]]
    demonstrations: Split[Demonstration]
    rankings: Split[Ranking]
    prompts: Split[Prompt]
    dropped: dict[str, Counter[str]]
    """Kind -> reason -> number of rows (or functions) that gave no record. Grows while documents are read."""


def python_docs_corpus(config: DataConfig) -> Corpus:
    """The corpus of the running Python (`python_docs.py`, `synthetic.py`).

    Functions are split by a hash of their names into those for PPO's prompts only, those held out, and those trained
    on. Docstrings that answer like one of the first two are cut from the documents.
    """
    dropped = {kind: Counter() for kind in KINDS}
    modules = python_docs.read_modules(dropped=dropped["documents"])
    functions = (function for module in modules for function in module.functions)
    examples = synthetic.make_examples(
        functions, config.max_prompt_characters, config.max_answer_characters, dropped["demonstrations"]
    )
    asked_keys = {example.key for example in examples if share(f"prompt {example.key}") < PROMPT_FRACTION}
    rest, asked = split_by(examples, _key, asked_keys)
    train, valid = split_by(rest, _key, held_out_keys(map(_key, rest), config.valid_fraction, "data"))
    hidden = {example.answer for example in (*asked, *valid)}
    return Corpus(
        documents=lambda: python_docs.to_documents(
            modules, lambda docstring: synthetic.first_sentences(docstring, config.max_answer_characters) in hidden
        ),
        demonstrations=Split(synthetic.demonstrations(train), synthetic.demonstrations(valid)),
        # No wrong answer that is trained on belongs to a held-out function.
        rankings=Split(
            synthetic.rankings(train, train, dropped["rankings"]), synthetic.rankings(valid, rest, dropped["rankings"])
        ),
        prompts=_split_prompts(synthetic.prompts(asked), config.valid_fraction),
        dropped=dropped,
    )


def folder_corpus(config: DataConfig) -> Corpus:
    """The corpus in a folder.

    Files, and folders of files, are recognised by how their names begin:

        demonstrations*   needed
        rankings*         needed
        prompts*          default: the prompts of the held-out demonstrations and rankings
        documents*        default: the texts of the demonstrations that are trained on

    Rows may have any public shape of `formats.py`; documents may be plain text too. Conversations that open with the
    same question are all trained on or all held out, whichever file they are in.

    Raises:
        DataError: no such folder, a needed kind is missing, unreadable files, too few different prompts.
    """
    folder = Path(config.source)
    if not folder.is_dir():
        raise DataError(folder, "no such folder; source must be `python-docs` or a folder of files")
    dropped = {kind: Counter() for kind in KINDS}
    files = {kind: _find_files(folder, kind) for kind in KINDS}
    for kind in ("demonstrations", "rankings"):
        if not files[kind]:
            raise DataError(folder, f"no file or folder here has a name that begins with {kind!r}")

    demonstrations = _read(files["demonstrations"], read_demonstrations, dropped["demonstrations"])
    demonstrations = _unique(demonstrations, lambda d: prompt_id(d.messages), dropped["demonstrations"])
    rankings = _read(files["rankings"], read_rankings, dropped["rankings"])
    rankings = _unique(rankings, lambda r: (prompt_id(r.prompt), r.answers, r.annotator), dropped["rankings"])
    try:
        held_out = held_out_keys((prompt_key(d.messages) for d in demonstrations), config.valid_fraction, "data")
        held_out |= held_out_keys((prompt_key(r.prompt) for r in rankings), config.valid_fraction, "data")
        shown = split_by(demonstrations, lambda d: prompt_key(d.messages), held_out)
        ranked = split_by(rankings, lambda r: prompt_key(r.prompt), held_out)

        prompts = _read(files["prompts"], read_prompts, dropped["prompts"])
        if not prompts:
            heads = [record.messages[:-1] for record in shown.valid] + [record.prompt for record in ranked.valid]
            prompts = [Prompt(prompt_id(head), head) for head in heads]
        prompts = _split_prompts(_unique(prompts, lambda p: p.id, dropped["prompts"]), config.valid_fraction)
    except ValueError as error:
        raise DataError(folder, str(error)) from error
    return Corpus(
        documents=lambda: _documents(files["documents"], shown.train, dropped["documents"]),
        demonstrations=shown,
        rankings=ranked,
        prompts=prompts,
        dropped=dropped,
    )


def _key(example: synthetic.Example) -> str:
    return example.key


def _split_prompts(prompts: list[Prompt], valid_fraction: float) -> Split[Prompt]:
    held_out = held_out_keys((prompt_key(prompt.prompt) for prompt in prompts), valid_fraction, "prompts")
    return split_by(prompts, lambda prompt: prompt_key(prompt.prompt), held_out)


def _find_files(folder: Path, kind: str) -> list[Path]:
    """Files whose name, or whose folder's name, begins with the kind; in order of their names."""
    files: list[Path] = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(kind):
            files += sorted(file for file in entry.rglob("*") if file.is_file()) if entry.is_dir() else [entry]
    return files


def _read(
    files: list[Path], reader: Callable[[Path, Counter[str]], list[Record]], dropped: Counter[str]
) -> list[Record]:
    return [record for file in files for record in reader(file, dropped)]


def _unique(records: list[Record], key: Callable[[Record], Hashable], dropped: Counter[str]) -> list[Record]:
    """The first record of each key."""
    first: dict[Hashable, Record] = {}
    for record in records:
        first.setdefault(key(record), record)
    if len(first) < len(records):
        dropped["repeated"] += len(records) - len(first)
    return list(first.values())


def _documents(files: list[Path], demonstrations: list[Demonstration], dropped: Counter[str]) -> Iterator[Document]:
    for file in files:
        yield from read_documents(file, dropped)
    if not files:
        for record in demonstrations:
            text = "\n\n".join(message["content"] for message in record.messages)
            yield Document(prompt_id(record.messages), text, source="demonstrations")
