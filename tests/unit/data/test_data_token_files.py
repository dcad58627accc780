"""Documents to Megatron token files to packed rows."""

import json

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megagpt.config.schema import RunConfig, TokenizeConfig
from megagpt.data.errors import DataError
from megagpt.data.packed import PackedDataset
from megagpt.data.token_files import tokenize_documents
from megagpt.tokenizer.train import train_tokenizer

TEXTS = [f"Document {i}: " + "words and more words. " * (i % 7) for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(TEXTS, 300, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    path = tmp_path_factory.mktemp("documents") / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return str(path)


def tokenize(tokenizer, folder, workers=1, **inputs):
    return tokenize_documents(
        TokenizeConfig(run=RunConfig(name="t"), inputs=inputs, workers=workers), tokenizer, folder
    )


@pytest.fixture(scope="module")
def prefix(tokenizer, documents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    tokenize(tokenizer, folder, train=[documents])
    return folder / "train"


def test_each_document_ends_with_end_of_text(tokenizer, prefix):
    files = IndexedDataset(str(prefix))
    assert len(files) == len(TEXTS)
    assert files.index.dtype is np.uint16
    for text, ids in zip(TEXTS, files[0 : len(files)], strict=True):
        assert ids.tolist() == [*tokenizer.encode(text), tokenizer.eos_id]


def test_statistics_count_tokens_and_bytes(tokenizer, documents, tmp_path):
    statistics = tokenize(tokenizer, tmp_path, train=[documents], both=[documents, documents])
    assert statistics["train"]["documents"] == 40
    assert statistics["train"]["tokens"] == sum(len(tokenizer.encode(text)) + 1 for text in TEXTS)
    assert statistics["train"]["bytes"] == sum(map(len, TEXTS))
    assert statistics["both"]["tokens"] == 2 * statistics["train"]["tokens"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["both.bin", "both.idx", "train.bin", "train.idx"]


def test_workers_do_not_change_the_files(tokenizer, documents, prefix, tmp_path):
    tokenize(tokenizer, tmp_path, workers=2, train=[documents])
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"train{suffix}").read_bytes() == prefix.with_suffix(suffix).read_bytes()


def test_bad_input_leaves_earlier_files_alone(tokenizer, documents, tmp_path):
    tokenize(tokenizer, tmp_path, train=[documents])
    before = (tmp_path / "train.bin").read_bytes(), (tmp_path / "train.idx").read_bytes()
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    with pytest.raises(DataError, match="bad.jsonl:2: malformed JSON"):
        tokenize(tokenizer, tmp_path, train=[str(tmp_path / "bad.jsonl")])
    with pytest.raises(DataError, match="missing.jsonl: no such file"):
        tokenize(tokenizer, tmp_path, train=[documents], valid=["missing.jsonl"])
    assert ((tmp_path / "train.bin").read_bytes(), (tmp_path / "train.idx").read_bytes()) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.jsonl", "train.bin", "train.idx"]


def test_documents_without_text_are_refused(tokenizer, tmp_path):
    (tmp_path / "empty.jsonl").write_text('{"text": " "}\n')
    with pytest.raises(DataError, match="no document holds any text"):
        tokenize(tokenizer, tmp_path, train=[str(tmp_path / "empty.jsonl")])


def test_packed_rows_are_the_stream_cut_with_one_token_shared(prefix):
    files = IndexedDataset(str(prefix))
    stream = np.concatenate(files[0 : len(files)])
    rows = PackedDataset(prefix, 32)
    assert len(rows) == (len(stream) - 1) // 32
    for i in (0, 1, len(rows) - 1):
        assert rows[i].tokens.tolist() == stream[32 * i : 32 * i + 33].tolist()
        assert rows[i].tokens.dtype == np.int64
        assert rows[i].loss_mask.tolist() == [1] * 33
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_packed_leaves_no_cache_beside_the_data(prefix):
    PackedDataset(prefix, 32)
    assert sorted(file.name for file in prefix.parent.iterdir()) == ["train.bin", "train.idx"]


def test_packed_needs_one_row(prefix):
    num_tokens = PackedDataset(prefix, 1).num_tokens
    assert len(PackedDataset(prefix, num_tokens - 1)) == 1
    with pytest.raises(DataError, match=f"{num_tokens} tokens are less than one row"):
        PackedDataset(prefix, num_tokens)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda bin, idx: bin.unlink(), r"train.bin: no such file"),
        (lambda bin, idx: idx.unlink(), r"train.idx: no such file; did you mean train.bin"),
        (lambda bin, idx: bin.write_bytes(b""), r"train.bin: the file is empty"),
        (lambda bin, idx: bin.write_bytes(bin.read_bytes()[:-2]), r"train.bin: damaged: \d+ bytes, its index says"),
        (lambda bin, idx: idx.write_bytes(idx.read_bytes()[:-20]), r"train.idx: damaged: \d+ bytes, its index says"),
        (lambda bin, idx: idx.write_bytes(b"something else"), r"train.idx: damaged: this is no Megatron index"),
    ],
    ids=["no-bin", "no-idx", "empty-bin", "short-bin", "short-idx", "not-idx"],
)
def test_damaged_token_files_are_named(prefix, tmp_path, damage, message):
    bin_path, idx_path = tmp_path / "train.bin", tmp_path / "train.idx"
    bin_path.write_bytes(prefix.with_suffix(".bin").read_bytes())
    idx_path.write_bytes(prefix.with_suffix(".idx").read_bytes())
    damage(bin_path, idx_path)
    with pytest.raises(DataError, match=message):
        PackedDataset(tmp_path / "train", 32)
