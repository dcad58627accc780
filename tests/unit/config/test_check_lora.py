"""Settings of LoRA that do not go together or mean nothing."""

from pathlib import Path

import pytest

from megagpt.config.check import check_parent, check_rlhf, check_role
from megagpt.config.load import ConfigError, load_config
from megagpt.config.schema import LoraConfig, ModelConfig, RewardConfig, RlhfConfig, SftConfig
from megagpt.parallel.placement import build_grids, reference_is_policy

SMOKE = Path(__file__).parents[3] / "configs/smoke"
MODEL = ModelConfig(num_layers=4, hidden_size=64, num_attention_heads=4, max_sequence_length=512)


def test_lora_is_off_unless_it_is_asked_for():
    assert load_config(SftConfig, SMOKE / "quickstart_sft.yaml").lora is None
    rlhf = load_config(RlhfConfig, SMOKE / "quickstart_rlhf.yaml")
    assert rlhf.lora is None and rlhf.value_lora is None
    assert load_config(SftConfig, SMOKE / "quickstart_sft.yaml", ["lora.rank=4"]).lora == LoraConfig(rank=4, alpha=16.0, targets=("qkv", "proj", "fc1", "fc2"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["lora.rank=65"], "lora.rank = 65: more than the model's hidden_size; 64 is the most, and 8 is usual"),
        (["lora.rank=4", "parallel.pipeline_parallel_size=2", "parallel.stage_layers=[0,4]"],
         r"parallel.stage_layers = \[0, 4\] with lora: a stage without layers has nothing to train"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_check_lora_refuses(stage, settings, message):
    alone = ["parallel.tensor_parallel_size=1", "parallel.pipeline_parallel_size=1", "parallel.data_parallel_size=null"]
    config = load_config({"sft": SftConfig, "reward": RewardConfig}[stage], SMOKE / f"quickstart_{stage}.yaml", [*alone, *settings])
    with pytest.raises(ConfigError, match=message):
        check_parent(config, MODEL, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["lora.targets=[qkv,fc1,qkv]"], "lora.targets.*names one of them twice"),
        (["lora.targets=[]"], "lora.targets"),
        (["lora.targets=[query]"], r"lora\.targets.*qkv"),
        (["lora.rank=0"], "lora.rank"),
    ],
)
def test_lora_settings_refuse(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_config(SftConfig, SMOKE / "quickstart_sft.yaml", settings)


def rlhf(*settings: str) -> RlhfConfig:
    return load_config(RlhfConfig, SMOKE / "quickstart_rlhf.yaml", list(settings))


@pytest.mark.parametrize(
    ("role", "settings", "message"),
    [
        ("policy", ["lora.rank=65"], "lora.rank = 65: more than"),
        ("value", ["value_lora.rank=65"], "value_lora.rank = 65: more than"),
    ],
)
def test_check_lora_of_a_role_refuses(role, settings, message):
    with pytest.raises(ConfigError, match=message):
        check_role(rlhf(*settings), role, MODEL, 1, 1)
    check_role(rlhf(*settings), "reference", MODEL, 1, 1)


def test_check_lora_without_a_value_model():
    config = rlhf("value_lora.rank=2", "placement.value=null", "ppo.advantage=rloo", "ppo.samples_per_prompt=4")
    with pytest.raises(ConfigError, match="value_lora without placement.value: there is no value model to adapt; leave it out"):
        check_rlhf(config, {"policy": 1})


@pytest.mark.parametrize(
    ("reference", "settings", "expected"),
    [
        ("{ranks: [0, 1], tp: 2}", ["lora.rank=2"], True),
        ("{ranks: [0, 1], tp: 2}", [], False),
        ("{ranks: [0, 1], pp: 2}", ["lora.rank=2"], False),
        ("{ranks: [2]}", ["lora.rank=2"], False),
    ],
)
def test_reference_is_the_policy_where_both_are_cut_alike(reference, settings, expected):
    config = rlhf(f"placement.reference={reference}", "placement.reward={ranks: [2]}", "placement.value={ranks: [2]}", *settings)
    assert reference_is_policy(config, build_grids(config.placement, 3)) is expected
