"""Rows, groups and prompts to tensors."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from megagpt.config.schema import PromptsConfig, RecordsConfig
from megagpt.data.batch import EncodedRow, collate, encoded_row
from megagpt.data.conversation import load_demonstrations
from megagpt.data.errors import DataError
from megagpt.data.prompts import load_prompts, prompt_number
from megagpt.data.ranking import load_rankings, load_single_answers, ranked_pairs, read_ranking_split
from megagpt.data.split import prompt_key
from megagpt.tokenizer.chat import encode_chat
from megagpt.tokenizer.train import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(["question number one, answer; " * 20], 290, tmp_path_factory.mktemp("batch"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def conversation(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_collate_shifts_and_pads_on_the_right():
    rows = [encoded_row([5, 6, 7], [0, 0, 1]), encoded_row([8], [1])]
    batch = collate(rows, [10, 11], 4, pad_id=0)
    assert batch.tokens.tolist() == [[5, 6, 7, 0], [8, 0, 0, 0]]
    assert batch.labels.tolist() == [[6, 7, 0, 0], [0, 0, 0, 0]]
    assert batch.loss_mask.tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]
    assert batch.row_ids.tolist() == [10, 11]
    assert (batch.tokens.dtype, batch.labels.dtype, batch.loss_mask.dtype) == (torch.int64, torch.int64, torch.float32)


def test_collate_takes_packed_rows_of_one_more_token():
    batch = collate([encoded_row([1, 2, 3, 4, 5])], [0], 4, pad_id=0)
    assert batch.tokens.tolist() == [[1, 2, 3, 4]]
    assert batch.labels.tolist() == [[2, 3, 4, 5]]
    assert batch.loss_mask.sum() == 4


def test_collate_refuses_longer_rows():
    with pytest.raises(ValueError, match="row 7 has 6 tokens, a batch of length 4 takes 5"):
        collate([encoded_row([1] * 6)], [7], 4, pad_id=0)


def test_batches_move_as_a_whole():
    batch = collate([encoded_row([1, 2])], [0], 2, pad_id=0).to("meta")
    assert {batch.tokens.device.type, batch.labels.device.type, batch.loss_mask.device.type} == {"meta"}


def test_collate_keeps_the_segments_of_rows_that_have_them():
    rows = [EncodedRow(np.arange(5), np.ones(5, np.float32), np.array([0, 0, 1, 1, 2])), encoded_row([1, 2]), encoded_row([1])]
    rows.append(EncodedRow(np.arange(3), np.ones(3, np.float32), np.array([0, 1, 1])))
    batch = collate(rows, range(4), 4, pad_id=0)
    # The last token of a full row is a label only; padding belongs to the last document.
    assert batch.segments.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1]]
    assert batch.to("meta").segments.device.type == "meta"
    assert collate(rows[1:3], range(2), 4, pad_id=0).to("meta").segments is None


def test_demonstrations_are_encoded_with_the_answer_as_target(tokenizer, tmp_path):
    file = write(tmp_path / "d.jsonl", [conversation("question", "answer")])
    config = RecordsConfig(train=[file], valid=[file], max_length=64)
    split, dropped = load_demonstrations(config, tokenizer)
    (row,) = split.train
    assert tokenizer.decode(row.tokens[row.loss_mask == 1], show_special=True) == "answer<|end|>"
    assert not dropped


def test_every_answer_of_a_conversation_is_a_target_and_nothing_else(tokenizer, tmp_path):
    hh = {"chosen": "\n\nHuman: one\n\nAssistant: answer\n\nHuman: number\n\nAssistant: two", "rejected": "-"}
    told = {"messages": [{"role": "system", "content": "tone"}, *conversation("question", "answer; one")["messages"]]}
    file = write(tmp_path / "d.jsonl", [hh, told])
    split, _ = load_demonstrations(RecordsConfig(train=[file], valid=[file], max_length=64), tokenizer)
    targets = [tokenizer.decode(row.tokens[row.loss_mask == 1], show_special=True) for row in split.train]
    assert targets == ["answer<|end|>two<|end|>", "answer; one<|end|>"]
    others = [tokenizer.decode(row.tokens[row.loss_mask == 0], show_special=True) for row in split.train]
    assert others == ["<|user|>one<|end|><|assistant|><|user|>number<|end|><|assistant|>", "<|system|>tone<|end|><|user|>question<|end|><|assistant|>"]


def test_what_generation_starts_from_is_what_training_puts_before_the_answer(tokenizer, tmp_path):
    """PPO's prompts, SFT's rows and the reward model's rows of one conversation."""
    asked = [{"role": "system", "content": "tone"}, *conversation("one", "answer")["messages"], {"role": "user", "content": "number\n"}]
    demonstration = write(tmp_path / "d.jsonl", [{"messages": [*asked, {"role": "assistant", "content": " answer two"}]}])
    ranking = write(tmp_path / "r.jsonl", [{"prompt": asked, "answers": [" answer two", "one"], "ranks": [0, 1]}])
    prompts = write(tmp_path / "p.jsonl", [{"id": "p", "prompt": asked}, {"id": "q", "prompt": conversation("other", "")["messages"][:1]}])
    sets = load_prompts(PromptsConfig(files=[prompts], max_prompt_length=64, max_response_length=8, eval_prompts=1), tokenizer)
    (prompt,) = [prompt for prompt in [*sets.train, *sets.evaluation] if prompt.record.id == "p"]
    (row,) = load_demonstrations(RecordsConfig(train=[demonstration], valid=[demonstration], max_length=64), tokenizer)[0].train
    (group,) = load_rankings(RecordsConfig(train=[ranking], valid=[ranking], max_length=64), tokenizer)[0].train
    start = len(prompt.tokens)
    assert row.tokens[:start].tolist() == list(prompt.tokens)
    assert group.rows[0].tokens.tolist() == row.tokens.tolist()
    assert tokenizer.decode(row.tokens[start:], show_special=True) == " answer two<|end|>" and row.loss_mask[start:].all()


