"""HTML pages to text: the main text of a page of the web, and the whole text of a page that is a document already."""

from __future__ import annotations

import re

from lxml import etree
from lxml import html as lxml_html

from megagpt.data.repair import repair_text
from megagpt.prepare.readers import licences
from megagpt.prepare.readers.decode import decode
from megagpt.prepare.readers.unpack import Damaged, size

MAX_PAGE_BYTES, MAX_MANUAL_BYTES = 8 << 20, 32 << 20
"""A longer page of the web is no text that people read; manuals are also published as one page."""
MAX_TAGS = 60_000
"""Opening and closing tags of a page whose main text is looked for: the time grows with their square, and reaches 10 seconds here. A limit on time
itself would give another result on another machine."""
_DECLARED = re.compile(rb"""<(?:meta[^>]{0,200}?charset\s*=|\?xml[^>]{0,100}?encoding\s*=)\s*["']?\s*([A-Za-z0-9_.:-]{2,40})""", re.IGNORECASE)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")
_LICENCE_NAMES = ("license", "licence", "dc.rights", "dcterms.rights", "dc.license", "dcterms.license", "copyright")

_NO_TEXT = frozenset("head script style noscript template svg iframe object button select input textarea nav img audio video canvas map".split())
_NAVIGATION = frozenset(
    "navheader navfooter navbar navigation toc sphinxsidebar related headerlink breadcrumb breadcrumbs mw-editsection footer".split()
)
_NAVIGATION_ROLES = frozenset("navigation search banner contentinfo".split())
_BLOCKS = frozenset(
    "address article aside blockquote body center dd details dialog div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 header "
    "hgroup hr legend li main menu ol p pre section summary table tbody tfoot thead tr ul caption".split()
)
_SPACED = frozenset("blockquote dl h1 h2 h3 h4 h5 h6 ol p pre table ul".split())
"""Blocks with an empty line before and after them."""
_ANCHOR_SIGNS = frozenset("#¶§🔗")
"""Links to themselves, behind titles."""
_CELLS = frozenset(("td", "th"))
_MAIN = ".//*[local-name()='main' or @role='main']"


def decode_page(content: bytes, declared: str | None = None, limit: int = MAX_PAGE_BYTES) -> str:
    """A page's text, without control characters, which lxml refuses.

    `declared`: the encoding that HTTP names; the page's own word comes after it.

    Raises:
        Damaged: too long, or binary.
    """
    if len(content) > limit:
        raise Damaged(f"a page of more than {size(limit)}")
    found = _DECLARED.search(content[:4096])
    return repair_text(decode(content, declared or (found[1].decode("ascii") if found else None)))


def without_comments(text: str) -> str:
    """Markup without its comments. What only looks like the beginning of one, behind the end of the last, is text, and is not searched for an end."""
    end = text.rfind("-->") + len("-->")
    return _COMMENT.sub("", text[:end]) + text[end:]


def parse_page(text: str) -> etree._Element:
    """Raises Damaged where there is no element in it."""
    text = _DECLARATION.sub("", text)  # lxml refuses text that names an encoding
    parser = lxml_html.HTMLParser(no_network=True, remove_comments=True, remove_pis=True, huge_tree=False)
    try:
        return lxml_html.document_fromstring(text, parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError) as error:
        raise Damaged("no HTML") from error


def main_text(page: str) -> str:
    """The main text of a page of the web, without its menus, advertisements and comments; empty where it has none. Tables and lists stay.

    trafilatura (Barbaresi 2021) with more recall than precision, since later steps drop what is no prose, and without its own `deduplicate`: that
    remembers earlier pages, and the result would depend on the order of the files.

    Raises:
        Damaged: more than MAX_TAGS tags.
    """
    from trafilatura import extract

    if page.count("<") > MAX_TAGS:
        raise Damaged(f"a page of more than {MAX_TAGS} tags")
    return extract(_DECLARATION.sub("", page), include_comments=False, include_tables=True, deduplicate=False, favor_recall=True) or ""


def page_licence(tree: etree._Element) -> str:
    """What the page itself names by `rel=license` or in its metadata."""
    for element in tree.iter("a", "link"):
        if "license" in (element.get("rel") or "").lower().split() and (found := licences.from_url(element.get("href") or "")):
            return found
    for element in tree.iter("meta"):
        name = (element.get("name") or element.get("property") or "").lower()
        if name in _LICENCE_NAMES and (found := licences.from_url(element.get("content") or "")):
            return found
    return ""


