"""The markup of MediaWiki to plain text, with mwparserfromhell's parser.

Its own `strip_code` keeps the text of references and captions, runs list items together and loses section titles.
"""

from __future__ import annotations

import re
from html import unescape

import mwparserfromhell
from mwparserfromhell import nodes
from mwparserfromhell.wikicode import Wikicode

from megagpt.prepare.readers.html import without_comments
from megagpt.prepare.readers.unpack import Damaged

MAX_ARTICLE_CHARACTERS = 4 << 20
"""Twice what MediaWiki takes."""
MAX_UNCLOSED = 2000
MAX_READ_AGAIN = 32 << 20
"""The parser looks for the end of each anew, and reads all that follows: so many characters in all take it seconds, a page of vandalism minutes."""
_REFERENCE = re.compile(r"<ref(?:\s[^<>]*?)?/>|<ref(?:\s[^<>]*)?>[^<]*+(?:<(?!/?ref[\s/>])[^<]*+)*+</ref\s*>", re.IGNORECASE)
"""Comments and references go before the parser sees them: half of an article's markup is in its references. One that does not end reaches no further
than to the next one, which keeps the time linear."""
_PAIRS = (
    ("{{", re.compile(r"\{\{|(\}\})")), ("[[", re.compile(r"\[\[|(\]\])")), ("{|", re.compile(r"\{\||(\|\})")),
    ("[http://", re.compile(r"\[(?=[a-z][a-z0-9+.-]{1,9}:|//)|(\])", re.IGNORECASE)),
    ("tags", re.compile(r"<(?!br|hr|li\b|!)[a-z]|(</|/>)", re.IGNORECASE)),
)
"""What opens something, or (in the group) closes it."""
_NO_TEXT = frozenset(
    "ref references gallery timeline table imagemap score chem graph mapframe maplink templatestyles categorytree inputbox indicator hr section "
    "style script".split()
)
_BLOCKS = frozenset("p div blockquote center poem ul ol dl li tr".split())
_LIST_MARKS = {"*": "- ", "#": "- ", ":": "", ";": ""}
_ARGUMENT_TEMPLATES = {
    "lang": "2", "transl": "2", "transliteration": "2", "nowrap": "1", "nobr": "1", "small": "1", "big": "1", "abbr": "1", "quote": "1",
    "blockquote": "1",
    "cquote": "1", "quotation": "1", "em": "1", "strong": "1", "sup": "1", "sub": "1", "ill": "1", "interlanguage link": "1", "tooltip": "1",
    "math": "1",
    "mvar": "1", "visible anchor": "1", "lang-en": "1",
}
"""Templates that stand for one of their arguments; all others have no text of their own that could be known without the wiki."""
_UNITS = ("convert", "cvt")
_SIGNS = {
    "ndash": "–", "mdash": "—", "en dash": "–", "em dash": "—", "snd": " – ", "spnd": " – ", "spaced ndash": " – ", "nbsp": " ",
    "!": "|", "=": "=", "'": "'",
}
_INTERLANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z-]{2,12})?")
_SWITCH = re.compile(r"__[A-Z]{3,}__")
_DEEPER = re.compile("^(- ){2,}")
"""`**` is two marks of one item."""
_EMPTY_BRACKETS = re.compile(r" ?\((?:[\s,;:]|or|and)*\)")


def to_text(markup: str, hidden: set[str]) -> str:
    """Text of an article: its paragraphs, lists (`- item`) and section titles, one line each. Templates, tables, references, files, galleries,
    categories and links to other languages are left out, and so are sections that have nothing else.

    Args:
        hidden: names of namespaces, lower case, whose links are left out.

    Raises:
        Damaged: more than MAX_ARTICLE_CHARACTERS, or too many brackets or tags of one kind that nothing closes.
    """
    if len(markup) > MAX_ARTICLE_CHARACTERS:
        raise Damaged(f"more than {MAX_ARTICLE_CHARACTERS} characters of markup")
    _refuse_unclosed(markup)
    lines: list[str] = []
    pieces: list[str] = []
    seen = _REFERENCE.sub("", without_comments(markup)).replace("<!--", "&lt;!--")  # the parser would look for the end of each
    _collect(mwparserfromhell.parse(seen, skip_style_tags=True), hidden, pieces)
    for line in _SWITCH.sub("", "".join(pieces).replace("'''", "").replace("''", "")).split("\n"):
        line = _DEEPER.sub("- ", line)
        line = _EMPTY_BRACKETS.sub("", re.sub(r"[ \t\xa0]+", " ", line)).strip()
        if line.strip("-|*#:; ") or not line:
            lines.append(line)
    return _without_empty_sections(lines)


