"""RLHF: four models anywhere on the ranks give the same PPO; before the first update policy, sampler and reference agree."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

from megagpt.checkpoint.layout import CheckpointError, find_checkpoint
from megagpt.checkpoint.load import Checkpoint
from megagpt.config.schema import KlConfig, PlacementConfig, PretrainMixConfig, RlhfConfig, RunConfig
from megagpt.data.order import shuffled_item
from megagpt.kernels.select import set_kernels
from megagpt.parallel.placement import build_grids
from megagpt.rlhf import ppo as rlhf_ppo
from megagpt.rlhf import score as rlhf_score
from megagpt.rlhf import trainer as rlhf_trainer
from megagpt.rlhf import update as rlhf_update
from megagpt.runtime.run_folder import RunFolder
from tests.helpers.gather import held_here, merge_ranks
from tests.helpers.plain import PlainGPT, plain_init, plain_loss
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny_ppo import OPTIMIZER, foreign_reward, on, placement, ppo_config, ppo_folder, ppo_trainer
from tests.helpers.token_files import write_token_files
from tests.helpers.tolerance import KL_ABSOLUTE, LOG_PROBABILITY_ABSOLUTE, PPO_METRIC_RELATIVE, RATIO_ABSOLUTE, assert_tensors_close

ONE_RANK = placement(on(0), on(0), on(0), on(0))
FOUR_RANKS = {
    "policy_tp2": placement(on(0, 1, tp=2), on(2), on(3), on(3)),
    "each_alone": placement(on(0), on(1), on(2), on(3)),
    # The pipeline last and the models on ranks 0 and 1 in three different layouts.
    "policy_pp2": placement(on(2, 3, pp=2, zero=2), on(0, 1, tp=2), on(0, 1, pp=2), on(0, 1, tp=2, zero=0)),
    "policy_zero2": placement(on(0, 1, zero=2), on(0, 1, pp=2), on(2, 3), on(2, 3, pp=2, zero=1)),
    "policy_zero3": placement(on(1, 2, zero=3), on(0), on(3), on(1, 2, zero=3)),
    "all_on_four": placement(on(0, 1, 2, 3, tp=2, pp=2), on(0, 1, 2, 3), on(0, 1, 2, 3, tp=2), on(0, 1, 2, 3, tp=2, zero=3)),
    # Policy and reward cut differently, frozen weights and the optimizers in host memory.
    "offloaded": placement(
        on(0, 1, zero=2, offload="cpu"), on(0, 1, tp=2, offload="cpu"), on(2, 3, pp=2, offload="cpu"), on(2, 3, tp=2, zero=1, offload="cpu"),
    ),
    "offloaded_zero3": placement(on(0, 1, 2, 3, tp=2, zero=3, offload="cpu"), on(0, 1, 2, 3, tp=2, pp=2, offload="cpu"), on(0, 1, 2, 3), on(0, 1, 2, 3, pp=2)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return ppo_folder(tmp_path_factory.mktemp("rlhf"))


# ---------------------------------------------------------------- on each rank


@contextlib.contextmanager
def recorded(module, name: str):
    """The calls of module.name while inside: (arguments, result)."""
    calls, function = [], getattr(module, name)

    def record(*arguments, **keywords):
        calls.append((arguments, function(*arguments, **keywords)))
        return calls[-1][1]

    with mock.patch.object(module, name, record):
        yield calls


def before_the_first_update(config: RlhfConfig) -> dict[str, float | Tensor]:
    """One step whose only minibatch is the whole rollout, so that the policy's training forward has met no update yet."""
    with (
        ppo_trainer(config) as trainer, recorded(rlhf_update, "policy_loss") as losses, recorded(rlhf_ppo, "score") as scores,
        recorded(rlhf_score, "infer") as scored,
    ):  # fmt: skip
        metrics = trainer.step(1)
        rows_scored = dict.fromkeys(("policy", "reference"), 0)
        for (model, batches, _), _ in scored:
            for role in rows_scored:
                rows_scored[role] += (model is trainer.models.module(role)) * sum(len(batch.tokens) for batch in batches)
    ((_, experience),) = scores
    # (new, old, advantages, mask, clip_ratio) of every microbatch, on the ranks where the policy's logits appear
    ratios = [(new - old)[mask > 0].exp() for (new, old, _, mask, _), _ in losses]
    return {
        "ratios": torch.cat(ratios) if ratios else torch.empty(0),
        "response_tokens": int(experience.mask.sum()),
        "token_kl": ((experience.logprobs - experience.reference_logprobs) * experience.mask).abs().max(),
        "kl": metrics["kl"],
        "rows_scored": rows_scored,
        "sampler_gap": metrics["sampler_gap"],
        "first_ratio_error": metrics["policy_first_ratio_error"],
    }


