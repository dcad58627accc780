"""The ranks of an mpirun that prepare data together (`executor.kind: mpi`); with another executor there is one process, which is rank 0."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from megagpt.prepare.errors import PrepareError
from megagpt.runtime.own_rank import rank_from_environment

Made = TypeVar("Made")
MAIN_FIRST_SECONDS = 1.0
"""Of ranks that were all asked to stop, rank 0 ends before the others, since it says so and mpirun ends those that are left."""


def is_main() -> bool:
    return rank_from_environment() == 0


@contextmanager
def joined(kind: str) -> Iterator[None]:
    """Around all that uses MPI. Ranks that come to the end of the block wait for each other there; one that an error takes out of it does not, as the
    others may not know of it: mpirun ends them when this process ends.

    Raises:
        PrepareError: mpi4py does not load.
    """
    if kind != "mpi":
        yield
        return
    try:
        import mpi4py

        mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise PrepareError(f"executor.kind mpi: {error}; pip install 'megagpt[mpi]'") from error
    try:
        yield
    except KeyboardInterrupt:
        time.sleep(0.0 if is_main() else MAIN_FIRST_SECONDS)
        raise
    MPI.Finalize()


def from_main(kind: str, make: Callable[[], Made]) -> Made:
    """What the function returns, or raises, on rank 0; on every rank."""
    if kind != "mpi":
        return make()
    from mpi4py import MPI

    made = failed = None
    if is_main():
        try:
            made = make()
        except Exception as error:
            failed = error
    made, failed = MPI.COMM_WORLD.bcast((made, failed))
    if failed is not None:
        raise failed
    return made
