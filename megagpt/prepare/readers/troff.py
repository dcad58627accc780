"""Man pages: what the macros of man(7) and mdoc(7) say, as text. Registers, loops and drawing are left out; no page needs them to be read."""

from __future__ import annotations

import re
from collections.abc import Iterator

from megagpt.data.records import Document
from megagpt.prepare.readers.decode import decode
from megagpt.prepare.readers.mdoc import PARAGRAPHS, Mdoc
from megagpt.prepare.readers.origin import Origin
from megagpt.prepare.readers.troff_text import split_arguments, to_plain
from megagpt.prepare.readers.unpack import Damaged, size

MAX_MAN_PAGE_BYTES = 4 << 20
_MAX_STRING = 500
"""Strings may be defined by themselves, twice over: a page of forty lines could ask for a terabyte."""
_PARAGRAPHS = frozenset(("PP", "LP", "P", "sp", "YS", "HP", *PARAGRAPHS))
_BREAKS = frozenset("br RS RE in ti ce PD UE ME nr".split())
_FONTS = frozenset("B I SM SB R CW C".split())
_MIXED_FONTS = frozenset("BR RB BI IB IR RI".split())
_PREFORMATTED, _FILLED = frozenset("nf EX Vb DS".split()), frozenset("fi EE Ve DE".split())
_SKIPPED = {"de": None, "de1": None, "am": None, "ig": None, "EQ": ".EN"}
"""Requests whose lines are no text, up to the given one; None: up to the one that the request names, else `..`."""
_HOLDS = re.compile(r"(?:[no]|\\n(?:\(\.g|\[\.g\]))\s*(?=\S)")
"""It is a terminal, no typesetter; the page is odd; it is groff."""
_TEST = re.compile(r"(?:\([^)]*\)|\\n\S*|'[^']*'[^']*'|\"[^\"]*\"[^\"]*\"|\S+)\s*")


def read_man_page(content: bytes, origin: Origin) -> Iterator[Document]:
    """A page: its name, sections, paragraphs and options. A page that only points to another one (`.so`) has `meta["drop"] = "alias"`."""
    if len(content) > MAX_MAN_PAGE_BYTES:
        raise Damaged(f"a man page of more than {size(MAX_MAN_PAGE_BYTES)}")
    text = decode(content).replace("\r\n", "\n")
    if not re.search(r"^['.]\s*(TH|Dd|Dt|so|SH)\b", text, re.MULTILINE):
        raise Damaged("no man page: neither .TH nor .Dd")
    page = _Page()
    page.read(text)
    plain = page.text()
    meta = {name: value for name, value in (("title", page.title), ("section", page.section)) if value}
    if not plain:
        if page.alias is None:
            raise Damaged("no text")
        meta["drop"] = "alias"
    yield origin.document(None, plain, date=page.date, meta=meta)


