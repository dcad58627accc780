"""Documents to Megatron token files and their sidecars."""

import json
import shutil

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megagpt.config.schema import RunConfig, TokenizeConfig
from megagpt.data import encoding
from megagpt.data.errors import DataError
from megagpt.data.sidecar import check_sidecar
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
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{name}.{end}" for name in ("both", "train") for end in ("bin", "idx", "json")]


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_do_not_change_the_files(tokenizer, documents, prefix, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 100)
    tokenize(tokenizer, tmp_path, workers=workers, train=[documents])
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
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.jsonl", "train.bin", "train.idx", "train.json"]


def test_documents_without_text_are_refused(tokenizer, tmp_path):
    (tmp_path / "empty.jsonl").write_text('{"text": " "}\n')
    with pytest.raises(DataError, match="no document holds any text"):
        tokenize(tokenizer, tmp_path, train=[str(tmp_path / "empty.jsonl")])


def test_sidecar_names_tokenizer_and_files(tokenizer, prefix):
    facts = json.loads(prefix.with_suffix(".json").read_text())
    num_tokens = sum(len(tokenizer.encode(text)) + 1 for text in TEXTS)
    assert facts == {
        "tokenizer_hash": tokenizer.content_hash, "num_documents": 40, "num_tokens": num_tokens, "dtype": "uint16",
        "bin_bytes": 2 * num_tokens, "idx_bytes": prefix.with_suffix(".idx").stat().st_size,
    }  # fmt: skip
    assert check_sidecar(prefix, tokenizer)
    assert not check_sidecar(prefix.with_name("other"), tokenizer), "token files of others have none"


def copied(prefix, folder):
    for end in (".bin", ".idx", ".json"):
        shutil.copy(prefix.with_suffix(end), folder)
    return folder / prefix.name


def test_sidecar_refuses_ids_of_another_tokenizer(prefix, tmp_path):
    other = train_tokenizer(TEXTS, 301, tmp_path)
    message = f"train.json: ids of tokenizer [0-9a-f]{{16}}, this run's is {other.content_hash[:16]}; tokenize the text again"
    with pytest.raises(DataError, match=message):
        check_sidecar(prefix, other)


@pytest.mark.parametrize("content", ["{", "[]", '{"tokenizer_hash": "x"}'])
def test_sidecar_that_is_damaged_is_refused(tokenizer, prefix, tmp_path, content):
    prefix = copied(prefix, tmp_path)
    prefix.with_suffix(".json").write_text(content)
    with pytest.raises(DataError, match="train.json: damaged: no description of token files"):
        check_sidecar(prefix, tokenizer)


def test_sidecar_refuses_files_of_another_run(tokenizer, prefix, tmp_path):
    prefix = copied(prefix, tmp_path)
    prefix.with_suffix(".idx").write_bytes(prefix.with_suffix(".idx").read_bytes() + b"12345678")
    with pytest.raises(DataError, match=r"train.idx: damaged: \d+ bytes, train.json says \d+"):
        check_sidecar(prefix, tokenizer)
