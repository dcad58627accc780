"""megagpt data run | why | report | train-quality | train-toxicity: raw sources -> clean documents with a ledger, or a folder of records -> the files that later stages read."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from megagpt.cli import train_classifier
from megagpt.cli.options import add_config_options, read_config
from megagpt.config.check import check_prepare
from megagpt.config.load import ConfigError, load_data
from megagpt.config.prepare import PrepareConfig
from megagpt.config.reference import describe_keys
from megagpt.config.schema import DataConfig
from megagpt.config.show import content_hash, store, to_yaml


def add_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    words = "raw sources to clean documents (stage: prepare), or records to the files of later stages (stage: data)"
    run = actions.add_parser(
        "run", help=words, description=words, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_config_options(run, PrepareConfig)
    run.epilog += "\n".join(["", "", "With `stage: data` (the default) instead:", (DataConfig.__doc__ or "").strip(), "", *describe_keys(DataConfig)])
    why = actions.add_parser("why", help="why a document was kept or dropped, with its scores and its duplicates")
    why.add_argument("id", help="of the document, as in the ledger: source/file#position")
    report = actions.add_parser("report", help="data.html: a funnel for each source, scores, samples, duplicates, personal data, representation")
    for action in (why, report):
        action.add_argument("--run", required=True, type=Path, metavar="FOLDER", help="run folder, for example runs/web")
    train_classifier.add_actions(actions)


def run(options: argparse.Namespace, verb: str) -> int | None:
    return {"run": _run, "why": _why, "report": _report, **train_classifier.ACTIONS}[options.action](options)


def _run(options: argparse.Namespace) -> int | None:
    if load_data(options.config).get("stage") == "prepare":
        return _prepare(options)
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


def _prepare(options: argparse.Namespace) -> int | None:
    config = read_config(options, PrepareConfig)
    if config is None:
        return None
    check_prepare(config)
    from megagpt.prepare.run import run_prepare
    from megagpt.prepare.show import table_of_sources
    from megagpt.runtime.own_rank import rank_from_environment
    from megagpt.runtime.run_folder import RunFolder
    from megagpt.runtime.version import code_version

    folder = RunFolder(config.run)
    statistics = run_prepare(config, folder.stage("prepare"))
    if rank_from_environment() != 0:
        return None
    store(config, options.config.read_text(encoding="utf-8"), folder.stage("prepare"))
    if statistics is None:
        print(f"[data] submitted; `megagpt data report --run {folder.path}` once {folder.stage('prepare')}/statistics.json is there")
        return None
    folder.record(
        "prepare", output=str(folder.stage("prepare")), data=statistics["key"][:16], config=content_hash(to_yaml(config)), code=code_version()
    )
    print(table_of_sources(statistics))
    print(f"[data] documents: {folder.stage('prepare')}/documents; `megagpt data report --run {folder.path}` draws what became of them")
    return None


def _why(options: argparse.Namespace) -> int | None:
    from megagpt.prepare.show import explain
    from megagpt.prepare.why import why

    print(explain(why(_stage(options), options.id)))
    return None


def _report(options: argparse.Namespace) -> int | None:
    from megagpt.report.data import build_data_report

    print(f"report: {build_data_report(_stage(options))}")
    return None


def _stage(options: argparse.Namespace) -> Path:
    if not options.run.is_dir():
        raise ConfigError(f"{options.run}: no such run folder")
    return options.run / "prepare"
