"""Pieces of report.html. Every text that enters a piece is escaped here; `Html` marks what already is."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


class Html(str):
    """Markup, as opposed to text."""


STYLE = """
:root { color-scheme: light dark; --page: #fafafa; --card: #fff; --ink: #1c1e21; --soft: #5d636b; --line: #dfe2e6;
  --good: #00664b; --bad: #a63c00; --good-fill: #e0f2ec; --bad-fill: #fdeadd; }
@media (prefers-color-scheme: dark) { :root { --page: #131517; --card: #1b1e21; --ink: #e6e8ea; --soft: #a0a7af; --line: #33383d;
  --good: #5fd3ae; --bad: #ffa672; --good-fill: #16332a; --bad-fill: #3b2416; }
  /* Pictures have a white ground: inverted it is black, and black screened over the card is the card. */
  figure img { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .7rem; } h3 { font-size: 1rem; margin: 0 0 .3rem; }
p { margin: .3rem 0 .8rem; } .soft { color: var(--soft); font-size: .92rem; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .5rem .75rem; border-top: 1px solid var(--line); }
td { white-space: pre; } td:last-child { white-space: pre-line; }
.name, .prose { white-space: normal; overflow-wrap: anywhere; min-width: 11rem; } .prose { min-width: 18rem; }
thead th { border-top: 0; color: var(--soft); font-weight: 600; }
.good, .bad { font-weight: 600; padding: .1rem .5rem; border-radius: 5px; white-space: nowrap; }
.good { color: var(--good); background: var(--good-fill); } .bad { color: var(--bad); background: var(--bad-fill); }
main > :is(figure, .scroll, .grid) + :is(figure, .scroll, .grid, h3, p) { margin-top: 1rem; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); }
figure { margin: 0; } figure, .talk { padding: .8rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
figure img { display: block; width: 100%; height: auto; }
.talk { padding: 1rem; margin-bottom: 1rem; } .talk .grid { grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.said { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-size: .95rem; }
.question { margin-bottom: .9rem; padding-bottom: .9rem; border-bottom: 1px solid var(--line); }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # even an error in escaping could not load or run anything


def escape(text: Any) -> Html:
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def document(title: str, body: Iterable[str]) -> str:
    """A whole page from its pieces."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body><main>\n" + "\n".join(body) + "\n</main></body>\n</html>\n"
    )


def element(tag: str, text: Any, style: str = "") -> Html:
    """One element around text or markup."""
    return Html(f"<{tag}{f' class={chr(34)}{style}{chr(34)}' if style else ''}>{escape(text)}</{tag}>")


def join(pieces: Iterable[Any]) -> Html:
    return Html("\n".join(escape(piece) for piece in pieces))


def verdict(word: str, good: bool) -> Html:
    """A word with a mark and a colour."""
    return element("span", f"{'✓' if good else '✗'} {word}", "good" if good else "bad")


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Html:
    """A table that scrolls by itself where the window is narrow."""
    lines = (join(element("td", cell) for cell in row) for row in rows)
    top = element("thead", element("tr", join(element("th", name) for name in head)))
    return element("div", element("table", join([top, element("tbody", join(element("tr", line) for line in lines))])), "scroll")


def identifier(text: Any) -> Html:
    """A path, URL or id in a table: breaks where it has to, best at its parts, so that a long one leaves room beside it."""
    return element("div", Html("<wbr>".join(escape(part) for part in re.split(r"(?<=/)|(?=#)", str(text)))), "name")


def prose(text: Any, characters: int = 240) -> Html:
    """The beginning of a text in a table, in a column wide enough to read; cut at a word, with a mark."""
    flat = " ".join(str(text).split())
    return element("div", flat if len(flat) <= characters else flat[:characters].rsplit(" ", 1)[0] + " …", "prose")


def picture(path: Path, description: str) -> Html:
    """A PNG inside the page."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return Html(f'<figure><img alt="{html.escape(description)}" src="data:image/png;base64,{data}"></figure>')
