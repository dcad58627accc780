"""`log/rank_<r>.txt` of a stage: warnings and errors of one rank, with the traceback if it dies."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist

from megagpt.runtime.stop_request import Stopped


@contextlib.contextmanager
def rank_log(stage_folder: Path) -> Iterator[Path]:
    """Within the block, what the program logs from WARNING on goes to this rank's file too. Gives the file's path.

    The file is made by the first such record: a run without any leaves no file. Python's own warnings are not among them, since
    libraries raise the same ones on every rank at every start. What a full disk does not take is lost, not the run.
    """
    folder = stage_folder / "log"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"rank_{dist.get_rank() if dist.is_initialized() else 0}.txt"
    to_file = logging.FileHandler(file, encoding="utf-8", delay=True)
    to_file.setLevel(logging.WARNING)
    to_file.handleError = lambda record: None
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, handlers = logging.getLogger(), [to_file]
    if not root.handlers:
        handlers.append(logging.lastResort)  # or nothing would be printed any more
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield file
    except Exception as error:
        if not isinstance(error, Stopped):
            to_file.handle(logging.LogRecord("megagpt", logging.ERROR, __file__, 0, "this rank ends", (), (type(error), error, error.__traceback__)))
        raise
    finally:
        for handler in handlers:
            root.removeHandler(handler)
        with contextlib.suppress(OSError):
            to_file.close()
