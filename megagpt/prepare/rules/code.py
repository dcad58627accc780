"""Rules for programs (Chen et al. 2021, section 3.1; Li et al. 2023, section 3.2): what machines wrote has long lines or few letters."""

from __future__ import annotations

import string

from megagpt.config.prepare import CodeConfig
from megagpt.prepare.rules.broken import Broken, share

_ALPHANUMERIC = (string.ascii_letters + string.digits).encode()


def judge(text: str, rules: CodeConfig, scores: dict[str, float]) -> Broken | None:
    """The first rule that is broken. Adds `max_line_length`, `mean_line_length` (characters) and `alphanumeric` (share) to the scores."""
    lengths = [len(line) for line in text.splitlines()] or [0]
    scores["max_line_length"], scores["mean_line_length"] = longest, mean = max(lengths), sum(lengths) / len(lengths)
    if rules.max_line_length is not None and longest > rules.max_line_length:
        return Broken("code_long_line", longest, rules.max_line_length)
    if rules.max_mean_line_length is not None and mean > rules.max_mean_line_length:
        return Broken("code_long_lines", mean, rules.max_mean_line_length)

    scores["alphanumeric"] = alphanumeric = share(_count_alphanumeric(text), len(text))
    if rules.min_alphanumeric is not None and alphanumeric < rules.min_alphanumeric:
        return Broken("code_few_alphanumeric", alphanumeric, rules.min_alphanumeric)
    return None


def _count_alphanumeric(text: str) -> int:
    if text.isascii():
        return len(text) - len(text.encode().translate(None, _ALPHANUMERIC))
    return sum(map(str.isalnum, text))
