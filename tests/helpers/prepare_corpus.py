"""A small corpus with something for every step, made by a seeded generator, and the configuration that prepares it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

WORDS = (
    "river market garden winter letter morning window captain silver yellow quiet narrow engine bridge harbour forest kitchen teacher village summer "
    "and the of to that with be have in for a was on they it from he she at by this which when there their one two under over between because "
    "walk carry build answer follow open close remember describe measure explain travel gather repair notice"
).split()


def sentence(source: random.Random, length: int = 12) -> str:
    words = [source.choice(WORDS) for _ in range(length)]
    return " ".join(words).capitalize() + "."


def article(source: random.Random, num_sentences: int = 14) -> str:
    """Paragraphs that no rule minds."""
    sentences = [sentence(source, source.randint(9, 17)) for _ in range(num_sentences)]
    return "\n\n".join(" ".join(sentences[start : start + 4]) for start in range(0, num_sentences, 4))


def make_corpus(folder: Path, seed: int = 1, num_articles: int = 60) -> dict[str, list[str]]:
    """Files in `folder`; returns what each kind of special document was given as its id.

    `rows/*.jsonl`: articles, exact and near copies of some, mojibake, too short ones, ones with personal data, broken lines. `books/*.txt`: two books.
    `code/`: a small repository.
    """
    source, special = random.Random(seed), {"copies": [], "near": [], "personal": [], "short": []}
    (folder / "rows").mkdir(parents=True)
    articles = [article(source, source.randint(10, 22)) for _ in range(num_articles)]
    rows: list[dict[str, Any] | str] = [{"text": text, "url": f"https://example.org/{number}"} for number, text in enumerate(articles)]
    for number in range(5):
        rows.append({"text": articles[number].replace("\n\n", "\n \n") if number == 0 else articles[number]})
        words = articles[10 + number].split(" ")
        words[len(words) // 2] = "elephant"
        rows.append({"text": " ".join(words)})
        rows.append({"text": f"Write to person{number}@mail.example.com or to 8.8.4.{number + 4}. " + article(source)})
        rows.append({"text": "too short"})
    rows += ['{"text": "a line that breaks', {"title": "no text here"}, {"text": article(source).replace("harbour", "harbour caf\u00c3\u00a9")}]
    for number in range(3):
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows[number::3]]
        (folder / "rows" / f"part{number}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "books").mkdir()
    for number in range(2):
        (folder / "books" / f"book{number}.txt").write_text(article(source, 80), encoding="utf-8")
    (folder / "code").mkdir()
    (folder / "code" / "LICENSE").write_text("MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a copy of this software")
    for number in range(3):
        body = "\n\n".join(f'def function_{number}_{i}(value):\n    """Add {i}."""\n    return value + {i}' for i in range(12))
        (folder / "code" / f"module{number}.py").write_text(body + "\n")
    return special


def config_of(folder: Path, root: Path, **changes: Any) -> dict[str, Any]:
    """Of the corpus in `folder`, written under `root`."""
    return {
        "stage": "prepare",
        "run": {"name": "corpus", "root": str(root)},
        "sources": [
            {"name": "articles", "kind": "rows", "files": [str(folder / "rows")]},
            {"name": "books", "kind": "books", "files": [str(folder / "books")]},
            {"name": "code", "kind": "code", "files": [str(folder / "code")]},
        ],
        "steps": {
            "encoding": {}, "heuristics": {}, "exact_duplicates": {"tasks": 2}, "near_duplicates": {"tasks": 2, "buckets": 8, "hashes": 4},
            "personal_data": {}, "representation": {"reweighting": {}},
        },
        "shard_mib": 0.05,
        "valid_fraction": 0.1,
        **changes,
    }  # fmt: skip


def write_config(path: Path, config: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path
