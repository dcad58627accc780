"""Heuristics: the verdicts of datatrove's filters on the same words, the rules by hand-made documents, and which documents each is for."""

import gzip
import importlib.metadata  # noqa: F401  datatrove uses it without importing it
import json
import random

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.filters.gopher_repetition_filter import find_all_duplicate, find_top_duplicate, get_n_grams

from megagpt.config.prepare import C4Config, CodeConfig, FineWebConfig, GopherQualityConfig, GopherRepetitionConfig, HeuristicsConfig, LanguageRules
from megagpt.prepare.rules.gopher_repetition import NgramBounds, top_ngram
from megagpt.prepare.steps.heuristics import Heuristics
from megagpt.prepare.words import SPLITTER
from tests.helpers.flow import NO_SHARED, SHARED, flowing

RULE_SETS = ["gopher_quality", "gopher_repetition", "c4", "fineweb"]
SENTENCE = "The quick brown fox jumps over the lazy dog and runs to the river with her friends. "
WORDS = "of and the to that river winter stone bread window paper engine forest silver market doctor garden letter valley bridge".split()


def prose(seed: int = 0, num_sentences: int = 12) -> str:
    """Nothing in it breaks a rule."""
    generator = random.Random(seed)
    return "\n".join(" ".join(["The", *generator.choices(WORDS, k=11)]) + "." for _ in range(num_sentences))


def datatrove_filters(config: HeuristicsConfig) -> dict[str, object]:
    """The same rules with the same thresholds."""
    quality, repetition, c4, fineweb = config.gopher_quality, config.gopher_repetition, config.c4, config.fineweb
    return {
        "gopher_quality": GopherQualityFilter(
            quality.min_words, quality.max_words, quality.min_mean_word_length, quality.max_mean_word_length, quality.max_symbols_per_word,
            quality.max_bullet_lines, quality.max_ellipsis_lines, quality.min_alphabetic_words, quality.min_stop_words, language=SPLITTER,
        ),
        "gopher_repetition": GopherRepetitionFilter(
            repetition.max_duplicate_lines, repetition.max_duplicate_paragraphs, repetition.max_duplicate_line_characters,
            repetition.max_duplicate_paragraph_characters, tuple(repetition.max_top_ngram.items()), tuple(repetition.max_duplicate_ngrams.items()),
            language=SPLITTER,
        ),
        "c4": C4QualityFilter(
            remove_citations=c4.citations, filter_no_terminal_punct=c4.terminal_punctuation, min_num_sentences=c4.min_sentences or -1,
            min_words_per_line=c4.min_words_per_line or -1, max_word_length=c4.max_word_length or -1, filter_lorem_ipsum=c4.lorem_ipsum,
            filter_javascript=c4.javascript, filter_curly_bracket=c4.curly_bracket, filter_policy=c4.policy, language=SPLITTER,
        ),
        "fineweb": FineWebQualityFilter(
            line_punct_thr=fineweb.min_ended_lines, short_line_thr=fineweb.max_short_lines, short_line_length=fineweb.short_line_length,
            char_duplicates_ratio=fineweb.max_duplicate_line_characters, new_line_ratio=fineweb.max_newlines_per_word, language=SPLITTER,
        ),
    }  # fmt: skip


def judged_by_datatrove(text: str, rule_sets: list[str], filters: dict[str, object]) -> tuple[str | None, str | None]:
    document = Document(text=text, id="")
    for rule_set in rule_sets:
        verdict = filters[rule_set].filter(document)
        if verdict is not True:
            return verdict[1], None
    return None, document.text


def judged(text: str, step: Heuristics, **metadata) -> tuple[str | None, str | None]:
    document = flowing(text, **metadata)
    reason = step(document)
    assert (reason is None) == ("heuristics" not in document.metadata["notes"])
    return reason, document.text if reason is None else None


def assert_as_datatrove(texts: list[str], config: HeuristicsConfig | None = None) -> set[str | None]:
    """Each rule set by itself, and on a third of the texts all in a row; the reasons that came up."""
    config, reasons = config or HeuristicsConfig(), set()
    filters = datatrove_filters(config)
    for chosen in *([one] for one in RULE_SETS), RULE_SETS:
        step = Heuristics(config.model_copy(update={"web": chosen}))
        for text in texts if len(chosen) == 1 else texts[::3]:
            expected = judged_by_datatrove(text, chosen, filters)
            assert judged(text, step) == expected, (chosen, text[:200])
            reasons.add(expected[0])
    return reasons


