"""Partial orders against brute force over all ways, and from file to groups."""

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megagpt.config.schema import RecordsConfig
from megagpt.data.errors import DataError
from megagpt.data.formats import Dropped, UnknownMark, to_rankings
from megagpt.data.partial_order import find_circle, longest_chains
from megagpt.data.ranking import EncodedGroup, load_rankings, pairs_of, ranked_pairs
from megagpt.data.records import Ranking, read_prompts, read_rankings, to_row
from megagpt.reward.report import annotator_agreement, mean_tau_b
from megagpt.tokenizer.train import train_tokenizer

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
PROMPT = [{"role": "user", "content": "Which?"}]
ROW = {"prompt": PROMPT, "answers": ["a", "b", "c", "d"], "pairs": [[2, 0], [0, 3]]}


def some_pairs(size: int, seed: int) -> list[tuple[int, int]]:
    """An order without a circle: pairs go from a smaller to a larger place of a shuffled row."""
    generator = np.random.default_rng([size, seed])
    row = generator.permutation(size).tolist()
    return [(row[i], row[j]) for i, j in itertools.combinations(range(size), 2) if generator.random() < 0.4]


def all_ways(pairs: list[tuple[int, int]], start: int, length: int = 0) -> list[tuple[int, int]]:
    """(end, comparisons) of every way down from `start`, longer than none."""
    steps = [(worse, length + 1) for better, worse in pairs if better == start]
    return steps + [way for worse, so_far in steps for way in all_ways(pairs, worse, so_far)]


@pytest.mark.parametrize("size", range(2, 8))
def test_partial_order_closure_and_longest_chains_equal_brute_force(size):
    for seed in range(10):
        pairs = some_pairs(size, seed)
        expected: dict[tuple[int, int], int] = {}
        for start in range(size):
            for end, length in all_ways(pairs, start):
                expected[start, end] = max(expected.get((start, end), 0), length)
        assert longest_chains(pairs) == expected and find_circle(pairs) is None


def test_partial_order_of_ranks_written_as_pairs_or_as_neighbours_is_the_ranking():
    """The same pairs for training, and the same distances for a margin."""
    ranks = (1, 0, 2, 2, 4)
    by_ranks = Ranking(tuple(PROMPT), tuple("abcde"), ranks)
    everything, neighbours = ((tuple(pairs)) for pairs in (ranked_pairs(ranks), [(1, 0), (0, 2), (0, 3), (2, 4), (3, 4)]))
    groups = [EncodedGroup((), tuple(pairs_of(record)), record) for record in (by_ranks, *(replace(by_ranks, ranks=(), pairs=p) for p in (everything, neighbours)))]
    first, *others = ({pair: distance for pair, distance in zip(group.pairs, group.distances, strict=True)} for group in groups)
    assert first == {(0, 2): 1, (0, 3): 1, (0, 4): 2, (1, 0): 1, (1, 2): 2, (1, 3): 2, (1, 4): 3, (2, 4): 1, (3, 4): 1} == others[0] == others[1]


def write(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_partial_order_goes_from_file_to_groups_without_the_answers_that_nobody_compared(tmp_path):
    file = write(tmp_path / "r.jsonl", ROW | {"weight": 2, "annotator": "ann"})
    (record,) = read_rankings(file)
    assert (record.pairs, record.ranks, record.weight) == (((2, 0), (0, 3)), (), 2.0)
    assert read_rankings(write(tmp_path / "again.jsonl", to_row(replace(record, slice="r")))) == [record]
    assert [prompt.prompt for prompt in read_prompts(file)] == [tuple(PROMPT)]
    tokenizer = train_tokenizer(["question number one, answer; " * 20], 290, tmp_path / "tokenizer")
    (group,) = load_rankings(RecordsConfig(train=[file], valid=[file], max_length=16), tokenizer)[0].train
    assert group.answers == ["a", "c", "d"] and len(group.rows) == 3
    assert dict(zip(group.pairs, group.distances, strict=True)) == {(1, 0): 1, (0, 2): 1, (1, 2): 2}  # c > a > d, and so c > d


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"pairs": [[0, 1], [1, 2], [3, 1], [2, 0]]}, r"pairs go in a circle: answer (0 > 1 > 2 > 0|1 > 2 > 0 > 1|2 > 0 > 1 > 2); in an order no answer"),
        ({"pairs": [[0, 1], [1, 0]]}, r"pairs go in a circle: answer (0 > 1 > 0|1 > 0 > 1)"),
        ({"pairs": [[0, 1], [0, 4]]}, r"pairs\[1\] is \[0, 4\], must be \[better, worse\], places of two answers from 0 to 3"),
        ({"pairs": [[1, 1]]}, r"pairs\[0\] is \[1, 1\], must be"),
        ({"pairs": [["a", "b"]]}, r"pairs\[0\] is \['a', 'b'\], must be"),
        ({"pairs": [[True, False]]}, r"pairs\[0\] is \[True, False\], must be"),
        ({"pairs": [[0, 1, 2]]}, r"pairs\[0\] is \[0, 1, 2\], must be"),
        ({"pairs": "0>1"}, r"pairs is '0>1'; each of a list of them must be"),
        ({"ranks": [0, 1, 2, 3]}, "ranks and pairs: both are given; one of them must give the order"),
        ({"answers": ["a"], "pairs": [[0, 1]]}, "a ranking of 1 answer; it takes two or more"),
    ],
)
def test_partial_order_that_is_none_is_refused_in_one_line(change, rule, tmp_path):
    with pytest.raises(DataError, match=rf"r.jsonl:1: {rule}") as error:
        read_rankings(write(tmp_path / "r.jsonl", ROW | change))
    assert "\n" not in str(error.value)


