"""Public row shapes, on rows made here and on the real files."""

import json
import random
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from megagpt.data.errors import DataError
from megagpt.data.formats import Dropped, UnknownShape, to_demonstrations, to_prompts, to_rankings
from megagpt.data.records import read_demonstrations, read_documents, read_prompts, read_rankings

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")

MESSAGE = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
SCHEMA = pyarrow.schema([("messages", pyarrow.list_(MESSAGE)), ("source", pyarrow.string())])


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def hh(*turns):
    return "".join(f"\n\n{turn}" for turn in turns)


ASKED = hh("Human: Why?", "Assistant: What?", "Human: Well, why?")


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [user("q"), assistant("a"), user("bye")]}, [user("q"), assistant("a")]),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            [user("q"), assistant("a")],
        ),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, [user("Add\n\n1 2"), assistant("3")]),
        (
            {"system": "Be kind.", "conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            [{"role": "system", "content": "Be kind."}, user("q"), assistant("a")],
        ),
        ({"instruction": "Add", "input": "", "output": "3"}, [user("Add"), assistant("3")]),
        ({"instruction": "Add", "input": "<noinput>", "output": "3"}, [user("Add"), assistant("3")]),
        (
            {"instruction": "Now 3", "input": "", "output": "6", "system": "Double.", "history": [["2", "4"]]},
            [{"role": "system", "content": "Double."}, user("2"), assistant("4"), user("Now 3"), assistant("6")],
        ),
        ({"prompt": "q", "completion": "a<|endoftext|>", "_template": "t"}, [user("q"), assistant("a")]),
        ({"chosen": hh("Human: q", "Assistant: a"), "rejected": "-"}, [user("q"), assistant("a")]),
    ],
    ids=["ours", "sharegpt", "sharegpt-system", "alpaca", "alpaca-no-input", "alpaca-noinput-mark", "alpaca-history", "t0", "hh"],
)
def test_demonstration_shapes(row, messages):
    assert [made["messages"] for made in to_demonstrations(row)] == [messages]
    assert list(to_prompts(row)) == [{"prompt": messages[:-1]}]


def test_self_instruct_gives_a_demonstration_an_instance():
    instances = [{"input": "x", "output": "1"}, {"input": "", "output": "2"}]
    row = {"id": "seed_task_0", "instruction": "Do", "instances": instances}
    made = list(to_demonstrations(row))
    assert [demonstration["messages"][0]["content"] for demonstration in made] == ["Do\n\nx", "Do"]


def test_evaluation_only_tasks_are_never_demonstrations():
    row = {"id": "user_oriented_task_3", "instruction": "Do", "instances": [{"input": "", "output": "x"}]}
    assert list(to_demonstrations(row)) == [Dropped("evaluation only")]


def test_hh_pair_shares_the_prompt():
    row = {"chosen": ASKED + hh("Assistant: good"), "rejected": ASKED + hh("Assistant: bad ")}
    prompt = [user("Why?"), assistant("What?"), user("Well, why?")]
    assert list(to_rankings(row)) == [{"prompt": prompt, "answers": ["good", "bad"], "ranks": [0, 1]}]


def test_hh_conversation_may_begin_without_blank_lines():
    """As copies do whose texts were stripped; the first turn is a turn and no system message."""
    row = {"chosen": (ASKED + hh("Assistant: good")).strip(), "rejected": (ASKED + hh("Assistant: bad")).strip()}
    (made,) = to_rankings(row)
    assert [message["role"] for message in made["prompt"]] == ["user", "assistant", "user"] and made["prompt"][0] == user("Why?")
    (made,) = to_rankings({side: f"Be kind.{text}" for side, text in row.items()})  # a name within a text's first line is none
    assert made["prompt"][0] == {"role": "system", "content": "Be kind.Human: Why?"}


def test_hh_repeated_speaker_is_one_message():
    row = {"chosen": ASKED + hh("Assistant: one", "Assistant: two"), "rejected": ASKED + hh("Assistant: bad")}
    (pair,) = to_rankings(row)
    assert pair["answers"] == ["one\n\ntwo", "bad"]


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (ASKED + hh("Assistant: same"), ASKED + hh("Assistant: same "), "two answers are equal"),
        (ASKED + hh("Assistant: good"), ASKED + hh("Assistant: "), "empty answer"),
        (ASKED + hh("Assistant: good"), ASKED, "ends without an answer"),
        (ASKED + hh("Assistant: good"), "", "ends without an answer"),
        (
            ASKED + hh("Assistant: good"),
            ASKED.replace("What", "Huh") + hh("Assistant: bad"),
            "the two conversations part before the last answer",
        ),
    ],
)
def test_hh_defects_are_dropped_with_a_reason(chosen, rejected, reason):
    assert list(to_rankings({"chosen": chosen, "rejected": rejected})) == [Dropped(reason)]