@pytest.mark.skipif(not SHARED.is_dir(), reason=NO_SHARED)
def test_heuristics_judge_c4_pages_and_news_as_datatrove():
    with gzip.open(SHARED / "pretrain_c4" / "c4_demo.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    texts += (SHARED / "pretrain_news" / "lee_background.cor").read_text(encoding="utf-8", errors="replace").splitlines()[:50]
    assert {None, "too_few_sentences", "gopher_below_alpha_threshold", "line_punct_ratio"} < assert_as_datatrove(texts)


@pytest.mark.skipif(not SHARED.is_dir(), reason=NO_SHARED)
def test_heuristics_judge_pages_of_a_crawl_as_datatrove():
    import trafilatura
    from warcio.archiveiterator import ArchiveIterator

    pages = []
    with (SHARED / "webcrawl_warc" / "pywb" / "iana.warc.gz").open("rb") as file:
        for record in ArchiveIterator(file):
            if record.rec_type == "response" and "text/html" in (record.http_headers.get_header("Content-Type") or ""):
                pages.append(trafilatura.extract(record.content_stream().read()))
    pages = [page for page in pages if page and page.strip()]
    assert len(pages) > 10 and len(assert_as_datatrove(pages)) > 4


def random_text(generator: random.Random) -> str:
    """Words, marks, spaces and breaks from a vocabulary so small that everything comes again."""
    vocabulary = generator.choices(
        ["the", "to", "of", "and", "a", "I", "with", "stone", "window", "internationalisation", "x" * 25, "3.5", "1", "#", "...", "…", ".", "!", ",",
         "- ", "•", "[1]", "[edit]", "lorem", "ipsum", "javascript", "cookie", "policy", "{", "Straße", "日本", "naïve", "word" * 4, "\n- ", "\n•", "...\n", '"'],
        k=generator.randint(3, 20),
    )  # fmt: skip
    between = [" ", " ", " ", " ", "", ". ", ".\n", "\n", "\n\n", "\r\n", "\t"]
    parts = [generator.choice(vocabulary) + generator.choice(between) for _ in range(generator.randint(1, 120))]
    lines = "".join(parts).split("\n")
    return "\n".join(lines + generator.choices(lines, k=generator.randint(0, 4))) or "x"


def test_heuristics_judge_random_documents_as_datatrove():
    """Thresholds are random too, so that every rule is the one that decides somewhere."""
    generator, reasons = random.Random(1), set()

    def maybe(value):
        return generator.choice([None, value, value])

    for _ in range(40):
        share = generator.random
        config = HeuristicsConfig(
            gopher_quality=GopherQualityConfig(
                min_words=generator.choice([1, 5, 40]), max_words=maybe(80), min_mean_word_length=maybe(3.0), max_mean_word_length=maybe(6.0),
                max_symbols_per_word=maybe(0.01 + share() / 5), max_bullet_lines=maybe(0.05 + share() / 2),
                max_ellipsis_lines=maybe(0.05 + share() / 2), min_alphabetic_words=maybe(0.1 + share() / 2), min_stop_words=maybe(2),
            ),
            gopher_repetition=GopherRepetitionConfig(
                max_duplicate_lines=maybe(0.01 + share() / 2), max_duplicate_paragraphs=maybe(0.01 + share() / 2),
                max_duplicate_line_characters=maybe(0.01 + share() / 2), max_duplicate_paragraph_characters=maybe(0.01 + share() / 2),
                max_top_ngram={n: min(0.05 + share() / 2, 1.0) for n in generator.sample([2, 3, 4], k=generator.randint(0, 3))},
                max_duplicate_ngrams={n: min(0.05 + share() / 2, 1.0) for n in generator.sample([2, 5, 6, 7, 10], k=generator.randint(0, 4))},
            ),
            c4=C4Config(
                terminal_punctuation=share() < 0.3, min_words_per_line=maybe(2), max_word_length=maybe(20), javascript=share() < 0.5,
                policy=share() < 0.5, citations=share() < 0.5, lorem_ipsum=share() < 0.5, curly_bracket=share() < 0.3, min_sentences=maybe(3),
            ),
            fineweb=FineWebConfig(
                min_ended_lines=share() / 3, max_short_lines=min(0.3 + share(), 1.0), short_line_length=generator.randint(3, 30),
                max_duplicate_line_characters=share() / 2, max_newlines_per_word=0.05 + share(),
            ),
        )  # fmt: skip
        reasons |= assert_as_datatrove([random_text(generator) for _ in range(12)], config)
    assert reasons >= {
        None, "gopher_short_doc", "gopher_long_doc", "gopher_below_avg_threshold", "gopher_above_avg_threshold", "gopher_too_many_hashes",
        "gopher_too_many_ellipsis", "gopher_too_many_bullets", "gopher_too_many_end_ellipsis", "gopher_below_alpha_threshold",
        "gopher_enough_stop_words", "dup_para_frac", "dup_para_char_frac", "dup_line_frac", "dup_line_char_frac", "top_2_gram", "duplicated_2_n_grams", "duplicated_5_n_grams",
        "too_few_sentences", "lorem_ipsum", "curly_bracket", "line_punct_ratio", "short_line_ratio", "char_dup_ratio", "list_ratio",
    }  # fmt: skip


def test_heuristics_ngram_bounds_hold():
    generator = random.Random(2)
    for _ in range(100):
        words = generator.choices(["a", "bb", "c", "dddd", "e", "."], k=generator.randint(0, 60))
        bounds = NgramBounds(words)
        for n in (2, 3, 4):
            ngrams = get_n_grams(words, n)
            counts = [ngrams.count(ngram) for ngram in ngrams]
            assert bounds.most_frequent(n) == max(counts, default=0)
            assert bounds.largest(n) == max((len(ngram) * count for ngram, count in zip(ngrams, counts)), default=0)
            if ngrams:
                assert bounds.longest(n) == max(map(len, ngrams))
                assert top_ngram(words, n) == find_top_duplicate(ngrams) <= bounds.largest(n)
            assert all(find_all_duplicate(words, m) <= bounds.repeated(n) for m in range(n, n + 4))
    assert NgramBounds("a b c d a b c x".split()).repeated(3) == 3


@pytest.mark.parametrize(
    ("text", "rules", "reason", "value"),
    [
        ("Only four words here.", {}, "gopher_short_doc", 4),
        (prose(num_sentences=60), {"gopher_quality": GopherQualityConfig(max_words=500)}, "gopher_long_doc", 720),
        (prose().replace("stone", "#"), {"gopher_quality": GopherQualityConfig(max_symbols_per_word=0.001)}, "gopher_too_many_hashes", None),
        (SENTENCE * 10, {"rows": ["gopher_repetition"]}, "top_4_gram", None),
        (SENTENCE * 10, {"rows": ["gopher_repetition"], "gopher_repetition": GopherRepetitionConfig(max_top_ngram={})}, "duplicated_5_n_grams", None),
        ("\n\n".join([prose(1, 3)] * 4), {"rows": ["gopher_repetition"]}, "dup_para_frac", 0.75),
        (prose() + " Lorem ipsum dolor sit amet.", {"rows": ["c4"]}, "lorem_ipsum", 1),
        (prose() + "\nint main() { return 0; }.", {"rows": ["c4"]}, "curly_bracket", 1),
        (prose(num_sentences=4), {"rows": ["c4"]}, "too_few_sentences", 4),
        ("\n".join(["A short line"] * 2 + ["Another line of the list"] * 2), {"rows": ["fineweb"]}, "line_punct_ratio", 0),
        ("\n".join(f"Line {number}." for number in range(9)) + "\n" + prose(3, 1), {"rows": ["fineweb"]}, "short_line_ratio", 0.9),
    ],
)  # fmt: skip
def test_heuristics_note_the_value_that_broke_a_rule(text, rules, reason, value):
    document = flowing(text, kind="rows")
    assert Heuristics(HeuristicsConfig(**rules))(document) == reason
    found = document.metadata["notes"]["heuristics"]
    assert found["value"] != found["bound"]
    if value is not None:
        assert found["value"] == pytest.approx(value)


def test_heuristics_keep_good_prose_and_score_it():
    document = flowing(prose())
    assert Heuristics(HeuristicsConfig())(document) is None
    assert document.text == prose() and document.metadata["notes"] == {}
    scores = document.metadata["scores"]
    assert scores["words"] == 12 * 12 and scores["ended_lines"] == 1.0 and scores["duplicate_lines"] == 0.0
    words = prose().replace(".", "").split()
    assert scores["mean_word_length"] == pytest.approx(sum(map(len, words)) / len(words))
    assert scores["alphabetic_words"] == pytest.approx(12 / 13)


def test_heuristics_c4_takes_out_lines_and_says_why():
    bad = ["A menu without an end", "Too few.", "Please enable Javascript to see this page.", "This site uses cookies to be a better one."]
    bad.append("x" * 1001 + " is a long word.")
    document = flowing("\n".join([*bad, prose()[:-1] + " [12]."]))
    assert Heuristics(HeuristicsConfig(web=["c4"]))(document) is None
    assert document.text == prose()[:-1] + " ."
    assert document.metadata["notes"]["c4_lines"] == {"no_terminal_punc": 1, "too_few_words": 1, "javascript": 1, "policy": 1, "too_long_word": 1}


CHINESE = "".join(f"他在{place}住了很多年，那里的人们都很喜欢他写的书。" for place in "北南东西中海山江河湖城乡村")
GERMAN = "\n".join(
    f"Der Hund von Nachbar {name} läuft durch den Garten und bellt, während die Katze auf dem Dach in der Sonne liegt und schläft."
    for name in "Müller Schmidt Weber Becker Wagner Koch Bauer Richter".split()
)  # fmt: skip


def test_heuristics_know_languages():
    step = Heuristics(HeuristicsConfig(web=["gopher_quality", "c4"]))
    assert judged(CHINESE, step, notes={"language": "zh"}) == (None, CHINESE)
    assert judged(CHINESE, step)[0] == "gopher_below_avg_threshold"
    assert judged(GERMAN, step, notes={"language": "de"})[0] is None
    assert judged(GERMAN, step)[0] == "gopher_enough_stop_words"
    assert judged(GERMAN, step, language="de")[0] is None, "as the source says"
    assert judged(GERMAN, step, notes={"language": "eu"})[0] is None, "no list, no rule"
    own = Heuristics(HeuristicsConfig(web=["gopher_quality"], gopher_quality=GopherQualityConfig(stop_words={"eu": ["eta", "da"]})))
    assert judged(GERMAN, own, notes={"language": "eu"})[0] == "gopher_enough_stop_words"


def test_heuristics_of_repetition_count_two_characters_as_a_word():
    """100 phrases of six characters, each about four times: five characters in a row come again everywhere, ten hardly anywhere."""
    generator = random.Random(0)
    phrases = ["".join(map(chr, generator.sample(range(0x4E00, 0x9000), k=6))) for _ in range(100)]
    text = "".join(generator.choices(phrases, k=400))
    step = Heuristics(HeuristicsConfig(web=["gopher_repetition"]))
    assert judged(text, step, notes={"language": "zh"})[0] is None
    assert judged(text, step, notes={"language": "en"})[0] == "duplicated_5_n_grams"
    assert judged("".join(phrases[:10] * 40), step, notes={"language": "zh"})[0] == "top_3_gram"


@pytest.mark.skipif(not SHARED.is_dir(), reason=NO_SHARED)
@pytest.mark.parametrize(("name", "language"), [("tinyshakespeare.txt.gz", "en"), ("wagahaiwa_nekodearu_ja.txt.gz", "ja")])
def test_heuristics_keep_books(name, language):
    with gzip.open(SHARED / "pretrain_books" / name, "rt", encoding="utf-8") as file:
        assert judged(file.read(), Heuristics(HeuristicsConfig()), kind="books", notes={"language": language})[0] is None


def test_heuristics_of_one_language():
    config = HeuristicsConfig(language="de", by_language={"de": LanguageRules(gopher_quality=GopherQualityConfig(min_words=5000))})
    assert judged(GERMAN, Heuristics(config))[0] == "gopher_short_doc"
    assert judged(prose(), Heuristics(config), notes={"language": "en"})[0] is None


CODE = "def add(a, b):\n    return {'sum': a + b}\n\n\n" * 3


@pytest.mark.parametrize(
    ("text", "reason", "value"),
    [
        (CODE, None, None),
        (CODE + "x" * 1001, "code_long_line", 1001),
        ("\n".join(["y = 1" + "0" * 200] * 4), "code_long_lines", 205),
        ("{}();\n" * 19 + "ab\n", "code_few_alphanumeric", 2 / 117),
        ("{}();é\n" * 19, "code_few_alphanumeric", 1 / 7),
    ],
)
def test_heuristics_of_code(text, reason, value):
    document = flowing(text, kind="code")
    assert Heuristics(HeuristicsConfig())(document) == reason
    assert document.text == text
    if reason is not None:
        assert document.metadata["notes"]["heuristics"]["value"] == pytest.approx(value)
        off = {"code_long_line": "max_line_length", "code_long_lines": "max_mean_line_length", "code_few_alphanumeric": "min_alphanumeric"}[reason]
        assert Heuristics(HeuristicsConfig(code_rules=CodeConfig(**{off: None})))(flowing(text, kind="code")) != reason


def test_heuristics_of_prose_leave_code_alone():
    assert judged(CODE, Heuristics(HeuristicsConfig()), kind="web")[0] == "gopher_short_doc"
    assert judged(CODE, Heuristics(HeuristicsConfig()), kind="code") == (None, CODE)


@pytest.mark.parametrize("text", ["\n", " ", ".", "\u200b", "-\n-\n"])
@pytest.mark.parametrize("kind", ["web", "code", "books"])
def test_heuristics_survive_documents_of_nothing(text, kind):
    rules = HeuristicsConfig(gopher_quality=GopherQualityConfig(min_words=None), c4=C4Config(min_sentences=None))
    Heuristics(rules)(flowing(text, kind=kind))


def test_heuristics_depend_on_one_document_alone():
    texts = [prose(seed) for seed in range(3)] + [SENTENCE * 10, CHINESE]
    step = Heuristics(HeuristicsConfig())
    forward = [judged(text, step) for text in texts]
    assert [judged(text, step) for text in reversed(texts)] == forward[::-1]
