"""Encoding in several threads or processes: order, bounds, and what happens when one of them is lost."""

import multiprocessing
import os
import signal

import numpy as np
import pytest

from megagpt.data import encoding
from megagpt.data.encoding import BATCH_CHARACTERS, BATCH_TEXTS, BATCHES_IN_FLIGHT, WorkerDied, encode_texts
from megagpt.tokenizer.tokenizer import TokenizerError
from megagpt.tokenizer.train import train_tokenizer

DTYPE = np.dtype(np.uint16)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(["some words and more words. " * 20], 290, tmp_path_factory.mktemp("tokenizer"))


def flat(results):
    labels, ids, lengths, sizes = [], [], [], []
    for some, encoded in results:
        labels += some
        ids += encoded.ids.tolist()
        lengths += encoded.lengths.tolist()
        sizes += encoded.sizes.tolist()
    return labels, ids, lengths, sizes


@pytest.fixture
def processes(monkeypatch):
    monkeypatch.setattr(encoding, "MOST_THREADS", 1)


@pytest.mark.parametrize(("workers", "threads"), [(1, 8), (2, 8), (4, 8), (2, 1), (4, 1)])
def test_encoding_keeps_order_and_ids(tokenizer, monkeypatch, workers, threads):
    monkeypatch.setattr(encoding, "MOST_THREADS", threads)
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 300)
    texts = [f"{number} wörds " * (number % 9) for number in range(200)]
    labels, ids, lengths, sizes = flat(encode_texts(zip(texts, range(200)), tokenizer, workers, DTYPE))
    alone = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    assert labels == list(range(200))
    assert ids == [piece for document in alone for piece in document] and lengths == list(map(len, alone))
    assert sizes == [len(text.encode()) for text in texts]


@pytest.mark.parametrize("size", [10, 20_000, 2 * BATCH_CHARACTERS])
def test_encoding_reads_ahead_by_characters_not_by_documents(tokenizer, monkeypatch, size):
    """Whatever the documents' size, so much text is in memory at most: the batches in flight, and a document more in each."""
    monkeypatch.setattr(encoding, "_encode", lambda texts, tokenizer, dtype: None)  # bounds alone are of interest, and one process is enough for them
    read, most = [0, 0], 0

    def texts():
        for number in range(max(3, 3 * BATCH_CHARACTERS // size)):
            read[0] += 1
            yield "x" * size, number

    for labels, _ in encode_texts(texts(), tokenizer, 1, DTYPE):
        most = max(most, read[0] - read[1])
        read[1] += len(labels)
    assert most <= min(BATCH_TEXTS, BATCH_CHARACTERS // size + 1)
    assert read[0] == read[1]


def test_encoding_has_so_many_batches_in_flight(tokenizer, monkeypatch):
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 10)
    read, most = 0, 0

    def texts():
        nonlocal read
        for number in range(40):
            read += 1
            yield "0123456789", number

    for labels, _ in encode_texts(texts(), tokenizer, 2, DTYPE):
        most = max(most, read - labels[0])
    assert most == 2 * BATCHES_IN_FLIGHT


@pytest.mark.parametrize(("workers", "threads"), [(1, 8), (2, 8), (2, 1)])
def test_encoding_of_a_text_that_is_no_utf8_is_refused(tokenizer, monkeypatch, workers, threads):
    monkeypatch.setattr(encoding, "MOST_THREADS", threads)
    for _ in range(2):  # and the next run is not disturbed
        with pytest.raises(TokenizerError, match=r"half a surrogate pair \(U\+D83D\) at character 1"):
            list(encode_texts([("fine", 0), ("a\ud83d", 1)], tokenizer, workers, DTYPE))


@pytest.mark.parametrize("threads", [8, 1])
def test_encoding_errors_of_the_reader_come_through(tokenizer, monkeypatch, threads):
    monkeypatch.setattr(encoding, "MOST_THREADS", threads)

    def texts():
        yield "fine", 0
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        list(encode_texts(texts(), tokenizer, 2, DTYPE))


def test_encoding_says_so_when_a_process_is_killed(tokenizer, monkeypatch, processes):
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 10)

    def texts():
        for number in range(1000):
            if number == 20:
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
            yield "0123456789", number

    with pytest.raises(WorkerDied, match="was killed; where memory is short, take fewer workers"):
        list(encode_texts(texts(), tokenizer, 2, DTYPE))


@pytest.mark.parametrize("before", [None, "true"])
@pytest.mark.parametrize("workers", [1, 2])
def test_encoding_leaves_the_environment_as_it_was(tokenizer, monkeypatch, before, workers):
    if before is None:
        monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    else:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
    for _ in encode_texts([("a", 0)], tokenizer, workers, DTYPE):
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert os.environ.get("TOKENIZERS_PARALLELISM") == before
