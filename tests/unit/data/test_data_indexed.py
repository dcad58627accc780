"""One `.bin/.idx` pair: what is read from it, and why a damaged one is refused."""

import struct

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megagpt.data.errors import DataError
from megagpt.data.indexed import TokenFile
from tests.helpers.token_files import numbered_documents, write_token_files

LENGTHS = [5, 3, 4, 8]
STREAM = sum(numbered_documents(LENGTHS), [])
VOCABULARY = 100


@pytest.fixture
def prefix(tmp_path):
    return write_token_files(tmp_path / "train", numbered_documents(LENGTHS))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_token_file_is_one_stream_of_documents(tmp_path, dtype):
    file = TokenFile(write_token_files(tmp_path / "a", numbered_documents(LENGTHS), dtype), VOCABULARY)
    assert (file.num_tokens, file.num_documents, file.dtype) == (20, 4, dtype)
    assert file.read(0, 20).tolist() == STREAM and file.read(7, 6).tolist() == STREAM[7:13]
    assert file.read(0, 1).dtype == np.int64
    assert [file.document_start(document) for document in range(5)] == [0, 5, 8, 12, 20]


def test_token_file_finds_the_documents_that_begin_within_a_range(prefix):
    file = TokenFile(prefix, VOCABULARY)
    starts = [0, 5, 8, 12]
    for start in range(20):
        for stop in range(start + 1, 21):
            assert file.documents_within(start, stop).tolist() == [place for place in starts if start <= place < stop]


def test_token_file_takes_documents_of_several_sequences(tmp_path):
    builder = IndexedDatasetBuilder(str(tmp_path / "a.bin"), dtype=np.int32)
    for lengths in ([2, 3], [4], [1, 1, 1]):
        builder.add_document(list(range(sum(lengths))), lengths)
    builder.finalize(str(tmp_path / "a.idx"))
    file = TokenFile(tmp_path / "a", VOCABULARY)
    assert [file.document_start(document) for document in range(4)] == [0, 5, 9, 12]
    assert file.documents_within(0, 12).tolist() == [0, 5, 9]


def test_token_file_leaves_no_cache_beside_the_data(prefix):
    TokenFile(prefix, VOCABULARY).read(0, 3)
    assert sorted(file.name for file in prefix.parent.iterdir()) == ["train.bin", "train.idx"]


@pytest.mark.parametrize(("stray", "place"), [(VOCABULARY, 13), (-1, 0)])
def test_token_file_refuses_ids_outside_the_vocabulary_when_they_are_read(tmp_path, stray, place):
    ids = list(STREAM)
    ids[place] = stray
    file = TokenFile(write_token_files(tmp_path / "a", [ids], np.int32), VOCABULARY)
    message = f"a.bin: token {place} has id {stray}, the tokenizer's vocabulary is 0 to 99"
    with pytest.raises(DataError, match=message):
        file.read(0, 20)
    with pytest.raises(DataError, match=message):
        file.check_sample()
    file.read(place + 1, 3)


def test_token_file_sample_reaches_both_ends(tmp_path):
    num_tokens = 500_000
    for place in (0, num_tokens - 1):
        ids = np.full(num_tokens, 7, np.uint16)
        assert 64 * 4096 == TokenFile(write_token_files(tmp_path / "a", [ids]), VOCABULARY).check_sample()
        ids[place] = VOCABULARY
        with pytest.raises(DataError, match=f"token {place} has id 100"):
            TokenFile(write_token_files(tmp_path / "a", [ids]), VOCABULARY).check_sample()


def test_token_file_sample_of_a_small_file_is_all_of_it(tmp_path):
    for num_tokens in (1, 4096, 4097, 10_001, 64 * 4096):
        assert TokenFile(write_token_files(tmp_path / "a", [np.full(num_tokens, 7)]), VOCABULARY).check_sample() == num_tokens
    ids = np.full(10_001, 7, np.uint16)
    for place in (4095, 4096, 5904, 5905):
        with pytest.raises(DataError, match=f"token {place} has id 100"):
            TokenFile(write_token_files(tmp_path / "a", [np.where(np.arange(10_001) == place, VOCABULARY, ids)]), VOCABULARY).check_sample()


