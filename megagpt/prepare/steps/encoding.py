"""Text that was decoded wrongly is decoded again (ftfy), line endings and control characters become one kind."""

from __future__ import annotations

import re
import unicodedata

from datatrove.data import Document
from ftfy import TextFixerConfig, fix_and_explain
from ftfy.badness import BADNESS_RE
from ftfy.chardata import HTML_ENTITY_RE

from megagpt.config.prepare import EncodingConfig
from megagpt.data.repair import repair_text

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_ODD = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\u206a-\u206f\ufeff\ufff9-\ufffc\ud800-\udfff]")
"""What ftfy removes or replaces wherever it stands: control characters, half surrogate pairs."""
_REACH = 6
"""ftfy's pattern of mojibake is at most 7 characters long, one of them not ASCII: it need not look at what is further away from such a one."""
_LONGEST = 1_000_000
"""ftfy looks at so many characters of a line at once."""
_KINDS = {"unescape_html": "html_entities", "fix_surrogates": "surrogates", "remove_terminal_escapes": "control_characters",
          "remove_control_chars": "control_characters"}  # fmt: skip
"""ftfy's steps -> what we note; the others are about mojibake."""


class Encoding:
    """Reason `undecodable`. Note `encoding`: what was repaired (`control_characters`, `html_entities`, `line_endings`, `mojibake`, `normal_form`,
    `surrogates`). The result is ftfy's own, which is asked only about lines that it might change."""

    name = "encoding"

    def __init__(self, config: EncodingConfig) -> None:
        self.config = config
        # As FineWeb: what is wrong is put right, quotes, ligatures and widths are the author's.
        self._fixer = TextFixerConfig(
            unescape_html="auto" if config.html_entities else False, fix_encoding=config.mojibake, fix_c1_controls=config.mojibake,
            fix_latin_ligatures=False, fix_character_width=False, uncurl_quotes=False, fix_line_breaks=False, normalization=None,
        )  # fmt: skip

    def __call__(self, document: Document) -> str | None:
        repairs: set[str] = set()
        text = document.text
        if document.metadata["kind"] != "code":
            text = self._normalise(self.fix(text, repairs), repairs)
        document.text = _repair(text, repairs)
        if repairs:
            document.metadata["notes"]["encoding"] = sorted(repairs)
        return "undecodable" if document.text.count("\ufffd") > self.config.max_undecodable * len(document.text) else None

    def fix(self, text: str, repairs: set[str]) -> str:
        """`ftfy.fix_text` with our settings; adds what it did to `repairs`."""
        html_entities = self.config.html_entities
        if text.isascii() and not self._is_suspect(text, html_entities):
            return text
        fixed = []
        for line in _LINE.findall(text):
            html_entities = html_entities and "<" not in line
            fixed.append(self._fix_line(line, html_entities, repairs) if self._is_suspect(line, html_entities) else line)
        return "".join(fixed)

    def _fix_line(self, line: str, html_entities: bool, repairs: set[str]) -> str:
        settings, pieces = self._fixer if html_entities else self._fixer._replace(unescape_html=False), []
        for start in range(0, len(line), _LONGEST):
            piece, steps = fix_and_explain(line[start : start + _LONGEST], settings)
            repairs |= {_KINDS.get(step.parameter, "mojibake") for step in steps or ()}
            pieces.append(piece)
        return "".join(pieces)

    def _is_suspect(self, line: str, html_entities: bool) -> bool:
        """Whether ftfy might change this line; where not, it does not."""
        if _ODD.search(line) or html_entities and "&" in line and HTML_ENTITY_RE.search(line):
            return True
        return (
            self.config.mojibake
            and not line.isascii()
            and any(BADNESS_RE.search(line, max(0, run.start() - _REACH), run.end() + _REACH) for run in _NOT_ASCII.finditer(line))
        )

    def _normalise(self, text: str, repairs: set[str]) -> str:
        if (form := self.config.normal_form) is None or text.isascii() or unicodedata.is_normalized(form, text):
            return text
        repairs.add("normal_form")
        return unicodedata.normalize(form, text)


def _repair(text: str, repairs: set[str]) -> str:
    repaired = repair_text(text)
    if repaired != text:
        repairs |= {name for name, was in (("line_endings", "\r" in text), ("control_characters", bool(_ODD.search(text)))) if was}
    return repaired
