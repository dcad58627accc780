"""megagpt tokenize: documents -> Megatron .bin/.idx token files."""

from __future__ import annotations

import argparse
import json
import sys

from megagpt.cli.options import add_config_options, read_config
from megagpt.config.schema import TokenizeConfig
from megagpt.config.show import content_hash, store, to_yaml


def add_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    add_config_options(parser, TokenizeConfig)


def run(options: argparse.Namespace, verb: str) -> int | None:
    config = read_config(options, TokenizeConfig)
    if config is None:
        return None
    from megagpt.data.token_files import MIXTURE, tokenize_documents
    from megagpt.runtime.run_folder import RunFolder
    from megagpt.runtime.version import code_version
    from megagpt.tokenizer.tokenizer import load_tokenizer

    folder = RunFolder(config.run)
    tokenizer = load_tokenizer(folder.resolve(config.tokenizer))
    summary = tokenize_documents(config, tokenizer, folder.stage("tokenize"), folder.path)
    print(json.dumps(summary, indent=2, ensure_ascii=False))
    if config.mixture is not None:
        print((folder.stage("tokenize") / MIXTURE).read_text(encoding="utf-8"), end="", file=sys.stderr)
    store(config, options.config.read_text(encoding="utf-8"), folder.stage("tokenize"))
    folder.record("tokenize", output=str(folder.stage("tokenize")), config=content_hash(to_yaml(config)), code=code_version(), tokenizer=tokenizer.content_hash)
    return None