def test_demonstrations_without_a_held_out_file_are_split_by_question(tokenizer, tmp_path):
    rows = [conversation(f"question {i // 2}", f"answer {i}") for i in range(200)]
    file = write(tmp_path / "d.jsonl", rows)
    split, _ = load_demonstrations(RecordsConfig(train=[file], valid_fraction=0.2, max_length=64), tokenizer)
    assert len(split.train) + len(split.valid) == 200
    assert 20 <= len(split.valid) <= 60
    questions = [{tokenizer.decode(row.tokens[row.loss_mask == 0]) for row in side} for side in split]
    assert not questions[0] & questions[1]


def test_overlong_conversation_is_refused_with_file_and_line(tokenizer, tmp_path):
    file = write(tmp_path / "d.jsonl", [conversation("q", "a"), conversation("q", "answer " * 50)])
    with pytest.raises(DataError, match=r"d.jsonl:2: \d+ tokens, max_length is 40"):
        load_demonstrations(RecordsConfig(train=[file], valid=[file], max_length=40), tokenizer)


def test_overlong_conversation_is_dropped_and_counted(tokenizer, tmp_path):
    file = write(tmp_path / "d.jsonl", [conversation("q", "a"), conversation("q", "answer " * 50)])
    config = RecordsConfig(train=[file], valid=[file], max_length=40, overlong="drop")
    split, dropped = load_demonstrations(config, tokenizer)
    assert (len(split.train), len(split.valid)) == (1, 1)
    assert dropped == {"longer than max_length": 2}
    with pytest.raises(DataError, match="no record is left for train"):
        load_demonstrations(config.model_copy(update={"max_length": 2}), tokenizer)


def test_overlong_conversation_keeps_its_beginning_or_is_dropped_where_no_answer_begins(tokenizer, tmp_path):
    long = conversation("q", "answer " * 50)
    two_turns = {"messages": [*conversation("q", "a")["messages"], *conversation("question " * 30, "answer")["messages"]]}
    file = write(tmp_path / "d.jsonl", [conversation("q", "a"), long, two_turns, conversation("question " * 50, "a")])
    config = RecordsConfig(train=[file], valid=[file], max_length=40, overlong="truncate")
    split, dropped = load_demonstrations(config, tokenizer)
    assert dropped == {"no answer within max_length": 2}  # once for each side
    short, cut, first_turn = split.train
    whole, mask = encode_chat(tokenizer, long["messages"])
    assert len(whole) > 40 and cut.tokens.tolist() == whole[:40] and cut.loss_mask.tolist() == mask[:40]
    assert tokenizer.special_ids["<|end|>"] not in cut.tokens[cut.loss_mask == 1]  # nobody learns that the answer ends here
    assert len(first_turn) == 40 and tokenizer.decode(first_turn.tokens[first_turn.loss_mask == 1], show_special=True).strip() == "a<|end|>"
    assert len(short) < 40 and [len(row) for row in split.valid] == [len(row) for row in split.train]