class _Page:
    """Text as the requests of a page make it."""

    def __init__(self) -> None:
        self.title = self.section = self.date = ""
        self.alias: str | None = None
        self._lines: list[str] = []
        self._words: list[str] = []
        self._strings: dict[str, str] = {"R": "®", "Tm": "™", "lq": "“", "rq": "”"}
        self._preformatted = False
        self._tag_follows = False
        self._held = False
        """The last `ie` or `if` did."""
        self._mdoc = Mdoc()

    def read(self, text: str) -> None:
        lines = iter(re.sub(r"\\\n", "", text).split("\n"))
        for line in lines:
            self._read_line(line, lines)

    def text(self) -> str:
        self._end_paragraph()
        return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in self._lines)).strip("\n")

    def _read_line(self, line: str, lines: Iterator[str]) -> None:
        request = re.match(r"[.']\s*([^\s\\]*)\s*(.*)", line)
        if not line.startswith((".", "'")) or request is None:
            self._add(self._plain(line), blank=not line.strip())
            return
        name, rest = request.groups()
        if name in _SKIPPED:
            words = rest.split()[0 if name == "ig" else 1 :]  # `.de NAME END`, `.ig END`
            _skip(lines, _SKIPPED[name] or "." + (words or ["."])[0])
        elif name in ("if", "ie", "el"):
            self._condition(name, rest, lines)
        elif name == "TS":
            self._table(lines)
        elif name:
            self._request(name, rest)

    def _condition(self, name: str, rest: str, lines: Iterator[str]) -> None:
        """What follows a condition, on its line or in `\\{ \\}`, where it holds; `el` holds where its `ie` did not."""
        holds, body = (not self._held, rest) if name == "el" else _test(rest)
        self._held = holds
        if not body.startswith("\\{"):
            if holds and body:
                self._read_line(body, lines)
            return
        depth, line, inside = 0, body, []
        while line is not None:
            depth += line.count("\\{") - line.count("\\}")
            inside.append(line.replace("\\{", "").replace("\\}", "").strip())
            line = next(lines, None) if depth > 0 else None
        if holds:
            own = iter([line for line in inside if line not in ("", ".")])
            for line in own:
                self._read_line(line, own)

    def _request(self, name: str, rest: str) -> None:
        arguments = [self._plain(argument) for argument in split_arguments(rest)]
        joined = " ".join(arguments)
        if name == "TH":
            self.title, self.section, self.date = (*arguments, "", "", "")[:3]
        elif name == "Dd":
            self.date = joined
        elif name == "Dt":
            self.title, self.section = (*arguments, "", "")[:2]
        elif name == "so":
            self.alias = joined
        elif name in ("SH", "SS", "Sh", "Ss"):
            self._heading(joined)
        elif name in ("ds", "as"):
            key, _, value = rest.partition(" ")
            self._strings[key] = self._plain(value.removeprefix('"'))[:_MAX_STRING]
        elif name in _PREFORMATTED:
            self._end_paragraph()
            self._preformatted = True
        elif name in _FILLED:
            self._end_paragraph()
            self._preformatted = False
        elif name in _PARAGRAPHS:
            self._end_paragraph()
            self._lines.append("")
        elif name in ("TP", "TQ"):
            self._end_paragraph()
            if name == "TP":
                self._lines.append("")
            self._tag_follows = True
        elif name == "IP":
            self._end_paragraph()
            self._lines.append("")
            if arguments and arguments[0].strip():
                mark = arguments[0].strip()
                if mark in "•·*-–—o+" or re.fullmatch(r"\(?\w{1,2}[.)]", mark):
                    self._words.append("-" if mark in "•·*o+" else mark)
                else:
                    self._lines.append(mark)
        elif name in _BREAKS:
            self._end_paragraph()
        elif name in _FONTS:
            self._add(joined)
        elif name in _MIXED_FONTS:
            self._add("".join(arguments))
        elif name in ("UR", "MT"):
            self._add(f"<{joined}>" if joined else "")
        elif name == "SY":
            self._end_paragraph()
            self._add(joined)
        elif name == "OP":
            self._add(f"[{joined}]")
        elif name in ("MR",) and len(arguments) >= 2:
            self._add(f"{arguments[0]}({arguments[1]}){''.join(arguments[2:])}")
        elif (made := self._mdoc.request(name, arguments)) is not None:
            self._mdoc_line(made)

    def _mdoc_line(self, made: str) -> None:
        """`\\n` at its beginning or end asks for a line of its own."""
        if made.startswith("\n"):
            self._end_paragraph()
        self._preformatted = self._mdoc.preformatted
        if made.strip():
            self._add(made.strip("\n"))
        if made.endswith("\n"):
            self._end_paragraph()

    def _heading(self, title: str) -> None:
        self._end_paragraph()
        self._preformatted = self._tag_follows = False
        self._lines += ["", title, ""]

    def _add(self, text: str, blank: bool = False) -> None:
        if self._preformatted:
            self._lines.append(text)
        elif blank:
            self._end_paragraph()
            self._lines.append("")
        elif text.strip():
            self._words.append(text.strip())
        if self._tag_follows and text.strip():
            self._tag_follows = False
            self._end_paragraph()

    def _end_paragraph(self) -> None:
        if self._words:
            self._lines.append(" ".join(" ".join(self._words).split()))
            self._words = []

    def _table(self, lines: Iterator[str]) -> None:
        """Cells parted by `|`; the lines up to the one that ends with `.` say how it is drawn."""
        self._end_paragraph()
        separator, described, cell = "\t", False, None
        row: list[str] = []
        for line in lines:
            if line.startswith(".TE"):
                return
            if not described:
                if found := re.search(r"tab\s*\((.)\)", line):
                    separator = found[1]
                described = line.rstrip().endswith(".")
                continue
            if line.startswith((".T&",)):
                described = False
            elif cell is not None:
                if line.startswith("T}"):
                    row.append(" ".join(cell))
                    cell, line = None, line[2:].removeprefix(separator)
                    if not line:
                        self._row(row)
                        row = []
                    else:
                        row, cell = self._cells(line, separator, row)
                elif not line.startswith((".", "'")):
                    cell.append(self._plain(line))
                elif request := re.match(r"[.']([A-Z]{1,2})\s+(.*)", line):
                    words = [self._plain(word) for word in split_arguments(request[2])]
                    cell.append(("" if request[1] in _MIXED_FONTS else " ").join(words))
            elif not line.startswith((".", "'")) and line.strip("_=- \t"):
                row, cell = self._cells(line, separator, row)

    def _cells(self, line: str, separator: str, row: list[str]) -> tuple[list[str], list[str] | None]:
        """The row as it goes on, and the cell that is open at its end (`T{`)."""
        cells = line.split(separator)
        if cells[-1].strip() == "T{":
            return [*row, *map(self._plain, cells[:-1])], []
        self._row([*row, *map(self._plain, cells)])
        return [], None

    def _row(self, cells: list[str]) -> None:
        self._lines.append(" | ".join(cell.strip() for cell in cells).strip(" |"))

    def _plain(self, text: str) -> str:
        return to_plain(text, self._strings)


def _test(text: str) -> tuple[bool, str]:
    """Whether a condition holds, and what follows it. All registers are 0, all texts differ."""
    wanted, text = not text.startswith("!"), text.removeprefix("!")
    holds = _HOLDS.match(text)
    test = holds or _TEST.match(text)
    return bool(holds) == wanted, text[test.end() :].strip() if test else ""


def _skip(lines: Iterator[str], end: str) -> None:
    for line in lines:
        if line.strip() == end:
            return
