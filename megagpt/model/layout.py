"""How a model is cut and computed beyond its grid. What it computes does not depend on any of this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from megagpt.config.schema import ParallelConfig, PrecisionConfig
from megagpt.parallel.grid import Grid

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Layout:
    """The choices of ParallelConfig and PrecisionConfig that a model's modules need to know."""

    dtype: torch.dtype = torch.float32
    """Of parameters and activations."""
    sequence_parallel: bool = False
    """Tensor-parallel ranks share norms, dropout and residuals along the sequence (Korthikanti et al. 2022, section 4.2.2)."""
    num_chunks: int = 1
    """Blocks of layers on each pipeline rank (interleaved 1F1B)."""
    stage_layers: tuple[int, ...] | None = None
    """Layers of each block, where they are not equal."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again (Korthikanti et al. 2022, section 5)."""

    @classmethod
    def of(cls, parallel: ParallelConfig, precision: PrecisionConfig) -> Layout:
        # On one tensor-parallel rank there is nothing to share.
        sequence_parallel = parallel.sequence_parallel and parallel.tensor_parallel_size > 1
        layers = None if parallel.stage_layers is None else tuple(parallel.stage_layers)
        return cls(DTYPES[precision.dtype], sequence_parallel, parallel.virtual_pipeline_size, layers, parallel.recompute)

    def ranks_per_row(self, grid: Grid) -> int:
        """Ranks that hold equal parts of each row's activations; a row's length is a multiple of it."""
        return grid.cp * (grid.tp if self.sequence_parallel else 1)
