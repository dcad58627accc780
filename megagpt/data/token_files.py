"""`megagpt tokenize`: documents to Megatron token files (`.bin` holds ids, `.idx` the documents' lengths, `.json` whose ids they are)."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from megagpt.config.schema import TokenizeConfig
from megagpt.data.errors import DataError, require_file
from megagpt.data.records import read_documents
from megagpt.data.sidecar import write_sidecar
from megagpt.tokenizer.tokenizer import Tokenizer

DOCUMENTS_IN_FLIGHT = 512
"""Documents read ahead for each worker; bounds memory."""

Encoder = Callable[[Iterable[str]], Iterator[tuple[list[int], int]]]
"""Texts to their ids and sizes in bytes, in order."""


def tokenize_documents(config: TokenizeConfig, tokenizer: Tokenizer, output_folder: str | Path) -> dict[str, Any]:
    """Write `<name>.bin`, `<name>.idx` and `<name>.json` (`sidecar.py`) for each of `config.inputs`; each document ends with the end-of-text id.

    Ids take two bytes where the vocabulary allows, else four. The files do not depend on `config.workers`. A pair is
    written apart and renamed when it is whole.

    Returns:
        Name of each output -> `documents`, `tokens` (end-of-text ids included), `bytes` (of UTF-8 text) and
        `bytes_per_token`.

    Raises:
        DataError: unreadable or empty input.
    """
    for path in itertools.chain.from_iterable(config.inputs.values()):
        require_file(Path(path))
    output_folder = Path(output_folder)
    output_folder.mkdir(parents=True, exist_ok=True)
    with _encoder(tokenizer, config.workers) as encode:
        return {
            name: _write_pair(output_folder / name, paths, encode, tokenizer) for name, paths in config.inputs.items()
        }


def _write_pair(prefix: Path, paths: list[str], encode: Encoder, tokenizer: Tokenizer) -> dict[str, Any]:
    # Here and not above: worker processes import this module, and Megatron takes seconds.
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    num_documents = num_tokens = num_bytes = 0
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=prefix.parent) as unfinished:
        ids_file, index_file = Path(unfinished, "ids"), Path(unfinished, "index")
        builder = IndexedDatasetBuilder(str(ids_file), dtype=DType.optimal_dtype(tokenizer.vocab_size))
        # The files hold a little more than the texts; good enough for an ETA.
        bar = tqdm(total=sum(os.path.getsize(path) for path in paths), desc=f"tokenizing {prefix.name}", unit="B", unit_scale=True, disable=None)
        for ids, size in encode(document.text for path in paths for document in read_documents(path)):
            bar.update(size)
            ids.append(tokenizer.eos_id)
            builder.add_document(ids, [len(ids)])
            num_documents += 1
            num_tokens += len(ids)
            num_bytes += size
        bar.close()
        builder.finalize(str(index_file))
        if not num_documents:
            raise DataError(", ".join(paths), "no document holds any text")
        for end in ("idx", "json"):
            Path(f"{prefix}.{end}").unlink(missing_ok=True)  # between the renames there is no pair, not a mixed one
        os.replace(ids_file, f"{prefix}.bin")
        os.replace(index_file, f"{prefix}.idx")
        write_sidecar(prefix, tokenizer, num_documents=num_documents, num_tokens=num_tokens, dtype=np.dtype(builder.dtype).name)
    return {
        "documents": num_documents,
        "tokens": num_tokens,
        "bytes": num_bytes,
        "bytes_per_token": round(num_bytes / num_tokens, 4),
    }


_worker_tokenizer: Tokenizer
"""The tokenizer of a worker process."""


def _start_worker(tokenizer: Tokenizer) -> None:
    global _worker_tokenizer
    _worker_tokenizer = tokenizer


def _encode_in_worker(text: str) -> tuple[list[int], int]:
    return _encode(_worker_tokenizer, text)


def _encode(tokenizer: Tokenizer, text: str) -> tuple[list[int], int]:
    """Ids of a text and its size in bytes."""
    return tokenizer.encode(text), len(text.encode())


@contextmanager
def _encoder(tokenizer: Tokenizer, workers: int) -> Iterator[Encoder]:
    """Encoding spread over so many processes."""
    if workers == 1:
        yield lambda texts: (_encode(tokenizer, text) for text in texts)
        return
    # Not forked: threads of the parent (torch, tokenizers) would leave locks held in the child.
    with multiprocessing.get_context("spawn").Pool(workers, _start_worker, (tokenizer,)) as pool:
        yield lambda texts: _encode_with(pool, texts, workers)


def _encode_with(pool: Pool, texts: Iterable[str], workers: int) -> Iterator[tuple[list[int], int]]:
    texts = iter(texts)
    while some := list(itertools.islice(texts, workers * DOCUMENTS_IN_FLIGHT)):
        yield from pool.map(_encode_in_worker, some)
