"""megagpt data run: raw sources -> the records that the later stages read."""

from __future__ import annotations

import argparse
import json

from megagpt.cli.options import add_config_options, read_config
from megagpt.config.schema import DataConfig


def add_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    parser.add_argument("action", choices=("run",), help="run all steps")
    add_config_options(parser, DataConfig)


def run(options: argparse.Namespace, verb: str) -> int | None:
    config = read_config(options, DataConfig)
    if config is None:
        return None
    from megagpt.data.pipeline import run_data
    from megagpt.runtime.run_folder import RunFolder

    folder = RunFolder(config.run)
    summary = run_data(config, folder.stage("data"))
    print(json.dumps(summary, indent=2, ensure_ascii=False))
    folder.record("data", output=str(folder.stage("data")), source=config.source)
    return None