def page_title(tree: etree._Element) -> str:
    return " ".join(tree.findtext(".//title", "").split())


def whole_text(tree: etree._Element) -> str:
    """All text of a page that is a document: a chapter of a manual or of a book. Navigation and tables of contents are left out, `pre` keeps its
    spaces, rows of tables are lines with their cells parted by `|`."""
    mains = tree.xpath(_MAIN)
    root = mains[0] if len(mains) == 1 else tree
    lines = _Lines()
    skipped = None
    for event, element in etree.iterwalk(root, events=("start", "end")):
        if not isinstance(element.tag, str):
            continue
        tag = element.tag.rpartition("}")[2].lower()  # pages have names that etree.QName refuses
        if event == "start" and skipped is None:
            if _is_skipped(element, tag):
                skipped = element
            else:
                lines.open(element, tag)
                lines.add(element.text)
        elif event == "end":
            if skipped is None:
                lines.close(tag)
            elif skipped is element:
                skipped = None
        if event == "end" and skipped is None and element is not root:
            lines.add(element.tail)
    return lines.text()


def _is_skipped(element: etree._Element, tag: str) -> bool:
    if tag in _NO_TEXT or element.get("role") in _NAVIGATION_ROLES or element.get("hidden") is not None:
        return True
    if tag == "a" and (element.text or "").strip() in _ANCHOR_SIGNS:
        return True
    classes = {*(element.get("class") or "").lower().split()}
    if not _NAVIGATION.isdisjoint(classes) or classes >= {"contents", "topic"}:  # the latter are docutils' table of contents
        return True
    return (element.get("id") or "").lower() in ("toc", "footer")


class _Lines:
    """Lines of text as they are collected; white space is one space, but for what is preformatted."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._line: list[str] = []
        self._begun = False
        """The line has text."""
        self._preformatted = 0
        self._lists: list[int | None] = []
        """Of each open list: how many items it had so far; None where they have no numbers."""

    def open(self, element: etree._Element, tag: str) -> None:
        if tag in _BLOCKS:
            self._end_line()
            if tag in _SPACED and (tag not in ("ul", "ol") or not self._lists):
                self._empty_line()
        if tag == "pre":
            self._preformatted += 1
        elif tag in ("ul", "ol"):
            self._lists.append(0 if tag == "ol" else None)
        elif tag == "li":
            self._line.append("  " * (len(self._lists) - 1) + self._item_mark())
        elif tag in _CELLS and element.getprevious() is not None and self._begun:
            self._line.append(" | ")
        elif tag == "br":
            self._end_line()

    def close(self, tag: str) -> None:
        if tag in _BLOCKS:
            self._end_line()
        if tag == "pre":
            self._preformatted -= 1
        elif tag in ("ul", "ol") and self._lists:
            self._lists.pop()
        if tag in _BLOCKS:
            if tag in _SPACED and not self._lists:
                self._empty_line()

    def add(self, text: str | None) -> None:
        if not text:
            return
        if not self._preformatted:
            self._line.append(re.sub(r"\s+", " ", text))
            self._begun = self._begun or not text.isspace()
            return
        first, *others = text.split("\n")
        self._line.append(first)
        for line in others:
            self._lines.append("".join(self._line).rstrip())
            self._line = [line]

    def text(self) -> str:
        self._end_line()
        return re.sub(r"\n{3,}", "\n\n", "\n".join(self._lines)).strip("\n")

    def _item_mark(self) -> str:
        if not self._lists or self._lists[-1] is None:
            return "- "
        self._lists[-1] += 1
        return f"{self._lists[-1]}. "

    def _end_line(self) -> None:
        line = "".join(self._line)
        if not self._preformatted:
            indent = line[: len(line) - len(line.lstrip())] if self._lists else ""
            line = indent + re.sub(r" {2,}", " ", line.strip())
        if re.fullmatch(r"\s*(-|\d+\.)", line) and self._lists:  # the paragraph of an item begins: its mark waits for it
            self._line, self._begun = [line + " "], False
            return
        if line.strip():
            self._lines.append(line.rstrip())
        self._line, self._begun = [], False

    def _empty_line(self) -> None:
        if self._lines and self._lines[-1] and not "".join(self._line).strip():
            self._lines.append("")