def test_overlong_conversation_that_is_cut_right_before_its_answer_has_nothing_to_learn(tokenizer, tmp_path):
    record = conversation("question", "answer")
    _, mask = encode_chat(tokenizer, record["messages"])
    file = write(tmp_path / "d.jsonl", [record, conversation("q", "a")])
    for max_length, kept in ((mask.index(1), 1), (mask.index(1) + 1, 2)):
        config = RecordsConfig(train=[file], valid=[file], max_length=max_length, overlong="truncate")
        split, dropped = load_demonstrations(config, tokenizer)
        assert len(split.train) == kept and dropped["no answer within max_length"] == 2 * (2 - kept)


@pytest.mark.parametrize(
    ("ranks", "pairs"),
    [
        ([0, 1], [(0, 1)]),
        ([2, 0, 1], [(1, 0), (1, 2), (2, 0)]),
        ([0, 1, 1], [(0, 1), (0, 2)]),
        ([0, None, 1], [(0, 2)]),
        ([3, 7, 5, 4], [(0, 1), (0, 2), (0, 3), (2, 1), (3, 1), (3, 2)]),
    ],
)
def test_kway_pairs_leave_out_ties_and_unranked_answers(ranks, pairs):
    assert ranked_pairs(ranks) == pairs


@pytest.fixture
def ranking_file(tmp_path):
    def row(question, answers, ranks, weight=1.0):
        prompt = [{"role": "user", "content": question}]
        return {"prompt": prompt, "answers": answers, "ranks": ranks, "weight": weight}

    rows = [row("one", ["good", "bad", "unranked"], [0, 1, None]), row("two", ["c", "aaaa", "bb"], [2, 0, 1], 3)]
    return write(tmp_path / "r.jsonl", rows)


def test_kway_groups_hold_the_ranked_answers_behind_their_prompt(tokenizer, ranking_file):
    split, _ = load_rankings(RecordsConfig(train=[ranking_file], valid=[ranking_file], max_length=32), tokenizer)
    one, two = split.train
    assert (one.pairs, one.weight) == (((0, 1),), 1.0)
    assert (two.pairs, two.weight) == (((1, 0), (1, 2), (2, 0)), 3.0)
    texts = [tokenizer.decode(row.tokens, show_special=True) for group in split.train for row in group.rows]
    assert texts == [
        f"<|user|>{question}<|end|><|assistant|>{answer}<|end|>"
        for question, answers in (("one", ["good", "bad"]), ("two", ["c", "aaaa", "bb"]))
        for answer in answers
    ]


def test_kway_overlong_group_is_refused_or_dropped_whole(tokenizer, ranking_file):
    config = RecordsConfig(train=[ranking_file], valid=[ranking_file], max_length=9)
    with pytest.raises(DataError, match=r"r.jsonl:[12]: \d+ tokens"):
        load_rankings(config, tokenizer)
    split, dropped = load_rankings(config.model_copy(update={"max_length": 10, "overlong": "drop"}), tokenizer)
    assert len(split.train) + dropped["longer than max_length"] // 2 == 2


def test_kway_source_names_the_slice_and_multiplies_the_weight(tokenizer, ranking_file):
    plain, weighted = {"path": ranking_file}, {"path": ranking_file, "slice": "bias", "weight": 2.5}
    config = RecordsConfig(train=[ranking_file, weighted], valid=[plain], max_length=32)
    split, _ = load_rankings(config, tokenizer)
    assert [(group.record.slice, group.weight) for group in split.train] == [("r", 1.0), ("r", 3.0), ("bias", 2.5), ("bias", 7.5)]
    assert [(group.record.slice, group.weight) for group in split.valid] == [("r", 1.0), ("r", 3.0)]


