"""Papers and technical documentation: LaTeX, PDF, JATS, HTML, Markdown, reStructuredText, man pages, plain text; by the file's name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from megagpt.data.records import Document
from megagpt.prepare.document import Problem
from megagpt.prepare.readers import licences
from megagpt.prepare.readers.decode import decode
from megagpt.prepare.readers.html import MAX_MANUAL_BYTES, decode_page, page_licence, page_title, parse_page, whole_text, without_comments
from megagpt.prepare.readers.jats import read_jats
from megagpt.prepare.readers.latex import read_latex
from megagpt.prepare.readers.origin import Origin
from megagpt.prepare.readers.pdf import read_pdf
from megagpt.prepare.readers.troff import read_man_page
from megagpt.prepare.readers.unpack import Damaged, read_whole

_MAN_PAGE = re.compile(r".+\.[1-9][a-z]{0,8}")
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*\n", re.DOTALL)
_MAX_FRONT_MATTER = 20_000

Made = Iterator[Document | Problem]


def read(path: Path, origin: Origin) -> Made:
    """A file is one document."""
    name = path.name.removesuffix(".gz").removesuffix(".bz2")
    convert = _KINDS.get(Path(name).suffix.lower()) or (read_man_page if _MAN_PAGE.fullmatch(name) else None)
    if convert is None:
        raise Damaged(f"no paper by its name; expected one of {', '.join(_KINDS)} or a man page (.1 to .9), each also with .gz or .bz2")
    yield from convert(read_whole(path), origin)


def _read_html(content: bytes, origin: Origin) -> Made:
    tree = parse_page(decode_page(content, limit=MAX_MANUAL_BYTES))
    title = page_title(tree)
    canonical = next((link.get("href") for link in tree.iter("link") if link.get("rel") == "canonical" and link.get("href")), "")
    yield _document(origin, whole_text(tree), url=canonical, licence=page_licence(tree), meta={"title": title} if title else {})


def _read_markdown(content: bytes, origin: Origin) -> Made:
    text = decode(content).replace("\r\n", "\n")
    front = _FRONT_MATTER.match(text[:_MAX_FRONT_MATTER])
    known = _front_matter(front[1]) if front else {}
    body = without_comments(text[front.end() :] if front else text)
    stated = known.get("license") or known.get("licence") or ""
    meta = {"title": known["title"]} if "title" in known else {}
    yield _document(origin, body, licence=licences.from_url(stated) or stated, date=known.get("date", ""), meta=meta)


def _read_text(content: bytes, origin: Origin) -> Made:
    yield _document(origin, decode(content).replace("\r\n", "\n"))


def _document(origin: Origin, text: str, **known: object) -> Document:
    if not text.strip():
        raise Damaged("no text")
    return origin.document(None, text.strip("\n"), **known)


def _front_matter(text: str) -> dict[str, str]:
    try:
        known = yaml.load(text, Loader=yaml.BaseLoader)  # texts as they are written; merged keys (`<<`) could ask for any amount of time
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    named = known.items() if isinstance(known, dict) else ()
    return {key.lower(): value for key, value in named if isinstance(key, str) and isinstance(value, str) and value not in ("", "~", "null")}


_KINDS: dict[str, Callable[[bytes, Origin], Made]] = {
    ".tex": read_latex,
    ".pdf": read_pdf,
    ".xml": read_jats,
    ".nxml": read_jats,
    ".html": _read_html,
    ".htm": _read_html,
    ".xhtml": _read_html,
    ".md": _read_markdown,
    ".markdown": _read_markdown,
    ".rst": _read_text,
    ".txt": _read_text,
}
