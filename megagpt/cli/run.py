"""megagpt run: the whole chain of a pipeline file, then the report and the gates."""

from __future__ import annotations

import argparse
from pathlib import Path

from megagpt.cli.options import add_config_options, read_config
from megagpt.config.chain import PipelineConfig


def add_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    add_config_options(parser, PipelineConfig)
    parser.add_argument("--dry-run", action="store_true", help="print the command of every stage and whether it would be skipped")
    parser.add_argument("--hostfile", type=Path, metavar="FILE", help="hosts of the job, for the deepspeed launcher")
    parser.add_argument("--stage-set", action="append", default=[], metavar="STAGE.a.b=c", help="override a key of one stage's configuration")


def run(options: argparse.Namespace, verb: str) -> int | None:
    config = read_config(options, PipelineConfig)
    if config is None:
        return None
    from megagpt.pipeline.chain import run_chain
    from megagpt.report.build import build_report
    from megagpt.report.gates import print_gates
    from megagpt.runtime.run_folder import RunFolder

    code = run_chain(config, options.config.parent, stage_overrides=options.stage_set, hostfile=options.hostfile, dry_run=options.dry_run)
    if code != 0 or options.dry_run:
        return code
    folder = RunFolder(config.run)
    passed = print_gates(folder)
    print(f"report: {build_report(folder)}")
    return None if passed else 1
