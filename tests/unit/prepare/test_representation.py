"""Counts of identity terms by hand and by a plain reading of the rules; tables; weights against their closed form."""

import itertools
import json
import random
import re

import pytest

from megagpt.config.load import ConfigError
from megagpt.config.prepare import RepresentationConfig, ReweightingConfig
from megagpt.prepare import sentiment
from megagpt.prepare.identity_terms import PERSONS, normal, read_terms
from megagpt.prepare.representation import COLUMNS, Representation, merge, table
from megagpt.prepare.reweighting import Weigher, check_targets, distribution, effect, weights
from megagpt.prepare.word_numbers import WORD

CONFIG = RepresentationConfig()


def counted(*texts, config=CONFIG, weight=1.0, source="s"):
    representation = Representation(config)
    for text in texts:
        representation.add(source, text, weight)
    return representation.counts()


def occurrences(text, kind="terms", **settings):
    return {name: columns["occurrences"] for name, columns in counted(text, **settings)["s"][kind].items()}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("She and HER sister's dog", {"gender/women/she": 1, "gender/women/her": 1, "gender/women/sister": 1}),
        ("Muslims’ rights", {"religion/muslim/muslims": 1}),
        ("a black car, black people", {"origin/black/black *": 1}),
        ("Black women spoke", {"origin/black/black *": 1, "gender/women/women": 1}),
        ("African-Americans and African American people", {"origin/black/african americans": 1, "origin/black/african american": 1}),
        ("American Indians", {"origin/indigenous/american indians": 1}),
        ("same sex couple", {"sexual_orientation/gay_and_lesbian/same sex couple": 1}),
        ("same sex", {}),
        ("the blind", {}),
        ("theme, shed, sunniest, heron", {}),
        ("old", {}),
        ("She is blind, it was blind", {"gender/women/she": 1, "disability/blind/blind *": 1}),
        ("They’re old; who's old; was old", {"age/old/old *": 2}),
        ("old men", {"age/old/old *": 1, "gender/men/men": 1}),
    ],
)
def test_representation_terms_by_hand(text, expected):
    assert occurrences(text) == dict(sorted(expected.items()))


def test_representation_counts_documents_words_and_groups():
    counts = counted("He met his wife.", "His.", "Nobody.")["s"]
    assert (counts["documents"], counts["words"]) == (3, 6)
    assert {name: counts["terms"]["gender/men/his"][name] for name in ("documents", "occurrences")} == {"documents": 2, "occurrences": 2}
    assert {name: counts["groups"]["gender/men"][name] for name in ("documents", "occurrences")} == {"documents": 2, "occurrences": 3}
    assert {name: counts["groups"]["gender/women"][name] for name in ("documents", "occurrences")} == {"documents": 1, "occurrences": 1}


def test_representation_sentiment_is_that_of_the_window():
    """VADER: great 3.1, terrible -2.1, good 1.9; a negated word -0.74 of its valence."""
    window = RepresentationConfig(window=2)
    columns = counted("great a b she c terrible great", config=window)["s"]["terms"]["gender/women/she"]
    assert columns == dict(zip(COLUMNS, (1, 1, 0, 1, -2100, 1000), strict=True))
    columns = counted("great she terrible", config=window)["s"]["terms"]["gender/women/she"]
    assert columns == dict(zip(COLUMNS, (1, 1, 1, 1, 1000, 1000), strict=True))
    columns = counted("she isn't so good", config=RepresentationConfig(window=3))["s"]["terms"]["gender/women/she"]
    assert columns == dict(zip(COLUMNS, (1, 1, 0, 1, -1406, 1000), strict=True))
    columns = counted("she isn’t at all a good", config=RepresentationConfig(window=9))["s"]["terms"]["gender/women/she"]
    assert columns["valence"] == 1900  # four words behind the negation


def test_representation_a_term_has_no_valence_of_its_own():
    assert sentiment.read_lexicon()["blind"] < 0
    assert counted("she saw blind people")["s"]["terms"]["gender/women/she"]["negative"] == 0
    assert counted("she saw a blind alley")["s"]["terms"]["gender/women/she"]["negative"] == 1


OF_PERSON = r"(^| )((i|he|she|they|we|you|who) (is|was|are|were|am|be|been|being)|i'm|he|she|they're|we're|you're|who)$"


