"""A model on a grid in Megatron-core's words."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from megagpt.model.layout import Layout
from megagpt.model.shape import ModelShape
from megagpt.parallel.grid import Grid


def transformer_config(shape: ModelShape, grid: Grid, layout: Layout) -> TransformerConfig:
    """Megatron-core's configuration of this model on this grid. Dropout is ours (`dropout.py`), so theirs is 0."""
    config = shape.config
    made = TransformerConfig(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=shape.num_query_groups,
        ffn_hidden_size=shape.ffn_hidden_size,
        tensor_model_parallel_size=grid.tp,
        sequence_parallel=layout.sequence_parallel,
        normalization="RMSNorm" if shape.is_llama else "LayerNorm",
        layernorm_epsilon=config.norm_epsilon,
        activation_func=F.silu if shape.is_llama else functools.partial(F.gelu, approximate="tanh"),
        gated_linear_unit=shape.is_llama,
        add_bias_linear=not shape.is_llama,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=layout.dtype,
        pipeline_dtype=layout.dtype,
        bf16=layout.dtype == torch.bfloat16,
        fp16=layout.dtype == torch.float16,
        use_cpu_initialization=True,
        perform_initialization=False,  # init.py fills every weight, as a function of (seed, name)
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        deallocate_pipeline_outputs=False,
        batch_p2p_comm=False,
    )
    # Set afterwards: the constructor would ask for equal stages, but `parallel/stages.py` says which layers a stage holds.
    made.pipeline_model_parallel_size = made.microbatch_group_size_per_vp_stage = grid.pp
    made.virtual_pipeline_model_parallel_size = layout.num_chunks if layout.num_chunks > 1 else None
    return made
