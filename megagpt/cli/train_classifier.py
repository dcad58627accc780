"""megagpt data train-quality | train-toxicity: the classifiers that the steps quality and toxicity score documents with."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from megagpt.cli.options import add_config_options, read_config
from megagpt.config.load import ConfigError
from megagpt.config.prepare import TrainingConfig, TrainQualityConfig, TrainToxicityConfig
from megagpt.config.show import content_hash, store, to_yaml

CONFIGS: dict[str, type[TrainingConfig]] = {"quality": TrainQualityConfig, "toxicity": TrainToxicityConfig}
WHAT = {"quality": "a classifier of reference text against raw crawl", "toxicity": "a classifier of toxic text, with its errors by dialect and group"}


def add_actions(actions: Any) -> None:
    """One for each classifier, to the actions of `megagpt data`."""
    for purpose, config_class in CONFIGS.items():
        what = f"{WHAT[purpose]}, from files: classifier and report.html in runs/NAME/{purpose}"
        action = actions.add_parser(f"train-{purpose}", help=what, description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
        add_config_options(action, config_class)
        action.epilog += f"\n\nThe step uses it by `steps: {{{purpose}: {{classifier: runs/NAME/{purpose}}}}}` in a configuration of `megagpt data run`."


def _train(purpose: str, options: argparse.Namespace) -> int | None:
    config = read_config(options, CONFIGS[purpose])
    if config is None:
        return None
    _check(config)
    import importlib

    from megagpt.prepare.classifier import FACTS
    from megagpt.report.classifier import build_classifier_report, summary
    from megagpt.runtime.atomic import sha256_file
    from megagpt.runtime.run_folder import RunFolder
    from megagpt.runtime.version import code_version

    run = RunFolder(config.run)
    run.forget(purpose)
    folder = run.stage(purpose)
    report = getattr(importlib.import_module(f"megagpt.prepare.training.{purpose}"), f"train_{purpose}")(config, folder)
    store(config, options.config.read_text(encoding="utf-8"), folder)
    page = build_classifier_report(folder)
    run.record(purpose, output=str(folder), data=sha256_file(folder / FACTS)[:16], config=content_hash(to_yaml(config)), code=code_version())
    auc, passed = report["held_out"]["roc_auc"], True
    if config.min_auc is not None:
        passed = auc >= config.min_auc
        run.gate(purpose, "held_out_roc_auc", auc, f"≥ {config.min_auc:g}", passed)
    print("\n".join(summary(report)))
    print(f"[train-{purpose}] classifier: {folder}; report: {page}")
    if not passed:
        print(f"[train-{purpose}] gate failed: ROC-AUC {auc:.4f} on held-out text is below min_auc {config.min_auc:g}")
    return None if passed else 1


ACTIONS = {f"train-{purpose}": partial(_train, purpose) for purpose in CONFIGS}


def _check(config: TrainingConfig) -> None:
    """Rules that involve several fields."""
    if not config.ngrams.character_sizes and not config.ngrams.max_words:
        raise ConfigError("ngrams: character_sizes is empty and max_words is 0, so that a text has no features; max_words 2 would do")
    if isinstance(config, TrainQualityConfig):
        names = [source.name for source in (*config.reference, *config.raw)]
    else:
        names = [*config.toxic, *config.not_toxic]
        lists = [one.name for one in config.word_lists]
        names += lists if len(set(lists)) < len(lists) else []
    if twice := next((name for number, name in enumerate(names) if name in names[:number]), None):
        raise ConfigError(f"{twice!r} is named twice; a text belongs to one source or label, and a list has a name of its own")
