"""Reward functions: text without special tokens goes in, one clear line comes out where something is wrong with them."""

import pytest
import torch

from megagpt.config.load import ConfigError
from megagpt.rlhf.experience import Rollout
from megagpt.rlhf.reward_function import RewardError, RewardFunction, load_reward_function, require_finite, texts
from megagpt.tokenizer.chat import encode_chat
from megagpt.tokenizer.special import END
from megagpt.tokenizer.tokenizer import load_tokenizer
from tests.helpers import rewards
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny_run import toy_tokenizer

QUESTIONS, ANSWERS = ("What does the cat see?", "Who?"), ("The owl.", "no")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return toy_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def rollout_of(tokenizer) -> Rollout:
    """The two answers as they would have been sampled, the first with its stop token."""
    prompts = [list(encode_chat(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True)[0]) for text in QUESTIONS]
    stop = encode_chat(tokenizer, [{"role": "user", "content": "a"}])[0][-1]
    assert tokenizer.decode([stop], show_special=True) == END
    rows = [prompts[0] + tokenizer.encode(ANSWERS[0]) + [stop], prompts[1] + tokenizer.encode(ANSWERS[1])]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return Rollout(tokens, torch.tensor(list(map(len, prompts))), torch.tensor(list(map(len, rows))), torch.tensor([True, False]))


def ask(name: str, tokenizer_folder) -> list[float] | str:
    """On each rank; the error's text where there is one."""
    tokenizer = load_tokenizer(tokenizer_folder)
    rollout = rollout_of(tokenizer)
    try:
        scores = RewardFunction(name, load_reward_function(name), tokenizer)(rollout)
        require_finite(scores, rollout, tokenizer)
    except RewardError as error:
        return str(error)
    return scores.tolist()


def test_reward_function_gets_plain_text(tokenizer):
    seen = []

    def function(prompts, answers):
        seen.extend(zip(prompts, answers))
        return [0.0] * len(answers)

    run = RewardFunction("here:function", function, tokenizer)
    assert run._ask(*_texts(tokenizer)) == [0.0, 0.0]
    for (prompt, answer), question, expected in zip(seen, QUESTIONS, ANSWERS, strict=True):
        assert question in prompt and "<|" not in prompt and answer == expected


def test_reward_function_gets_the_messages_of_a_prompt_apart(tokenizer):
    turns = [("system", "Be kind."), ("user", "Who?"), ("assistant", "no"), ("user", "Why?")]
    ids = encode_chat(tokenizer, [{"role": role, "content": text} for role, text in turns], add_generation_prompt=True)[0]
    row = torch.tensor([[*ids, *tokenizer.encode("So.")]])
    rollout = Rollout(row, torch.tensor([len(ids)]), torch.tensor([row.size(1)]), torch.tensor([False]))
    assert texts(rollout, tokenizer) == (["Be kind.\n\nWho?\n\nno\n\nWhy?"], ["So."])


def _texts(tokenizer):
    return texts(rollout_of(tokenizer), tokenizer)


def test_reward_function_scores_are_the_same_on_every_rank(tmp_path):
    toy_tokenizer(tmp_path / "tokenizer")
    for scores in run_ranks(2, ask, "tests.helpers.rewards:letters", tmp_path / "tokenizer"):
        assert scores == pytest.approx(rewards.letters(["", ""], list(ANSWERS)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", "reward_function = tests.helpers.rewards:fails: failed on rank 0; the line above says how"),
        ("too_few", "reward_function = tests.helpers.rewards:too_few: failed on rank 0; the line above says how"),
        ("infinite", "reward: +inf for the answer 'The owl.' to "),
    ],
)
def test_reward_function_that_goes_wrong_ends_every_rank_with_one_line(tmp_path, name, message):
    toy_tokenizer(tmp_path / "tokenizer")
    for found in run_ranks(2, ask, f"tests.helpers.rewards:{name}", tmp_path / "tokenizer"):
        assert found.startswith(message) and "\n" not in found
        assert name != "infinite" or QUESTIONS[0] in found


def test_reward_function_says_which_prompt_it_failed_on(tokenizer, capsys):
    for function, words in ((rewards.fails, "KeyError: 'no such judge'"), (rewards.too_few, "returned 1 numbers for 2 answers")):
        assert RewardFunction("m:f", function, tokenizer)._ask(*_texts(tokenizer)) is None
        line = capsys.readouterr().out
        assert words in line and QUESTIONS[0] in line and line.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.such.module:f", r"reward_function = no.such.module:f: no.such.module cannot be imported \(ModuleNotFoundError: .*\); PYTHONPATH must name its folder"),
        ("math:no_such", "reward_function = math:no_such: math has no function no_such"),
        ("math:pi", "reward_function = math:pi: math has no function pi"),
    ],
)
def test_reward_function_must_be_there(name, message):
    with pytest.raises(ConfigError, match=message):
        load_reward_function(name)