def test_token_file_identity_is_the_content_not_the_place(prefix, tmp_path):
    identity = TokenFile(prefix, VOCABULARY).identity()
    assert TokenFile(write_token_files(tmp_path / "moved", numbered_documents(LENGTHS)), VOCABULARY).identity() == identity
    for name, documents in (("longer", [*LENGTHS, 2]), ("cut_otherwise", [3, 5, 4, 8])):
        assert TokenFile(write_token_files(tmp_path / name, numbered_documents(documents)), VOCABULARY).identity() != identity


def changed(path, place, form, value):
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, place, value)
    path.write_bytes(content)


def without_bounds(bin, idx):
    """A header that says so, and a file that ends where they would begin."""
    changed(idx, 26, "<Q", 0)
    idx.write_bytes(idx.read_bytes()[:BOUNDS_AT])


LENGTHS_AT, STARTS_AT, BOUNDS_AT = 34, 34 + 4 * 4, 34 + 12 * 4


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda bin, idx: bin.unlink(), r"train.bin: no such file"),
        (lambda bin, idx: idx.unlink(), r"train.idx: no such file; did you mean train.bin"),
        (lambda bin, idx: bin.write_bytes(b""), r"train.bin: the file is empty"),
        (lambda bin, idx: bin.write_bytes(bin.read_bytes()[:-2]), r"train.bin: damaged: 38 bytes, its index says 40"),
        (lambda bin, idx: bin.write_bytes(bin.read_bytes() + b"xx"), r"train.bin: damaged: 42 bytes, its index says 40"),
        (lambda bin, idx: idx.write_bytes(idx.read_bytes()[:-20]), r"train.idx: damaged: 102 bytes, its index says 122"),
        (lambda bin, idx: idx.write_bytes(idx.read_bytes()[:20]), r"train.idx: damaged: this is no Megatron index"),
        (lambda bin, idx: idx.write_bytes(b"something else" * 10), r"train.idx: damaged: this is no Megatron index"),
        (lambda bin, idx: changed(idx, 9, "<Q", 2), r"train.idx: damaged: version 2 with ids of type 8; known are version 1 and types"),
        (lambda bin, idx: changed(idx, 17, "<B", 7), r"train.idx: damaged: version 1 with ids of type 7"),
        (lambda bin, idx: changed(idx, LENGTHS_AT, "<i", -5), r"train.idx: damaged: its sequences do not follow each other"),
        (lambda bin, idx: changed(idx, LENGTHS_AT, "<i", 6), r"train.idx: damaged: its sequences do not follow each other"),
        (lambda bin, idx: changed(idx, STARTS_AT + 8, "<q", 12), r"train.idx: damaged: its sequences do not follow each other"),
        (without_bounds, r"train.idx: damaged: its documents are not its sequences in order"),
        (lambda bin, idx: changed(idx, BOUNDS_AT, "<q", 1), r"train.idx: damaged: its documents are not its sequences in order"),
        (lambda bin, idx: changed(idx, BOUNDS_AT + 8, "<q", 3), r"train.idx: damaged: its documents are not its sequences in order"),
        (lambda bin, idx: changed(idx, BOUNDS_AT + 4 * 8, "<q", 5), r"train.idx: damaged: its documents are not its sequences in order"),
    ],
)
def test_token_file_that_is_damaged_is_named(prefix, damage, message):
    damage(prefix.with_suffix(".bin"), prefix.with_suffix(".idx"))
    with pytest.raises(DataError, match=message):
        TokenFile(prefix, VOCABULARY)


def test_token_file_without_documents_is_refused(tmp_path):
    write_token_files(tmp_path / "a", [])
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(DataError, match="a.idx: damaged: its sequences do not follow each other"):
        TokenFile(tmp_path / "a", VOCABULARY)
