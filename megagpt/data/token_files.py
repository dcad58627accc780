"""`megagpt tokenize`: documents to Megatron token files (`.bin` holds ids, `.idx` the documents' lengths, `.json` whose ids they are)."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from megagpt.config.check import check_tokenize
from megagpt.config.schema import TokenizeConfig
from megagpt.data.encoding import EncodedTexts, encode_texts
from megagpt.data.errors import DataError
from megagpt.data.files import find_files
from megagpt.data.indexed_writer import TokenFileWriter, ids_dtype
from megagpt.data.mixture import SourceSize, mix
from megagpt.data.records import Document, read_documents
from megagpt.data.sidecar import write_sidecar
from megagpt.data.split import share
from megagpt.runtime import atomic
from megagpt.runtime.errors import Foreseen
from megagpt.tokenizer.tokenizer import Tokenizer

MIXTURE = "mixture.yaml"
MAX_WEIGHT = 100
"""Most copies of a document: a larger weight is a mistake."""
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class TokenFileError(Foreseen, OSError):
    """Files that the system does not let us read or write."""

    exit_code = 1


def tokenize_documents(config: TokenizeConfig, tokenizer: Tokenizer, output_folder: str | Path, root: Path = Path()) -> dict[str, Any]:
    """Write `<name>.bin`, `<name>.idx` and `<name>.json` (`sidecar.py`) for each of `config.inputs`; each document ends with the end-of-text id.

    With `by_source` they are `<name>/<source>.bin` and so on, and with a `mixture` there is `mixture.yaml`, what `pretrain` needs to mix them.
    Ids take two bytes where the vocabulary allows, else four. The files do not depend on `config.workers`. Pairs are written apart and
    renamed when all of an input's are whole.

    Args:
        root: where relative inputs lie that are not below the working directory.

    Returns:
        Name of each output -> its `documents`, `tokens` (end-of-text ids included), `bytes` (of UTF-8 text) and `bytes_per_token`; where weights
        had a part in it `left_out` and `repeated`, the documents without a copy and those with several; by source, `sources` holds the same for each.

    Raises:
        ConfigError: a mixture that contradicts the other settings.
        DataError: unreadable or empty input, a weight or a source that cannot be.
        TokenFileError: a full disk.
    """
    check_tokenize(config)
    inputs = {name: find_files(names, (Path(), root)) for name, names in config.inputs.items()}
    output_folder = Path(output_folder)
    output_folder.mkdir(parents=True, exist_ok=True)
    (output_folder / MIXTURE).unlink(missing_ok=True)
    summary: dict[str, Any] = {}
    for name, files in inputs.items():
        sizes = _write_pairs(output_folder / name, files, config, tokenizer)
        summary[name] = sum(sizes.values(), _Size()).summary()
        if config.by_source:
            summary[name]["sources"] = {source: sizes[source].summary() for source in sorted(sizes)}
    if config.mixture is not None:
        train = config.mixture.input
        held_out = [source for source, facts in summary.get("valid", {"sources": {}})["sources"].items() if facts["documents"]]
        sizes = {source: SourceSize(facts["documents"], facts["tokens"]) for source, facts in summary[train]["sources"].items() if facts["documents"]}
        mixture = mix(config.mixture, sizes)
        atomic.write_text(output_folder / MIXTURE, mixture.yaml(f"{output_folder.name}/{train}", f"{output_folder.name}/valid", held_out))
        summary["mixture"] = mixture.rows()
    return summary


class _Label(NamedTuple):
    """What comes back beside the ids of a document."""

    source: str
    copies: int


@dataclass
class _Size:
    """What a pair holds, copies counted; and how many documents have no copy in it, and several."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    left_out: int = 0
    repeated: int = 0

    def __add__(self, other: _Size) -> _Size:
        return _Size(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def summary(self) -> dict[str, Any]:
        bytes_per_token = round(self.bytes / self.tokens, 4) if self.tokens else None
        facts = {"documents": self.documents, "tokens": self.tokens, "bytes": self.bytes, "bytes_per_token": bytes_per_token}
        return facts | {name: getattr(self, name) for name in ("left_out", "repeated") if self.left_out or self.repeated}


def _write_pairs(prefix: Path, files: list[Path], config: TokenizeConfig, tokenizer: Tokenizer) -> dict[str, _Size]:
    """The pairs of one input; their sizes by source, or all under one name."""
    unfinished = prefix.parent / f".unfinished-{prefix.name}"
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    unfinished.mkdir()
    pairs = _Pairs(unfinished, ids_dtype(tokenizer.vocab_size))
    try:
        # The files hold a little more than the texts (parquet: less); good enough for an ETA.
        bar = tqdm(total=sum(map(os.path.getsize, files)), desc=f"tokenizing {prefix.name}", unit="B", unit_scale=True, disable=None)
        for labels, encoded in encode_texts(_texts(files, prefix.name, config, pairs), tokenizer, config.workers, pairs.dtype):
            pairs.add(labels, encoded)
            bar.update(int(encoded.sizes.sum()))
        bar.close()
        if not pairs.writers:
            raise DataError(", ".join(map(str, files)), "no document holds any text")
        for writer in pairs.writers.values():
            writer.finish()
        _publish(unfinished, prefix, {source: pairs.sizes[source] for source in pairs.writers}, tokenizer, config.by_source)
    except OSError as error:  # a full disk, a file that may not be read
        raise TokenFileError(f"{error.filename or prefix}: {error.strerror or error}; nothing of {prefix.name} was kept") from error
    finally:
        for writer in pairs.writers.values():
            writer.abandon()
        shutil.rmtree(unfinished, ignore_errors=True)
    return pairs.sizes


class _Pairs:
    """Writers that are opened when the first document of their source comes."""

    def __init__(self, folder: Path, dtype: np.dtype) -> None:
        self._folder, self.dtype = folder, dtype
        self.writers: dict[str, TokenFileWriter] = {}
        self.sizes: dict[str, _Size] = {}

    def size(self, name: str) -> _Size:
        return self.sizes.setdefault(name, _Size())

    def add(self, labels: list[_Label], encoded: EncodedTexts) -> None:
        """Documents of one source and number of copies that stand together are written together."""
        token = document = 0
        for (source, copies), run in itertools.groupby(labels):
            documents = slice(document, document := document + sum(1 for _ in run))
            lengths = encoded.lengths[documents]
            ids = encoded.ids[token : (token := token + int(lengths.sum()))]
            if source not in self.writers:
                self.writers[source] = TokenFileWriter(self._folder / source, self.dtype)
            for number in range(copies):
                self.writers[source].add(ids, lengths, number)
            size = self.size(source)
            size.documents += copies * len(lengths)
            size.tokens += copies * len(ids)
            size.bytes += copies * int(encoded.sizes[documents].sum())
            size.repeated += len(lengths) * (copies > 1)


def _texts(files: Iterable[Path], name: str, config: TokenizeConfig, pairs: _Pairs) -> Iterator[tuple[str, _Label]]:
    """Texts to encode; documents without a copy are counted and left out."""
    for file in files:
        for document in read_documents(file):
            source = document.source if config.by_source else name
            if config.by_source and source not in pairs.sizes and not _FILE_NAME.fullmatch(source):
                raise DataError(file, f"source {source!r} of document {document.id}: by_source makes it a file's name; letters, digits, `.`, `_` and `-` may be in it")
            copies = _copies(document, config.run.seed, file) if config.document_weights else 1
            if copies == 0:
                pairs.size(source).left_out += 1
            else:
                yield document.text, _Label(source, copies)


def _copies(document: Document, seed: int, file: Path) -> int:
    """Copies of a document: its weight on average, as whole numbers. Depends on seed, source and id alone."""
    weight = document.meta.get("weight")
    if weight is None or weight == 1:
        return 1
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= MAX_WEIGHT:
        rule = f"weight {weight!r} of document {document.id}: must be a number from 0 to {MAX_WEIGHT}; or set document_weights: false"
        raise DataError(file, rule)
    whole = int(weight)
    return whole + (share(f"copies {seed} {document.source} {document.id}") < weight - whole)


def _publish(unfinished: Path, prefix: Path, sizes: dict[str, _Size], tokenizer: Tokenizer, by_source: bool) -> None:
    """Give whole pairs their names. Between the steps there is no pair, not a mixed one."""

    def sidecar(pair: Path, size: _Size) -> None:
        write_sidecar(pair, tokenizer, num_documents=size.documents, num_tokens=size.tokens, dtype=ids_dtype(tokenizer.vocab_size).name)

    for file in unfinished.iterdir():
        atomic.sync(file)
    for end in ("json", "idx", "bin"):
        Path(f"{prefix}.{end}").unlink(missing_ok=True)
    if prefix.is_dir():
        shutil.rmtree(prefix)
    if by_source:
        for source, size in sizes.items():
            sidecar(unfinished / source, size)
        os.rename(unfinished, prefix)
    else:
        for end in ("bin", "idx"):
            os.replace(unfinished / f"{prefix.name}.{end}", f"{prefix}.{end}")
        sidecar(prefix, sizes[prefix.name])
    atomic.sync(prefix.parent)
