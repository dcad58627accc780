"""megagpt report: report.html and the gates of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from megagpt.config.load import ConfigError
from megagpt.config.schema import RunConfig
from megagpt.runtime.run_folder import RunFolder


def add_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    parser.add_argument("run", type=Path, help="run folder, for example runs/quickstart")


def run(options: argparse.Namespace, verb: str) -> int | None:
    from megagpt.report.build import build_report
    from megagpt.report.gates import print_gates

    if not options.run.is_dir():
        raise ConfigError(f"{options.run}: no such run folder")
    folder = RunFolder(RunConfig(name=options.run.resolve().name, root=str(options.run.resolve().parent)))
    passed = print_gates(folder)
    print(f"report: {build_report(folder)}")
    return None if passed else 1