def two_steps(config: RlhfConfig):
    """Metrics of two steps with the kernels of the configuration, and what this rank holds of policy, value and moving average after them."""
    set_kernels(config.kernels)
    with ppo_trainer(config) as trainer:
        metrics = [{name: value for name, value in trainer.step(step).items() if not name.endswith("_seconds")} for step in (1, 2)]
        engines = (trainer.models.policy, trainer.models.value, trainer.models.average)
        parameters = [{} if engine is None else held_here(engine.canonical_parameters()) for engine in engines]
    set_kernels("auto")
    return metrics, parameters


def averages(config: RlhfConfig):
    """Of one step: the policy before it and after each of its updates, and the moving average after it, by canonical name; and what the average
    holds once it has read the checkpoint that the policy started from."""
    with ppo_trainer(config) as trainer:
        policy, average = trainer.models.policy, trainer.models.average
        if policy is None:
            trainer.step(1)
            return [{}] * 7
        seen, update = [held_here(policy.canonical_parameters())], average.update

        def watched():
            update()
            seen.append(held_here(policy.canonical_parameters()))

        with mock.patch.object(average, "update", watched):
            trainer.step(1)
        seen.append(held_here(average.canonical_parameters()))
        average.load(Checkpoint.open(find_checkpoint(config.policy, RunFolder(config.run))))
        return [*seen, held_here(average.canonical_parameters())]


def values_at_the_start(config: RlhfConfig) -> dict[str, Tensor]:
    with ppo_trainer(config) as trainer:
        return {} if trainer.models.value is None else held_here(trainer.models.value.canonical_parameters())