def _refuse_unclosed(markup: str) -> None:
    for what, either in _PAIRS:
        unclosed: list[int] = []
        for found in either.finditer(markup):
            if found[1] is None:
                unclosed.append(found.start())
            elif unclosed:
                unclosed.pop()
        if len(unclosed) > MAX_UNCLOSED:
            raise Damaged(f"more than {MAX_UNCLOSED} {what} that nothing closes")
        if len(unclosed) * len(markup) - sum(unclosed) > MAX_READ_AGAIN:
            raise Damaged(f"{len(unclosed)} {what} that nothing closes, in {len(markup)} characters")


_TITLE = "\x02"
"""Begins the line of a section's title, followed by its level."""


def _collect(code: Wikicode, hidden: set[str], pieces: list[str]) -> None:
    for node in code.nodes:
        match node:
            case nodes.Text():
                pieces.append(str(node.value).replace(_TITLE, ""))
            case nodes.Heading():
                pieces.append(f"\n{_TITLE}{node.level}")
                _collect(node.title, hidden, pieces)
                pieces.append("\n")
            case nodes.Wikilink():
                _link(node, hidden, pieces)
            case nodes.ExternalLink():
                if node.title is not None:
                    _collect(node.title, hidden, pieces)
                elif not node.brackets:
                    pieces.append(str(node.url))
            case nodes.HTMLEntity():
                pieces.append(_entity(node))
            case nodes.Template():
                _template(node, hidden, pieces)
            case nodes.Tag():
                _tag(node, hidden, pieces)


def _link(link: nodes.Wikilink, hidden: set[str], pieces: list[str]) -> None:
    title = str(link.title).strip()
    prefix, colon, _ = title.partition(":")
    prefix = prefix.strip().lower()
    if colon and (prefix in hidden or (_INTERLANGUAGE.fullmatch(prefix) and link.text is None)):
        return
    if link.text is not None:
        _collect(link.text, hidden, pieces)
    else:
        pieces.append(unescape(title.removeprefix(":")))


def _template(template: nodes.Template, hidden: set[str], pieces: list[str]) -> None:
    name = str(template.name).strip().lower().replace("_", " ")
    if name in _SIGNS:
        pieces.append(_SIGNS[name])
    elif name in _UNITS and template.has("1") and template.has("2"):
        pieces.append(unescape(f"{str(template.get('1').value).strip()} {str(template.get('2').value).strip()}"))
    elif (argument := _ARGUMENT_TEMPLATES.get(name)) and template.has(argument):
        _collect(template.get(argument).value, hidden, pieces)


def _tag(tag: nodes.Tag, hidden: set[str], pieces: list[str]) -> None:
    name = str(tag.tag).strip().lower()
    if name in _NO_TEXT:
        return
    if tag.wiki_markup in _LIST_MARKS:
        pieces.append(_LIST_MARKS[tag.wiki_markup])
    elif name == "br":
        pieces.append("\n")
    elif tag.contents is not None:
        block = name in _BLOCKS
        pieces.append("\n" if block else "")
        _collect(tag.contents, hidden, pieces)
        pieces.append("\n" if block else "")


def _entity(entity: nodes.HTMLEntity) -> str:
    try:
        return entity.normalize()
    except (ValueError, OverflowError):
        return ""


def _without_empty_sections(lines: list[str]) -> str:
    """Paragraphs parted by single empty lines, titles kept where text follows before the next title of the same or a higher level."""
    kept: list[str] = []
    waiting: list[tuple[int, str]] = []
    for line in lines:
        if line.startswith(_TITLE):
            level, title = int(line[1]), line[2:].strip()
            waiting = [(other, name) for other, name in waiting if other < level]
            if title:
                waiting.append((level, title))
        elif line:
            for _, title in waiting:
                kept += ["", title, ""]
            waiting = []
            kept.append(line)
        else:
            kept.append("")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