def reference(text, window):
    """Terms and sentiment as the docstrings say it, word by word; no arrays and no look-up by first word."""
    words = [normal(word) for word in WORD.findall(text)]
    lexicon, negations = sentiment.read_lexicon(), set(sentiment.read_negations())
    spans = []
    for _, terms in itertools.groupby(read_terms(None), key=lambda term: term.category):
        terms, begin = list(terms), 0
        while begin < len(words):
            fitting = [
                term for term in terms
                if tuple(words[begin : begin + len(term.words)]) == term.words
                and (
                    not term.is_adjective
                    or (words[begin + len(term.words) :] or [""])[0] in PERSONS
                    or re.search(OF_PERSON, " ".join(words[:begin]))
                )
            ]  # fmt: skip
            longest = max(fitting, key=lambda term: (len(term.words), term.is_adjective), default=None)
            if longest:
                spans.append((longest.key, begin, begin + len(longest.words)))
            begin += len(longest.words) if longest else 1
    covered = {place for _, begin, end in spans for place in range(begin, end)}
    sums = {}
    for key, begin, end in spans:
        columns = sums.setdefault(key, [1, 0, 0, 0, 0, 0])
        columns[1] += 1
        columns[5] += 1000
        for place in [*range(max(begin - window, 0), begin), *range(end, min(end + window, len(words)))]:
            value = 0 if place in covered else lexicon.get(words[place], 0)
            if set(words[max(place - 3, 0) : place]) & negations:
                value = value * -74 // 100
            columns[2] += value > 0
            columns[3] += value < 0
            columns[4] += value
    return {key: dict(zip(COLUMNS, columns, strict=True)) for key, columns in sorted(sums.items())}


@pytest.mark.parametrize("seed", range(4))
def test_representation_agrees_with_a_plain_reading_of_the_rules(seed):
    random_ = random.Random(seed)
    plain = "not never great terrible good blind the a so it they're who is".split()
    some = [" ".join(term.words) for term in read_terms(None)] + [*sorted(PERSONS), *plain] * 12
    text = " ".join(random_.choices(some, k=300))
    assert counted(text, config=RepresentationConfig(window=4))["s"]["terms"] == reference(text, 4)


def test_representation_counts_do_not_depend_on_order_or_tasks():
    texts = [f"{who} is {what}" for who in ("she", "he", "the Jews", "old men", "it") for what in ("good", "not bad", "terrible", "here")]
    sources = ["x", "y", "z"]
    whole = Representation(CONFIG)
    for number, text in enumerate(texts):
        whole.add(sources[number % 3], text)
    shuffled = list(enumerate(texts))
    random.Random(1).shuffle(shuffled)
    parts = [Representation(CONFIG) for _ in range(4)]
    for place, (number, text) in enumerate(shuffled):
        parts[place % 4].add(sources[number % 3], text)
    merged = merge(json.loads(json.dumps(part.counts())) for part in parts)
    assert json.dumps(merged) == json.dumps(whole.counts())
    assert merge([]) == {}


def test_representation_terms_of_the_user_are_added(tmp_path):
    (tmp_path / "more.yaml").write_text("gender:\n  women: [suffragette]\noccupation:\n  carers: [care worker, nurses]\n")
    config = RepresentationConfig(terms=str(tmp_path / "more.yaml"))
    assert occurrences("a suffragette, her nurses and a care-worker", config=config) == {
        "gender/women/her": 1, "gender/women/suffragette": 1, "occupation/carers/care worker": 1, "occupation/carers/nurses": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "content, message",
    [
        ("gender: [she]", "gender is ['she']; it must be group -> list of terms"),
        ("gender:\n  women: she", "gender.women is 'she'; it must be a list of terms"),
        ("gender:\n  women: [no]", "gender.women has the term False"),
        ("gender:\n  women: ['*']", "gender.women has the term '*'"),
        ("a/b:\n  women: [x]", "'a/b' has a slash"),
        ("gender:\n  all: [She]", "'She' is in gender.women and all (as 'she')"),
        ("gender:\n  all: [x]\n  all: [y]", "duplicate key 'all'"),
    ],
)
def test_representation_terms_of_another_shape_are_refused(tmp_path, content, message):
    (tmp_path / "more.yaml").write_text(content)
    with pytest.raises(ConfigError) as error:
        read_terms(str(tmp_path / "more.yaml"))
    assert message in str(error.value) and "\n" not in str(error.value)


# ---------------------------------------------------------------- table


