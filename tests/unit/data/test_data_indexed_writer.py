"""Our writer of token files against Megatron-core's builder, byte for byte."""

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset

from megagpt.data import indexed_writer
from megagpt.data.indexed_writer import TokenFileWriter, ids_dtype
from tests.helpers.token_files import write_token_files


def add(writer, documents, dtype, number=0):
    writer.add(np.array([piece for document in documents for piece in document], dtype), np.array([len(document) for document in documents], np.int32), number)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@pytest.mark.parametrize("chunk", [2, 1 << 20])
def test_indexed_writer_equals_megatron(tmp_path, monkeypatch, dtype, chunk):
    monkeypatch.setattr(indexed_writer, "_CHUNK", chunk)
    generator = np.random.default_rng(0)
    documents = [generator.integers(0, 60_000, size).tolist() for size in (5, 1, 300, 2, 2, 7, 1)]
    writer = TokenFileWriter(tmp_path / "ours", np.dtype(dtype))
    for some in (documents[:2], documents[2:3], documents[3:]):
        add(writer, some, dtype)
    writer.finish()
    theirs = write_token_files(tmp_path / "theirs", documents, dtype)
    for end in ("bin", "idx"):
        assert (tmp_path / f"ours.{end}").read_bytes() == theirs.with_suffix(f".{end}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.bin", "ours.idx", "theirs.bin", "theirs.idx"]


def test_indexed_writer_puts_copies_apart(tmp_path):
    """Documents of later passes stand behind those of earlier ones, whenever they were added."""
    writer = TokenFileWriter(tmp_path / "x", np.dtype(np.uint16))
    for number in range(3):
        add(writer, [[1, 1]], np.uint16, number)
    add(writer, [[2]], np.uint16)
    for number in range(2):
        add(writer, [[3, 3, 3]], np.uint16, number)
    writer.finish()
    files = IndexedDataset(str(tmp_path / "x"))
    assert [ids.tolist() for ids in files[0 : len(files)]] == [[1, 1], [2], [3, 3, 3], [1, 1], [3, 3, 3], [1, 1]]
    assert files.index.document_indices.tolist() == list(range(7))


@pytest.mark.parametrize("size", [1, 50_000, 65_499, 65_500, 65_536, 200_000])
def test_indexed_writer_takes_the_dtype_that_megatron_takes(size):
    assert ids_dtype(size) == DType.optimal_dtype(size)