def policy_gradients(config: RlhfConfig) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Of the first update of a run, whole; and its metrics."""
    found = {}
    with ppo_trainer(config) as trainer:
        policy = trainer.models.policy
        if policy is None:
            return found, trainer.step(1)
        step = policy.step

        def watched(lr: float) -> float:
            found.update(held_here(policy.canonical_gradients()))
            return step(lr)

        with mock.patch.object(policy, "step", watched):
            return found, trainer.step(1)


# ---------------------------------------------------------------- the cases


@pytest.mark.parametrize("logprobs", ["sampler", "trainer"])
@pytest.mark.parametrize("name", ["one_rank", "policy_tp2", "policy_pp2", "policy_zero3"])
def test_rlhf_ratio_is_one_and_kl_zero_before_the_first_update(folder, name, logprobs):
    where = FOUR_RANKS.get(name, ONE_RANK)
    config = ppo_config(folder, where, minibatch_size=16, epochs=1, logprobs=logprobs)
    ranks = run_ranks(1 if where is ONE_RANK else 4, before_the_first_update, config)
    seen = sum(len(rank["ratios"]) for rank in ranks)
    assert seen == ranks[0]["response_tokens"] * where.policy.tp and seen > 40  # every token's ratio, on each tensor-parallel rank
    for rank in ranks:
        assert ((rank["ratios"] - 1).abs() <= RATIO_ABSOLUTE).all()
        assert abs(rank["first_ratio_error"]) <= RATIO_ABSOLUTE
        assert abs(rank["kl"]) <= KL_ABSOLUTE
        assert rank["token_kl"] <= RATIO_ABSOLUTE  # and not only because errors cancel in the mean
        assert 0 < rank["sampler_gap"] <= LOG_PROBABILITY_ABSOLUTE
    grids = build_grids(where, len(ranks))
    for role, rows in (("policy", 0 if logprobs == "sampler" else 16), ("reference", 16)):
        assert sum(rank["rows_scored"][role] for rank in ranks) == rows * grids[role].tp * grids[role].pp


@pytest.fixture(scope="module")
def on_one_rank(folder):
    ((metrics, parameters),) = run_ranks(1, two_steps, ppo_config(folder, ONE_RANK))
    return metrics, parameters


def test_rlhf_reference_run_is_worth_comparing_with(on_one_rank):
    """Ragged responses, active clipping, a KL that the first update made and a coefficient that answered it."""
    first, second = on_one_rank[0]
    assert 1 < first["length"] < 8 and 0 < first["stopped"] < 1
    assert first["policy_clip_fraction"] > 0.05 and min(first["policy_grad_norm"], first["value_grad_norm"]) > OPTIMIZER["clip_grad"]
    assert first["kl"] == pytest.approx(0, abs=KL_ABSOLUTE) and second["kl"] > 0.1 and second["kl_coefficient"] != first["kl_coefficient"]
    assert len(first) == len(second) >= 17


@pytest.mark.parametrize(("name", "kernels"), list(zip(FOUR_RANKS, itertools.cycle(["fused", "reference"]))))
def test_rlhf_placement_and_kernels_do_not_change_two_steps(folder, on_one_rank, name, kernels):
    expected_metrics, expected_parameters = on_one_rank
    config = ppo_config(folder, FOUR_RANKS[name], generation_batch_size=3)  # on one rank all 16 rows are sampled at the same time
    ranks = run_ranks(4, two_steps, config.model_copy(update={"kernels": kernels}))
    for metrics, _ in ranks:
        for ours, theirs in zip(metrics, expected_metrics, strict=True):
            # Absolutely: what is nothing but rounding before the first update.
            assert ours == pytest.approx(theirs, rel=PPO_METRIC_RELATIVE, abs=KL_ABSOLUTE)
    for role, expected in enumerate(expected_parameters):
        merged = merge_ranks([parameters[role] for _, parameters in ranks])
        assert_tensors_close(merged, expected, relative=PPO_METRIC_RELATIVE)


def all_roles(where: PlacementConfig, **update: str) -> PlacementConfig:
    return PlacementConfig(**{role: config.model_copy(update=update) for role, config in where if config is not None})


def held_while_away(config: RlhfConfig) -> dict[str, tuple[int, int, int]]:
    """Of each frozen model here: bytes of its module between the phases, within its scoring, and of the copy in host memory."""
    with ppo_trainer(config) as trainer:
        models, found = trainer.models, {}
        trainer.step(1)
        for role, away in models.offloaded.items():
            with models.scope(role), models.scope(role):
                here = module_bytes(models.module(role))
            found[role] = (module_bytes(models.module(role)), here, away.host_bytes)
        return found


def module_bytes(module: torch.nn.Module) -> int:
    return sum(parameter.untyped_storage().nbytes() for parameter in module.parameters())


@pytest.mark.parametrize("name", ["offloaded", "offloaded_zero3"])
def test_rlhf_offload_changes_no_bit(folder, name):
    """Without clipping: DeepSpeed adds up the norm of offloaded gradients in another order, and a clipped step has that in it."""
    config = ppo_config(folder, FOUR_RANKS[name])
    unclipped = config.policy_optimizer.model_copy(update={"clip_grad": 0.0})
    config = config.model_copy(update={"policy_optimizer": unclipped, "value_optimizer": unclipped})
    here = config.model_copy(update={"placement": all_roles(config.placement, offload="none")})
    for (metrics, held), (expected_metrics, expected) in zip(*(run_ranks(4, two_steps, which) for which in (config, here)), strict=True):
        for ours, theirs in zip(metrics, expected_metrics, strict=True):
            assert ours == {metric: pytest.approx(value, rel=1e-6) if metric.endswith("grad_norm") else value for metric, value in theirs.items()}
        for ours, theirs in zip(held, expected, strict=True):
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[tensor], theirs[tensor]) for tensor in theirs)


def test_rlhf_offloaded_models_hold_nothing_between_their_phases(folder):
    seen = run_ranks(4, held_while_away, ppo_config(folder, FOUR_RANKS["offloaded"]))
    assert [set(rank) for rank in seen] == [{"reference"}, {"reference"}, {"reward"}, {"reward"}]
    for rank in seen:
        for away, here, kept in rank.values():
            assert away == 0 and here == kept > 10_000


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_rlhf_in_16_bits_samples_and_learns(folder, precision):
    """Sampler and trainer agree to 16 bits before the first update, and two steps move the policy about as far as in float32."""
    where = placement(on(0, 1, tp=2), on(0, 1, pp=2), on(2, 3, tp=2), on(2, 3, zero=2))
    config = ppo_config(folder, all_roles(where, precision=precision), minibatch_size=16, epochs=1)
    expected = run_ranks(4, two_steps, config.model_copy(update={"placement": where}))[0]
    ranks = run_ranks(4, two_steps, config)
    for (first, second), _ in ranks:
        assert 0 < first["sampler_gap"] < 0.5 and abs(first["policy_first_ratio_error"]) < 0.05
        assert second["policy_grad_norm"] > 0 and second["value_grad_norm"] > 0 and second["kl"] > 0.01
        assert first["reward"] == pytest.approx(expected[0][0]["reward"], abs=0.5)
        assert ("policy_loss_scale" in first) == (precision == "fp16")
    # Float32 masters: an update of 0.01 of a weight's spread survives, and so does the moving average of it.
    masters, average = (merge_ranks([held[place] for _, held in ranks]) for place in (0, 2))
    assert all(tensor.dtype == torch.float32 for tensor in (*masters.values(), *average.values()))
    name = max(masters, key=lambda tensor: masters[tensor].numel())
    assert not torch.equal(masters[name], masters[name].to(torch.bfloat16).float()) and not torch.equal(masters[name], average[name])


TERMS = {"clip_ratio_high": 0.28, "dual_clip": 3.0, "clamp_log_ratio": 2.0, "entropy_coefficient": 0.01, "length_penalty": 0.05}
"""Everything that a setting can add to the policy's loss and to the reward of a response."""
OTHER_WAYS = {
    "every_term_of_ppo": (
        {**TERMS, "normalise_reward": "running", "target_kl": 0.02}, {"where": "loss", "estimator": "k3"}, {},
        ONE_RANK, placement(on(2, 3, pp=2, zero=2), on(0, 1), on(0, 1, tp=2), on(0, 1, zero=2)),
    ),
    "grpo": (
        {"advantage": "grpo", "samples_per_prompt": 4, **TERMS}, {"where": "loss", "estimator": "k2"}, {},
        placement(on(0), on(0), on(0), None), placement(on(0, 1, 2, 3, tp=2, zero=2), on(0, 1, 2, 3), on(0, 1, 2, 3, tp=2), None),
    ),
    "rloo_with_a_reward_function_alone": (
        {"advantage": "rloo", "samples_per_prompt": 2}, {}, {"reward": None, "reward_function": "tests.helpers.rewards:letters"},
        placement(on(0), on(0), None, None), placement(on(0, 1, zero=3), on(2, 3, pp=2), None, None),
    ),
    "reward_function_and_model": (
        {"value_warmup_steps": 1}, {"target": 0.5, "horizon": 40}, {"reward_function": "tests.helpers.rewards:letters"},
        ONE_RANK, placement(on(0), on(1), on(2), on(3)),
    ),
}  # fmt: skip
"""Settings of PPO, of the KL and of the rest; a placement on one rank, and one on four."""


