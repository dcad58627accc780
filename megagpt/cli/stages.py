"""megagpt pretrain | sft | reward | dpo | rlhf: one training stage, on every rank of the job."""

from __future__ import annotations

import argparse
import importlib

from megagpt.cli.options import add_config_options, read_config
from megagpt.config import schema
from megagpt.runtime.stop_request import Stopped, listening

CONFIGS = {
    "pretrain": schema.PretrainConfig, "sft": schema.SftConfig, "reward": schema.RewardConfig, "dpo": schema.DpoConfig, "rlhf": schema.RlhfConfig,
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    add_config_options(parser, CONFIGS[verb])
    parser.add_argument("--dry-run", action="store_true", help="print layout, parameters and tokens of a step, and stop; needs no ranks")
    parser.add_argument("--ranks", type=int, metavar="N", help="with --dry-run: number of ranks of the planned job")


def run(options: argparse.Namespace, verb: str) -> int | None:
    config = read_config(options, CONFIGS[verb])
    if config is None:
        return None
    if options.dry_run:
        from megagpt.cli.dry_run import describe

        print(describe(config, options.ranks))
        return None
    from megagpt.kernels.select import set_kernels
    from megagpt.report.live import drawing
    from megagpt.runtime.distributed import stop
    from megagpt.runtime.run_folder import RunFolder

    set_kernels(config.kernels)
    trainer = importlib.import_module(f"megagpt.{verb}.trainer")
    with listening():
        try:
            with drawing(RunFolder(config.run).path / verb):
                trainer.fit(config, options.config.read_text(encoding="utf-8"))
        except Stopped:
            stop()  # all ranks are here
            raise
        stop()
    return None
