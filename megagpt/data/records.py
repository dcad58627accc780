"""The four records that stages exchange, and their readers.

Files are JSONL, JSON arrays or parquet, `.gz` allowed; public data sets are recognised by their rows (`formats.py`).
Documents may also be plain text files. A reader takes `dropped`, a counter, and adds to it why well-formed rows gave
no record (the reasons of `formats.py`, and "empty message" and the like); malformed rows raise `DataError`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from megagpt.data.errors import DataError
from megagpt.data.formats import Dropped, UnknownMark, UnknownShape, to_demonstrations, to_prompts, to_rankings
from megagpt.data.partial_order import find_circle
from megagpt.data.repair import repair_surrogates
from megagpt.data.rows import is_text_file, read_rows, read_text
from megagpt.tokenizer.chat import Message
from megagpt.tokenizer.special import ROLES


@dataclass(frozen=True, slots=True)
class Document:
    """A text to pre-train on."""

    id: str
    """Unique in its corpus; splits and orders depend on it."""
    text: str
    source: str = ""
    """Name of the corpus."""
    url: str = ""
    licence: str = ""
    date: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    """What else the source knows."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A conversation to imitate; the assistant speaks last."""

    messages: tuple[Message, ...]
    source: str = ""
    """Where it comes from; `synthetic` where a rule made it."""
    where: str = field(default="", compare=False)
    """`file:line` it was read from."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """K answers to one prompt in an annotator's order."""

    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    """[K], all different."""
    ranks: tuple[int | None, ...]
    """[K]; 0 is best, equal ranks are ties, None is not ranked. At least two answers are ranked. Empty where `pairs` give the order."""
    pairs: tuple[tuple[int, int], ...] = ()
    """A partial order: (better, worse) places of answers, as they were compared; without a circle. Empty where `ranks` give the order."""
    slice: str = ""
    """Part of the data that metrics are reported for; default: name of the file."""
    weight: float = 1.0
    """Factor of this group in the loss."""
    annotator: str = ""
    source: str = ""
    """Where it comes from; `synthetic` where a rule made it."""
    where: str = field(default="", compare=False)
    """`file:line` it was read from."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that waits for the assistant's answer."""

    id: str
    prompt: tuple[Message, ...]
    where: str = field(default="", compare=False)
    """`file:line` it was read from."""


Record = TypeVar("Record", Demonstration, Ranking, Prompt)


def to_row(record: Document | Demonstration | Ranking | Prompt) -> dict[str, Any]:
    """The record as a JSON row, empty optional texts left out, and of a ranking what does not give its order."""
    row = asdict(record)
    row.pop("where", None)
    if isinstance(record, Ranking):
        del row["ranks" if record.pairs else "pairs"]
    if not row.get("source", True) and not isinstance(record, Document):
        del row["source"]
    return row


def read_documents(path: str | Path, dropped: Counter[str] | None = None) -> Iterator[Document]:
    """Documents of a file, one at a time. A plain text file is one document.

    Raises:
        DataError: unreadable file, or a row without a `text`; raised when the iterator gets there.
    """
    path = Path(path)
    dropped = Counter() if dropped is None else dropped
    if is_text_file(path):
        yield Document(id=path.name, text=repair_surrogates(read_text(path)), source=_stem(path))
        return
    for line, row in read_rows(path):
        if not isinstance(row, dict) or "text" not in row:
            raise DataError(path, str(UnknownShape(row, "document")), line)
        if not _text(row["text"], "text", path, line).strip():
            dropped["empty text"] += 1
            continue
        yield _document(row, path, line)


def read_demonstrations(path: str | Path, dropped: Counter[str] | None = None) -> list[Demonstration]:
    """Demonstrations of a file.

    Raises:
        DataError: unreadable file, malformed row (file and line), or no usable row.
    """
    return _read(Path(path), to_demonstrations, _demonstration, dropped)


def read_rankings(path: str | Path, dropped: Counter[str] | None = None) -> list[Ranking]:
    """Rankings of a file; pairs of answers are rankings with K = 2, pairs among K answers a partial order.

    Raises:
        DataError: unreadable file, malformed row (file and line), or no usable row.
    """
    return _read(Path(path), to_rankings, _ranking, dropped)


def read_prompts(path: str | Path, dropped: Counter[str] | None = None) -> list[Prompt]:
    """Prompts of a file; rows of demonstrations and rankings give the part before the answer. A repeated id is dropped.

    Raises:
        DataError: unreadable file, malformed row (file and line), or no usable row.
    """
    dropped = Counter() if dropped is None else dropped
    prompts: dict[str, Prompt] = {}
    for prompt in _read(Path(path), to_prompts, _prompt, dropped):
        if prompt.id in prompts:
            dropped["repeated id"] += 1
        prompts.setdefault(prompt.id, prompt)
    return list(prompts.values())


def prompt_id(messages: tuple[Message, ...]) -> str:
    """Id of a prompt that came without one: a hash of its messages."""
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16]


def _read(
    path: Path,
    to_rows: Callable[[Any], Iterator[dict[str, Any] | Dropped]],
    build: Callable[[dict[str, Any], Path, int], Record | Dropped],
    dropped: Counter[str] | None,
) -> list[Record]:
    dropped = Counter() if dropped is None else dropped
    records: list[Record] = []
    for line, public_row in read_rows(path):
        try:
            rows = list(to_rows(public_row))
        except (UnknownShape, UnknownMark) as error:
            raise DataError(path, str(error), line) from error
        for row in rows:
            made = row if isinstance(row, Dropped) else build(row, path, line)
            if isinstance(made, Dropped):
                dropped[str(made)] += 1
            else:
                records.append(made)
    if not records:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in dropped.items()) or "no rows"
        raise DataError(path, f"no usable row ({reasons})")
    return records


