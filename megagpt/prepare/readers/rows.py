"""Files of documents: JSONL, JSON arrays, parquet, Arrow (what `datasets` saves to disk), plain text.

Where `megagpt.data.rows` stops at the first bad row, since its files were made by this project or by hand, this reader tells and goes on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import ArrowException

from megagpt.data.records import Document
from megagpt.data.rows import MAX_LINE_BYTES, BadJson, parse_json
from megagpt.prepare.document import Problem
from megagpt.prepare.readers.decode import decode
from megagpt.prepare.readers.origin import Origin, reason
from megagpt.prepare.readers.unpack import ByteStream, Damaged, open_unpacked, read_whole, size

TEXT_COLUMNS = ("text", "content", "body", "raw_content", "document", "article", "code")
_URL_COLUMNS = ("url", "source_url", "link", "path", "file_path", "max_stars_repo_path")
_LICENCE_COLUMNS = ("licence", "license", "licenses", "max_stars_repo_licenses")
_DATE_COLUMNS = ("date", "timestamp", "created", "date_download")
_ABOUT_DATASETS = frozenset(("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "README.md"))
"""What lies beside the rows of a data set of the Hugging Face hub."""
MAX_ARRAY_BYTES = 256 << 20
"""An array is read whole; larger sets come as lines or tables."""
_MAX_BAD_LINES = 100
"""So many at the beginning are no damage but another kind of file."""
_EMPTY = re.compile(r"no text: \w+ is empty")
"""A row of the right kind all the same."""
_SIGN = re.compile(r"[^ \t\r\n]")
_BATCH_ROWS = 256
_SKIP = 1 << 20

Made = Iterator[Document | Problem]


def read(path: Path, origin: Origin) -> Made:
    """Documents by their rows (`#<line>`, in arrays and tables `#<row>`). A text file is one document, or one for each line, as the source says."""
    name = path.name.removesuffix(".gz").removesuffix(".bz2")
    suffix = Path(name).suffix.lower()
    if path.name in _ABOUT_DATASETS:
        return
    if suffix == ".parquet":
        yield from _read_parquet(path, origin)
    elif suffix == ".arrow":
        yield from _read_arrow(path, origin)
    elif suffix in (".jsonl", ".ndjson"):
        yield from _read_jsonl(path, origin)
    elif suffix == ".json":
        yield from _read_json(path, origin)
    elif origin.source.text_files == "lines":
        yield from _read_text_lines(path, origin)
    else:
        text = decode(read_whole(path)).replace("\r\n", "\n")
        if not text.strip():
            raise Damaged("no text")
        yield origin.document(None, text)


def to_document(row: Any, position: int, origin: Origin) -> Document:
    """The record of a row: its text under any of TEXT_COLUMNS, what is known of it, and everything else in `meta`.

    Raises:
        Damaged: no text.
    """
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, dict):
        raise Damaged(f"a row must be an object, found {type(row).__name__}")
    column = text_column(row)
    if column is None:
        raise Damaged(f"no text: the row has {_names(row)}; expected one of {', '.join(TEXT_COLUMNS)}")
    text = row[column]
    if not isinstance(text, str):
        raise Damaged(f"{column} must be a text, found {type(text).__name__}")
    if not text.strip():
        raise Damaged(f"no text: {column} is empty")
    used = {column}

    def take(columns: tuple[str, ...]) -> str:
        for name in columns:
            value = row.get(name)
            if value is None or name in used:
                continue
            if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
                value = " OR ".join(value)
            if not isinstance(value, dict | list):
                used.add(name)
                return str(value)
        return ""

    url, licence, date = take(_URL_COLUMNS), take(_LICENCE_COLUMNS), take(_DATE_COLUMNS)
    own = row["meta"] if isinstance(row.get("meta"), dict) else {}
    rest = {name: value for name, value in row.items() if name not in used and not (name == "meta" and own is row["meta"])}
    return origin.document(position, text, url=url, licence=licence, date=date, meta=own | rest)


def text_column(columns: Any) -> str | None:
    """Which of the columns holds the text."""
    return next((name for name in TEXT_COLUMNS if name in columns), None)


def _read_jsonl(path: Path, origin: Origin) -> Made:
    with open_unpacked(path) as stream:
        yield from _jsonl_rows(stream, origin)


def _jsonl_rows(stream: ByteStream, origin: Origin) -> Made:
    bad, is_known = 0, False
    for number, line in _lines(stream):
        made = origin.problem(f"line {number}", line) if isinstance(line, str) else _line_document(line, number, origin)
        if made is None:
            continue
        yield made
        is_known = is_known or not isinstance(made, Problem) or _EMPTY.fullmatch(made.reason) is not None
        bad += not is_known
        if bad == _MAX_BAD_LINES:
            yield origin.problem(f"line {number + 1}", f"{bad} lines one after another without a document; the rest is passed over")
            return


def _line_document(line: bytes, number: int, origin: Origin) -> Document | Problem | None:
    if not line.strip():
        return None

    def make() -> Document:
        try:
            return to_document(parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8")), number, origin)
        except UnicodeDecodeError as error:
            raise Damaged(f"invalid UTF-8: {error.reason} (byte {error.start})") from error
        except BadJson as error:
            raise Damaged(str(error)) from error

    return origin.attempt(f"line {number}", make)


def _lines(stream: ByteStream) -> Iterator[tuple[int, bytes | str]]:
    """Lines with their numbers from 1; a text in place of a line says why there is none. Memory holds one line of MAX_LINE_BYTES at most."""
    number = 0
    while True:
        number += 1
        try:
            line = stream.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = stream.readline(_SKIP)
                yield number, f"a line over {size(MAX_LINE_BYTES)}"
            else:
                yield number, line
        except Damaged as error:
            yield number, str(error)
            if not stream.skip_damage():
                return


def _read_json(path: Path, origin: Origin) -> Made:
    """One array of rows; files of this name that hold JSONL are common too."""
    with open_unpacked(path) as stream:
        start = stream.read(_SKIP)
        if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"[":
            stream.give_back(start)
            yield from _jsonl_rows(stream, origin)
            return
    text = decode(read_whole(path, MAX_ARRAY_BYTES))
    decoder = json.JSONDecoder()
    place, number = _next_sign(text, text.index("[") + 1), 0
    while place < len(text) and text[place] != "]":
        try:
            row, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:  # where the next row begins is not known any more
            yield origin.problem(f"row {number + 1}", f"malformed JSON: {getattr(error, 'msg', reason(error))}")
            return
        number += 1
        yield origin.attempt(f"row {number}", lambda: to_document(row, number, origin))
        place = _next_sign(text, place)
        if text[place : place + 1] != ",":
            break
        place = _next_sign(text, place + 1)
    if text[place : place + 1] != "]":
        yield origin.problem(f"row {number + 1}", "malformed JSON: the array does not end")
    elif not number:
        yield origin.problem("", "the file holds no rows")


def _next_sign(text: str, place: int) -> int:
    """The first place from here that is not blank."""
    found = _SIGN.search(text, place)
    return found.start() if found else len(text)


def _read_parquet(path: Path, origin: Origin) -> Made:
    """Row groups, each by itself: damage costs the rest of one."""
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)  # pages as they are needed, not whole row groups
    except (ArrowException, OSError, ValueError) as error:
        raise Damaged(f"damaged parquet file: {reason(str(error))}") from error
    with file:
        _require_text(file.schema_arrow.names)
        first = 1
        for group in range(file.num_row_groups):
            number = first
            try:
                for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group]):
                    yield from _table_rows(batch, number, origin)
                    number += batch.num_rows
            except (ArrowException, OSError, ValueError) as error:
                yield origin.problem(f"row {number}", f"damaged parquet file, row group {group + 1} is lost from here: {reason(str(error))}")
            first += file.metadata.row_group(group).num_rows


def _read_arrow(path: Path, origin: Origin) -> Made:
    """A stream of Arrow record batches, as `Dataset.save_to_disk` writes it, or an Arrow file."""
    from pyarrow import ipc

    number = 1
    try:
        with pyarrow.memory_map(str(path)) as mapped:
            try:
                batches: Any = ipc.open_stream(mapped)
            except ArrowException:
                mapped.seek(0)
                file = ipc.open_file(mapped)
                batches = (file.get_batch(i) for i in range(file.num_record_batches))
                _require_text(file.schema.names)
            else:
                _require_text(batches.schema.names)
            for batch in batches:
                for part in range(0, batch.num_rows, _BATCH_ROWS):
                    rows = batch.slice(part, _BATCH_ROWS)
                    yield from _table_rows(rows, number, origin)
                    number += rows.num_rows
    except (ArrowException, OSError) as error:
        yield origin.problem(f"row {number}", f"damaged Arrow file: {reason(str(error))}")


def _require_text(columns: list[str]) -> None:
    if text_column(columns) is None:
        raise Damaged(f"no text: the columns are {', '.join(columns)}; expected one of {', '.join(TEXT_COLUMNS)}")


def _table_rows(batch: Any, first: int, origin: Origin) -> Made:
    try:
        batch.validate(full=True)  # offsets that point outside, and bytes that are no UTF-8: reading them would end the process
        rows = batch.to_pylist()
    except (ArrowException, ValueError, SystemError, OverflowError) as error:
        yield origin.problem(f"rows {first} to {first + batch.num_rows - 1}", f"damaged: {reason(error)}")
        return
    for number, row in enumerate(rows, first):
        yield origin.attempt(f"row {number}", lambda: to_document(_as_json(row), number, origin))


def _as_json(row: dict[str, Any]) -> dict[str, Any]:
    """Columns without a value left out; what JSON has no form for (dates) as text."""
    return {name: value if isinstance(value, str) else json.loads(json.dumps(value, default=str)) for name, value in row.items() if value is not None}


def _read_text_lines(path: Path, origin: Origin) -> Made:
    with open_unpacked(path) as stream:
        start = stream.read(4)
        stream.give_back(start)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):  # UTF-16 has newlines inside its characters
            numbered: Iterator[tuple[int, bytes | str]] = enumerate(decode(read_whole(path)).encode("utf-8", "replace").split(b"\n"), 1)
        else:
            numbered = _lines(stream)
        for number, line in numbered:
            if isinstance(line, str):
                yield origin.problem(f"line {number}", line)
            elif line.strip():
                yield origin.attempt(f"line {number}", lambda: origin.document(number, decode(line).rstrip("\r\n")))


def _names(row: dict[str, Any]) -> str:
    return f"keys {', '.join(list(row)[:20])}" if row else "no keys"
