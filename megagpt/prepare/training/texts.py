"""What classifiers learn from: documents of files and of web archives as they came, labelled texts, lists of terms."""

from __future__ import annotations

import csv
import glob
import heapq
import html
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from lxml import etree

from megagpt.config.prepare import TextFiles, TrainToxicityConfig, WordListConfig
from megagpt.data.errors import DataError, require_file
from megagpt.data.records import Document, read_documents
from megagpt.data.rows import is_text_file, read_rows, read_text
from megagpt.data.split import share
from megagpt.prepare.ngrams import normalise
from megagpt.prepare.readers import web
from megagpt.prepare.readers.html import decode_page, parse_page
from megagpt.prepare.readers.origin import reason
from megagpt.prepare.readers.unpack import Damaged, open_unpacked
from megagpt.runtime.atomic import sha256_file

ARCHIVES = (".warc", ".warc.gz", ".arc", ".arc.gz", ".wet", ".wet.gz")
MIN_CHARACTERS = 200
"""A shorter document says little about quality."""


@dataclass
class Read:
    """What reading came upon beside documents; for the report."""

    files: dict[str, str] = field(default_factory=dict)
    """Name of each file to its SHA-256."""
    left_out: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    """One line each: file, and why it was given up."""


@dataclass(frozen=True)
class Labelled:
    text: str
    label: str
    key: str
    """Texts of one key are copies of each other."""


def read_sources(sources: Iterable[TextFiles], read: Read) -> dict[str, list[Document]]:
    """Documents of each source, in an order that depends on their ids alone; each text once, whichever source holds it first.

    Raises:
        DataError: no such file, or a source without a usable document.
    """
    seen: set[int] = set()
    found = {}
    for source in sources:
        documents = (document for document in _documents(source, read) if _is_usable(document, seen, read.left_out))
        found[source.name] = _some(documents, source.max_documents)
        if not found[source.name]:
            reasons = "; ".join([*read.problems, *(f"{count} {what}" for what, count in read.left_out.items())])
            raise DataError(", ".join(source.files), f"source {source.name!r} has no usable document{f' ({reasons})' if reasons else ''}")
    return found


def read_labelled(config: TrainToxicityConfig, read: Read) -> list[Labelled]:
    """Rows with a known label. Character references (`&amp;`), which interfaces of platforms escape texts with, are resolved.

    Raises:
        DataError: a row without text or label, or nothing of one class.
    """
    known, found = {*config.toxic, *config.not_toxic}, []
    for path in find_files(config.files):
        read.files[path.name] = sha256_file(path)
        for line, row in read_rows(path):
            if not isinstance(row, dict) or not isinstance(row.get("text"), str) or config.label not in row:
                raise DataError(path, f"expected an object with text and {config.label}", line)
            text, label = html.unescape(row["text"]), str(row[config.label])
            if label not in known:
                read.left_out[f"label {label!r} is neither toxic nor not_toxic"] += 1
            elif not text.strip():
                read.left_out["empty text"] += 1
            else:
                found.append(Labelled(text, label, copy_key(text)))
    for name, labels in (("toxic", config.toxic), ("not_toxic", config.not_toxic)):
        if not any(one.label in labels for one in found):
            labels_there = ", ".join(sorted({one.label for one in found})) or "none of the two"
            raise DataError(", ".join(config.files), f"no row of label {' or '.join(labels)} ({name}); found: {labels_there}")
    return found


def copy_key(text: str) -> str:
    """Equal for a text and its copies: letters alone, without links, names of users and a mark of forwarding in front."""
    words = "".join(map(chr, normalise([text]).codes)).replace("@", " ").replace("//", " ")
    letters = "".join(letter if letter.isalpha() else " " for letter in words).split()
    return " ".join(letters[1:] if letters[:1] == ["rt"] else letters)


