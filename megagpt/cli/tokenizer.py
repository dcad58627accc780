"""megagpt tokenizer train | report."""

from __future__ import annotations

import argparse
import json

from megagpt.cli.options import add_config_options, read_config
from megagpt.config.schema import TokenizerTrainConfig
from megagpt.config.show import content_hash, store, to_yaml


def add_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    parser.add_argument("action", choices=("train", "report"), help="learn a vocabulary, or measure the one that was learned")
    add_config_options(parser, TokenizerTrainConfig)


def run(options: argparse.Namespace, verb: str) -> int | None:
    config = read_config(options, TokenizerTrainConfig)
    if config is None:
        return None
    from megagpt.data.records import read_documents
    from megagpt.runtime.run_folder import RunFolder
    from megagpt.runtime.version import code_version
    from megagpt.tokenizer.report import tokenizer_report
    from megagpt.tokenizer.tokenizer import load_tokenizer
    from megagpt.tokenizer.train import train_tokenizer

    folder = RunFolder(config.run)

    def texts():
        for path in config.documents:
            for document in read_documents(folder.resolve(path)):
                yield document.text

    if options.action == "train":
        tokenizer = train_tokenizer(texts(), config.vocab_size, folder.stage("tokenizer"), sample_characters=config.sample_characters)
        store(config, options.config.read_text(encoding="utf-8"), folder.stage("tokenizer"))
        folder.record("tokenizer", output=str(folder.stage("tokenizer")), config=content_hash(to_yaml(config)), code=code_version(), tokenizer=tokenizer.content_hash, vocab_size=tokenizer.vocab_size)
    print(json.dumps(tokenizer_report(load_tokenizer(folder.stage("tokenizer")), texts()), indent=2, ensure_ascii=False))
    return None
