"""Equal documents, paragraphs and lines, against plain loops over the whole corpus."""

import random
from collections import defaultdict

import pytest

from megagpt.config.prepare import ExactDuplicatesConfig, NearDuplicatesConfig, RepeatedLinesConfig, RepeatedParagraphsConfig
from megagpt.prepare.dedup.passages import halves, normal, paragraphs, without
from megagpt.prepare.dedup.verdicts import Verdict, cut, reason_after_cut
from tests.helpers.dedup import Item, dedup, prepare_config

DOCUMENTS = ExactDuplicatesConfig(tasks=3)
PARAGRAPHS = RepeatedParagraphsConfig(min_characters=4)
LINES = RepeatedLinesConfig(min_characters=4, min_documents=3)


def exact(**settings):
    return prepare_config(ExactDuplicatesConfig(tasks=3, **settings))


def test_dedup_exact_documents_against_a_loop(tmp_path):
    generator = random.Random(0)
    texts = [letter * length for letter in "abcdefghij" for length in (1, 2, 3)]
    shards = [[Item(f"{task}.{n}", generator.choice(texts), generator.randrange(3)) for n in range(40)] for task in range(4)]
    verdicts = dedup(tmp_path, shards, prepare_config(DOCUMENTS))
    groups = defaultdict(list)
    for item in (item for shard in shards for item in shard):
        groups[item.text].append(item)
    assert max(map(len, groups.values())) > 5 and min(map(len, groups.values())) == 1
    for members in groups.values():
        best = max(members, key=lambda item: item.quality)  # the first of several
        for item in members:
            if len(members) == 1:
                expected = Verdict()
            elif item is best:
                expected = Verdict(cluster=members[0].id)
            else:
                expected = Verdict("duplicate_document", members[0].id, best.id)
            assert verdicts[item.id] == expected


def test_dedup_exact_forgives_case_and_spacing(tmp_path):
    items = [Item("a", "Die  STRASSE\n"), Item("b", "\tdie straße"), Item("c", "die strasse."), Item("d", ""), Item("e", " \n")]
    verdicts = dedup(tmp_path, [items], prepare_config(DOCUMENTS))
    assert [name for name, verdict in verdicts.items() if verdict.reason == "duplicate_document"] == ["b", "e"]


def test_dedup_exact_takes_no_quality_for_the_lowest(tmp_path):
    items = [Item("a", "same", float("nan")), Item("b", "same", -5.0), Item("c", "same", float("nan"))]
    assert [verdict.kept for verdict in dedup(tmp_path, [items], prepare_config(DOCUMENTS)).values()] == ["b", None, "b"]


def test_dedup_hash_halves_are_the_whole_hash():
    pairs = {halves(str(number)) for number in range(1000)}
    assert len({high for high, _ in pairs}) == len({low for _, low in pairs}) == 1000
    assert max(max(pair) for pair in pairs) >= 1 << 63 and max(max(pair) for pair in pairs) < 1 << 64


@pytest.mark.parametrize("text, expected", [
    ("", []), ("\n\n", []), ("a", [(0, 1)]), ("a\nb\n\nc", [(0, 2), (3, 4)]), ("\n \na\n\t\n\nb\n", [(2, 3), (5, 6)]),
])
def test_dedup_paragraphs_are_parted_by_blank_lines(text, expected):
    assert list(paragraphs(text.split("\n"))) == expected


@pytest.mark.parametrize("cut_paragraphs, cut_lines, expected", [
    ((), (), "a\n\nb1\nb2\n\n\nc\n"), ((0,), (), "b1\nb2\n\n\nc\n"), ((1,), (), "a\n\nc\n"), ((2,), (), "a\n\nb1\nb2"), ((0, 1, 2), (), ""),
    ((), (2,), "a\n\nb2\n\n\nc\n"), ((), (3,), "a\n\nb1\n\n\nc\n"), ((), (2, 3), "a\n\nc\n"), ((0,), (6,), "b1\nb2"),
])
def test_dedup_cut_leaves_no_gap(cut_paragraphs, cut_lines, expected):
    text = "a\n\nb1\nb2\n\n\nc\n"
    assert without(text, cut_paragraphs, cut_lines) == cut(text, Verdict(paragraphs=cut_paragraphs, lines=cut_lines)) == expected


