"""Papers in LaTeX, with pylatexenc's parser."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pylatexenc import latex2text, latexwalker

from megagpt.data.records import Document
from megagpt.prepare.readers.decode import decode
from megagpt.prepare.readers.origin import Origin
from megagpt.prepare.readers.unpack import Damaged, size

MAX_LATEX_BYTES = 2 << 20
"""The parser takes some 12 seconds for each MiB; papers have a tenth of one."""
_BODY = re.compile(r"\\begin\s*\{document\}(.*?)(?:\\end\s*\{document\}|\Z)", re.DOTALL)
_NO_TEXT = (
    "figure", "figure*", "wrapfigure", "subfigure", "table", "table*", "sidewaystable", "longtable", "tabular", "tabular*", "tabularx",
    "tikzpicture", "picture",
    "thebibliography", "filecontents", "filecontents*", "comment", "CCSXML", "pspicture", "forest",
)
_DROPPED_MACROS = (
    "cite", "citep", "citet", "citealp", "citeauthor", "citeyear", "nocite", "label", "bibliography", "bibliographystyle", "includegraphics",
    "input", "include",
    "vspace", "hspace", "thanks", "index", "pagestyle", "thispagestyle", "setcounter", "maketitle", "tableofcontents", "footnotemark",
    "addbibresource", "printbibliography",
    "ref", "eqref", "autoref", "cref", "Cref", "pageref",
)
_SECTIONS = ("part", "chapter", "section", "subsection", "subsubsection", "paragraph", "subparagraph")
_EMPTY_BRACKETS = re.compile(r" ?[(\[](?:see|cf\.?|e\.g\.|figs?\.?|figure|eqs?\.?|sec\.?|section|table|and|[\s,;])*[)\]]", re.IGNORECASE)
"""What is left of `(see Fig. \\ref{a})`."""
_ITEM = re.compile(r"^[ \t]*\* ", re.MULTILINE)
_MAX_ARGUMENT = 2000
"""Of a title or a date; characters."""


def read_latex(content: bytes, origin: Origin) -> Iterator[Document]:

    """The body of a document: its sections with their titles, mathematics as it is written; without preamble, comments, figures, tables, citations
    and bibliography. A file without `\\begin{document}` is a part of another one and is all body."""
    if len(content) > MAX_LATEX_BYTES:
        raise Damaged(f"more than {size(MAX_LATEX_BYTES)} of LaTeX")
    source = _without_comments(decode(content).replace("\r\n", "\n"))
    found = _BODY.search(source)
    text = _to_text(_without_environments(found[1] if found else source))
    title = _argument(source, "title")
    if title:
        text = f"{title}\n\n{text}"
    if not text.strip():
        raise Damaged("no text")
    yield origin.document(None, text, date=_argument(source, "date"), meta={"title": title} if title else {})


def _without_comments(source: str) -> str:
    """A line that is all comment goes whole; behind text the line break stays away, as TeX has it."""
    source = re.sub(r"^[ \t]*%.*\n?", "", source, flags=re.MULTILINE)
    return re.sub(r"(?<!\\)((?:\\\\)*)%.*", r"\1", source)


def _without_environments(source: str) -> str:
    for name in _NO_TEXT:
        begin, end = f"\\begin{{{name}}}", f"\\end{{{name}}}"
        pieces, place = [], 0
        while (start := source.find(begin, place)) >= 0:
            stop = source.find(end, start)
            if stop < 0:  # it never ends: what follows is text
                break
            pieces.append(source[place:start])
            place = stop + len(end)
        source = "".join(pieces) + source[place:]
    return source


def _argument(source: str, macro: str) -> str:
    """Text of the argument of a macro of the preamble."""
    found = re.search(rf"\\{macro}\s*(?:\[[^\]]{{0,{_MAX_ARGUMENT}}}\])?\{{((?:[^{{}}]|\{{[^{{}}]*\}}){{0,{_MAX_ARGUMENT}}})\}}", source)
    return " ".join(_to_text(found[1]).split()) if found else ""


def _to_text(source: str) -> str:
    converter = latex2text.LatexNodes2Text(latex_context=_CONTEXT, math_mode="verbatim", strict_latex_spaces=False, keep_comments=False)
    nodes, _, _ = latexwalker.LatexWalker(source, tolerant_parsing=True).get_latex_nodes()
    text = converter.nodelist_to_text(nodes).replace("\xa0", " ")
    lines = [line.strip() for line in _ITEM.sub("- ", text).split("\n")]
    text = re.sub(r"[ \t]{2,}", " ", "\n".join(lines))
    text = re.sub(r" +([.,;:])", r"\1", text)  # where a citation was
    text = _EMPTY_BRACKETS.sub("", text)
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    return re.sub(r"^(- .*)\n\n(?=- )", r"\1\n", text, flags=re.MULTILINE)


def _context() -> latexwalker.macrospec.LatexContextDb:
    context = latex2text.get_default_latex_context_db()
    context.add_context_category(
        "documents",
        prepend=True,
        macros=[
            *(latex2text.MacroTextSpec(name, simplify_repl=_section_title) for name in _SECTIONS),
            *(latex2text.MacroTextSpec(name, simplify_repl="") for name in _DROPPED_MACROS),
            latex2text.MacroTextSpec("footnote", simplify_repl=_footnote),
        ],
    )
    return context


def _last_argument(node: latexwalker.LatexMacroNode, l2tobj: latex2text.LatexNodes2Text) -> str:
    arguments = [argument for argument in (node.nodeargd.argnlist if node.nodeargd else []) or [] if argument is not None]
    return l2tobj.nodelist_to_text([arguments[-1]]).strip() if arguments else ""


def _section_title(node: latexwalker.LatexMacroNode, l2tobj: latex2text.LatexNodes2Text) -> str:
    return f"\n\n{_last_argument(node, l2tobj)}\n\n"


def _footnote(node: latexwalker.LatexMacroNode, l2tobj: latex2text.LatexNodes2Text) -> str:
    return f" ({_last_argument(node, l2tobj)})"


_CONTEXT = _context()