@pytest.mark.parametrize("name", OTHER_WAYS)
def test_rlhf_other_ways_are_placed_alike(folder, name):
    ppo, kl, rest, one, four = OTHER_WAYS[name]
    configs = [ppo_config(folder, where, KlConfig(coefficient=0.1, **kl), **ppo).model_copy(update=rest) for where in (one, four)]
    ((expected_metrics, expected_parameters),) = run_ranks(1, two_steps, configs[0])
    ranks = run_ranks(4, two_steps, configs[1])
    for metrics, _ in ranks:
        for ours, theirs in zip(metrics, expected_metrics, strict=True):
            assert ours == pytest.approx(theirs, rel=PPO_METRIC_RELATIVE, abs=KL_ABSOLUTE)
    for role, expected in enumerate(expected_parameters):
        assert_tensors_close(merge_ranks([parameters[role] for _, parameters in ranks]), expected, relative=PPO_METRIC_RELATIVE)
    first, second = expected_metrics
    if name == "every_term_of_ppo":
        assert first["policy_updates"] < 4 and first["policy_update_kl"] > 0  # ended early, on all ranks alike
    if name == "reward_function_and_model":
        assert "policy_updates" not in first and second["policy_updates"] == 4 and second["kl"] == pytest.approx(0, abs=KL_ABSOLUTE)
        assert first["kl_coefficient"] == second["kl_coefficient"] == 0.1  # a policy that does not learn yet says nothing about beta
    if ppo.get("advantage"):
        assert not any("value" in metric or "variance" in metric for metric in first) and first["policy_grad_norm"] > 0 and not expected_parameters[1]


