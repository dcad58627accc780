"""What the planner says of adapters (`test_plan_measured` holds its bytes against the engine's)."""

from pathlib import Path

from megagpt.config.load import load_config
from megagpt.config.schema import LoraConfig, ModelConfig, RlhfConfig
from megagpt.model.param_map import num_parameters, num_trained
from megagpt.model.shape import ModelShape
from megagpt.plan.hardware import load_hardware
from megagpt.plan.memory import checkpoint_bytes
from megagpt.plan.ppo import PpoPlan, plan_placement

MODEL = ModelConfig(num_layers=4, hidden_size=128, num_attention_heads=4, max_sequence_length=512, vocab_size=2048)
ALONE = "{ranks: [0], tp: 1}"


def plan(*settings: str) -> PpoPlan:
    alone = [f"placement={{policy: {ALONE}, reference: {ALONE}, reward: {ALONE}, value: {ALONE}}}", "ppo.ema_decay=0.9"]
    config = load_config(RlhfConfig, Path(__file__).parents[3] / "configs/smoke/quickstart_rlhf.yaml", [*alone, *settings])
    return plan_placement(config, dict.fromkeys(("policy", "reference", "reward", "value"), MODEL), load_hardware("cpu"), 1)


def test_plan_of_ppo_on_adapters():
    """No reference, and moments, gradients and a moving average of the adapters alone; the value model is trained whole."""
    whole, adapted = plan(), plan("lora.rank=4")
    base, shape = num_parameters(ModelShape(MODEL)), ModelShape(MODEL, LoraConfig(rank=4))
    factors = num_trained(shape)
    assert 0 < factors < base / 10
    for phase in ("rollout", "update policy"):
        before, after = whole.memory[phase], adapted.memory[phase]
        assert before.weights - after.weights == 4 * (base - factors)  # the reference goes, adapters come
        assert before.average - after.average == 4 * (base - factors)
        assert before.optimizer - after.optimizer == 8 * (base - factors)
        assert before.gradients - after.gradients == (4 * (base - factors) if phase == "update policy" else 0)
    assert whole.memory["update value"].gradients == adapted.memory["update value"].gradients


def test_plan_of_a_checkpoint_with_adapters():
    assert checkpoint_bytes(1000, "bf16", "adamw", 10) == 2000 + 10 * (4 + 8)
    assert checkpoint_bytes(1000, "fp32", "adamw") == 12000
