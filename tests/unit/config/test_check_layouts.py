"""Which layouts are legal; why another is not, and which one near it would be."""

import pytest

from megagpt.config.check import check_length, check_parallel
from megagpt.config.load import ConfigError
from megagpt.config.schema import LossScaleConfig, ModelConfig, ParallelConfig, PrecisionConfig

MODEL = ModelConfig(num_layers=6, hidden_size=48, num_attention_heads=6, max_sequence_length=64, vocab_size=100)


@pytest.mark.parametrize(
    "parallel",
    [
        {}, {"tensor_parallel_size": 3, "sequence_parallel": True}, {"pipeline_parallel_size": 3, "virtual_pipeline_size": 2},
        {"pipeline_parallel_size": 4, "stage_layers": [2, 2, 1, 1]}, {"context_parallel_size": 6, "zero_stage": 3}, {"zero_stage": 0},
        {"tensor_parallel_size": 2, "context_parallel_size": 3}, {"offload_optimizer": "cpu", "zero_stage": 2, "recompute": "full"},
        {"offload_optimizer": "nvme", "zero_stage": 3, "offload_path": "/tmp"},
    ],
)  # fmt: skip
def test_layouts_that_are_legal(parallel):
    check_parallel(ParallelConfig(**parallel), PrecisionConfig(), MODEL)


@pytest.mark.parametrize(
    ("parallel", "precision", "message"),
    [
        ({"tensor_parallel_size": 4}, {}, "model.num_attention_heads = 6: not divisible by the tensor-parallel size 4; 3 would do"),
        ({"tensor_parallel_size": 2, "context_parallel_size": 2}, {}, "the 3 of a tensor-parallel rank .* context-parallel size 2, .*; 1 would do"),
        ({"pipeline_parallel_size": 7}, {}, "model.num_layers = 6: less than the pipeline-parallel size 7"),
        ({"pipeline_parallel_size": 4}, {}, r"not divisible by pipeline_parallel_size 4; stage_layers \[2, 2, 1, 1\] would do"),
        ({"pipeline_parallel_size": 2, "virtual_pipeline_size": 4}, {}, "num_layers 6 is less than .* 2 x virtual_pipeline_size 4.*; 3 virtual stages at most"),
        ({"pipeline_parallel_size": 2, "stage_layers": [5, 2]}, {}, r"must be 2 numbers .* add up to num_layers 6, .*; stage_layers \[3, 3\] would do"),
        ({"virtual_pipeline_size": 2}, {}, "virtual_pipeline_size = 2 with pipeline_parallel_size = 1: .*; take 1"),
        ({"pipeline_parallel_size": 2, "zero_stage": 3}, {}, "zero_stage = 3 with pipeline_parallel_size = 2: .* take zero_stage 1 or 2"),
        ({"zero_stage": 0}, {"dtype": "bf16"}, "precision.dtype = bf16 with parallel.zero_stage = 0: .*; take zero_stage 1"),
        ({"zero_stage": 0, "offload_optimizer": "cpu"}, {}, "offload_optimizer = cpu with zero_stage = 0: .*; take zero_stage 1"),
        ({"zero_stage": 2, "offload_optimizer": "nvme"}, {}, "offload_optimizer = nvme: needs zero_stage 3 and offload_path"),
        ({}, {"dtype": "fp16", "loss_scale": LossScaleConfig(initial=1000.0)}, "initial = 1000: must be a power of two; 1024 is the nearest"),
    ],
)  # fmt: skip
def test_layouts_that_are_not_legal_are_named_with_what_would_do(parallel, precision, message):
    with pytest.raises(ConfigError, match=message):
        check_parallel(ParallelConfig(**parallel), PrecisionConfig(**precision), MODEL)


def test_layouts_share_rows_in_equal_parts():
    parallel = ParallelConfig(tensor_parallel_size=2, context_parallel_size=3, sequence_parallel=True)
    check_length(parallel, 12, "sequence_length")
    with pytest.raises(ConfigError, match="sequence_length = 16: not divisible by the 6 ranks that share each row; 18 is the nearest"):
        check_length(parallel, 16, "sequence_length")