@pytest.mark.parametrize("name", ["policy_pp2", "policy_zero2", "policy_zero3", "all_on_four"])
def test_rlhf_moving_average_by_hand_and_as_it_was_saved(folder, name):
    ranks = run_ranks(4, averages, ppo_config(folder, FOUR_RANKS[name]))
    start, *updated, average, loaded = [merge_ranks(list(moment)) for moment in zip(*ranks, strict=True)]
    assert len(updated) == 4  # two epochs of two minibatches
    expected = dict(start)
    for weights in updated:
        expected = {tensor: 0.7 * expected[tensor] + 0.3 * weights[tensor] for tensor in start}
    assert_tensors_close(average, expected, relative=1e-6)
    assert all(torch.equal(loaded[tensor], start[tensor]) for tensor in start)


def test_rlhf_value_model_starts_from_the_reward_model_or_from_the_policy(folder):
    config = ppo_config(folder, ONE_RANK)
    alone = config.model_copy(update={
        "reward": None, "reward_function": "tests.helpers.rewards:letters", "placement": placement(on(0), on(0), None, on(0)),
    })  # fmt: skip
    for start, settings in (("reward", config), ("sft", alone)):
        (values,) = run_ranks(1, values_at_the_start, settings)
        with Checkpoint.open(find_checkpoint(start, RunFolder(config.run))).tensors("model") as stored:
            body = [name for name in values if not name.startswith("scalar_head.")]
            assert all(torch.equal(values[name], stored(name)) for name in body)
            weight, bias = (values[f"scalar_head.{name}"] for name in ("weight", "bias"))
            if start == "reward":  # where the reward model says 0.05 + 0.3 x, the normalised score is x
                assert torch.allclose(weight, stored("scalar_head.weight") / 0.3, rtol=1e-6, atol=0)
                assert torch.allclose(bias, (stored("scalar_head.bias") - 0.05) / 0.3, rtol=1e-6, atol=0)
        assert len(body) == len(values) - 2 and weight.abs().max() > 0


