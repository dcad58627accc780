"""Memory is bounded by the configuration: ten times the corpus takes no more of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.dedup_memory import MEMORY_GIB, make, make_signatures

ROOT = Path(__file__).parents[3]
LIBRARIES_MIB = 250
"""What a process has without any data (interpreter, pyarrow, DuckDB, datatrove: 115), and buffers of fixed size: batches of Arrow, merge lists."""


def peak_mib(work: Path, phase: str) -> float:
    command = [sys.executable, "-m", "tests.helpers.dedup_memory", str(work), phase]
    return float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def test_dedup_memory_of_a_bucket_is_bounded(tmp_path):
    """1.5 million signatures are 90 MB, and their sort takes 150 MB where it may have 128 MiB."""
    peaks = []
    for number in (150_000, 1_500_000):
        make_signatures(tmp_path / str(number), number)
        peaks.append(peak_mib(tmp_path / str(number), "near_buckets"))
    assert peaks[1] < MEMORY_GIB * 1024 + LIBRARIES_MIB


@pytest.mark.slow
def test_dedup_memory_of_all_phases_is_flat(tmp_path):
    """From 0.6 million documents, where the limit is reached, to 6 million."""
    phases, peaks = ["exact_documents", "near_buckets", "near_candidates", "duplicate_clusters", "repeated_lines"], {}
    for number in (600_000, 6_000_000):
        make(tmp_path / str(number), number)
        peaks[number] = {phase: round(peak_mib(tmp_path / str(number), phase)) for phase in phases}
    print(peaks)
    assert max(peaks[6_000_000].values()) < MEMORY_GIB * 1024 + LIBRARIES_MIB
    assert all(peaks[6_000_000][phase] < 1.4 * peaks[600_000][phase] for phase in phases), peaks