def read_word_list(config: WordListConfig) -> list[str]:
    """Terms of a list.

    Raises:
        DataError: unreadable, or no term in it.
    """
    path = Path(config.path)
    if path.suffix == ".csv":
        rows = list(csv.reader(read_text(path).splitlines()))[1:]
    else:
        rows = [line.split("\t") for line in read_text(path).splitlines()]
    terms = [row[config.column].strip() for row in rows if len(row) > config.column and row[config.column].strip()]
    if not terms:
        raise DataError(path, f"no term in column {config.column}")
    return terms


def find_files(patterns: Iterable[str]) -> list[Path]:
    """Files that are named or match a pattern, each once.

    Raises:
        DataError: a name or a pattern without a file.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        paths = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())
        if not paths:
            if not glob.has_magic(pattern):
                require_file(Path(pattern))
            raise DataError(pattern, "no file matches")
        found |= dict.fromkeys(paths)
    return list(found)


def host(document: Document) -> str:
    """The site that a document comes from; empty where that is unknown."""
    return urlsplit(document.url).netloc.lower().removeprefix("www.") if "://" in document.url else ""


def _documents(source: TextFiles, read: Read) -> Iterator[Document]:
    for path in find_files(source.files):
        read.files[path.name] = sha256_file(path)
        try:
            if path.name.endswith(ARCHIVES):
                yield from _pages(path, read)
            elif source.document == "line" and is_text_file(path):
                lines = enumerate(read_text(path).splitlines(), 1)
                yield from (Document(f"{path.name}:{number}", line, source.name) for number, line in lines if line.strip())
            else:
                yield from read_documents(path, read.left_out)
        except (DataError, Damaged) as error:
            read.problems.append(str(error) if isinstance(error, DataError) else f"{path}: {error}")


def _pages(path: Path, read: Read) -> Iterator[Document]:
    """All text of the pages of a web archive, in the order of their elements: menus, notices, everything but scripts and styles."""
    with open_unpacked(path) as stream:
        for number, record in enumerate(web.find_records(stream), 1):
            if isinstance(record, web.Damage):
                read.problems.append(f"{path}, byte {record.byte}: {record.reason}")
                continue
            headers, kind = record.http_headers, record.rec_type
            media = (headers.get_header("Content-Type") if headers else "") or ""
            is_page = kind == "response" and headers is not None and headers.get_statuscode() == "200" and "html" in media
            if not (is_page or kind == "conversion"):
                continue
            try:
                page = decode_page(web.content_of(record), web.charset_of(media) if is_page else "utf-8")
                text = _all_text(page) if is_page else page
            except Exception as error:  # a page that breaks a library costs that page only
                read.problems.append(f"{path}, record {number}: {reason(error)}")
                continue
            url = record.rec_headers.get_header("uri" if record.format == "arc" else "WARC-Target-URI") or ""
            yield Document(f"{path.name}#{number}", text, url=url)


def _all_text(page: str) -> str:
    tree = parse_page(page)
    etree.strip_elements(tree, "script", "style", "noscript", "template", with_tail=False)
    lines = (" ".join(text.split()) for text in tree.itertext())
    return "\n".join(line for line in lines if line)


def _is_usable(document: Document, seen: set[int], left_out: Counter[str]) -> bool:
    if len(document.text.strip()) < MIN_CHARACTERS:
        left_out[f"shorter than {MIN_CHARACTERS} characters"] += 1
        return False
    key = hash_text(document.text)
    if key in seen:
        left_out["repeated text"] += 1
        return False
    seen.add(key)
    return True


def hash_text(text: str) -> int:
    """Equal for texts that differ in case and spacing alone."""
    return int(share(" ".join(text.casefold().split())) * 2**48)


def _some(documents: Iterable[Document], most: int) -> list[Document]:
    """The `most` documents of the smallest hashes, ascending; no more are held at a time."""
    heap: list[tuple[float, int, Document]] = []
    for number, document in enumerate(documents):
        item = (-share(document.id), -number, document)
        if len(heap) < most:
            heapq.heappush(heap, item)
        else:
            heapq.heappushpop(heap, item)
    return [document for _, _, document in sorted(heap, key=lambda item: item[:2], reverse=True)]
