"""transformers' GPT-2 and Llama with weights that come under our canonical names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from megagpt.config.schema import ModelConfig


def huggingface_model(config: ModelConfig, state: Mapping[str, Tensor]) -> PreTrainedModel:
    """In evaluation mode."""
    return (_gpt2 if config.family == "gpt" else _llama)(config, state).eval()


def _gpt2(config: ModelConfig, state: Mapping[str, Tensor]) -> GPT2LMHeadModel:
    """Conv1D weights are [in, out], and one of them holds query, key and value side by side."""
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.max_sequence_length,
            n_embd=config.hidden_size,
            n_layer=config.num_layers,
            n_head=config.num_attention_heads,
            layer_norm_epsilon=config.norm_epsilon,
            tie_word_embeddings=config.tie_embeddings,
        )
    )
    theirs = {
        "transformer.wte.weight": state["embedding.tokens.weight"],
        "transformer.wpe.weight": state["embedding.positions.weight"],
        "transformer.ln_f.weight": state["final_norm.weight"],
        "transformer.ln_f.bias": state["final_norm.bias"],
        "lm_head.weight": state["embedding.tokens.weight" if config.tie_embeddings else "output.weight"],
    }
    for i in range(config.num_layers):
        ours, block = f"layers.{i}.", f"transformer.h.{i}."
        for kind in ("weight", "bias"):
            theirs[f"{block}ln_1.{kind}"] = state[f"{ours}attention_norm.{kind}"]
            theirs[f"{block}ln_2.{kind}"] = state[f"{ours}mlp_norm.{kind}"]
            parts = [state[f"{ours}attention.{part}.{kind}"] for part in ("query", "key", "value")]
            theirs[f"{block}attn.c_attn.{kind}"] = torch.cat(parts).T if kind == "weight" else torch.cat(parts)
            for name, part in (("attn.c_proj", "attention.output"), ("mlp.c_fc", "mlp.up"), ("mlp.c_proj", "mlp.down")):
                tensor = state[f"{ours}{part}.{kind}"]
                theirs[f"{block}{name}.{kind}"] = tensor.T if kind == "weight" else tensor
    model.load_state_dict(theirs)
    return model


def _llama(config: ModelConfig, state: Mapping[str, Tensor]) -> LlamaForCausalLM:
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_sequence_length,
            hidden_size=config.hidden_size,
            intermediate_size=state["layers.0.mlp.up.weight"].shape[0],
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_query_groups,
            rms_norm_eps=config.norm_epsilon,
            rope_theta=float(config.rotary_base),
            tie_word_embeddings=config.tie_embeddings,
        )
    )
    theirs = {
        "model.embed_tokens.weight": state["embedding.tokens.weight"],
        "model.norm.weight": state["final_norm.weight"],
        "lm_head.weight": state["embedding.tokens.weight" if config.tie_embeddings else "output.weight"],
    }
    parts = {
        "input_layernorm": "attention_norm",
        "self_attn.q_proj": "attention.query",
        "self_attn.k_proj": "attention.key",
        "self_attn.v_proj": "attention.value",
        "self_attn.o_proj": "attention.output",
        "post_attention_layernorm": "mlp_norm",
        "mlp.up_proj": "mlp.up",
        "mlp.gate_proj": "mlp.gate",
        "mlp.down_proj": "mlp.down",
    }
    for i in range(config.num_layers):
        for name, part in parts.items():
            theirs[f"model.layers.{i}.{name}.weight"] = state[f"layers.{i}.{part}.weight"]
    model.load_state_dict(theirs)
    return model