def test_partial_order_of_no_use_is_dropped_and_counted(tmp_path):
    dropped, changes = Counter(), ({"answers": ["a", "a", "b", "c"]}, {"answers": ["a", " ", "b", "c"]}, {"pairs": []})
    read_rankings(write(tmp_path / "r.jsonl", ROW, *(ROW | change for change in changes)), dropped)
    assert dropped == {"two answers are equal": 1, "empty answer": 1, "no answer is preferred to another": 1}


# ---------------------------------------------------------------- PandaLM's judgements by question


def judged(*texts, pairs) -> dict:
    return {"instruction": "Add", "input": "1 2", "responses": [{"model": f"m{i}", "text": text} for i, text in enumerate(texts)], "pairs": pairs}


def test_judged_group_gives_a_partial_order_for_each_annotator():
    made = list(to_rankings(judged("3", "4", "5", pairs=[["m0", "m1", [1, 2, 0]], ["m2", "m0", [2, 2, 0]]])))
    assert made[-1] == Dropped("no answer is preferred to another")
    assert [(order["annotator"], order["pairs"]) for order in made[:2]] == [("annotator1", [[0, 1], [0, 2]]), ("annotator2", [[1, 0], [0, 2]])]
    assert all((order["answers"], order["prompt"][0]["content"]) == (["3", "4", "5"], "Add\n\n1 2") for order in made[:2])


def test_judged_group_with_equal_answers_circles_and_other_values():
    equal = judged("3", "4", "3", pairs=[["m0", "m1", [1]], ["m2", "m1", [1]], ["m0", "m2", [1]]])
    assert list(to_rankings(equal))[0] == Dropped("two answers are equal")  # the pair of the two, not the group
    assert list(to_rankings(equal))[1] == {"prompt": [{"role": "user", "content": "Add\n\n1 2"}], "answers": ["3", "4"], "pairs": [[0, 1]], "annotator": "annotator1"}
    circle = judged("3", "4", "5", pairs=[["m0", "m1", [1]], ["m1", "m2", [1]], ["m0", "m2", [2]]])
    assert list(to_rankings(circle)) == [Dropped("judgements go in a circle")]
    assert list(to_rankings(judged("3", True, pairs=[["m0", "m1", [1]]]))) == [Dropped("a response is not a text")]


@pytest.mark.parametrize(
    ("pair", "rule"),
    [
        (["m0", "m1", [3]], r"mark 3 must be 0 \(tie\), 1 or 2"),
        (["m0", "m1", ["tie"]], "mark 'tie' must be 0"),
        (["m0", "m9", [1]], "'m9' is none of the responses' models"),
        (["m0", "m1", 1], r"must be \[model, model, marks\]"),
        (["m0", "m1"], r"must be \[model, model, marks\]"),
        (["m0", ["m1"], [1]], r"\['m1'\] is none of the responses' models"),
    ],
)
def test_judged_group_with_unknown_marks_is_refused(pair, rule):
    with pytest.raises(UnknownMark, match=rule):
        list(to_rankings(judged("3", "4", pairs=[["m0", "m1", [1]], pair])))


@pytest.mark.parametrize("model", [None, 3, ["m"], "m0"])
def test_judged_group_needs_models_of_different_names(model):
    row = judged("3", "4", pairs=[["m0", "m0", [1]]])
    row["responses"][1]["model"] = model
    with pytest.raises(UnknownMark, match="a response's model is .*, must be a name of its own"):
        list(to_rankings(row))


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
def test_pandalm_groups_load_with_their_known_defects():
    """126 questions, three annotators."""
    dropped = Counter()
    records = read_rankings(SHARED / "pandalm_human" / "kway_derived.jsonl", dropped)
    assert Counter(record.annotator for record in records) == {"annotator1": 112, "annotator2": 110, "annotator3": 112}
    groups_lost = {"empty answer": 18, "no answer is preferred to another": 17, "judgements go in a circle": 6, "a response is not a text": 3}
    assert dropped == groups_lost | {"two answers are equal": 39} and len(records) + sum(groups_lost.values()) == 3 * 126
    assert (sum(len(record.pairs) for record in records), sum(len(pairs_of(record)) for record in records)) == (1715, 1768)


# ---------------------------------------------------------------- in the reward stage's report


def test_partial_orders_are_left_out_where_ties_count():
    record = Ranking(tuple(PROMPT), tuple("abc"), (), ((0, 1), (1, 2)), annotator="ann")
    by_ranks = Ranking(tuple(PROMPT), tuple("abc"), (0, 1, 2), annotator="bob")
    groups = [EncodedGroup((), tuple(pairs_of(one)), one) for one in (record, by_ranks)]
    tau = mean_tau_b(groups, [[3.0, 1.0, 2.0], [3.0, 2.0, 1.0]])
    assert (tau["value"], tau["rankings"]) == (1.0, 1)
    assert annotator_agreement([record, by_ranks]) is None
