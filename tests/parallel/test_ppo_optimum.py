"""A task whose optimum is known: answers of two tokens, a reward that is a function of their text, J = E[R] - beta KL.

The best policy is pi_ref exp(R / beta) / Z, and its J* = beta ln E_ref[exp(R / beta)] (Ziegler et al. 2019, section 2.1). All answers are
enumerated: the reference's J, the trained policy's and J* are exact, no sample is involved in the verdict.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from megagpt.checkpoint.layout import find_checkpoint
from megagpt.checkpoint.load import Checkpoint
from megagpt.config.schema import (
    DoctorConfig,
    KlConfig,
    ModelConfig,
    PlacementConfig,
    PolicyOptimizerConfig,
    PpoConfig,
    PromptsConfig,
    RlhfConfig,
    RoleConfig,
    RunConfig,
    ValueOptimizerConfig,
)
from megagpt.data.prompts import EncodedPrompt, load_prompts
from megagpt.parallel.placement import build_grids
from megagpt.rlhf import ppo as rlhf_ppo
from megagpt.rlhf.doctor import Doctor
from megagpt.rlhf.four_models import FourModels, Starts, build_four_models
from megagpt.runtime.distributed import World
from megagpt.runtime.run_folder import RunFolder
from tests.helpers.enumerated import Answers
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny_checkpoint import make_checkpoint
from tests.helpers.tiny_run import toy_tokenizer, write_rows

BETA = 0.1
NEEDED = 0.95
"""Of the way from the reference's J to J*."""
ON_ONE_RANK = RoleConfig(ranks=[0])
VARIANTS = {
    "ppo": {},
    "grpo": {"ppo": {"advantage": "grpo", "samples_per_prompt": 16}},
    "rloo": {"ppo": {"advantage": "rloo", "samples_per_prompt": 16}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("optimum")
    tokenizer = toy_tokenizer(folder / "tokenizer")
    model = ModelConfig(num_layers=1, hidden_size=32, num_attention_heads=2, max_sequence_length=16, vocab_size=tokenizer.vocab_size)
    make_checkpoint(RunConfig(name="toy", root=str(folder)), "sft", model, tokenizer, seed=1)
    write_rows(folder / "prompts.jsonl", [{"id": word, "prompt": [{"role": "user", "content": word}]} for word in "abc"])
    return folder


def config_of(folder, seed: int, ppo: dict, kl: dict, beta: float) -> RlhfConfig:
    critic = ppo.get("advantage", "gae") == "gae"
    return RlhfConfig(
        run=RunConfig(name="toy", root=str(folder), seed=seed), reward=None, reward_function="tests.helpers.rewards:letters",
        placement=PlacementConfig(policy=ON_ONE_RANK, reference=ON_ONE_RANK, value=ON_ONE_RANK if critic else None),
        policy_optimizer=PolicyOptimizerConfig(lr=5e-3, schedule="linear", min_lr_ratio=0.0),
        value_optimizer=ValueOptimizerConfig(lr=1e-2, min_lr_ratio=0.1),
        prompts=PromptsConfig(files=[str(folder / "prompts.jsonl")], max_prompt_length=8, max_response_length=2, eval_prompts=1),
        ppo=PpoConfig(steps=200, rollout_batch_size=256, minibatch_size=64, micro_batch_size=64, epochs=2, ema_decay=None, **ppo),
        kl=KlConfig(coefficient=beta, **kl),
    )


# ---------------------------------------------------------------- exact sums over all answers


def exact(models: FourModels, prompts_: list[EncodedPrompt], stop_ids: tuple[int, ...], beta: float) -> dict[str, float]:
    """Means over prompts: J of the reference and of the policy, J*, and the policy's reward and KL (nats a response)."""
    answers, found = Answers(models.tokenizer, stop_ids), []
    reward = answers.rewards
    for prompt in prompts_:
        policy, reference = (answers.logprobs(models.module(role), prompt.tokens) for role in ("policy", "reference"))
        assert float(policy.exp().sum()) == pytest.approx(1.0) and float(reference.exp().sum()) == pytest.approx(1.0)  # none is missing
        gain, kl = float(policy.exp() @ reward), float(policy.exp() @ (policy - reference))
        found.append([float(reference.exp() @ reward), gain - beta * kl, beta * float(torch.logsumexp(reference + reward / beta, 0)), gain, kl])
    return dict(zip(("start", "end", "best", "reward", "kl"), torch.tensor(found).mean(0).tolist()))


def train(config: RlhfConfig) -> dict[str, float]:
    """On the one rank: all steps of a run, then the exact J."""
    world = World(dist.get_rank(), dist.get_world_size(), dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    policy = Checkpoint.open(find_checkpoint(config.policy, RunFolder(config.run)))
    models = build_four_models(config, build_grids(config.placement, world.size), Starts(policy, None), world.device)
    trainer = rlhf_ppo.Trainer(config, world, models, models.tokenizer, load_prompts(config.prompts, models.tokenizer).train)
    for step in range(1, config.ppo.steps + 1):
        trainer.step(step)
    found = exact(models, trainer.prompts, trainer.stop_ids, config.kl.coefficient)
    for engine in (models.policy, models.value):
        if engine is not None:
            engine.close()
    return found


def watched(config: RlhfConfig, judge: str) -> list[dict[str, float]]:
    """On the one rank: every ten steps the policy's exact mean reward by the judge that it is trained on, and by the honest one."""
    world = World(dist.get_rank(), dist.get_world_size(), dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    policy = Checkpoint.open(find_checkpoint(config.policy, RunFolder(config.run)))
    models = build_four_models(config, build_grids(config.placement, world.size), Starts(policy, None), world.device)
    trainer = rlhf_ppo.Trainer(config, world, models, models.tokenizer, load_prompts(config.prompts, models.tokenizer).train)
    answers, rows = Answers(models.tokenizer, trainer.stop_ids), []
    for step in range(config.ppo.steps + 1):
        if step > 0:
            trainer.step(step)
        if step % 10 == 0:
            probabilities = torch.stack([answers.logprobs(models.module("policy"), prompt.tokens).exp() for prompt in trainer.prompts])
            means = {name: float((probabilities @ answers.rewards_by(name)).mean()) for name in (judge, "letters")}
            rows.append({"eval_reward": means[judge], "eval_held_out_reward": means["letters"]})
    for engine in (models.policy, models.value):
        engine.close()
    return rows


def share_of_the_way(found: dict[str, float]) -> float:
    return (found["end"] - found["start"]) / (found["best"] - found["start"])


# ---------------------------------------------------------------- the cases


def test_ppo_comes_near_the_known_optimum(folder):
    (found,) = run_ranks(1, train, config_of(folder, seed=1, ppo={}, kl={}, beta=BETA), timeout=600)
    assert found["best"] - found["start"] > 0.25  # there is something to win, and it takes some KL
    assert found["kl"] > 1.0
    assert NEEDED <= share_of_the_way(found) <= 1.0, found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_way_comes_near_the_known_optimum(folder, name, seed):
    (found,) = run_ranks(1, train, config_of(folder, seed, **{"ppo": {}, "kl": {}, "beta": BETA} | VARIANTS[name]), timeout=1800)
    assert NEEDED <= share_of_the_way(found) <= 1.0, found


@pytest.mark.parametrize(("judge", "hacks"), [("flawed", True), ("letters", False)])
def test_ppo_hacks_a_flawed_reward_and_the_doctor_says_so(folder, judge, hacks):
    """Without a KL penalty; what the two judges say of the policy is exact, so that the doctor cannot be wrong by chance."""
    config = config_of(folder, 1, {}, {}, beta=0.0).model_copy(update={"reward_function": f"tests.helpers.rewards:{judge}"})
    (rows,) = run_ranks(1, watched, config.model_copy(update={"ppo": config.ppo.model_copy(update={"steps": 40})}), judge, timeout=600)
    trained, honest = ([row[name] for row in rows] for name in ("eval_reward", "eval_held_out_reward"))
    assert trained[-1] > trained[0] + 0.2 and (honest[-1] < honest[0] - 0.05) == hacks
    doctor = Doctor(DoctorConfig())
    said = [finding for step, row in enumerate(rows) for finding in doctor.examine(step, row)]
    assert [finding.check for finding in said] == (["hacking"] if hacks else [])
    assert not hacks or "reward hacking" in said[0].text


@pytest.mark.slow
def test_ppo_stays_where_beta_is_large_and_leaves_where_it_is_zero(folder):
    stays, leaves = (run_ranks(1, train, config_of(folder, 1, {}, {}, beta), timeout=1800)[0] for beta in (20.0, 1e-9))
    assert stays["kl"] < 0.02 and abs(stays["reward"] - stays["start"]) < 0.03
    assert leaves["kl"] > 3.0 and leaves["reward"] > 0.9
