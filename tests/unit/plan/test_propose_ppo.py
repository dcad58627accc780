"""`placement: auto`: the fastest placement that fits, found without trying all of them."""

import itertools

import pytest

from megagpt.config.load import ConfigError, load_config
from megagpt.config.schema import ModelConfig, PlacementConfig, RlhfConfig
from megagpt.parallel.placement import build_grids
from megagpt.plan.hardware import Hardware, load_hardware
from megagpt.plan.ppo import PpoPlan, plan_placement
from megagpt.plan.propose import nothing_fits
from megagpt.plan.propose_ppo import GROUPINGS, SHARES, _variants, placement_words, propose_ppo, smallest_need
from tests.helpers.tiny_run import ROOT

MODEL = ModelConfig(num_layers=24, hidden_size=2048, num_attention_heads=16, max_sequence_length=1024, vocab_size=50257)
MODELS = dict.fromkeys(("policy", "reference", "reward", "value"), MODEL)
MICRO = (2,)


def config_of(*overrides: str) -> RlhfConfig:
    settings = ("placement=auto", "ppo.micro_batch_size=2", "prompts.max_prompt_length=256", "prompts.max_response_length=256", *overrides)
    return load_config(RlhfConfig, ROOT / "configs/smoke/quickstart_rlhf.yaml", list(settings))


def hardware_of(gigabytes: float) -> Hardware:
    return load_hardware("a100-80gb").model_copy(update={"memory_bytes": gigabytes * 1e9})


def every_placement(config: RlhfConfig, hardware: Hardware, ranks: int) -> list[PpoPlan]:
    """The plan of each combination of each group's variants, whole."""
    found = []
    for grouping, shares in ((grouping, shares) for grouping in GROUPINGS for shares in SHARES[len(grouping)] if ranks % sum(shares) == 0):
        sizes = [share * ranks // sum(shares) for share in shares]
        places = [range(end - size, end) for end, size in zip(itertools.accumulate(sizes), sizes)]
        variants = [list(_variants(config, MODELS, hardware, group, place)) for group, place in zip(grouping, places)]
        for chosen in itertools.product(*variants):
            placement = PlacementConfig(**{role: where for variant in chosen for role, where in variant.roles.items()})
            found.append(plan_placement(config.model_copy(update={"placement": placement}), MODELS, hardware, ranks))
    return found


@pytest.mark.parametrize(("gigabytes", "ranks"), [(80, 2), (30, 2), (14, 2), (20, 3), (16, 4)])
def test_propose_ppo_finds_the_best_of_all(gigabytes, ranks):
    """Against planning every combination as a whole: groups are planned apart, and most of their variants never meet."""
    config, hardware = config_of("ppo.minibatch_size=24", "ppo.rollout_batch_size=48", "prompts.eval_prompts=24"), hardware_of(gigabytes)
    every = every_placement(config, hardware, ranks)
    fitting = [plan for plan in every if plan.fits]
    assert 0 < len(fitting) < len(every) or gigabytes == 80
    best = propose_ppo(config, MODELS, hardware, ranks, micro_batches=MICRO)
    assert best[0].seconds_per_step == pytest.approx(min(plan.seconds_per_step for plan in fitting), rel=1e-12)
    assert [plan.seconds_per_step for plan in best] == sorted(plan.seconds_per_step for plan in best) and all(plan.fits for plan in best)
    assert smallest_need(config, MODELS, hardware_of(1), ranks).bytes_per_rank == min(plan.bytes_per_rank for plan in every)
    again = propose_ppo(config, MODELS, hardware, ranks, micro_batches=MICRO)
    assert [plan.config for plan in again] == [plan.config for plan in best]


def test_propose_ppo_offloads_what_does_not_fit_and_says_so():
    roomy, tight = (propose_ppo(config_of(), MODELS, hardware_of(gigabytes), 1, micro_batches=MICRO)[0] for gigabytes in (80, 50))
    assert "offloaded" not in placement_words(roomy) and "offloaded: " in placement_words(tight)
    assert tight.bytes_per_rank <= 50e9 < roomy.bytes_per_rank and tight.seconds_per_step > roomy.seconds_per_step


def test_propose_ppo_says_the_smallest_need_where_nothing_fits():
    hardware = hardware_of(5)
    assert propose_ppo(config_of(), MODELS, hardware, 2, micro_batches=MICRO) == []
    least = smallest_need(config_of(), MODELS, hardware, 2)
    text = nothing_fits(config_of(), MODELS, hardware, 2)
    assert f"nothing fits into 5 GB of each of 2 devices; the smallest need is {least.bytes_per_rank / 1e9:.3g} GB a rank (" in text
    assert "no placement of these models and batches is legal on 5 ranks" in nothing_fits(config_of("ppo.micro_batch_size=7"), MODELS, hardware, 5)


def test_propose_ppo_keeps_precision_and_the_models_of_the_job():
    roles = {role: {"precision": "bf16"} for role in ("policy", "reference")}
    words = ["reward=null", "reward_function=math:sin", "ppo.advantage=rloo", "ppo.samples_per_prompt=4"]
    config = config_of(*words)
    assert config.placement.reward is None and config.placement.value is None and config.placement.is_auto
    config = config.model_copy(update={"placement": PlacementConfig(**roles)})
    for plan in propose_ppo(config, MODELS, hardware_of(80), 4, micro_batches=MICRO):
        placed = plan.config.placement
        assert placed.policy.precision == placed.reference.precision == "bf16" and placed.reward is None and placed.value is None
        assert set(build_grids(placed, 4)) == {"policy", "reference"}


def test_propose_ppo_wants_ranks_for_all_models_or_for_none():
    config = load_config(RlhfConfig, ROOT / "configs/smoke/quickstart_rlhf.yaml", ["placement.value.ranks=null"])
    with pytest.raises(ConfigError, match="placement.value.ranks is missing: every model needs its ranks, or none has any"):
        build_grids(config.placement, 4)
