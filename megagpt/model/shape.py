"""Sizes: our model configuration with its defaults filled in, and its FLOP counts. No torch: the planner reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megagpt.config.schema import LoraConfig, ModelConfig


@dataclass(frozen=True)
class ModelShape:
    """A ModelConfig in which nothing is left open."""

    config: ModelConfig
    lora: LoraConfig | None = None
    """Adapters, where those alone are trained."""

    @property
    def is_llama(self) -> bool:
        return self.config.family == "llama"

    @property
    def head_size(self) -> int:
        return self.config.hidden_size // self.config.num_attention_heads

    @property
    def num_query_groups(self) -> int:
        return self.config.num_query_groups or self.config.num_attention_heads

    @property
    def ffn_hidden_size(self) -> int:
        return self.config.mlp_width

    @property
    def tied(self) -> bool:
        return (not self.is_llama) if self.config.tie_embeddings is None else self.config.tie_embeddings

    @property
    def vocab_size(self) -> int:
        if self.config.vocab_size is None:
            raise ValueError("model.vocab_size is not known yet: it comes from the tokenizer")
        return self.config.vocab_size

    def padded_vocab_size(self, tp: int) -> int:
        """Vocabulary rows that `tp` tensor-parallel ranks hold together: the next multiple of tp."""
        return math.ceil(self.vocab_size / tp) * tp

    def cache_bytes(self, num_rows: int, length: int, *, num_layers: int, tp: int, num_bytes: int) -> int:
        """Of the keys and values that a rank holds while it decodes `num_rows` texts of `length` tokens, each number of `num_bytes`."""
        return 2 * num_rows * length * num_layers * self.head_size * self.num_query_groups // tp * num_bytes

    def flops_per_token(self, sequence_length: int, num_parameters: int, num_trained: int | None = None) -> float:
        """Forward and backward, matrix products only: 6 N + 12 layers x hidden x sequence (Chowdhery et al. 2022, appendix B); 2 of the 6
        are the gradients of the weights, which those that are not trained do without."""
        trained = num_parameters if num_trained is None else num_trained
        return 4.0 * num_parameters + 2.0 * trained + 12.0 * self.config.num_layers * self.config.hidden_size * sequence_length
