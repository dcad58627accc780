"""What a reward model with another tokenizer reads is the same conversation, as it was trained to read it."""

from __future__ import annotations

import pytest
import torch

from megagpt.data.prompts import EncodedPrompt
from megagpt.data.records import Prompt
from megagpt.rlhf.experience import Rollout
from megagpt.rlhf.handover import Handover
from megagpt.rlhf.reward_function import RewardError
from megagpt.tokenizer.chat import Message, encode_chat
from tests.helpers.tiny_run import toy_tokenizer

QUESTIONS = [(Message(role="user", content="Who is it?"),), (Message(role="system", content="Be short."), Message(role="user", content="And why?"))]
ANSWERS, STOPPED = ["Nobody at all.", "Since it rains"], [True, False]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return toy_tokenizer(folder / "policy", 290), toy_tokenizer(folder / "judge", 340)


def chat(tokenizer, number: int) -> list[int]:
    ids, _ = encode_chat(tokenizer, [*QUESTIONS[number], Message(role="assistant", content=ANSWERS[number])])
    return ids if STOPPED[number] else ids[:-1]


def asked(tokenizer) -> list[EncodedPrompt]:
    return [
        EncodedPrompt(tuple(encode_chat(tokenizer, question, add_generation_prompt=True)[0]), number, Prompt(str(number), question))
        for number, question in enumerate(QUESTIONS)
    ]


def rollout(tokenizer) -> Rollout:
    rows = [torch.tensor(chat(tokenizer, number)) for number in (0, 1)]
    return Rollout(
        torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_id),
        torch.tensor([len(prompt.tokens) for prompt in asked(tokenizer)]), torch.tensor([len(row) for row in rows]), torch.tensor(STOPPED),
        sampler_logprobs=torch.zeros(2, max(map(len, rows)) - 1),
    )  # fmt: skip


def test_handover_writes_the_conversation_in_the_judges_tokens(tokenizers):
    policy, judge = tokenizers
    found = Handover(policy, judge, asked(policy), context=64)(rollout(policy))
    expected = [chat(judge, number) for number in (0, 1)]
    assert found.lengths.tolist() == [len(ids) for ids in expected] != rollout(policy).lengths.tolist()
    assert [row[:length].tolist() for row, length in zip(found.tokens, found.lengths)] == expected
    assert set(found.tokens[int(found.lengths.argmin()), int(found.lengths.min()) :].tolist()) == {judge.pad_id}


def test_handover_to_the_same_tokenizer_changes_nothing(tokenizers):
    policy, _ = tokenizers
    before = rollout(policy)
    after = Handover(policy, policy, asked(policy), context=64)(before)
    assert torch.equal(after.tokens, before.tokens) and torch.equal(after.lengths, before.lengths)


def test_handover_names_the_question_whose_answer_is_too_long(tokenizers):
    policy, judge = tokenizers
    with pytest.raises(RewardError, match=r"the answer to 'Who is it\?' makes \d+ of the reward model's tokens; its context is 5"):
        Handover(policy, judge, asked(policy), context=5)(rollout(policy))
