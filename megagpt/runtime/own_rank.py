"""This process's rank by what its launcher set, before any process group exists. Without torch, for whoever answers before it is imported."""

from __future__ import annotations

import os

VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
"""Of deepspeed, torchrun and our scripts; Open MPI; MPICH; Slurm. The first that is set counts."""


def rank_from_environment() -> int:
    """0 where nobody launched several processes."""
    return next((int(os.environ[name]) for name in VARIABLES if name in os.environ), 0)