def _document(row: dict[str, Any], path: Path, line: int) -> Document:
    def text(*names: str) -> str:
        return next((repair_surrogates(str(row[name])) for name in names if row.get(name) is not None), "")

    known = {"id", "text", "source", "url", "licence", "license", "date", "timestamp", "meta"}
    meta = _meta(row.get("meta"))
    return Document(
        id=text("id") or f"{path.name}:{line}",
        text=repair_surrogates(row["text"]),
        source=text("source") or _stem(path),
        url=text("url"),
        licence=text("licence", "license"),
        date=text("date", "timestamp"),
        meta=meta | {name: value for name, value in row.items() if name not in known},
    )


def _meta(value: Any) -> dict[str, Any]:
    """What else a source knows; parquet files hold it as JSON, for its keys differ from row to row."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _demonstration(row: dict[str, Any], path: Path, line: int) -> Demonstration | Dropped:
    messages = _messages(row["messages"], "messages", path, line)
    if messages is None:
        return Dropped("empty message")
    return Demonstration(messages, _text(row.get("source", ""), "source", path, line), f"{path}:{line}")


def _ranking(row: dict[str, Any], path: Path, line: int) -> Ranking | Dropped:
    answers, ranks, pairs, weight = row["answers"], row.get("ranks"), row.get("pairs"), row.get("weight", 1.0)
    if ranks is not None and pairs is not None:
        raise DataError(path, "ranks and pairs: both are given; one of them must give the order", line)
    if not isinstance(answers, list) or (pairs is None and (not isinstance(ranks, list) or len(answers) != len(ranks))):
        raise DataError(path, "answers and ranks must be lists of the same length", line)
    if len(answers) < 2:
        raise DataError(path, f"a ranking of {len(answers)} answer{'s' * (not answers)}; it takes two or more to compare", line)
    _check_ranks(ranks or [], path, line)
    _check_pairs([] if pairs is None else pairs, len(answers), path, line)
    if type(weight) not in (int, float) or not 0 < weight < float("inf"):
        raise DataError(path, f"weight {weight!r} must be a positive number", line)
    texts = tuple(_text(answer, f"answers[{i}]", path, line) for i, answer in enumerate(answers))
    prompt = _messages(row["prompt"], "prompt", path, line)
    if prompt is None:
        return Dropped("empty message")
    return Ranking(
        prompt=prompt,
        answers=texts,
        ranks=tuple(ranks or ()),
        pairs=tuple(map(tuple, pairs or ())),
        slice=_text(row.get("slice") or _stem(path), "slice", path, line),
        weight=float(weight),
        annotator=_text(row.get("annotator") or "", "annotator", path, line),
        source=_text(row.get("source") or "", "source", path, line),
        where=f"{path}:{line}",
    )


def _check_ranks(ranks: list[Any], path: Path, line: int) -> None:
    for rank in ranks:
        if rank is not None and (type(rank) is not int or rank < 0):
            raise DataError(path, f"rank {rank!r} must be an integer from 0 (best), equal for tied answers, or null (not ranked)", line)


def _check_pairs(pairs: Any, num_answers: int, path: Path, line: int) -> None:
    rule = f"must be [better, worse], places of two answers from 0 to {num_answers - 1}"
    if not isinstance(pairs, list):
        raise DataError(path, f"pairs is {pairs!r}; each of a list of them {rule}", line)
    for i, pair in enumerate(pairs):
        places = pair if isinstance(pair, list) else []
        if len(places) != 2 or not all(type(place) is int and 0 <= place < num_answers for place in places) or places[0] == places[1]:
            raise DataError(path, f"pairs[{i}] is {pair!r}, {rule}", line)
    if circle := find_circle(pairs):
        raise DataError(path, f"pairs go in a circle: answer {' > '.join(map(str, circle))}; in an order no answer is better than itself", line)


def _prompt(row: dict[str, Any], path: Path, line: int) -> Prompt | Dropped:
    messages = _messages(row["prompt"], "prompt", path, line)
    if messages is None:
        return Dropped("empty message")
    if messages[-1]["role"] == "assistant":
        return Dropped("ends with an answer")
    id = row.get("id")
    if id is not None and type(id) not in (str, int):
        raise DataError(path, f"id must be a text, found {type(id).__name__}", line)
    id = prompt_id(messages) if id is None else repair_surrogates(str(id))
    return Prompt(id, messages, f"{path}:{line}")


def _messages(value: Any, name: str, path: Path, line: int) -> tuple[Message, ...] | None:
    """Messages of known roles; None where one of them says nothing."""
    if not isinstance(value, list) or not value:
        raise DataError(path, f"{name} must be a list of messages, found {type(value).__name__}", line)
    messages = []
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise DataError(path, f"{name}[{i}] must be an object with role and content", line)
        if message["role"] not in ROLES:
            raise DataError(path, f"{name}[{i}].role is {message['role']!r}, must be one of {', '.join(ROLES)}", line)
        content = _text(message["content"], f"{name}[{i}].content", path, line)
        messages.append(Message(role=message["role"], content=content))
    return tuple(messages) if all(message["content"].strip() for message in messages) else None


def _text(value: Any, name: str, path: Path, line: int) -> str:
    if not isinstance(value, str):
        raise DataError(path, f"{name} must be a text, found {type(value).__name__}", line)
    return repair_surrogates(value)


def _stem(path: Path) -> str:
    return path.name.split(".")[0]
