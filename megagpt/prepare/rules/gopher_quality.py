"""Gopher's quality rules (Rae et al. 2021, A1.1), with the verdicts and reasons of datatrove's `GopherQualityFilter` on the same words."""

from __future__ import annotations

from megagpt.config.prepare import GopherQualityConfig
from megagpt.prepare.rules.broken import Broken, share
from megagpt.prepare.rules.stop_words import STOP_WORDS
from megagpt.prepare.words import SPACELESS_LANGUAGES, TextView

_BULLETS = ("•", "-")
_ELLIPSES = ("...", "…")


def judge(view: TextView, rules: GopherQualityConfig, language: str, scores: dict[str, float]) -> Broken | None:
    """The first rule that is broken. Adds `words`, `mean_word_length`, `alphabetic_words` to the scores.

    Lines are looked at one by one only where all bullets or ellipses of the text, were each on a line of its own, would be too many.
    """
    text, num_words, num_punctuation = view.text, len(view.words), len(view.punctuation)
    num_real = num_words - num_punctuation
    mean_length = share(sum(map(len, view.words)) - sum(map(len, view.punctuation)), num_real)
    scores["words"], scores["mean_word_length"] = num_real, mean_length
    if rules.min_words is not None and num_real < rules.min_words:
        return Broken("gopher_short_doc", num_real, rules.min_words)
    if rules.max_words is not None and num_real > rules.max_words:
        return Broken("gopher_long_doc", num_real, rules.max_words)

    if language not in SPACELESS_LANGUAGES and num_real:
        if rules.min_mean_word_length is not None and mean_length < rules.min_mean_word_length:
            return Broken("gopher_below_avg_threshold", mean_length, rules.min_mean_word_length)
        if rules.max_mean_word_length is not None and mean_length > rules.max_mean_word_length:
            return Broken("gopher_above_avg_threshold", mean_length, rules.max_mean_word_length)

    num_ellipses = sum(map(text.count, _ELLIPSES))
    if (bound := rules.max_symbols_per_word) is not None:
        for reason, count in (("gopher_too_many_hashes", text.count("#")), ("gopher_too_many_ellipsis", num_ellipses)):
            if share(count, num_words) > bound:
                return Broken(reason, share(count, num_words), bound)

    lines = view.all_lines
    if (bound := rules.max_bullet_lines) is not None and sum(map(text.count, _BULLETS)) > bound * len(lines):
        found = share(sum(line.lstrip().startswith(_BULLETS) for line in lines), len(lines))
        if found > bound:
            return Broken("gopher_too_many_bullets", found, bound)
    if (bound := rules.max_ellipsis_lines) is not None and num_ellipses > bound * len(lines):
        found = share(sum(line.rstrip().endswith(_ELLIPSES) for line in lines), len(lines))
        if found > bound:
            return Broken("gopher_too_many_end_ellipsis", found, bound)

    num_without_letter = sum(not any(map(str.isalpha, word)) for word in view.not_alphabetic)
    scores["alphabetic_words"] = alphabetic = share(num_words - num_without_letter, num_words)
    if rules.min_alphabetic_words is not None and alphabetic < rules.min_alphabetic_words:
        return Broken("gopher_below_alpha_threshold", alphabetic, rules.min_alphabetic_words)

    stop_words = rules.stop_words[language] if language in rules.stop_words else STOP_WORDS.get(language)
    if rules.min_stop_words is not None and stop_words:
        found = len(set(stop_words).intersection(view.words))
        if found < rules.min_stop_words:
            return Broken("gopher_enough_stop_words", found, rules.min_stop_words)
    return None
