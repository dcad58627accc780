"""PPO whose responses are written by a view of the policy in a layout of its own."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor

from megagpt.config.schema import LoraConfig, ModelConfig, RlhfConfig, RolloutLayout, RunConfig
from megagpt.engine.build import gather_canonical
from megagpt.model.gpt import GPT
from megagpt.parallel import route
from megagpt.parallel.placement import build_grids
from megagpt.rlhf import rollout as rlhf_rollout
from tests.helpers.gather import held_here, merge_ranks
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny_checkpoint import make_checkpoint
from tests.helpers.tiny_ppo import on, placement, ppo_config, ppo_folder, ppo_trainer
from tests.helpers.tiny_run import toy_tokenizer
from tests.helpers.tolerance import KL_ABSOLUTE, LOG_PROBABILITY_ABSOLUTE, PPO_METRIC_RELATIVE, assert_tensors_close

FAMILIES = {
    "gpt": {"family": "gpt", "tie_embeddings": True},
    "llama": {"family": "llama", "num_query_groups": 2, "tie_embeddings": False},
}


def view(policy, rollout: dict, *others):
    return placement(policy, *others).model_copy(update={"rollout": RolloutLayout(**rollout)})


ELSEWHERE = (on(2, 3), on(2, 3), on(2, 3))
VIEWS = {
    "pp2_to_tp2": view(on(0, 1, pp=2), {"ranks": [0, 1], "tp": 2}, *ELSEWHERE),
    "dp2_to_tp2": view(on(0, 1, zero=2), {"ranks": [0, 1], "tp": 2}, *ELSEWHERE),
    "tp2_to_pp2": view(on(0, 1, tp=2), {"ranks": [0, 1], "pp": 2}, *ELSEWHERE),
    "zero3_to_tp2": view(on(0, 1, zero=3), {"ranks": [0, 1], "tp": 2}, *ELSEWHERE),
    "other_ranks": view(on(0, 1, pp=2, zero=2), {"ranks": [2, 3]}, on(0, 1), on(2, 3), on(2, 3)),
    "all_on_four": view(on(0, 1, 2, 3, tp=2, pp=2), {"ranks": [0, 1, 2, 3], "tp": 2}, on(0, 1, 2, 3), on(0, 1, 2, 3), on(0, 1, 2, 3)),
}
"""Where the policy learns, and how it writes."""
WITHIN_A_RANK = {"dp2_to_tp2", "tp2_to_pp2", "zero3_to_tp2"}
"""Whoever wants a shard has the whole parameter already, once it is gathered."""


@pytest.fixture(scope="module", params=FAMILIES)
def base(request, tmp_path_factory):
    """The configuration of a PPO run on one rank whose policy is of this family."""
    folder = ppo_folder(tmp_path_factory.mktemp(request.param))
    tokenizer = toy_tokenizer(folder / "tokenizer")
    sizes = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "max_sequence_length": 40, "vocab_size": tokenizer.vocab_size, "dropout": 0.1}
    config = ppo_config(folder, placement(on(0), on(0), on(0), on(0)))
    start = make_checkpoint(RunConfig(name="start", root=str(folder)), "sft", ModelConfig(**sizes, **FAMILIES[request.param]), tokenizer, seed=4)
    return config.model_copy(update={"policy": str(start)})


# ---------------------------------------------------------------- on each rank


def whole_tensors(model: GPT | None) -> dict[str, Tensor]:
    return {} if model is None else held_here(pair for parameter, entry in model.entries() for pair in gather_canonical(model, entry, parameter.data))


def two_steps(config: RlhfConfig):
    """Metrics of two rounds; the policy's weights before and after them; the view's; did the view write; and most numbers under way at a time."""
    sent, exchange = [0], route.dist.batch_isend_irecv

    def watched(operations):
        sent.append(sum(operation.tensor.numel() for operation in operations))
        return exchange(operations)

    writers, generate = [], rlhf_rollout.generate

    def write(model: GPT, *arguments, **keywords):
        writers.append(model)
        return generate(model, *arguments, **keywords)

    with (
        mock.patch.object(route.dist, "batch_isend_irecv", watched), mock.patch.object(rlhf_rollout, "generate", write),
        ppo_trainer(config) as trainer,
    ):  # fmt: skip
        models = trainer.models
        before = {} if models.policy is None else held_here(models.policy.canonical_parameters())
        metrics = [{name: value for name, value in trainer.step(step).items() if not name.endswith("_seconds")} for step in (1, 2)]
        after = {} if models.policy is None else held_here(models.policy.canonical_parameters())
        own = all(model is models.module(models.writer) for model in writers) and models.writer == ("rollout" if models.view else "policy")
        return metrics, before, after, whole_tensors(models.rollout), own, max(sent)


# ---------------------------------------------------------------- the cases


@pytest.fixture(scope="module")
def expected(base):
    ((metrics, _, after, _, own, _),) = run_ranks(1, two_steps, base)
    assert own
    return metrics, after


@pytest.mark.parametrize("name", VIEWS)
def test_weight_view_is_the_policy_and_changes_nothing(base, expected, name):
    ranks = run_ranks(4, two_steps, base.model_copy(update={"placement": VIEWS[name]}))
    for metrics, *_ in ranks:
        for ours, theirs in zip(metrics, expected[0], strict=True):
            assert ours == pytest.approx(theirs, rel=PPO_METRIC_RELATIVE, abs=KL_ABSOLUTE)
            assert ours["sampler_gap"] <= LOG_PROBABILITY_ABSOLUTE
    before, after, viewed = (merge_ranks([rank[moment] for rank in ranks]) for moment in (1, 2, 3))
    assert_tensors_close(after, expected[1], relative=PPO_METRIC_RELATIVE)
    assert viewed.keys() == after.keys() and all(torch.equal(viewed[tensor], after[tensor]) for tensor in after)
    assert not any(torch.equal(before[tensor], after[tensor]) for tensor in after)
    assert all(rank[4] for rank in ranks)
    largest, under_way = max(tensor.numel() for tensor in after.values()), max(rank[5] for rank in ranks)
    assert under_way <= 2 * largest and (under_way > 0) == (name not in WITHIN_A_RANK), "one parameter at a time"


def test_weight_view_takes_over_adapters_alone(base):
    """Of a policy that trains adapters of low rank: the weights below them stay what both were loaded with."""
    config = base.model_copy(update={"lora": LoraConfig(rank=4)})
    ((expected_metrics, _, expected_after, _, _, _),) = run_ranks(1, two_steps, config)
    ranks = run_ranks(4, two_steps, config.model_copy(update={"placement": VIEWS["pp2_to_tp2"]}))
    for metrics, *_ in ranks:
        for ours, theirs in zip(metrics, expected_metrics, strict=True):
            assert ours == pytest.approx(theirs, rel=PPO_METRIC_RELATIVE, abs=KL_ABSOLUTE)
    before, after, viewed = (merge_ranks([rank[moment] for rank in ranks]) for moment in (1, 2, 3))
    assert_tensors_close(after, expected_after, relative=PPO_METRIC_RELATIVE)
    assert viewed.keys() == after.keys() and all(torch.equal(viewed[tensor], after[tensor]) for tensor in after)
    moved = {tensor for tensor in after if not torch.equal(before[tensor], after[tensor])}
    assert moved == {tensor for tensor in after if tensor.endswith((".lora_a", ".lora_b"))}
    assert max(rank[5] for rank in ranks) <= 2 * max(after[tensor].numel() for tensor in moved)


def test_weight_view_in_the_policys_own_layout_is_the_policy(base):
    where = view(on(0, 1, tp=2), {"ranks": [0, 1], "tp": 2}, *ELSEWHERE)
    assert "rollout" not in build_grids(where, 4)
    assert set(build_grids(VIEWS["pp2_to_tp2"], 4)) == {"policy", "rollout", "reference", "reward", "value"}