def passage_corpus() -> list[list[Item]]:
    """Documents of paragraphs that recur in other case, of lines that recur in other paragraphs."""
    generator = random.Random(1)
    shards = []
    for task in range(3):
        shard = []
        for n in range(30):
            sizes = [generator.randrange(1, 4) for _ in range(generator.randrange(1, 6))]
            blocks = ["\n".join(f"line {generator.randrange(60)}" for _ in range(size)) for size in sizes]
            blocks += [generator.choice(["Shared paragraph\nof two lines", "SHARED  paragraph of two lines", "ab", "ab"])]
            blocks += [f"only in {task}.{n}"] * generator.randrange(3)
            generator.shuffle(blocks)
            shard.append(Item(f"{task}.{n}", "\n\n".join(blocks), kind=generator.choice(["web", "web", "code"])))
        shards.append(shard)
    return shards


@pytest.mark.parametrize("kind, min_documents", [("paragraphs", 1), ("paragraphs", 2), ("paragraphs", 4), ("lines", 1), ("lines", 3), ("lines", 6)])
def test_dedup_repeated_passages_against_a_loop(tmp_path, kind, min_documents):
    shards = passage_corpus()
    rule = (RepeatedParagraphsConfig if kind == "paragraphs" else RepeatedLinesConfig)(min_characters=4, min_documents=min_documents)
    verdicts = dedup(tmp_path, shards, exact(documents=False, **{kind: rule}))
    places = defaultdict(list)
    for item in (item for shard in shards for item in shard if item.kind != "code"):
        lines = item.text.split("\n")
        texts = lines if kind == "lines" else item.text.split("\n\n")
        for position, text in enumerate(texts):
            if len(normal(text)) >= 4:
                places[normal(text)].append((item.id, position))
    expected = {(name, n) for found in places.values() if len({name for name, _ in found}) >= min_documents for name, n in found[1:]}
    assert {(name, n) for name, verdict in verdicts.items() for n in getattr(verdict, kind)} == expected
    assert len(expected) > 20
    assert any(len(found) > 1 and not set(found) & expected for found in places.values()) == (min_documents > 1), "the number of documents decides"


def test_dedup_repeated_passages_look_at_surviving_documents_only(tmp_path):
    """The first to have the paragraph is a worse copy; the paragraph is not lost with it. Nor with a near-duplicate."""
    shared = "a paragraph that several documents have"
    words = " ".join(f"w{number}" for number in range(60))
    items = [
        Item("worse", f"{shared}\n\nBODY", 0), Item("better", f"{shared}\n\nbody", 1),
        Item("near", f"{words} x\n\n{shared} too", 0), Item("best", f"{words}\n\n{shared} too", 1),
        Item("third", f"{shared}\n\n{shared} too\n\nother"),
    ]
    config = prepare_config(ExactDuplicatesConfig(tasks=3, paragraphs=PARAGRAPHS), NearDuplicatesConfig(tasks=2))
    verdicts = dedup(tmp_path, [items[:3], items[3:]], config)
    assert [verdict.reason for verdict in verdicts.values()] == ["duplicate_document", None, "near_duplicate", None, None]
    assert [verdict.paragraphs for verdict in verdicts.values()] == [(), (), (), (), (0, 1)]


def test_dedup_cuts_are_judged_by_what_is_left(tmp_path):
    texts = {"a": "boilerplate here\nfirst text", "b": "boilerplate here\nsecond", "c": "boilerplate here\nc\nboilerplate  here", "d": "short"}
    items = [Item(name, text) for name, text in texts.items()]
    config = exact(lines=LINES, min_characters_left=5)
    verdicts = dedup(tmp_path, [items], config)
    left = {item.id: cut(item.text, verdicts[item.id]) for item in items}
    assert left == {"a": items[0].text, "b": "second", "c": "c", "d": "short"}
    rule = config.steps.exact_duplicates
    assert [reason_after_cut(text, verdicts[name], rule) for name, text in left.items()] == [None, None, "duplicate_paragraphs", None]
    assert reason_after_cut("", Verdict(), rule) is None, "short by itself: not for us to say"
    assert reason_after_cut("", Verdict(lines=(0,)), None) is None
