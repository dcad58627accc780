"""PPO's settings that do not go together: refused with field, value, rule, before any process group."""

from pathlib import Path

import pytest

from megagpt.config.check import check_rlhf
from megagpt.config.load import ConfigError, load_config
from megagpt.config.schema import KlConfig, PpoConfig, RlhfConfig

QUICKSTART = Path(__file__).parents[3] / "configs/smoke/quickstart_rlhf.yaml"


def test_ppo_defaults_are_those_of_instructgpt():
    """Ouyang et al. 2022, appendix C.4; lambda of Stiennon et al. 2020, appendix B.1."""
    ppo, kl = PpoConfig(steps=1, micro_batch_size=1), KlConfig()
    assert (kl.coefficient, kl.where, kl.estimator) == (0.02, "reward", "k1")
    assert (ppo.rollout_batch_size, ppo.minibatch_size, ppo.epochs, ppo.temperature) == (512, 64, 1, 1.0)
    assert (ppo.clip_ratio, ppo.gamma, ppo.gae_lambda, ppo.ema_decay) == (0.2, 1.0, 0.95, 0.992)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["reward=null"], "reward = null: nothing is left to be rewarded"),
        (["reward=null", "reward_function=math:sin"], "placement.reward with reward = null: there is no reward model to place; leave it out"),
        (["placement.reward=null"], r"placement.reward is missing: the reward model needs ranks; such as \{ranks: \[0\]\}"),
        (["placement.value=null"], "placement.value is missing: ppo.advantage = gae needs a value model; place it, or take grpo or rloo"),
        (["ppo.advantage=grpo", "ppo.samples_per_prompt=4"], "placement.value with ppo.advantage = grpo: there is no value model then; leave it out"),
        (["ppo.advantage=rloo", "placement.value=null"], "ppo.samples_per_prompt = 1: rloo compares the responses to a prompt; 4 is usual"),
        (["ppo.rollout_parts=24"], r"ppo.rollout_parts = 24: each part of the 64 responses must be .*; .* would do"),
        (["kl.target=6", "kl.coefficient=0"], "kl.coefficient = 0 with kl.target = 6: the controller multiplies it, and 0 stays 0; 0.02 is usual"),
        (["kl.target=6", "kl.horizon=12"], "kl.horizon = 12: one rollout of rollout_batch_size 64 responses could take beta to 0 or below; 13 is the least"),
        (["ppo.steps=3", "ppo.value_warmup_steps=3"], "ppo.value_warmup_steps = 3: the policy would never learn in 3 steps; 2 is the most"),
        (["ppo.samples_per_prompt=5"], "ppo.samples_per_prompt = 5: must divide rollout_batch_size 64; 4 would do"),
        (
            ["ppo.advantage=rloo", "placement.value=null", "ppo.samples_per_prompt=4", "ppo.value_warmup_steps=2"],
            "ppo.value_warmup_steps = 2 with ppo.advantage = rloo: no value model warms up; take 0",
        ),
    ],
)
def test_check_rlhf_refuses(settings, message):
    config = load_config(RlhfConfig, QUICKSTART, settings)
    with pytest.raises(ConfigError, match=message):
        check_rlhf(config, {"policy": 1})


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ("ppo.dual_clip=1.0", "dual_clip"), ("ppo.ema_decay=1.0", "ema_decay"), ("reward_function=module", "reward_function"), ("kl.estimator=k4", "estimator"),
        ("ppo.temperature=.inf", "temperature"), ("kl.coefficient=.inf", "coefficient"), ("prompts.files=[]", "prompts.files = .*at least 1"),
    ],
)  # fmt: skip
def test_ppo_setting_out_of_its_range(setting, field):
    with pytest.raises(ConfigError, match=field):
        load_config(RlhfConfig, QUICKSTART, [setting])