def test_representation_table_by_hand():
    """10 documents, 4 name women, 2 men; women lose 3, one in the first step and two in the second; the others lose one in the first."""
    women = ["she is good", "she is great", "her", "she"]
    men, others = ["he", "he is"], ["it"] * 4
    config = RepresentationConfig(min_documents=3)
    before = counted(*women, *men, *others)
    after = counted(women[0], *men, *others[1:])
    dropped = {"quality": counted(women[1], others[0]), "toxicity": counted(*women[2:])}
    rows = {(row.group, row.term): row for row in table(before, after, config, dropped)}
    assert list(rows) == [("men", ""), ("men", "he"), ("women", ""), ("women", "her"), ("women", "she")]
    row = rows["women", ""]
    assert (row.category, row.documents) == ("gender", (4, 1))
    assert row.per_million == pytest.approx((4e6 / 15, 1e6 / 9))
    assert row.sentiment == pytest.approx(((1.9 + 3.1) / 2, 1.9))
    assert (row.kept.seen, row.kept.share, row.kept.is_flagged) == (4, 0.25, True)
    assert row.kept.ratio == pytest.approx(0.25 / 0.6)
    assert (row.steps["quality"].seen, row.steps["quality"].share, row.steps["quality"].is_flagged) == (4, 0.75, False)
    assert row.steps["quality"].ratio == pytest.approx(0.75 / 0.8)
    assert (row.steps["toxicity"].seen, row.steps["toxicity"].is_flagged) == (3, True)
    assert row.steps["toxicity"].ratio == pytest.approx((1 / 3) / (6 / 8))
    assert rows["men", ""].kept.ratio == pytest.approx(1 / 0.6) and rows["men", ""].sentiment == (None, None)
    assert not rows["women", "her"].kept.is_flagged  # too few documents to say


def test_representation_table_of_a_source_and_of_nothing_kept():
    representation = Representation(RepresentationConfig(min_documents=1))
    representation.add("web", "she")
    representation.add("books", "he")
    before = representation.counts()
    assert [row.group for row in table(before, before, CONFIG, source="web")] == ["women", "women"]  # the group, its term
    [group, _] = table(before, {}, RepresentationConfig(min_documents=1), source="web")
    assert (group.documents, group.per_million[1], group.kept.ratio, group.kept.is_flagged) == ((1, 0), 0.0, None, False)
    assert table(before, before, CONFIG, source="papers") == []


# ---------------------------------------------------------------- weights


def reweighting(strength=1.0, targets=None, low=1e-6, high=1e6):
    settings = ReweightingConfig(targets=targets or {"gender": {"women": 0.5, "men": 0.5}}, strength=strength, min_weight=low, max_weight=high)
    return RepresentationConfig(reweighting=settings)


def weighted(texts, config):
    weigher = Weigher(config, weights(counted(*texts, config=config), config))
    representation = Representation(config)
    for text in texts:
        representation.add("s", text, weigher.weight_of(text))
    return representation.counts()


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_reweighting_is_the_closed_form_where_documents_name_one_group(strength):
    """6 of 8 mentions are of men: q = (3/4, 1/4), so that the shares become q^(1-s) p^s over their sum, and the mass stays 8."""
    texts = ["he and his"] * 3 + ["she"] * 2 + ["it"] * 5
    config = reweighting(strength, {"gender": {"women": 3.0, "men": 2.0}})
    unscaled = {"men": 0.75 ** (1 - strength) * 0.4**strength, "women": 0.25 ** (1 - strength) * 0.6**strength}
    expected = {group: value / sum(unscaled.values()) for group, value in unscaled.items()}
    factors = weights(counted(*texts, config=config), config)
    assert factors == pytest.approx({"gender/men": expected["men"] / 0.75, "gender/women": expected["women"] / 0.25})
    counts = weighted(texts, config)
    assert distribution(counts, "weighted")["gender"] == pytest.approx(expected, abs=1e-3)  # weights have three decimals
    assert sum(columns["weighted"] for columns in counts["s"]["groups"].values()) == pytest.approx(8000, abs=8)
    assert {row["group"]: row["target"] for row in effect(counted(*texts), counts, config)} == pytest.approx({"men": 0.4, "women": 0.6})


def mixed_texts(people, seed=5):
    random_ = random.Random(seed)
    return [" met ".join(random_.choices(people, k=random_.randint(1, 4))) for _ in range(400)]


