"""Settings of a Hugging Face config.json <-> our model configuration. What would be computed otherwise than there is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megagpt.config.check import check_model
from megagpt.config.load import build_config, nearest
from megagpt.config.schema import ModelConfig
from megagpt.convert.source import ConvertError
from megagpt.model.shape import ModelShape

_ONLY = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,), "quantization_config": (None,),
    },
    "llama": {
        "hidden_act": ("silu", "swish"), "attention_bias": (False,), "mlp_bias": (False,), "sliding_window": (None,), "partial_rotary_factor": (1.0,),
        "quantization_config": (None,),
    },
}  # fmt: skip
"""Model type -> setting -> the values that we compute; the first is what a missing setting means."""
_OTHER_ROTATION = "our rotary positions are not scaled"


def model_from_huggingface(settings: Mapping[str, Any], where: object) -> ModelConfig:
    """The model that a config.json describes.

    Args:
        where: stands in front of messages.

    Raises:
        ConvertError: a model type or a setting that we do not compute.
        ConfigError: a size that is missing or makes no model.
    """
    kind = settings.get("model_type")
    if kind not in _ONLY:
        raise ConvertError(f"{where}: model_type = {kind!r}: only {', '.join(sorted(_ONLY))} can be converted{_nearest_kind(kind)}")
    for name, allowed in _ONLY[kind].items():
        value = settings.get(name, allowed[0])
        if value not in allowed:
            raise ConvertError(f"{where}: {name} = {value!r}: not computed here; only {' or '.join(map(repr, allowed))} can be converted")
    return _build(_gpt2(settings) if kind == "gpt2" else _llama(settings, where), where)


def _nearest_kind(kind: Any) -> str:
    close = nearest(str(kind), list(_ONLY))
    return close if "did you mean" in close else ""


def _gpt2(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "family": "gpt", "num_layers": settings.get("n_layer"), "hidden_size": settings.get("n_embd"), "num_attention_heads": settings.get("n_head"),
        "ffn_hidden_size": settings.get("n_inner"), "max_sequence_length": settings.get("n_positions"), "vocab_size": settings.get("vocab_size"),
        "tie_embeddings": settings.get("tie_word_embeddings", True), "norm_epsilon": settings.get("layer_norm_epsilon", 1e-5),
    }


def _llama(settings: Mapping[str, Any], where: object) -> dict[str, Any]:
    # transformers 5 gathers the base and the scaling in `rope_parameters`; before, they were rope_theta and rope_scaling.
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ConvertError(f"{where}: rope_scaling = {kind!r}: {_OTHER_ROTATION}; only null can be converted")
    hidden, heads, size = (settings.get(name) for name in ("hidden_size", "num_attention_heads", "head_dim"))
    if size is not None and isinstance(heads, int) and size * heads != hidden:
        raise ConvertError(f"{where}: head_dim = {size}: heads are hidden_size / num_attention_heads = {hidden} / {heads} wide here")
    return {
        "family": "llama", "num_layers": settings.get("num_hidden_layers"), "hidden_size": hidden, "num_attention_heads": heads,
        "num_query_groups": settings.get("num_key_value_heads") or heads, "ffn_hidden_size": settings.get("intermediate_size"),
        "max_sequence_length": settings.get("max_position_embeddings"), "vocab_size": settings.get("vocab_size"),
        "tie_embeddings": settings.get("tie_word_embeddings", False), "norm_epsilon": settings.get("rms_norm_eps", 1e-6),
        "rotary_base": whole_base(rope.get("rope_theta", settings.get("rope_theta", 10000.0)), where),
    }


def model_from_gguf(metadata: Mapping[str, Any], *, vocab_size: int, tied: bool, where: object) -> ModelConfig:
    """The model that the metadata of a GGUF file describe.

    Args:
        vocab_size: rows of its embedding.
        tied: the file has no output weights of their own.

    Raises:
        ConvertError: an architecture or a setting that we do not compute.
        ConfigError: a size that is missing or makes no model.
    """
    if (architecture := metadata.get("general.architecture")) != "llama":
        raise ConvertError(f"{where}: general.architecture = {architecture!r}: only 'llama' can be converted from GGUF")
    own = {name.removeprefix("llama."): value for name, value in metadata.items() if name.startswith("llama.")}
    hidden, heads = own.get("embedding_length"), own.get("attention.head_count")
    head_size = hidden // heads if isinstance(hidden, int) and isinstance(heads, int) else None
    same = {"rope.dimension_count": head_size, "attention.key_length": head_size, "attention.value_length": head_size, "expert_count": 0}
    for name, value in same.items():
        if own.get(name, value) != value:
            raise ConvertError(f"{where}: llama.{name} = {own[name]}: not computed here; only {value} can be converted")
    if (scaling := own.get("rope.scaling.type", "none")) != "none":
        raise ConvertError(f"{where}: llama.rope.scaling.type = {scaling!r}: {_OTHER_ROTATION}; only 'none' can be converted")
    return _build(
        {
            "family": "llama", "num_layers": own.get("block_count"), "hidden_size": hidden, "num_attention_heads": heads,
            "num_query_groups": own.get("attention.head_count_kv", heads), "ffn_hidden_size": own.get("feed_forward_length"),
            "max_sequence_length": own.get("context_length"), "vocab_size": vocab_size, "tie_embeddings": tied,
            # The file keeps float32: seven digits are what was meant.
            "norm_epsilon": float(f"{own.get('attention.layer_norm_rms_epsilon', 1e-5):.6g}"),
            "rotary_base": whole_base(own.get("rope.freq_base", 10000.0), where),
        },
        where,
    )  # fmt: skip


def whole_base(base: float, where: object) -> int:
    """Base of the rotary embedding; raises ConvertError for one that is no whole number."""
    if base != int(base):
        raise ConvertError(f"{where}: rope_theta = {base}: must be a whole number here")
    return int(base)


def _build(values: dict[str, Any], where: object) -> ModelConfig:
    model = build_config(ModelConfig, {name: value for name, value in values.items() if value is not None}, str(where))
    check_model(model, 1, 1, str(where))
    return model


def huggingface_settings(model: ModelConfig, dtype: str, *, eos_id: int, pad_id: int) -> dict[str, Any]:
    """The config.json with which transformers computes our model.

    Args:
        dtype: of the tensors, in torch's words (`bfloat16`).
    """
    shape = ModelShape(model)
    common = {
        "vocab_size": shape.vocab_size, "tie_word_embeddings": shape.tied, "torch_dtype": dtype, "bos_token_id": None, "eos_token_id": eos_id,
        "pad_token_id": pad_id, "initializer_range": model.init_std,
    }
    if not shape.is_llama:
        return {
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": model.num_layers, "n_embd": model.hidden_size,
            "n_head": model.num_attention_heads, "n_inner": shape.ffn_hidden_size, "n_positions": model.max_sequence_length,
            "activation_function": "gelu_new", "layer_norm_epsilon": model.norm_epsilon,
            "embd_pdrop": model.dropout, "attn_pdrop": model.dropout, "resid_pdrop": model.dropout, **common,
        }  # fmt: skip
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": model.num_layers, "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads, "num_key_value_heads": shape.num_query_groups, "head_dim": shape.head_size,
        "intermediate_size": shape.ffn_hidden_size, "max_position_embeddings": model.max_sequence_length, "hidden_act": "silu",
        "rms_norm_eps": model.norm_epsilon, "rope_theta": float(model.rotary_base), "rope_scaling": None,
        "attention_bias": False, "mlp_bias": False, "attention_dropout": model.dropout, **common,
    }  # fmt: skip
