"""The table of canonical names: complete, and its shards put together again give the same tensors."""

import re

import pytest
import torch

from megagpt.model import param_map
from megagpt.model.shape import ModelShape
from tests.helpers.plain import PlainGPT, plain_init
from tests.helpers.tiny import tiny_model

LAYER = ["input_layernorm", "pre_mlp_layernorm", "self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2"]
FAMILIES = pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("gpt", {}),
        ("gpt", {"num_query_groups": 4, "num_attention_heads": 8}),
        ("llama", {}),
        ("llama", {"num_query_groups": 8}),
        ("llama", {"vocab_size": 100}),
    ],
    ids=["gpt", "gpt_groups", "llama_groups", "llama", "llama_vocab_divisible"],
)


def megatron_names(shape: ModelShape) -> list[str]:
    """What GPTModel calls its parameters, with global layer numbers."""
    kinds = ["weight"] if shape.is_llama else ["weight", "bias"]
    modules = [f"decoder.layers.{i}.{module}" for i in range(shape.config.num_layers) for module in LAYER] + ["decoder.final_layernorm"]
    names = ["embedding.word_embeddings.weight"] + [f"{module}.{kind}" for module in modules for kind in kinds]
    names += [] if shape.is_llama else ["embedding.position_embeddings.weight"]
    return names + ([] if shape.tied else ["output_layer.weight"])


@pytest.mark.parametrize("head", ["tied", "untied", "scalar"])
@FAMILIES
def test_param_map_has_the_names_and_shapes_of_the_plain_model(family, overrides, head):
    config = tiny_model(family, head == "tied", **overrides)
    with torch.device("meta"):
        plain = PlainGPT(config, scalar_head=head == "scalar")
    expected = {name: tuple(parameter.shape) for name, parameter in plain.named_parameters()}
    assert param_map.canonical_shapes(ModelShape(config), head == "scalar") == expected
    assert param_map.num_parameters(ModelShape(config), head == "scalar") == sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@FAMILIES
def test_param_map_merges_what_it_split(family, overrides, tied, tp):
    config = tiny_model(family, tied, **overrides)
    shape, state = ModelShape(config), plain_init(config, seed=1)
    merged = {}
    for name in megatron_names(shape):
        entry = param_map.entry(name, shape)
        shards = [param_map.split(entry, [state[piece] for piece in entry.pieces], shape, tp, rank) for rank in range(tp)]
        assert all(shard.is_contiguous() and shard.shape == shards[0].shape for shard in shards)
        merged |= param_map.merge(entry, shards, shape)
    assert merged.keys() == state.keys()
    assert all(torch.equal(merged[name], state[name]) for name in state)


def test_param_map_fuses_query_key_value_by_group():
    """Four query heads of size 2 in two groups: rank r of two holds group r as [its two query heads, its key, its value]."""
    shape = ModelShape(tiny_model("llama", False, num_attention_heads=4, num_query_groups=2, hidden_size=8))
    entry = param_map.entry("decoder.layers.0.self_attention.linear_qkv.weight", shape)
    query = torch.arange(8.0)[:, None].expand(8, 8)  # row number
    key, value = 100 + query[:4], 200 + query[:4]
    shards = [param_map.split(entry, [query, key, value], shape, 2, rank)[:, 0].tolist() for rank in range(2)]
    assert shards == [[0, 1, 2, 3, 100, 101, 200, 201], [4, 5, 6, 7, 102, 103, 202, 203]]


def test_param_map_fuses_gate_and_up_on_each_rank():
    shape = ModelShape(tiny_model("llama", False, ffn_hidden_size=4))
    entry = param_map.entry("decoder.layers.3.mlp.linear_fc1.weight", shape)
    assert entry.pieces == ("layers.3.mlp.gate.weight", "layers.3.mlp.up.weight")
    gate, up = torch.arange(4.0)[:, None], torch.arange(10.0, 14.0)[:, None]
    assert param_map.split(entry, [gate, up], shape, 2, 1).flatten().tolist() == [2, 3, 12, 13]


@pytest.mark.parametrize(("tp", "rows"), [(1, 101), (2, 51), (4, 26)])
def test_param_map_pads_the_vocabulary_with_zeros_and_drops_them_again(tp, rows):
    shape = ModelShape(tiny_model("gpt", True))
    entry = param_map.entry("embedding.word_embeddings.weight", shape)
    tokens = torch.ones(101, 32)
    shards = [param_map.split(entry, [tokens], shape, tp, rank) for rank in range(tp)]
    assert [shard.shape for shard in shards] == [(rows, 32)] * tp
    assert torch.cat(shards)[101:].abs().sum() == 0
    padding = rows * tp - 101
    shards[-1][rows - padding :] = float("nan")  # whatever a rank may have there
    assert torch.equal(param_map.merge(entry, shards, shape)["embedding.tokens.weight"], tokens)


def test_param_map_tells_what_is_sharded():
    """Rows of the first of two linear maps, columns of the second; norms, positions and the bias after a sum are on every rank."""
    shape = ModelShape(tiny_model("gpt", False))
    axes = {re.sub(r"decoder\.layers\.\d+", "layer", name): param_map.entry(name, shape).axis for name in megatron_names(shape)}
    assert {name for name, axis in axes.items() if axis == 1} == {"layer.self_attention.linear_proj.weight", "layer.mlp.linear_fc2.weight"}
    assert {name for name, axis in axes.items() if axis == 0} == {
        "embedding.word_embeddings.weight", "output_layer.weight", "layer.self_attention.linear_qkv.weight",
        "layer.self_attention.linear_qkv.bias", "layer.mlp.linear_fc1.weight", "layer.mlp.linear_fc1.bias",
    }


@pytest.mark.parametrize("name", ["decoder.layers.0.mlp.router.weight", "decoder.layers.x.input_layernorm.weight", "lm_head.weight"])
def test_param_map_refuses_an_unknown_parameter(name):
    with pytest.raises(KeyError, match=re.escape(name)):
        param_map.entry(name, ModelShape(tiny_model("gpt", True)))