def test_kway_source_may_be_kept_out_of_the_held_out_side(tokenizer, tmp_path):
    """Nothing of it is held out, and what opens like a held-out ranking is not trained on either."""

    def rows(questions) -> list[dict]:
        return [{"prompt": question, "answers": ["a", "b"], "ranks": [0, 1]} for question in questions]

    split_file, kept_file = write(tmp_path / "s.jsonl", rows("abcdefgh")), write(tmp_path / "k.jsonl", rows("efghijkl"))
    config = RecordsConfig(train=[split_file, {"path": kept_file, "hold_out": False}], valid_fraction=0.5, max_length=32)
    split, dropped = load_rankings(config, tokenizer)
    asked = {side: {(group.record.slice, group.record.prompt[0]["content"]) for group in groups} for side, groups in split._asdict().items()}
    held_out = {question for _, question in asked["valid"]}
    assert 0 < len(held_out) < 8 and {slice for slice, _ in asked["valid"]} == {"s"}
    assert asked["train"] == {("s", q) for q in "abcdefgh" if q not in held_out} | {("k", q) for q in "efghijkl" if q not in held_out}
    assert dropped["opens with a held-out prompt"] == len(held_out & set("efgh"))


def test_kway_wholly_tied_rankings_are_read_but_give_no_group(tokenizer, ranking_file, tmp_path):
    tied = {"prompt": "three", "answers": ["a", "b", "c"], "ranks": [1, 1, None]}
    file = write(tmp_path / "t.jsonl", [tied])
    config, dropped = RecordsConfig(train=[ranking_file, file], valid=[ranking_file, file], max_length=32), Counter()
    assert len(read_ranking_split(config, dropped).valid) == 3 and not dropped
    split, dropped = load_rankings(config, tokenizer)
    assert (len(split.train), len(split.valid)) == (2, 2) and dropped == {"all answers are tied": 2}
    with pytest.raises(DataError, match=r"t.jsonl: no record is left for train \(max_length 32\) \(left out: 1 all answers are tied\)"):
        load_rankings(RecordsConfig(train=[file], valid=[ranking_file], max_length=32), tokenizer)


def test_demonstrations_to_score_are_groups_of_one_answer(tokenizer, tmp_path):
    file, dropped = write(tmp_path / "d.jsonl", [conversation("q", "a"), conversation("q", "answer " * 50)]), Counter()
    config = RecordsConfig(train=[file], max_length=40, overlong="drop")
    (group,) = load_single_answers([file], config, tokenizer, dropped)
    assert tokenizer.decode(group.rows[0].tokens, show_special=True) == "<|user|>q<|end|><|assistant|>a<|end|>"
    assert group.pairs == () and dropped == {"longer than max_length": 1}
    with pytest.raises(DataError, match=r"d.jsonl: no demonstration is left \(max_length 2\) \(left out: 3 longer than max_length\)"):
        load_single_answers([file], config.model_copy(update={"max_length": 2}), tokenizer, dropped)


def test_prompts_open_the_answer_and_some_are_kept_for_evaluation(tokenizer, tmp_path):
    rows = [{"id": f"p{i}", "prompt": [{"role": "user", "content": f"question {i % 10}"}]} for i in range(20)]
    rows.append({"id": "long", "prompt": [{"role": "user", "content": "question " * 50}]})
    file = write(tmp_path / "p.jsonl", rows)
    config = PromptsConfig(files=[file, file], max_prompt_length=32, max_response_length=8, eval_prompts=4)
    sets = load_prompts(config, tokenizer)
    assert sets.dropped == {"longer than max_prompt_length": 2, "repeated id": 20}
    assert len(sets.evaluation) == 4
    questions = [{prompt_key(prompt.record.prompt) for prompt in side} for side in sets[:2]]
    assert not questions[0] & questions[1]
    prompt = sets.train[0]
    assert prompt.tokens[-1] == tokenizer.special_ids["<|assistant|>"]
    assert prompt.number == prompt_number(prompt.record.id)
    with pytest.raises(DataError, match="20 prompts, training needs more than eval_prompts 20"):
        load_prompts(config.model_copy(update={"eval_prompts": 20}), tokenizer)


def test_prompt_numbers_are_fixed_int64():
    assert prompt_number("shutil.copy") == prompt_number("shutil.copy")
    numbers = [prompt_number(str(i)) for i in range(1000)]
    assert len(set(numbers)) == 1000
    assert np.array(numbers, dtype=np.int64).min() >= 0
