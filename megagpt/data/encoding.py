"""Texts to ids in several threads or processes: in the order of the texts, in memory that does not depend on how many there are."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from typing import TypeVar

import numpy as np

from megagpt.runtime.errors import Foreseen
from megagpt.tokenizer.tokenizer import Tokenizer

# Worker processes import this module and nothing of it is heavy: they encode a moment after they were started.

BATCH_CHARACTERS = 1 << 18
"""A worker gets texts of about so many characters at a time, or one longer text."""
BATCH_TEXTS = 4096
BATCHES_IN_FLIGHT = 4
"""For each worker: what it works at, and what waits for it while results before it are late. With the two constants above this bounds memory."""
MOST_THREADS = 8
"""Both libraries encode outside of Python's lock, so threads share the cores as well as processes do, and need no start and no copies of texts: on
two cores they use 6 % more CPU time than the library alone, processes 12 % and their start. But under the lock arrays are made of the ids, a
twentieth of the work: with many more workers it would be what all wait for."""

Label = TypeVar("Label")


class WorkerDied(Foreseen, RuntimeError):
    """A process that encodes was ended from outside."""


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    ids: np.ndarray
    """[num_tokens]; the texts one after another, each closed by end-of-text."""
    lengths: np.ndarray
    """[num_texts] int32; ids of each, its end included."""
    sizes: np.ndarray
    """[num_texts] int64; bytes of UTF-8 of each."""


def encode_texts(
    texts: Iterable[tuple[str, Label]], tokenizer: Tokenizer, workers: int, dtype: np.dtype
) -> Iterator[tuple[list[Label], EncodedTexts]]:
    """Encode a stream of texts; results do not depend on the number of workers.

    Args:
        texts: each with whatever is to come back beside it.
        workers: threads or (more than MOST_THREADS) processes that encode, beside this one that reads; with 1 there is no other.
        dtype: of the ids.

    Raises:
        TokenizerError: a text that the vocabulary cannot take (half a surrogate pair).
        WorkerDied: a process was killed, as the kernel does where memory ends.
    """
    batches = _batches(texts)
    with _one_thread():
        if workers == 1:
            for some, labels in batches:
                yield labels, _encode(some, tokenizer, dtype)
            return
        pool, encode = _pool(workers, tokenizer, dtype)
        waiting: deque = deque()
        try:
            for some, labels in batches:
                waiting.append((labels, pool.submit(encode, some)))
                if len(waiting) >= workers * BATCHES_IN_FLIGHT:
                    labels, future = waiting.popleft()
                    yield labels, future.result()
            while waiting:
                labels, future = waiting.popleft()
                yield labels, future.result()
        except BrokenProcessPool as error:
            raise WorkerDied("a process that encodes was killed; where memory is short, take fewer workers") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _pool(workers: int, tokenizer: Tokenizer, dtype: np.dtype) -> tuple[Executor, Callable[[list[str]], EncodedTexts]]:
    """Who encodes, and what they are to call with texts."""
    if workers <= MOST_THREADS:
        return ThreadPoolExecutor(workers), partial(_encode, tokenizer=tokenizer, dtype=dtype)
    # Not forked: threads of the parent (torch, tokenizers) would leave locks held in the child.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (tokenizer, dtype)), _encode_in_worker


def _batches(texts: Iterable[tuple[str, Label]]) -> Iterator[tuple[list[str], list[Label]]]:
    some: list[str] = []
    labels: list[Label] = []
    characters = 0
    for text, label in texts:
        some.append(text)
        labels.append(label)
        characters += len(text)
        if characters >= BATCH_CHARACTERS or len(some) >= BATCH_TEXTS:
            yield some, labels
            some, labels, characters = [], [], 0
    if some:
        yield some, labels


def _encode(texts: list[str], tokenizer: Tokenizer, dtype: np.dtype) -> EncodedTexts:
    encoded = tokenizer.encode_batch(texts)
    lengths = np.fromiter((len(ids) + 1 for ids in encoded), np.int32, len(texts))
    ids = np.full(lengths.sum(dtype=np.int64), tokenizer.eos_id, dtype)
    start = 0
    for part in encoded:
        ids[start : start + len(part)] = part
        start += len(part) + 1
    sizes = np.fromiter((len(text) if text.isascii() else len(text.encode()) for text in texts), np.int64, len(texts))
    return EncodedTexts(ids, lengths, sizes)


_worker: tuple[Tokenizer, np.dtype]
"""What a worker process encodes with."""


def _start_worker(tokenizer: Tokenizer, dtype: np.dtype) -> None:
    global _worker
    _worker = tokenizer, dtype
    os.environ[_PARALLEL] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed tells nobody, and its workers would wait for texts for ever."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _encode_in_worker(texts: list[str]) -> EncodedTexts:
    return _encode(texts, *_worker)


_PARALLEL = "TOKENIZERS_PARALLELISM"
"""Read by Hugging Face's library at each call: whether a batch is spread over threads of its own."""


@contextmanager
def _one_thread() -> Iterator[None]:
    """A worker is one thread, whatever the library would start."""
    before = os.environ.get(_PARALLEL)
    os.environ[_PARALLEL] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PARALLEL]
        else:
            os.environ[_PARALLEL] = before