@pytest.mark.parametrize("name", ["one_rank", "policy_tp2", "policy_pp2", "policy_zero3"])
def test_rlhf_pretraining_mix_adds_the_gradient_of_its_text(folder, name):
    """Eq. 2 of Ouyang et al. 2022 in one optimizer step: that of PPO plus 27.8 times that of the mean loss over text, from a plain model."""
    documents = [[5 + (7 * i + j * j) % 280 for j in range(61)] for i in range(30)]
    write_token_files(folder / "texts", documents)
    where, length = FOUR_RANKS.get(name, ONE_RANK), 32 + 8
    alone = ppo_config(folder, where, minibatch_size=16, epochs=1)
    mix = PretrainMixConfig(data=str(folder / "texts"), rows_per_response=2)
    results = [run_ranks(1 if where is ONE_RANK else 4, policy_gradients, config) for config in (alone, alone.model_copy(update={"pretrain_mix": mix}))]
    ppo, both = (merge_ranks([gradients for gradients, _ in ranks]) for ranks in results)

    start = Checkpoint.open(find_checkpoint("sft", RunFolder(alone.run)))
    stream = list(itertools.chain(*documents))
    rows = [shuffled_item(alone.run.seed, place // 45, (len(stream) - 1) // length, place % 45) for place in range(32)]
    assert (len(stream) - 1) // length == 45
    tokens = torch.tensor([stream[row * length : (row + 1) * length + 1] for row in rows])
    model = PlainGPT(start.model_config.model_copy(update={"dropout": 0.0}))
    model.load_state_dict(plain_init(start.model_config, 1))
    loss = plain_loss(model, tokens[:, :-1], tokens[:, 1:], torch.ones(32, length))
    loss.backward()
    expected = {tensor: ppo[tensor] + 27.8 * parameter.grad for tensor, parameter in model.named_parameters()}
    assert_tensors_close(both, expected, relative=PPO_METRIC_RELATIVE)
    for _, metrics in results[1]:
        assert metrics["policy_pretrain_loss"] == pytest.approx(float(loss), rel=PPO_METRIC_RELATIVE)


def test_rlhf_refuses_a_language_model_as_reward_and_a_reward_model_as_policy(folder, no_process_group):
    config = ppo_config(folder, ONE_RANK)
    with pytest.raises(CheckpointError, match=r"sft/checkpoints/step_1: holds a language model; a reward model is needed here"):
        rlhf_trainer.fit(config.model_copy(update={"reward": "sft"}))
    with pytest.raises(CheckpointError, match=r"reward/checkpoints/step_1: holds a reward model; a language model is needed here"):
        rlhf_trainer.fit(config.model_copy(update={"policy": "reward"}))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return foreign_reward(tmp_path_factory.mktemp("foreign"))


def test_rlhf_hands_text_to_a_reward_model_of_another_tokenizer(folder, foreign):
    config = ppo_config(folder, ONE_RANK).model_copy(update={"reward": str(foreign)})
    ((expected_metrics, expected_parameters),) = run_ranks(1, two_steps, config)
    assert len({step["reward"] for step in expected_metrics}) == 2 and expected_metrics[0]["reward_std"] > 0
    ranks = run_ranks(4, two_steps, config.model_copy(update={"placement": FOUR_RANKS["policy_tp2"]}))
    for metrics, _ in ranks:
        for ours, theirs in zip(metrics, expected_metrics, strict=True):
            assert ours == pytest.approx(theirs, rel=PPO_METRIC_RELATIVE, abs=KL_ABSOLUTE)
    for role, expected in enumerate(expected_parameters):  # the value model among them: it reads the policy's tokens
        assert_tensors_close(merge_ranks([parameters[role] for _, parameters in ranks]), expected, relative=PPO_METRIC_RELATIVE)


def test_rlhf_refuses_a_reward_model_without_its_tokenizer(folder, foreign, tmp_path, no_process_group):
    copy = Path(shutil.copytree(foreign, tmp_path / "step_1"))
    shutil.rmtree(copy / "tokenizer")
    shutil.copytree(find_checkpoint("sft", RunFolder(RunConfig(name="toy", root=str(folder)))) / "tokenizer", copy / "tokenizer")
    with pytest.raises(CheckpointError, match=rf"{copy}/tokenizer/tokenizer.model: damaged"):
        rlhf_trainer.fit(ppo_config(folder, ONE_RANK).model_copy(update={"reward": str(copy)}))
