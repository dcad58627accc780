"""Generation: decoding with the cache equals full forwards of the plain model, and no layout, batch, order or slot changes a sample."""

import functools
import re
from unittest import mock

import numpy as np
import pytest
import torch

from megagpt.config.schema import OptimizerConfig
from megagpt.engine.build import Engine
from megagpt.generation import generate as generation
from megagpt.generation.generate import Generated, generate
from megagpt.generation.sample import Sampling, choose
from megagpt.model.decode import can_decode
from megagpt.parallel.grid import Grid
from tests.helpers.plain import PlainGPT, plain_init
from tests.helpers.sharded import sharded_model
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny import tiny_model
from tests.helpers.tolerance import LOG_PROBABILITY_ABSOLUTE

PROMPTS = [[17, 5, 99, 3, 42, 8, 61], [70], [1, 2, 3], [100, 0, 100, 0, 50]]
NEW_TOKENS = 8
GREEDY, SAMPLED = Sampling(temperature=0.0), Sampling(temperature=0.7, seed=11)
LAYOUTS = pytest.mark.parametrize("grid", [Grid(), Grid(tp=2), Grid(pp=2), Grid(tp=2, pp=2)], ids=["tp1-pp1", "tp2-pp1", "tp1-pp2", "tp2-pp2"])
FAMILIES = pytest.mark.parametrize("family", ["gpt", "llama"])


@functools.cache
def weights(family: str):
    """Four times the usual matrices: otherwise a tied model repeats its last token, whatever came before."""
    config = tiny_model(family, True)
    return config, {name: 4 * tensor if tensor.dim() > 1 else tensor for name, tensor in plain_init(config, seed=1).items()}


@functools.cache
def plain_model(family: str) -> PlainGPT:
    config, state = weights(family)
    model = PlainGPT(config)
    model.load_state_dict(state)
    return model.requires_grad_(False)


def plain_greedy(family: str, prompt: list[int]) -> list[int]:
    """Token after token: argmax over the last logits of a full forward."""
    text = list(prompt)
    for _ in range(NEW_TOKENS):
        text.append(plain_model(family)(torch.tensor([text]))[0, -1].argmax().item())
    return text[len(prompt) :]


def plain_sample(family: str, prompt: list[int], counters: tuple[int, int], sampling: Sampling, stop_ids: list[int]) -> list[int]:
    """Token after token: this prompt's draws alone, each from the last logits of a full forward."""
    text, (prompt_id, sample_number) = list(prompt), counters
    while len(text) < len(prompt) + NEW_TOKENS and text[len(prompt) :][-1:] not in [[stop] for stop in stop_ids]:
        logits = plain_model(family)(torch.tensor([text]))[0, -1:]
        tokens, _ = choose(logits, sampling, *(np.array([counter]) for counter in (prompt_id, sample_number, len(text))))
        text.append(tokens.item())
    return text[len(prompt) :]


