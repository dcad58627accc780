"""The curves of a stage while it runs."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from megagpt.runtime.log import is_main_rank


@contextlib.contextmanager
def drawing(stage_folder: Path, every_seconds: float = 300.0) -> Iterator[None]:
    """Draw `<stage>/plots/*.png` now and then while the block runs, and at its end; a picture that fails costs one line."""
    over = threading.Event()

    def draw_now_and_then() -> None:
        while not over.wait(every_seconds):
            _draw(stage_folder)

    thread = threading.Thread(target=draw_now_and_then, name="curves", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _draw(stage_folder)


def _draw(stage_folder: Path) -> None:
    if not is_main_rank():
        return
    try:
        from megagpt.report.memory import draw_memory
        from megagpt.report.plots import (
            draw_folder,  # matplotlib takes a second, which only this rank needs to spend
        )
        from megagpt.report.reward import draw_evaluation, read_evaluation
        from megagpt.report.rlhf import draw_phases
        from megagpt.report.timeline import draw_timeline
        from megagpt.runtime.metrics_file import read_metrics

        draw_folder(stage_folder)
        if stage_folder.name == "rlhf":
            draw_phases(read_metrics(stage_folder / "metrics.jsonl")[0], stage_folder / "plots")
            draw_timeline(stage_folder / "timeline.json", stage_folder / "plots")
            draw_memory(stage_folder)
        if stage_folder.name == "reward" and (evaluation := read_evaluation(stage_folder)):
            draw_evaluation(evaluation, stage_folder / "plots")
    except Exception as error:
        print(f"[{stage_folder.name}] curves not drawn: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