def test_pairs_with_a_prompt_of_their_own():
    expected = [{"prompt": [user("q")], "answers": ["good", "bad"], "ranks": [0, 1]}]
    assert list(to_rankings({"prompt": "q", "chosen": "good", "rejected": "bad"})) == expected
    messages = {"chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]}
    assert list(to_rankings({"prompt": [user("q")]} | messages)) == expected


def message(text, role, replies=(), **more):
    return {"text": text, "role": role, "replies": list(replies)} | more


TREE = {
    "message_tree_id": "t",
    "prompt": message(
        "q",
        "prompter",
        [
            message("worse", "assistant", rank=1),
            message("better", "assistant", [message("more", "prompter")], rank=0),
            message("machine", "assistant", [message("x", "prompter")], rank=2, synthetic=True),
            message("gone", "assistant", rank=3, deleted=True),
        ],
    ),
}


def test_tree_gives_human_answers_and_their_ranking():
    assert [made["messages"][-1]["content"] for made in to_demonstrations(TREE)] == ["worse", "better"]
    expected = {"prompt": [user("q")], "answers": ["better", "worse"], "ranks": [0, 1]}
    assert list(to_rankings(TREE)) == [expected]
    assert list(to_prompts(TREE)) == [{"prompt": [user("q")], "id": "t"}]


def test_tree_learns_each_answer_but_repeats_none_that_goes_on():
    longer = message("q", "prompter", [message("a", "assistant", [message("more", "prompter", [message("b", "assistant"), message("c", "assistant")])])])
    made = [[turn["content"] for turn in row["messages"]] for row in to_demonstrations({"message_tree_id": "t", "prompt": longer})]
    assert made == [["q", "a", "more", "b"], ["q", "a", "more", "c"]]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "empty conversation"),
        ([user("q")], "no answer"),
        ([assistant("a")], "starts with an answer"),
        ([{"role": "system", "content": "s"}, user("q")], "no answer"),
    ],
)
def test_conversations_without_anything_to_imitate_are_dropped_with_a_reason(messages, reason):
    assert list(to_demonstrations({"messages": messages})) == [Dropped(reason)]
    turns = [{"from": turn["role"], "value": turn["content"]} for turn in messages]
    assert list(to_demonstrations({"conversations": turns})) == [Dropped(reason)]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"messages": [user("q"), {"role": "robot", "content": "a"}]}, r"messages\[1\].role is 'robot', must be one of system, user, assistant"),
        ({"messages": [user("q"), assistant("a"), {"role": "tool", "content": "x"}]}, r"messages\[2\].role is 'tool'"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "bing", "value": "a"}]}, r"messages\[1\].role is 'bing'"),
        ({"messages": [user("q"), "a"]}, r"messages\[1\] must be an object with role and content"),
        ({"messages": "q"}, "messages must be a list of messages, found str"),
        ({"messages": [user("q"), assistant(3)]}, r"messages\[1\].content must be a text, found int"),
        ({"conversations": [{"from": ["human"], "value": "q"}]}, r"messages\[0\].role is \['human'\]"),
        ({"conversations": [3]}, "unknown shape of a turn: int"),
        ({"instruction": "i", "output": "o", "history": ["q"]}, "unknown shape of a history of .question, answer.: list"),
        ({"prompt": None, "completion": "a"}, "unknown shape of a demonstration: keys prompt, completion"),
    ],
)
def test_malformed_conversations_are_refused_with_file_line_and_place(row, line, tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps({"messages": [user("q"), assistant("a")]}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=f"bad.jsonl:2: {line}"):
        read_demonstrations(file)


GOOD = [
    {"messages": [user("q"), assistant("a")], "source": "s"},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
    {"instruction": "i", "instances": [{"input": "", "output": "o"}], "id": "seed_task_1"},
    {"instruction": "i", "input": "x", "output": "o", "history": [["q", "a"]]},
    {"prompt": "q", "completion": "a"},
    {"chosen": ASKED + hh("Assistant: good"), "rejected": ASKED + hh("Assistant: bad")},
    {"message_tree_id": "t", "prompt": {"role": "prompter", "text": "q", "replies": [{"role": "assistant", "text": "a", "replies": []}]}},
]
ODD = [None, 1, -1.5, True, "", "q", [], {}, [None], [[]], ["q", 3], {"role": "assistant"}, [{"from": None, "value": []}], "\n\nAssistant: a"]


def one_value_replaced(value, generator: random.Random):
    """A copy in which some value, perhaps the whole, is an odd one."""
    if not value or not isinstance(value, (list, dict)) or generator.random() < 0.1:
        return generator.choice(ODD)
    changed = value.copy()
    place = generator.choice(list(value) if isinstance(value, dict) else range(len(value)))
    changed[place] = one_value_replaced(value[place], generator)
    return changed


@pytest.mark.parametrize("read", [read_demonstrations, read_prompts])
def test_rows_with_an_odd_value_are_read_or_refused_in_one_line(read, tmp_path):
    generator, file, outcomes = random.Random(4), tmp_path / "odd.jsonl", Counter()
    for _ in range(600):
        file.write_text(json.dumps(one_value_replaced(generator.choice(GOOD), generator)) + "\n")
        try:
            outcomes["read"] += len(read(file)) > 0
        except DataError as refused:
            outcomes["refused"] += 1
            assert str(refused).startswith(str(file)) and "\n" not in str(refused)
    assert min(outcomes["read"], outcomes["refused"]) > 50, outcomes


def test_messages_load_from_parquet_as_from_jsonl(tmp_path):
    rows = [{"messages": [user("q"), assistant("a"), user("r"), assistant("b")]}, {"messages": [user("é\n"), assistant("c")], "source": "here"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, SCHEMA), tmp_path / "d.parquet")
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from_parquet, from_jsonl = (read_demonstrations(tmp_path / f"d.{kind}") for kind in ("parquet", "jsonl"))
    assert from_parquet == from_jsonl
    assert [len(made.messages) for made in from_parquet] == [4, 2]


def test_context_and_ranked_replies():
    row = {
        "context": [{"role": "prompter", "text": "q"}],
        "ranked": [{"text": "b", "rank": 1}, {"text": "a", "rank": 0}, {"text": "c", "rank": 1}],
    }
    assert list(to_rankings(row)) == [{"prompt": [user("q")], "answers": ["b", "a", "c"], "ranks": [1, 0, 1]}]


def test_judged_pair_gives_a_ranking_for_each_annotator():
    row = {"instruction": "Add", "input": "1 2", "response1": "3", "response2": "4", "annotator1": 1, "annotator2": 2, "annotator3": 0}
    made = list(to_rankings(row))
    assert [(ranking["annotator"], ranking["ranks"]) for ranking in made] == [("annotator1", [0, 1]), ("annotator2", [1, 0]), ("annotator3", [0, 0])]
    assert all((ranking["prompt"], ranking["answers"]) == ([user("Add\n\n1 2")], ["3", "4"]) for ranking in made)
    assert list(to_rankings(row | {"response2": True})) == [Dropped("a response is not a text")] * 3


@pytest.mark.parametrize("read", [to_demonstrations, to_rankings, to_prompts])
@pytest.mark.parametrize("row", [{"instruction": "Do", "response1": "a", "response2": "b"}, None, 3, [], {}, {"turns": ["q"]}, {"context": "q", "ranked": []}])
def test_other_rows_are_an_unknown_shape(read, row):
    with pytest.raises(UnknownShape):
        list(read(row))


def test_tree_with_ranks_that_are_none_is_refused_by_name(tmp_path):
    replies = [message("a", "assistant", rank=0), message("b", "assistant", rank="best")]
    (tmp_path / "t.jsonl").write_text(json.dumps({"message_tree_id": "t", "prompt": message("q", "prompter", replies)}) + "\n")
    with pytest.raises(DataError, match="t.jsonl:1: rank 'best' must be an integer from 0"):
        read_rankings(tmp_path / "t.jsonl")


@pytest.mark.parametrize("inner", [{"replies": "x"}, {"replies": [3]}])
def test_malformed_trees_are_an_unknown_shape(inner):
    row = {"message_tree_id": "t", "prompt": {"text": "q", "role": "prompter"} | inner}
    with pytest.raises(UnknownShape, match="unknown shape of a"):
        list(to_rankings(row))


@needs_shared
def test_hh_helpful_base_loads_with_its_known_defects():
    dropped = Counter()
    rankings = read_rankings(SHARED / "hh_rlhf" / "helpful-base.jsonl.gz", dropped)
    assert len(rankings) == 1864
    assert dropped == {"empty answer": 3, "two answers are equal": 1}
    assert {ranking.slice for ranking in rankings} == {"helpful-base"}


@needs_shared
@pytest.mark.parametrize("subset", ["helpful-base", "helpful-online", "helpful-rejection-sampled", "harmless-base"])
def test_hh_rows_are_kept_or_counted(subset):
    dropped = Counter()
    rankings = read_rankings(SHARED / "hh_rlhf" / f"{subset}.jsonl.gz", dropped)
    assert (
        len(rankings) + dropped.total()
        == {
            "helpful-base": 1868,
            "helpful-online": 917,
            "helpful-rejection-sampled": 2168,
            "harmless-base": 1813,
        }[subset]
    )
    assert all(ranking.prompt[-1]["role"] == "user" for ranking in rankings)


@needs_shared
def test_oasst_rankings_and_trees_agree():
    rankings = read_rankings(SHARED / "oasst_trees" / "kway_rankings.jsonl")
    assert len(rankings) == 165
    assert Counter(len(ranking.answers) for ranking in rankings)[3] == 93
    from_trees = read_rankings(SHARED / "oasst_trees" / "trees.jsonl")
    assert {(str(r.prompt), r.answers, r.ranks) for r in from_trees} == {
        (str(r.prompt), r.answers, r.ranks) for r in rankings
    }


@needs_shared
def test_pandalm_pairs_load_with_their_known_defects():
    dropped = Counter()
    rankings = read_rankings(SHARED / "pandalm_human" / "pairs.jsonl", dropped)
    assert Counter(ranking.annotator for ranking in rankings) == dict.fromkeys(["annotator1", "annotator2", "annotator3"], 735)
    assert dropped == {"empty answer": 3 * 41, "a response is not a text": 3 * 6}


@needs_shared
def test_oasst_trees_give_every_human_answer():
    dropped = Counter()
    demonstrations = read_demonstrations(SHARED / "oasst_trees" / "trees.jsonl", dropped)
    assert dropped == {"synthetic": 4}
    answers = Counter(
        str(made.messages[: end + 1]) for made in demonstrations for end, turn in enumerate(made.messages) if turn["role"] == "assistant"
    )
    assert (len(demonstrations), len(answers)) == (438, 550)


@needs_shared
@pytest.mark.parametrize(
    ("subset", "kept", "empty"),
    [("helpful-base", 1867, 1), ("helpful-online", 916, 1), ("helpful-rejection-sampled", 2168, 0), ("harmless-base", 1809, 4)],
)
def test_hh_chosen_conversations_are_demonstrations(subset, kept, empty):
    dropped = Counter()
    demonstrations = read_demonstrations(SHARED / "hh_rlhf" / f"{subset}.jsonl.gz", dropped)
    assert (len(demonstrations), dropped["empty message"], dropped.total()) == (kept, empty, empty)
    assert all(made.messages[-1]["role"] == "assistant" for made in demonstrations)


@needs_shared
def test_seed_tasks_sharegpt_t0_and_prompt_list_load_whole():
    assert len(read_demonstrations(SHARED / "sft_self_instruct" / "seed_tasks.jsonl")) == 175
    assert len(read_demonstrations(SHARED / "fastchat" / "dummy_conversation.json.gz")) == 500
    assert len(read_demonstrations(SHARED / "sft_t0_sample" / "t0_sample.jsonl.gz")) == 2348
    assert len(read_prompts(SHARED / "oasst_prompts" / "prompt_lottery_en_250_text.jsonl")) == 250
    assert len(list(read_documents(SHARED / "pretrain_c4" / "c4_demo.jsonl.gz"))) == 300


@needs_shared
def test_evaluation_only_file_is_refused_for_training():
    with pytest.raises(DataError, match="evaluation only: 252"):
        read_demonstrations(SHARED / "sft_self_instruct" / "EVAL_ONLY_user_oriented_instructions.jsonl")
