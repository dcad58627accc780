"""Adapters of low rank: their names and sizes, where they begin, and the weights that they amount to."""

import pytest
import torch

from megagpt.config.schema import LoraConfig
from megagpt.model import param_map
from megagpt.model.init import initial_tensor
from megagpt.model.lora import merged_weight
from megagpt.model.shape import ModelShape
from tests.helpers.tiny import tiny_model

LORA = LoraConfig(rank=3, alpha=6.0)
LLAMA, GPT = (ModelShape(tiny_model(family, False, hidden_size=64), LORA) for family in ("llama", "gpt"))


def factors(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    return {name: size for name, size in param_map.canonical_shapes(shape).items() if "lora_" in name}


def test_lora_factors_of_a_layer():
    """32 numbers of keys and values for 64 of queries; one A for the parts of a fused layer, one B for each."""
    first = {name: size for name, size in factors(LLAMA).items() if name.startswith("layers.0.")}
    assert first == {
        "layers.0.qkv.lora_a": (3, 64), "layers.0.attention.query.lora_b": (64, 3), "layers.0.attention.key.lora_b": (32, 3),
        "layers.0.attention.value.lora_b": (32, 3), "layers.0.proj.lora_a": (3, 64), "layers.0.attention.output.lora_b": (64, 3),
        "layers.0.fc1.lora_a": (3, 64), "layers.0.mlp.gate.lora_b": (176, 3), "layers.0.mlp.up.lora_b": (176, 3),
        "layers.0.fc2.lora_a": (3, 176), "layers.0.mlp.down.lora_b": (64, 3),
    }  # fmt: skip
    assert len(factors(LLAMA)) == 4 * len(first)
    few = ModelShape(GPT.config, LoraConfig(targets=("fc2",)))
    assert {name for name in factors(few) if ".1." in name} == {"layers.1.fc2.lora_a", "layers.1.mlp.down.lora_b"}


@pytest.mark.parametrize("shape", [LLAMA, GPT], ids=["llama", "gpt"])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_lora_factors_are_split_and_merged(shape, tp):
    state = {name: torch.randn(size) for name, size in factors(shape).items()}
    merged = {}
    for layer in range(4):
        for target, module in param_map.TARGETS.items():
            for factor in "ab":
                entry = param_map.entry(f"decoder.layers.{layer}.{module}.lora.{factor}", shape)
                assert entry.axis == {"qkva": None, "qkvb": 0, "proja": 1, "projb": None, "fc1a": None, "fc1b": 0, "fc2a": 1, "fc2b": None}[target + factor]
                shards = [param_map.split(entry, [state[piece] for piece in entry.pieces], shape, tp, rank) for rank in range(tp)]
                merged |= param_map.merge(entry, shards, shape)
    assert merged.keys() == state.keys() and all(torch.equal(merged[name], state[name]) for name in state)


def test_lora_trains_its_factors_and_a_scalar_head():
    sizes = param_map.canonical_shapes(LLAMA, scalar_head=True)
    trained = {name for name in sizes if param_map.is_trained(name, LLAMA)}
    assert trained == {*factors(LLAMA), "scalar_head.weight", "scalar_head.bias"}
    assert param_map.num_trained(LLAMA, scalar_head=True) == sum(torch.empty(sizes[name]).numel() for name in trained)
    whole = ModelShape(LLAMA.config)
    assert param_map.num_trained(whole) == param_map.num_parameters(whole) < param_map.num_parameters(LLAMA)
    length, both = 128, (param_map.num_parameters(LLAMA), param_map.num_trained(LLAMA))
    spared = LLAMA.flops_per_token(length, both[0]) - LLAMA.flops_per_token(length, *both)
    assert spared == 2 * param_map.num_parameters(whole)  # gradients of weights that do not move


def test_lora_begins_with_b_zero_and_a_of_the_length_of_its_input():
    for name, size in factors(LLAMA).items():
        tensor = initial_tensor(name, size, LLAMA, seed=1)
        if name.endswith("lora_b"):
            assert tensor.abs().sum() == 0
        else:
            assert tensor.std().item() == pytest.approx(size[1] ** -0.5, rel=4 / (2 * tensor.numel()) ** 0.5)  # four standard errors
    a = [initial_tensor(f"layers.{layer}.qkv.lora_a", (3, 64), LLAMA, seed) for layer, seed in ((0, 1), (1, 1), (0, 2))]
    assert not torch.equal(a[0], a[1]) and not torch.equal(a[0], a[2])


def test_lora_merged_weight_term_by_term():
    """W_ij + alpha / rank * sum_r B_ir A_rj, in float32 also where the weights have 16 bits."""
    stored = {
        "layers.2.mlp.gate.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "layers.2.fc1.lora_a": torch.tensor([[1.0, -1.0], [0.5, 2.0]]),
        "layers.2.mlp.gate.lora_b": torch.tensor([[2.0, 0.0], [1.0, 4.0]]), "layers.2.attention.key.weight": torch.ones(2, 2), "final_norm.weight": torch.ones(2),
    }  # fmt: skip
    lora = LoraConfig(rank=2, alpha=1.0, targets=("fc1",))
    expected = torch.tensor([[1 + 0.5 * 2, 2 + 0.5 * -2], [3 + 0.5 * (1 + 2), 4 + 0.5 * (-1 + 8)]])
    assert torch.equal(merged_weight("layers.2.mlp.gate.weight", stored.__getitem__, lora), expected)
    half = {name: tensor.bfloat16() for name, tensor in stored.items()}
    assert torch.equal(merged_weight("layers.2.mlp.gate.weight", half.__getitem__, lora), expected.bfloat16())
    for name in ("layers.2.attention.key.weight", "final_norm.weight"):  # not adapted
        assert merged_weight(name, stored.__getitem__, lora) is stored[name]
