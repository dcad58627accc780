"""Repositories: source files with their language and licence, and what is not worth learning marked as such.

`meta["drop"]` of a file says why it is of no use: `binary_file`, `not_code`, `generated_code`, `minified_code`, `lock_file`, `vendored_code`,
`no_text`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from pathlib import Path

import yaml

from megagpt.data.records import Document
from megagpt.prepare.document import Problem
from megagpt.prepare.readers import licences
from megagpt.prepare.readers.decode import decode
from megagpt.prepare.readers.origin import Origin
from megagpt.prepare.readers.unpack import Damaged, read_whole

MAX_SOURCE_BYTES = 16 << 20
"""A longer file was not written by people."""
_HEAD_LINES, _HEAD_CHARACTERS = 40, 20_000
"""What is at a file's beginning that says who made it and under which licence."""
_LICENCE_FILE = re.compile(r"(licen[cs]e|copying|unlicense)([-._].*)?", re.IGNORECASE)
_MAX_LICENCE_BYTES = 1 << 18
_GENERATED = re.compile(
    r"(?:auto(?:matically)?[- ]?generated|generated (?:by|from|with|using|automatically)|@generated|do not (?:edit|modify)\b"
    r"|this (?:file|code) (?:is|was) (?:auto\S*[- ])?generated)",
    re.IGNORECASE,
)
_COMMENT = re.compile(r"""^\s*(?:#|//|/\*|\*|--|;|%|<!--|'|"\"\"|\(\*|rem\b|dnl\b|@generated|\.\\")""", re.IGNORECASE)
_MAX_MEAN_LINE, _MAX_LINE = 110, 1000
"""Characters; GitHub's linguist takes a mean above 110 for minified JavaScript and CSS. The Stack and StarCoder drop files with a line above 1000."""
_MIN_LETTERS = 0.25
"""Share of letters and digits below which a file is data (StarCoder)."""
_VENDORED = frozenset("node_modules vendor third_party thirdparty bower_components site-packages".split())


def read(path: Path, origin: Origin) -> Iterator[Document | Problem]:
    """A file is one document. Its licence is the one it names, else that of the nearest folder above it with a licence file."""
    language = language_of(path.name)
    if language is None and not path.suffix:
        language = _by_interpreter(path)
    content = read_whole(path, MAX_SOURCE_BYTES)
    try:
        text = decode(content).replace("\r\n", "\n")
    except Damaged:
        yield origin.document(None, "", meta={"drop": "binary_file"})
        return
    meta = {"language": language or "", "generated": is_generated(text, path.name), "minified": is_minified(text, path.name)}
    if drop := _drop(text, meta, origin.name, path.name):
        meta["drop"] = drop
    head = "\n".join(text[:_HEAD_CHARACTERS].split("\n", _HEAD_LINES)[:_HEAD_LINES])
    licence = licences.from_text(head) or _folder_licence(path.parent, len(Path(origin.name).parts) - 1)
    yield origin.document(None, text, licence=licence, meta=meta)


def language_of(name: str) -> str | None:
    """By a file's name and extension, as GitHub's linguist calls it; None where it is not known."""
    known = _languages()
    lowered = name.lower()
    if lowered in known["names"]:
        return known["names"][lowered]
    parts = lowered.split(".")
    for i in range(1, len(parts)):
        if language := known["extensions"].get(".".join(parts[i:])):
            return language
    return None


def is_generated(text: str, name: str = "") -> bool:
    """Whether the comments at its head say that a program wrote it, or its name does."""
    if re.search(r"(_pb2(_grpc)?\.pyi?|\.pb\.(go|cc|h)|\.g\.dart|\.designer\.(cs|vb)|_generated\.\w+|\.generated\.\w+)$", name, re.IGNORECASE):
        return True
    head = text[:_HEAD_CHARACTERS].split("\n", _HEAD_LINES)[:_HEAD_LINES]
    return any(_COMMENT.match(line) and _GENERATED.search(line) for line in head)


def is_minified(text: str, name: str = "") -> bool:
    """Whether its lines are too long for people, or it is hardly letters at all."""
    if re.search(r"[.-]min\.(js|css)$", name, re.IGNORECASE):
        return True
    lines = text.splitlines()
    if not lines:
        return False
    longest, mean = max(map(len, lines)), sum(map(len, lines)) / len(lines)
    letters = sum(map(str.isalnum, text)) / max(1, len(text) - sum(map(str.isspace, text)))
    return mean > _MAX_MEAN_LINE or longest > _MAX_LINE or (len(text) > 1000 and letters < _MIN_LETTERS)


def _drop(text: str, meta: dict[str, object], path: str, name: str) -> str | None:
    known = _languages()
    rules = {
        "no_text": not text.strip(),
        "lock_file": name.lower() in known["locks"],
        "vendored_code": not _VENDORED.isdisjoint(Path(path.lower()).parts[:-1]),
        "not_code": not meta["language"],
        "generated_code": meta["generated"],
        "minified_code": meta["minified"],
    }
    return next((code for code, holds in rules.items() if holds), None)


def _by_interpreter(path: Path) -> str | None:
    """By its first line: `#!/usr/bin/env python3` is Python."""
    with open(path, "rb") as file:
        line = file.readline(200).decode("ascii", "replace")
    words = line[2:].split() if line.startswith("#!") else []
    if words and words[0].endswith("/env"):
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
    return _languages()["interpreters"].get(words[0].rpartition("/")[2].rstrip(".0123456789")) if words else None


@lru_cache(maxsize=4096)
def _folder_licence(folder: Path, height: int) -> str:
    """Of the nearest folder from here up with a licence file, at most `height` folders above."""
    try:
        files = sorted(entry for entry in folder.iterdir() if _LICENCE_FILE.fullmatch(entry.name) and entry.is_file())
        for file in files:
            with open(file, "rb") as opened:
                content = opened.read(_MAX_LICENCE_BYTES)
            if found := licences.from_text(content.decode("utf-8", "replace")):
                return found
        if files or height <= 0 or (folder / ".git").exists():
            return ""
    except OSError:
        return ""
    return _folder_licence(folder.parent, height - 1)


@lru_cache(maxsize=1)
def _languages() -> dict[str, dict[str, str]]:
    """Extensions, names and interpreters of `languages.yaml`, each with its language."""
    table = yaml.safe_load(resources.files(__package__).joinpath("languages.yaml").read_text(encoding="utf-8"))
    turned = {
        kind: {value: language for language, known in table["languages"].items() for value in known.get(kind, [])}
        for kind in ("extensions", "names", "interpreters")
    }
    return turned | {"locks": dict.fromkeys(table["lock_files"], "")}
