"""C4's rules (Raffel et al. 2020, section 2.2), which also take lines out of a text, as datatrove's `C4QualityFilter` does on the same sentences."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from datatrove.pipeline.filters.c4_filters import CITATION_REGEX, ELLIPSIS, END_PUNCTUATION, POLICY_SUBSTRINGS
from datatrove.utils.text import TERMINAL_PUNCTUATION

from megagpt.config.prepare import C4Config
from megagpt.prepare.rules.broken import Broken
from megagpt.prepare.words import SPACELESS_LANGUAGES, SPLITTER, TextView

_ALL_ENDS = (*END_PUNCTUATION, *sorted(TERMINAL_PUNCTUATION), "”", "’", "»", "」", "』")


class Lines(NamedTuple):
    """What is left of a text."""

    text: str
    removed: dict[str, int]
    """Reason, by datatrove's name -> lines."""


def keep_lines(view: TextView, rules: C4Config, language: str) -> Broken | Lines:
    """The rule that drops the document, or its text without the lines that others take out.

    Outside of English, marks of other scripts end a line as well; in languages without spaces words are the splitter's. Whether a phrase is in any
    line is asked of the whole text first, unless citations are taken out, which might join its parts.
    """
    text, lowered, citations = view.text, view.text.lower(), rules.citations and "[" in view.text
    lorem_ipsum = rules.lorem_ipsum and (citations or "lorem ipsum" in lowered)
    javascript = rules.javascript and (citations or "javascript" in lowered)
    policy = rules.policy and (citations or any(phrase in lowered for phrase in POLICY_SUBSTRINGS))
    curly_bracket = rules.curly_bracket and "{" in text
    phrases = lorem_ipsum or javascript or policy or curly_bracket
    ends = END_PUNCTUATION if language == "en" else _ALL_ENDS
    split = SPLITTER.word_tokenize if language in SPACELESS_LANGUAGES else str.split

    kept: list[str] = []
    removed: Counter[str] = Counter()
    num_sentences, enough = 0, rules.min_sentences or 0
    for whole in map(str.strip, view.all_lines):
        if (longest := rules.max_word_length) is not None and len(whole) > longest and any(len(word) > longest for word in split(whole)):
            removed["too_long_word"] += 1
            continue
        line = CITATION_REGEX.sub("", whole) if citations else whole
        if rules.terminal_punctuation and (not line.endswith(ends) or line.endswith(ELLIPSIS)):
            removed["no_terminal_punc"] += 1
            continue
        if rules.min_words_per_line is not None and len(split(whole)) < rules.min_words_per_line:
            removed["too_few_words"] += 1
            continue
        if phrases:
            line_lowered = line.lower()
            if lorem_ipsum and "lorem ipsum" in line_lowered:
                return Broken("lorem_ipsum", 1, 0)
            if javascript and "javascript" in line_lowered:
                removed["javascript"] += 1
                continue
            if curly_bracket and "{" in line:
                return Broken("curly_bracket", 1, 0)
            if policy and any(phrase in line_lowered for phrase in POLICY_SUBSTRINGS):
                removed["policy"] += 1
                continue
        if num_sentences < enough:
            num_sentences += SPLITTER.count_sentences(line)
        kept.append(line)
    if num_sentences < enough:
        return Broken("too_few_sentences", num_sentences, enough)
    return Lines("\n".join(kept).strip(), dict(removed))