def test_reweighting_meets_the_target_where_documents_name_several_groups():
    """The mentions of both kinds, by a loop over documents, weighed with what each document weighs."""
    texts = mixed_texts(["he"] * 7 + ["she"] * 2 + ["it"])
    config = reweighting(0.8, {"gender": {"women": 1.0, "men": 2.0}}, 0.1, 10.0)
    weigher = Weigher(config, weights(counted(*texts, config=config), config))
    mentions = {who: [text.split().count(who) for text in texts] for who in ("he", "she")}
    q = {who: sum(counts) / sum(map(sum, mentions.values())) for who, counts in mentions.items()}
    wanted = {"he": q["he"] ** 0.2 * (2 / 3) ** 0.8, "she": q["she"] ** 0.2 * (1 / 3) ** 0.8}
    sums = {who: sum(n * weigher.weight_of(text) for n, text in zip(counts, texts, strict=True)) for who, counts in mentions.items()}
    assert sums["she"] / sum(sums.values()) == pytest.approx(wanted["she"] / sum(wanted.values()), abs=5e-4)
    assert sum(sums.values()) == pytest.approx(sum(map(sum, mentions.values())), rel=1e-3)
    assert q["she"] < 0.7 * wanted["she"] / sum(wanted.values())  # so that there was something to do


def test_reweighting_mentions_together_by_brute_force():
    texts = mixed_texts(["he"] * 3 + ["she", "intersex", "it"])
    together = counted(*texts, config=reweighting(targets={"gender": "uniform"}))["s"]["together"]
    names = {"gender/men": "he", "gender/women": "she", "gender/trans_and_non_binary": "intersex"}
    assert together.keys() == names.keys()
    for one, other in itertools.product(names, names):
        expected = 0.0
        for words in map(str.split, texts):
            total = sum(words.count(name) for name in names.values())
            expected += words.count(names[one]) * words.count(names[other]) / max(total, 1)
        assert together[one][other] == pytest.approx(1e6 * expected, abs=len(texts) / 2)
    assert counted(*texts)["s"]["together"] == {}


def test_reweighting_of_several_categories_within_limits_comes_nearer():
    texts = mixed_texts(["he"] * 9 + ["she"] * 2 + ["the Christians"] * 6 + ["a Sikh", "two Hindus"])
    config = reweighting(1.0, {"gender": "uniform", "religion": "uniform"}, 0.3, 3.0)
    rows = effect(counted(*texts), weighted(texts, config), config)
    assert [(row["category"], row["group"]) for row in rows] == [
        ("gender", "men"), ("gender", "women"), ("religion", "christian"), ("religion", "hindu"), ("religion", "sikh"),
    ]  # fmt: skip
    for row in rows:
        assert abs(row["weighted"] - row["target"]) < 0.5 * abs(row["share"] - row["target"]), row


def test_reweighting_of_groups_that_are_never_named_apart_leaves_them():
    config = reweighting(targets={"gender": {"women": 1.0, "men": 3.0}})
    assert weights(counted("he and she", "she and he", config=config), config) == pytest.approx({"gender/men": 1.0, "gender/women": 1.0})


def test_reweighting_weight_of_a_document_by_hand():
    config = reweighting(targets={"gender": {"women": 1.0, "men": 1.0}, "religion": {"sikh": 1.0, "jewish": 1.0}}, low=0.5, high=4.0)
    weigher = Weigher(config, {"gender/women": 2.0, "gender/men": 0.8, "religion/sikh": 1.5})
    cases = {"it": 1.0, "she": 2.0, "he he she": 1.2, "a Sikh and she": 3.0, "a Jew": 1.0, "intersex": 1.0}
    assert {text: weigher.weight_of(text) for text in cases} == pytest.approx(cases)
    weigher = Weigher(config, {"gender/women": 2.0 / 3, "gender/men": 0.1, "religion/sikh": 9.0})
    assert (weigher.weight_of("she"), weigher.weight_of("he"), weigher.weight_of("Sikhs")) == (0.667, 0.5, 4.0)


def test_reweighting_leaves_groups_without_a_target_and_without_mentions():
    config = reweighting(targets={"religion": {"sikh": 0.5, "jewish": 0.5, "muslim": 2.0}, "gender": "uniform"})
    factors = weights(counted("a Sikh", "a Jew", "a Jew", "a Hindu", config=config), config)
    assert factors == pytest.approx({"religion/jewish": 0.75, "religion/sikh": 1.5})
    assert Weigher(config, factors).weight_of("a Hindu") == 1.0
    assert weights({}, config) == {}
    with pytest.raises(ValueError, match="made without targets for religion"):
        weights(counted("a Sikh"), config)


@pytest.mark.parametrize(
    "targets, message",
    [
        ({"gendr": "uniform"}, "targets: 'gendr' has no terms; did you mean gender?"),
        ({"gender": {"woman": 1.0}}, "targets.gender: 'woman' has no terms; did you mean women?"),
    ],
)
def test_reweighting_targets_without_terms_are_refused(targets, message):
    with pytest.raises(ConfigError) as error:
        check_targets(reweighting(targets=targets))
    assert message in str(error.value)
    check_targets(reweighting())
