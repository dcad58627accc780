"""transformers' GPT-2 and Llama: with weights that come under our canonical names, or with random ones, saved as their authors would save them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from megagpt.config.schema import ModelConfig
from megagpt.convert.names import huggingface_names
from megagpt.convert.settings import huggingface_settings
from megagpt.model.shape import ModelShape

TEXTS = [
    "The capital of France is Paris, they've said; isn't it?\n\nIn 1234567 years   it'll be.\tI'M SURE",
    "naïve café 日本語 👩‍👩‍👧 x² ½ ٣٤٥ Ⅷ — don't   \r\n  def f(x): return x**2  # 10_000.5",
    " leading, trailing  ",
]
"""What splitting rules disagree about: digits, contractions, white space, letters of many scripts."""


def huggingface_model(config: ModelConfig, state: Mapping[str, Tensor]) -> PreTrainedModel:
    """In evaluation mode, with these weights."""
    settings = huggingface_settings(config, "float32", eos_id=0, pad_id=0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    theirs = {name: stored.join([state[piece] for piece in stored.pieces]) for name, stored in huggingface_names(ModelShape(config)).items()}
    if config.tie_embeddings:
        theirs["lm_head.weight"] = state["embedding.tokens.weight"]
    model.load_state_dict(theirs)
    return model.eval()


def random_model(kind: str, **settings) -> PreTrainedModel:
    """A tiny `gpt2` or `llama` with random weights, norms and biases too, in evaluation mode."""
    torch.manual_seed(0)
    sizes = {
        "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 16, "vocab_size": 320},
        "llama": {
            "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
            "max_position_embeddings": 16, "vocab_size": 320, "rms_norm_eps": 1e-5,
        },
    }[kind]  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(sizes | settings)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def tiny_vocabulary(size: int = 320) -> Tokenizer:
    """A byte-level BPE learned from TEXTS, with `<|endoftext|>` as id 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 2, trainer)
    return tokenizer


def save_folder(model: PreTrainedModel, folder: Path, **options) -> Path:
    """The model with the tiny vocabulary as a Hugging Face folder."""
    model.save_pretrained(folder, **options)
    PreTrainedTokenizerFast(tokenizer_object=tiny_vocabulary(model.config.vocab_size), eos_token="<|endoftext|>").save_pretrained(folder)
    return folder
