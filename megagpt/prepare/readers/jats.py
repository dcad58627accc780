"""Papers in JATS, the XML of journals and of PubMed Central (https://jats.nlm.nih.gov/archiving/tag-library)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape

from lxml import etree

from megagpt.data.records import Document
from megagpt.prepare.readers import licences
from megagpt.prepare.readers.origin import Origin
from megagpt.prepare.readers.unpack import Damaged

_NO_TEXT = frozenset(
    "fig fig-group table-wrap table-wrap-group table ref-list graphic inline-graphic media supplementary-material object-id fn-group label "
    "permissions".split()
)
_BLOCKS = frozenset("sec p title list list-item disp-formula disp-quote abstract boxed-text def-item verse-group preformat code statement".split())
_HREF = "{http://www.w3.org/1999/xlink}href"


def read_jats(content: bytes, origin: Origin) -> Iterator[Document]:
    """Title, abstract and body with their section titles, formulas as TeX where they are given so; without figures, tables and references."""
    root = _parse(content)
    article = root if _name(root) == "article" else root.find(".//{*}article")
    if article is None:
        raise Damaged(f"no article of JATS: its root is <{_name(root)}>")
    meta = article.find("{*}front/{*}article-meta")
    parts = [meta.find("{*}title-group/{*}article-title"), *meta.findall("{*}abstract")] if meta is not None else []
    title = _text(parts[0]) if parts and parts[0] is not None else ""
    text = "\n\n".join(part for part in (_text(element) for element in (*parts, article.find("{*}body")) if element is not None) if part)
    if not text:
        raise Damaged("no text")
    known = {"title": title} if title else {}
    if language := article.get("{http://www.w3.org/XML/1998/namespace}lang"):
        known["language"] = language
    doi = article.findtext(".//{*}article-meta/{*}article-id[@pub-id-type='doi']") or ""
    yield origin.document(None, text, url=f"https://doi.org/{doi.strip()}" if doi else "", licence=_licence(article), date=_date(meta), meta=known)


def _parse(content: bytes) -> etree._Element:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True, remove_pis=True, huge_tree=False)
    try:
        return etree.fromstring(content, parser)
    except etree.XMLSyntaxError as error:
        raise Damaged(f"no XML ({error})") from error


def _text(element: etree._Element) -> str:
    pieces: list[str] = []
    _collect(element, pieces)
    lines = [" ".join(line.split()) for line in "".join(pieces).split("\n\n")]
    return "\n\n".join(line for line in lines if line)


def _collect(element: etree._Element, pieces: list[str]) -> None:
    name = _name(element)
    block = "\n\n" if name in _BLOCKS else ""
    pieces.append(block)
    if name == "list-item":
        pieces.append("- ")
    tex = element.find(".//{*}tex-math") if name in ("inline-formula", "disp-formula", "alternatives") else None
    if tex is not None:
        pieces.append(_tex(tex.text or ""))
    else:
        pieces.append(_one_line(element.text))
        for child in element:
            if child.tag is etree.Entity:
                pieces.append(_entity(child))
            elif isinstance(child.tag, str) and _name(child) not in _NO_TEXT:
                # The first paragraph of an item stands behind the item's mark.
                first = name == "list-item" and _name(child) == "p" and pieces[-1].strip() in ("", "-")
                inner: list[str] = []
                _collect(child, inner)
                pieces.append("".join(inner).strip() if first else "".join(inner))
            pieces.append(_one_line(child.tail))
    pieces.append(block)


def _entity(node: etree._Entity) -> str:
    """`&eacute;` and the like, which only the journal's document type explains; it is not read, but its names are those of HTML."""
    text = unescape(node.text)
    return "" if text == node.text else text


def _tex(source: str) -> str:
    """A formula without the document that it is wrapped in."""
    head, begin, body = source.partition(r"\begin{document}")
    return (body if begin else head).replace(r"\end{document}", "").strip()


def _one_line(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "")


def _name(element: etree._Element) -> str:
    return etree.QName(element).localname if isinstance(element.tag, str) else ""


def _licence(article: etree._Element) -> str:
    for element in article.iter("{*}license", "{*}license_ref", "{*}ext-link"):
        if found := licences.from_url(f"{element.get(_HREF) or ''} {element.text or ''}"):
            return found
    return ""


def _date(meta: etree._Element | None) -> str:
    """The earliest day of publication, as far as it is known."""
    dates = []
    for element in meta.findall("{*}pub-date") if meta is not None else []:
        parts = [(element.findtext(f"{{*}}{name}") or "").strip() for name in ("year", "month", "day")]
        known = [part.zfill(2) for part in parts if part.isdecimal()]
        if parts[0].isdecimal():
            dates.append("-".join(known))
    return min(dates, default="")
