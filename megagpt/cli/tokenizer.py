"""megagpt tokenizer train | report."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from megagpt.cli.options import add_config_options, read_config
from megagpt.config.schema import TokenizerTrainConfig
from megagpt.config.show import content_hash, store, to_yaml


def add_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    parser.add_argument("action", choices=("train", "report"), help="learn a vocabulary, or measure one on the documents")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="PATH",
        help="report: measure this one instead of the run's own: a folder or a file of Hugging Face, GPT-2 or sentencepiece",
    )  # fmt: skip
    add_config_options(parser, TokenizerTrainConfig)


def run(options: argparse.Namespace, verb: str) -> int | None:
    config = read_config(options, TokenizerTrainConfig)
    if config is None:
        return None
    from megagpt.config.check import check_tokenizer
    from megagpt.data.files import find_files
    from megagpt.data.records import read_documents
    from megagpt.data.sample import first_documents, spread_documents
    from megagpt.report.tokenizer import write_tokenizer_report
    from megagpt.runtime.run_folder import RunFolder
    from megagpt.runtime.version import code_version
    from megagpt.tokenizer.report import Sample, tokenizer_report
    from megagpt.tokenizer.tokenizer import load_tokenizer
    from megagpt.tokenizer.train import train_tokenizer

    check_tokenizer(config, foreign=options.tokenizer is not None, trains=options.action == "train")
    run_folder = RunFolder(config.run)
    folder = run_folder.stage("tokenizer")
    files = find_files(config.documents, (Path(), run_folder.path))

    def sample():
        documents = (document for file in files for document in read_documents(file))
        if config.sampling == "first":
            return first_documents(documents, config.sample_characters)
        return spread_documents(documents, config.sample_characters, config.source_weights)

    if options.action == "train":
        texts = (document.text for document in sample())
        tokenizer = train_tokenizer(texts, config.vocab_size, folder, sample_characters=config.sample_characters, kind=config.kind)
        store(config, options.config.read_text(encoding="utf-8"), folder)
        run_folder.record("tokenizer", output=str(folder), config=content_hash(to_yaml(config)), code=code_version(), tokenizer=tokenizer.content_hash, vocab_size=tokenizer.vocab_size)
    path = options.tokenizer or folder
    samples = (Sample(document.text, document.source, str(document.meta.get("language") or ""), document.id) for document in sample())
    report = tokenizer_report(load_tokenizer(path), samples)
    name = f"report_{path.name}" if options.tokenizer else "report"
    written = write_tokenizer_report(report, f"Tokenizer {path}", folder, name)
    print(json.dumps(report, indent=2, ensure_ascii=False))
    print(f"wrote {written}", file=sys.stderr)
    return None
