"""Settings of foreign models: there and back, and what we do not compute refused by name."""

import pytest

from megagpt.config.load import ConfigError
from megagpt.convert.settings import huggingface_settings, model_from_gguf, model_from_huggingface
from megagpt.convert.source import ConvertError
from tests.helpers.huggingface import random_model
from tests.helpers.tiny import tiny_model

GGUF = {
    "general.architecture": "llama", "llama.block_count": 2, "llama.context_length": 16, "llama.embedding_length": 32, "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
    "llama.rope.freq_base": 100000.0,
}  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_convert_settings_come_back(family, tied):
    model = tiny_model(family, tied, norm_epsilon=1e-3, ffn_hidden_size=96, **({"rotary_base": 500} if family == "llama" else {}))
    back = model_from_huggingface(huggingface_settings(model, "float32", eos_id=0, pad_id=1), "x")
    sizes = {"num_query_groups"} if family == "gpt" else set()  # ours counts the heads themselves as groups
    assert back.model_dump(exclude=sizes) == model.model_dump(exclude=sizes)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling = 'llama3': our rotary positions are not scaled"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_scaling = 'yarn'"),
        ("llama", {"rope_theta": 10000.5}, "rope_theta = 10000.5: must be a whole number"),
        ("llama", {"sliding_window": 4096}, "sliding_window = 4096: not computed here; only None"),
        ("llama", {"attention_bias": True}, "attention_bias = True"),
        ("llama", {"mlp_bias": True}, "mlp_bias = True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu': not computed here; only 'silu' or 'swish'"),
        ("llama", {"head_dim": 16}, "head_dim = 16: heads are hidden_size / num_attention_heads = 32 / 4 wide"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"model_type": "lama"}, "model_type = 'lama': only gpt2, llama can be converted; did you mean 'llama'"),
        ("gpt2", {"activation_function": "relu"}, "activation_function = 'relu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights = False"),
    ],
)
def test_convert_settings_refuse_by_name(kind, change, message):
    settings = random_model(kind).config.to_dict()
    model_from_huggingface(settings, "c.json")
    with pytest.raises(ConvertError, match=f"^c.json: {message}"):
        model_from_huggingface(settings | change, "c.json")


def test_convert_settings_refuse_sizes_that_make_no_model():
    settings = random_model("llama").config.to_dict()
    with pytest.raises(ConfigError, match="c.json.num_query_groups = 3: must divide num_attention_heads 4"):
        model_from_huggingface(settings | {"num_key_value_heads": 3}, "c.json")
    del settings["num_hidden_layers"]
    with pytest.raises(ConfigError, match="c.json: num_layers is missing"):
        model_from_huggingface(settings, "c.json")


def test_convert_settings_of_new_transformers_are_those_of_old():
    settings = random_model("llama", rope_theta=5e5).config.to_dict()
    new = {name: value for name, value in settings.items() if name not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
    assert model_from_huggingface(new, "x") == model_from_huggingface(settings, "x")
    assert model_from_huggingface(new, "x").rotary_base == 500_000


def test_convert_settings_of_gguf():
    model = model_from_gguf(GGUF, vocab_size=320, tied=True, where="m.gguf")
    assert (model.norm_epsilon, model.rotary_base, model.num_query_groups, model.tie_embeddings) == (1e-5, 100_000, 2, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": "gemma"}, "general.architecture = 'gemma': only 'llama'"),
        ({"llama.rope.scaling.type": "linear"}, "llama.rope.scaling.type = 'linear'"),
        ({"llama.rope.dimension_count": 4}, "llama.rope.dimension_count = 4: not computed here; only 8"),
        ({"llama.attention.key_length": 16}, "llama.attention.key_length = 16"),
        ({"llama.expert_count": 8}, "llama.expert_count = 8"),
    ],
)
def test_convert_settings_of_gguf_refuse_by_name(change, message):
    with pytest.raises(ConvertError, match=f"^m.gguf: {message}"):
        model_from_gguf(GGUF | change, vocab_size=320, tied=True, where="m.gguf")
