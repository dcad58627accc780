"""PPO: models on other ranks score one part of a rollout while the policy writes the next, with the same experience as without."""

from __future__ import annotations

import time
from pathlib import Path
from unittest import mock

import pytest
import torch

from megagpt.config.check import check_rlhf
from megagpt.config.load import ConfigError
from megagpt.config.schema import RlhfConfig
from megagpt.engine.build import Engine
from megagpt.parallel.placement import build_grids, rollout_parts
from megagpt.rlhf import ppo as rlhf_ppo
from megagpt.rlhf import rollout as rlhf_rollout
from megagpt.rlhf.evaluate import evaluate
from megagpt.rlhf.reward_function import RewardError
from megagpt.rlhf.score import collect, score
from megagpt.runtime.timeline import Span
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny_ppo import foreign_reward, on, placement, ppo_config, ppo_folder, ppo_trainer
from tests.helpers.tolerance import KL_ABSOLUTE, assert_tensors_close

EXACT = 1e-6
"""Relative: the same float32 arithmetic, in matrices of other heights."""
ROLES = ("reward", "value", "reference", "policy")
APART = {
    "each_alone": placement(on(0), on(1), on(2), on(3)),
    "replicas": placement(on(2, 3), on(0, 1), on(0, 1, tp=2), on(2, 3, pp=2)),
    "policy_zero3": placement(on(1, 2, zero=3), on(0), on(3), on(1, 2, zero=3)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return ppo_folder(tmp_path_factory.mktemp("overlap"))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return foreign_reward(tmp_path_factory.mktemp("foreign"))


# ---------------------------------------------------------------- on each rank


def seen(config: RlhfConfig) -> tuple[dict[str, torch.Tensor], dict[str, float], list[Span]]:
    """The experience of a round, what an evaluation measures, and the spans of both."""
    with ppo_trainer(config) as trainer:
        device, prompts = trainer.world.device, trainer.prompts[:8]
        readings = collect(trainer.models, config, trainer.questions(1), ROLES, device, trainer.timeline)
        experience = score(trainer.models, readings, config, 0.1)
        found = evaluate(trainer.models, config, prompts, trainer.stop_ids, device, trainer.timeline)
    tensors = {name: value for name, value in vars(experience).items() if isinstance(value, torch.Tensor)}
    return tensors | {"tokens": experience.rollout.tokens.float(), "eval_scores": found.scores}, found.metrics(), trainer.timeline.spans


def wait_for(flag: Path, what: str) -> None:
    deadline = time.monotonic() + 30
    while not flag.exists():
        assert time.monotonic() < deadline, f"{what} while the policy waited"
        time.sleep(0.01)


def round_in_step(config: RlhfConfig, folder: Path) -> list[Span]:
    """A round in which the policy writes its last part only once somebody has scored the first, and learns only once the critic has begun to."""
    generate, update, calls = rlhf_rollout.generate, rlhf_ppo.update, []
    scored, learning = folder / "scored", folder / "learning"

    def write(*arguments, **keywords):
        calls.append(keywords)
        if len(calls) == 4:
            wait_for(scored, "nobody scored the first part")
        return generate(*arguments, **keywords)

    def learn(engine: Engine, *arguments, **keywords):
        if engine is trainer.models.policy:
            wait_for(learning, "the critic did not learn")
        else:
            learning.touch()
        return update(engine, *arguments, **keywords)

    with ppo_trainer(config) as trainer, mock.patch.object(rlhf_rollout, "generate", write), mock.patch.object(rlhf_ppo, "update", learn):
        span = trainer.timeline.span

        def watched(kind: str, role: str = "", part: int | None = None):
            if (kind, part) == ("score", 1):
                scored.touch()  # part 0 lies behind this rank
            return span(kind, role, part)

        with mock.patch.object(trainer.timeline, "span", watched):
            trainer.step(1)
        return trainer.timeline.spans


def refusal(config: RlhfConfig) -> str:
    """Of a reward model with too short a context."""
    with ppo_trainer(config) as trainer:
        trainer.models.handovers["reward"].context = 20
        try:
            trainer.step(1)
        except RewardError as error:
            return str(error)
    return ""


# ---------------------------------------------------------------- the cases


@pytest.mark.parametrize("logprobs", ["sampler", "trainer"])
@pytest.mark.parametrize("name", APART)
def test_overlap_leaves_the_experience_as_it_is(folder, foreign, name, logprobs):
    """A reward model that reads text and a reward function take part."""
    where = APART[name]
    config = ppo_config(folder, where, logprobs=logprobs).model_copy(
        update={"reward": str(foreign), "reward_function": "tests.helpers.rewards:letters"}
    )
    at_once, in_parts = (
        run_ranks(4, seen, config.model_copy(update={"ppo": config.ppo.model_copy(update={"rollout_parts": parts})})) for parts in (1, 4)
    )
    (expected, expected_metrics, _), policy = at_once[0], build_grids(where, 4)["policy"]
    for rank, (experience, metrics, spans) in enumerate(in_parts):
        assert torch.equal(experience["tokens"], expected["tokens"])
        assert_tensors_close(experience, expected, relative=EXACT)
        assert metrics == pytest.approx(expected_metrics, rel=EXACT, abs=KL_ABSOLUTE)  # the KL is nothing but rounding
        parts = {(span.kind, span.part) for span in spans if span.kind in ("generate", "score")}
        if rank in policy:
            scores = logprobs == "trainer" or name != "each_alone"  # of the policy itself, or of the value model beside it
            assert parts == ({("score", None)} if scores else set()) | {("generate", part) for part in range(4)}
        else:
            assert parts == {("score", part) for part in range(4)}
    assert expected["scores"].std() > 0 and expected["advantages"].std() > 0


def test_overlap_of_scoring_with_writing_and_of_actor_with_critic(folder, tmp_path):
    """By construction, not by luck: the policy waits before its last part for a score of the first, and with learning for the critic."""
    ranks = run_ranks(4, round_in_step, ppo_config(folder, APART["each_alone"]), tmp_path)
    (last,) = [span for span in ranks[0] if (span.kind, span.part) == ("generate", 3)]
    first = [span for spans in ranks[1:] for span in spans if (span.kind, span.part) == ("score", 0)]
    assert {span.role for span in first} == {"reference", "reward", "value"}
    assert min(span.end for span in first) < last.end
    assert [span.role for spans in ranks for span in spans if span.kind == "train"] == ["policy", "value"]


def test_overlap_an_answer_too_long_for_the_reward_model_stops_every_rank(folder, foreign):
    config = ppo_config(folder, APART["each_alone"]).model_copy(update={"reward": str(foreign)})
    for message in run_ranks(4, refusal, config):
        assert message.startswith("reward: not a number for the answer ")


def test_overlap_parts_are_chosen_and_checked(folder):
    config = ppo_config(folder, APART["each_alone"])
    assert rollout_parts(config, build_grids(APART["each_alone"], 4), 16) == 4
    assert rollout_parts(config, build_grids(APART["replicas"], 4), 8) == 2  # an evaluation of 8 prompts: 2 microbatches of 2 rows on 2 replicas
    together = placement(on(0, 1), on(0, 1, tp=2), on(0, 1), on(0, 1))
    assert rollout_parts(config, build_grids(together, 2), 16) == 1
    odd = config.model_copy(update={"ppo": config.ppo.model_copy(update={"rollout_parts": 3})})
    with pytest.raises(ConfigError, match=r"ppo.rollout_batch_size = 16: not a multiple of the 3 replicas that write"):
        check_rlhf(config, {"policy": 1, "rollout": 3})
    with pytest.raises(ConfigError, match=r"ppo.rollout_parts = 3: each part of the 16 responses must be a multiple of .* 2 x .*; 2 would do"):
        check_rlhf(odd, {"policy": 1, "reward": 2})