def plain_logprobs(family: str, prompt: list[int], tokens: list[int], temperature: float) -> torch.Tensor:
    """Of each sampled token, from one full forward over prompt and response."""
    logits = plain_model(family)(torch.tensor([prompt + tokens]))[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(dim=-1).gather(-1, torch.tensor(tokens)[:, None]).squeeze(-1)


def generate_on_grid(config, state, grid, calls: list[dict]) -> list[Generated]:
    model = sharded_model(config, state, grid)
    return [generate(model, **({"max_new_tokens": NEW_TOKENS, "stop_ids": []} | call)) for call in calls]


def answers(family: str, grid: Grid, *calls: dict) -> list[Generated]:
    """What `generate` gives for each call on this grid, the same on all its ranks."""
    first, *others = run_ranks(grid.size, generate_on_grid, *weights(family), grid, list(calls))
    assert all(other == first for other in others), "every rank gets the same answer"
    return first


def assert_same_samples(ours: Generated, theirs: Generated) -> None:
    assert ours.tokens == theirs.tokens and ours.stopped == theirs.stopped
    for a, b in zip(ours.logprobs, theirs.logprobs, strict=True):
        assert a == pytest.approx(b, abs=LOG_PROBABILITY_ABSOLUTE)


@FAMILIES
@LAYOUTS
def test_generation_greedy_is_the_argmax_of_full_forwards(grid, family):
    (generated,) = answers(family, grid, dict(prompts=PROMPTS, sampling=GREEDY))
    assert generated.tokens == [plain_greedy(family, prompt) for prompt in PROMPTS]
    assert generated.stopped == [False] * 4
    assert len({tuple(tokens) for tokens in generated.tokens}) == 4
    assert min(len(set(tokens)) for tokens in generated.tokens) > 2, "a lively model"


@FAMILIES
@LAYOUTS
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, Sampling(temperature=1.5, top_k=20, top_p=0.9, seed=3)], ids=["greedy", "temperature", "truncated"])
def test_generation_logprobs_equal_a_full_forward(grid, family, sampling):
    (generated,) = answers(family, grid, dict(prompts=PROMPTS, sampling=sampling))
    for prompt, tokens, logprobs in zip(PROMPTS, generated.tokens, generated.logprobs, strict=True):
        expected = plain_logprobs(family, prompt, tokens, sampling.temperature or 1.0)
        assert logprobs == pytest.approx(expected.tolist(), abs=LOG_PROBABILITY_ABSOLUTE)


BUSY = {  # four prompts, two of them several times, in any order
    "prompts": [PROMPTS[i] for i in (1, 0, 3, 0, 2, 0, 3, 1)],
    "prompt_ids": [1, 0, 3, 0, 2, 0, 3, 7],
    "sample_numbers": [0, 0, 0, 1, 0, 2, 1, 0],
    "stop_ids": list(range(0, 101, 6)),
    "sampling": SAMPLED,
}


@FAMILIES
@LAYOUTS
def test_generation_of_rows_that_wait_equals_each_prompt_alone(grid, family):
    expected = [plain_sample(family, *row, SAMPLED, BUSY["stop_ids"]) for row in zip(BUSY["prompts"], zip(BUSY["prompt_ids"], BUSY["sample_numbers"]))]
    assert len({len(tokens) for tokens in expected}) > 3 and len({tuple(tokens) for tokens in expected}) == 8, "rows of different lengths"
    response_tokens = sum(len(tokens) - 1 for tokens in expected)  # no pass reads a row's last token
    for max_rows, generated in zip((None, 1, 2, 3, 5), answers(family, grid, *(BUSY | {"max_rows": n} for n in (None, 1, 2, 3, 5)))):
        assert generated.tokens == expected
        assert generated.stopped == [len(tokens) < NEW_TOKENS or tokens[-1] in BUSY["stop_ids"] for tokens in expected]
        for prompt, tokens, logprobs in zip(BUSY["prompts"], generated.tokens, generated.logprobs, strict=True):
            assert logprobs == pytest.approx(plain_logprobs(family, prompt, tokens, 0.7).tolist(), abs=LOG_PROBABILITY_ABSOLUTE)
        if max_rows is None:
            assert (generated.prompt_tokens, generated.response_tokens) == (sum(map(len, PROMPTS)), response_tokens)
        else:  # a sample that starts later reads the last token of its prompt once more, the others are in the cache
            assert generated.prompt_tokens == sum(map(len, PROMPTS)) < sum(map(len, BUSY["prompts"]))
            assert response_tokens <= generated.response_tokens <= response_tokens + 4


def in_training_modules(config, state, grid, calls: list[dict]) -> list[Generated]:
    """As if ZeRO 3 had the weights: the pass of Megatron-core's modules."""
    with mock.patch.object(generation, "can_decode", lambda model: False), mock.patch.object(generation, "Decoder", None):
        return generate_on_grid(config, state, grid, calls)


@FAMILIES
@LAYOUTS
def test_generation_in_training_modules_gives_the_same(grid, family):
    (ours,) = answers(family, grid, BUSY | {"max_rows": 3})
    for (theirs,) in run_ranks(grid.size, in_training_modules, *weights(family), grid, [BUSY | {"max_rows": 3}]):
        assert_same_samples(ours, theirs)
        assert (ours.prompt_tokens, ours.response_tokens) == (theirs.prompt_tokens, theirs.response_tokens)


