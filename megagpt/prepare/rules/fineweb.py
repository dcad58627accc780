"""FineWeb's rules (Penedo et al. 2024, section 3.6), with the verdicts and reasons of datatrove's `FineWebQualityFilter` on the same words."""

from __future__ import annotations

from datatrove.utils.text import TERMINAL_PUNCTUATION

from megagpt.config.prepare import FineWebConfig
from megagpt.prepare.rules.broken import Broken, share
from megagpt.prepare.rules.gopher_repetition import count_duplicates
from megagpt.prepare.words import TextView


def judge(view: TextView, rules: FineWebConfig, scores: dict[str, float]) -> Broken | None:
    """The first rule that is broken. Adds `ended_lines` and `short_lines`, shares of the lines, to the scores."""
    lines, text = view.lines, view.text
    if not lines:
        return Broken("empty", 0, 1)
    scores["ended_lines"] = ended = sum(line[-1] in TERMINAL_PUNCTUATION for line in lines) / len(lines)
    if rules.min_ended_lines is not None and ended < rules.min_ended_lines:
        return Broken("line_punct_ratio", ended, rules.min_ended_lines)

    scores["short_lines"] = short = sum(len(line) <= rules.short_line_length for line in lines) / len(lines)
    if rules.max_short_lines is not None and short > rules.max_short_lines:
        return Broken("short_line_ratio", short, rules.max_short_lines)

    newlines = text.count("\n")
    duplicate = share(count_duplicates(lines)[1], len(text) - newlines)
    if rules.max_duplicate_line_characters is not None and duplicate > rules.max_duplicate_line_characters:
        return Broken("char_dup_ratio", duplicate, rules.max_duplicate_line_characters)

    # Between two spaces is at least one word: where pieces between spaces are enough, words need not be counted.
    if (bound := rules.max_newlines_per_word) is not None and newlines > bound * len(text.split()):
        found = share(newlines, len(view.words))
        if found > bound:
            return Broken("list_ratio", found, bound)
    return None
