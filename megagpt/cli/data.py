"""megagpt data run: raw sources -> the records that the later stages read."""

from __future__ import annotations

import argparse
import json

from megagpt.cli.options import add_config_options, read_config
from megagpt.config.schema import DataConfig
from megagpt.config.show import content_hash, store, to_yaml


def add_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    parser.add_argument("action", choices=("run",), help="run all steps")
    add_config_options(parser, DataConfig)


def run(options: argparse.Namespace, verb: str) -> int | None:
    config = read_config(options, DataConfig)
    if config is None:
        return None
    from megagpt.data.pipeline import STATISTICS, run_data
    from megagpt.runtime.atomic import sha256_file
    from megagpt.runtime.run_folder import RunFolder
    from megagpt.runtime.version import code_version

    folder = RunFolder(config.run)
    summary = run_data(config, folder.stage("data"))
    print(json.dumps(summary, indent=2, ensure_ascii=False))
    store(config, options.config.read_text(encoding="utf-8"), folder.stage("data"))
    folder.record(
        "data", output=str(folder.stage("data")), source=config.source, data=sha256_file(folder.stage("data") / STATISTICS)[:16],
        config=content_hash(to_yaml(config)), code=code_version(),
    )
    return None