def cache_sizes(config, state, grid) -> tuple[int, int]:
    """Bytes of this rank's cache for 5 rows of 16 tokens, and those known before."""
    model = sharded_model(config, state, grid)
    planned = model.shape.cache_bytes(5, 16, num_layers=config.num_layers // grid.pp, tp=grid.tp, num_bytes=4)
    return model.new_cache(5, 16).num_bytes, planned


@FAMILIES
@LAYOUTS
def test_generation_cache_has_the_size_known_before(grid, family):
    for held, planned in run_ranks(grid.size, cache_sizes, *weights(family), grid):
        assert held == planned


@FAMILIES
@LAYOUTS
def test_generation_samples_do_not_depend_on_layout_batch_or_order(grid, family):
    order = [2, 0, 3, 1]
    (expected,) = answers(family, Grid(), dict(prompts=PROMPTS, sampling=SAMPLED))
    together, shuffled, *alone = answers(
        family,
        grid,
        dict(prompts=PROMPTS, sampling=SAMPLED, prompt_ids=[0, 1, 2, 3]),
        dict(prompts=[PROMPTS[i] for i in order], sampling=SAMPLED, prompt_ids=order),
        *(dict(prompts=[PROMPTS[i]], sampling=SAMPLED, prompt_ids=[i]) for i in range(4)),
    )
    in_order = [order.index(i) for i in range(4)]
    for other in (
        together,
        Generated(*([part[i] for i in in_order] for part in (shuffled.tokens, shuffled.logprobs, shuffled.stopped))),
        Generated(*([part[0] for part in parts] for parts in zip(*((one.tokens, one.logprobs, one.stopped) for one in alone)))),
    ):
        assert_same_samples(other, expected)


def test_generation_samples_differ_by_seed_prompt_and_sample_number():
    prompts = [PROMPTS[0]] * 3
    (by_prompt, by_number, repeated, other_seed) = answers(
        "gpt",
        Grid(),
        dict(prompts=prompts, sampling=SAMPLED),
        dict(prompts=prompts, sampling=SAMPLED, prompt_ids=[0, 0, 0], sample_numbers=[0, 1, 2]),
        dict(prompts=prompts, sampling=SAMPLED, prompt_ids=[0, 0, 0], sample_numbers=[1, 1, 0]),
        dict(prompts=prompts, sampling=Sampling(temperature=0.7, seed=12)),
    )
    samples = {tuple(tokens) for generated in (by_prompt, by_number, other_seed) for tokens in generated.tokens}
    assert len(samples) == 8, "nine rows, of which the first of two batches have equal counters"
    assert repeated.tokens == [by_number.tokens[1], by_number.tokens[1], by_number.tokens[0]]


@FAMILIES
@LAYOUTS
def test_generation_ends_a_row_with_its_first_stop_token(grid, family):
    whole = [plain_greedy(family, prompt) for prompt in PROMPTS]
    stop_ids = {"gpt": [15, 49], "llama": [16, 79]}[family]
    (generated,) = answers(family, grid, dict(prompts=PROMPTS, sampling=GREEDY, stop_ids=stop_ids))
    ends = [min([tokens.index(stop) + 1 for stop in stop_ids if stop in tokens], default=None) for tokens in whole]
    assert generated.tokens == [tokens[:end] for tokens, end in zip(whole, ends)], "the stop token is part of the response"
    assert generated.stopped == [end is not None for end in ends]
    assert len({len(tokens) for tokens in generated.tokens}) > 2 and not all(generated.stopped), "rows end at different steps"


def test_generation_says_how_far_it_is():
    (ended,) = run_ranks(1, ends_of_rows, *weights("gpt"))
    assert ended[-1] == 8 and ended == sorted(set(ended)) and len(ended) > 2


def ends_of_rows(config, state) -> list[int]:
    ended: list[int] = []
    generate(sharded_model(config, state, Grid()), max_new_tokens=NEW_TOKENS, max_rows=3, on_ended=ended.append, **BUSY)
    return ended


def sharded_rollout(config, state, prompts_of_replica, stop_ids, max_rows=None) -> tuple[Generated, int]:
    """Two replicas under ZeRO 3, which gather the weights together: the answer, and the number of forward passes."""
    engine = Engine(sharded_model(config, state, Grid(dp=2)), OptimizerConfig(lr=1.0), zero_stage=3)
    passes = []
    handle = engine.model.register_forward_hook(lambda *_: passes.append(1))
    groups = engine.groups
    with engine.scope():
        generated = generate(
            engine.model, prompts_of_replica[groups.coordinates.dp], max_new_tokens=NEW_TOKENS, stop_ids=stop_ids, sampling=GREEDY,
            max_rows=max_rows, lockstep=groups.collection.dp_cp,
        )
    handle.remove()
    assert not can_decode(engine.model), "not even while all weights happen to be here"
    engine.close()
    return generated, len(passes)


@FAMILIES
def test_generation_under_zero_3_keeps_the_replicas_in_step(family):
    whole = plain_greedy(family, PROMPTS[0]), plain_greedy(family, PROMPTS[1])
    stop_ids = [whole[0][0], whole[1][4]]
    expected = [tokens[: min(tokens.index(stop) + 1 for stop in stop_ids if stop in tokens)] for tokens in whole]
    assert len(expected[0]) == 1 and len(expected[1]) > 2, "the first replica is done long before the second"
    results = run_ranks(2, sharded_rollout, *weights(family), [[PROMPTS[0]], [PROMPTS[1]]], stop_ids)
    assert [generated.tokens for generated, _ in results] == [[tokens] for tokens in expected]
    assert [passes for _, passes in results] == [len(expected[1])] * 2, "both stop when the last one is done"


def test_generation_under_zero_3_with_rows_that_wait():
    """One replica has one row, the other three that take turns: the first goes along to the end."""
    expected = [plain_greedy("gpt", prompt) for prompt in PROMPTS]
    results = run_ranks(2, sharded_rollout, *weights("gpt"), [PROMPTS[:1], PROMPTS[1:]], [], max_rows=1)
    assert [generated.tokens for generated, _ in results] == [expected[:1], expected[1:]]
    assert [passes for _, passes in results] == [3 * NEW_TOKENS] * 2


def test_generation_of_nothing_is_nothing():
    assert answers("gpt", Grid(), dict(prompts=[], sampling=GREEDY)) == [Generated([], [], [])]


BAD_CALLS = {
    "prompt 1 is empty: at least one token is needed": dict(prompts=[[1], []]),
    "prompt of 9 tokens + max_new_tokens 8 is longer than the context of 16": dict(prompts=[[1], [2] * 9]),
    "max_new_tokens = 0: must be 1 or more": dict(prompts=[[1]], max_new_tokens=0),
    "max_rows = 0: must be 1 or more": dict(prompts=[[1]], max_rows=0),
    "prompt 1 holds a token outside the vocabulary: ids are 0 to 100": dict(prompts=[[100], [5, 101]]),
    "prompt 0 holds a token outside the vocabulary": dict(prompts=[[-1]]),
    "prompt_ids: 1 counters for 2 prompts": dict(prompts=[[1], [2]], prompt_ids=[0]),
    "sample_numbers: 3 counters for 2 prompts": dict(prompts=[[1], [2]], sample_numbers=[0, 1, 2]),
}


def refusals(config, state, calls) -> list[str]:
    model, messages = sharded_model(config, state, Grid()), []
    for call in calls:
        with pytest.raises(ValueError) as refused:
            generate(model, **({"max_new_tokens": NEW_TOKENS, "stop_ids": [], "sampling": GREEDY} | call))
        messages.append(str(refused.value))
    return messages


def test_generation_refuses_bad_arguments_in_one_line():
    (messages,) = run_ranks(1, refusals, *weights("gpt"), list(BAD_CALLS.values()))
    for message, rule in zip(messages, BAD_CALLS, strict=True):
        assert re.match(re.escape(rule), message) and "\n" not in message
