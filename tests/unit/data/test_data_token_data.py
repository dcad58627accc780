"""The rows of a pre-training job: packed, blended, split, in an order that nothing but data and seed decides."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from megagpt.config.schema import TokenFilesConfig
from megagpt.data.errors import DataError
from megagpt.data.indexed import TokenFile
from megagpt.data.packed import PackedRows
from megagpt.data.sidecar import write_sidecar
from megagpt.data.token_data import TokenData, open_token_files
from megagpt.tokenizer.train import train_tokenizer
from tests.helpers.token_files import numbered_documents, write_token_files

LENGTH = 6
STREAM = sum(numbered_documents([5, 3, 4, 9, 10]), [])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(["some words and more words. " * 20], 290, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """`a` with 31 tokens, `b` with 90 of other ids, `valid`; all with sidecars but `foreign`, the same as `a`."""
    folder = tmp_path_factory.mktemp("tokens")
    files = {"a": [5, 3, 4, 9, 10], "foreign": [5, 3, 4, 9, 10], "b": [9] * 10, "valid": [20, 20]}
    for name, lengths in files.items():
        prefix = write_token_files(folder / name, numbered_documents(lengths, 150 if name == "b" else 10))
        if name != "foreign":
            write_sidecar(prefix, tokenizer, num_documents=len(lengths), num_tokens=sum(lengths), dtype="uint16")
    return folder


@pytest.fixture
def data(folder, tokenizer):
    def opened(seed=3, length=LENGTH, **config) -> TokenData:
        built = TokenFilesConfig.model_validate_json(json.dumps({"train": "a", **({} if "split" in config else {"valid": "valid"}), **config}))
        return open_token_files(built, lambda path: folder / path, length, tokenizer, seed)

    return opened


def blend(**weights):
    return [{"path": name, "weight": weight} for name, weight in weights.items()]


# ---------------------------------------------------------------- packed rows


def test_packed_rows_are_the_stream_cut_with_one_token_shared(folder):
    rows = PackedRows(TokenFile(folder / "a", 290), range(5), LENGTH)
    assert len(rows) == 5
    assert [row.tokens.tolist() for row in (rows[i] for i in range(5))] == [STREAM[6 * i : 6 * i + 7] for i in range(5)]
    assert rows[0].tokens.dtype == np.int64 and rows[0].loss_mask.tolist() == [1] * 7 and rows[0].segments is None
    with pytest.raises(IndexError):
        rows[5]


def test_packed_rows_of_some_documents_stay_within_them(folder):
    rows = PackedRows(TokenFile(folder / "a", 290), range(2, 4), LENGTH)
    assert [rows[i].tokens.tolist() for i in range(len(rows))] == [STREAM[8:15], STREAM[14:21]]


def test_packed_rows_tell_documents_apart_where_asked(folder):
    rows = PackedRows(TokenFile(folder / "a", 290), range(5), LENGTH, reset_at_documents=True)
    assert [row.segments.tolist() for row in (rows[0], rows[1], rows[2])] == [
        [1, 1, 1, 1, 1, 2, 2],  # 5 tokens of the first document, then the second
        [0, 0, 1, 1, 1, 1, 2],  # the second goes on, then the third, and the first token of the fourth
        [1, 1, 1, 1, 1, 1, 1],
    ]
    # No document's first token is a target (a row's first token never is one).
    assert [row.loss_mask[1:].tolist() for row in (rows[0], rows[1], rows[2])] == [[1, 1, 1, 1, 0, 1], [1, 0, 1, 1, 1, 0], [1] * 6]


def test_packed_rows_need_one_row(folder):
    file = TokenFile(folder / "a", 290)
    assert len(PackedRows(file, range(5), 30)) == 1
    with pytest.raises(DataError, match=r"a: 31 tokens are less than one row of 31 \+ 1"):
        PackedRows(file, range(5), 31)
    with pytest.raises(DataError, match=r"a: 7 tokens in documents 1 to 3 of 5 are less than one row of 7 \+ 1"):
        PackedRows(file, range(1, 3), 7)


# ---------------------------------------------------------------- order and blends


def test_token_data_reads_every_row_once_an_epoch(data):
    rows = data()
    assert rows.num_train_rows == 5
    epochs = [[tuple(rows.train_row(5 * epoch + place).tokens) for place in range(5)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(tuple(STREAM[6 * i : 6 * i + 7]) for i in range(5))
    assert len({tuple(epoch) for epoch in epochs}) > 1, "each epoch has an order of its own"


def test_token_data_of_another_opening_goes_on_at_any_position(data):
    config = {"train": blend(a=1, b=2), "reset_at_documents": True}
    first, again = data(**config), data(**config)
    for position in (57, 3, 70_000):
        assert first.train_row(position).tokens.tolist() == again.train_row(position).tokens.tolist()
    different = data(seed=4, **config)
    assert any(first.train_row(i).tokens.tolist() != different.train_row(i).tokens.tolist() for i in range(20))


def test_token_data_blends_by_weight_each_source_in_its_own_order(data):
    alone, mixed = data(train="b"), data(train=blend(a=1, b=3))
    rows = [mixed.train_row(position).tokens for position in range(80)]
    from_b = [row.tolist() for row in rows if row.max() >= 150]
    assert len(from_b) == 60
    assert from_b == [alone.train_row(i).tokens.tolist() for i in range(60)], "the same rows as without the other source"


def test_token_data_spreads_held_out_rows_evenly(data):
    rows = data(valid=blend(a=1, b=1), length=2).valid
    assert len(rows) == 15 + 44
    assert [row.tokens[0] for row in rows.spread(8)] == [rows.sources[s][i * len(rows.sources[s]) // 4].tokens[0] for s in (0, 1) for i in range(4)]
    assert len(rows.spread(0)) == len(rows)
    assert len(rows.spread(1000)) == len(rows), "no row is counted twice"


# ---------------------------------------------------------------- splits


def test_token_data_split_cuts_every_file_by_documents(data):
    split = data(train=blend(a=1, b=1), split=[0.6, 0.2, 0.2], length=2)
    assert [[rows.documents for rows in side.sources] for side in (split.train, split.valid, split.test)] == [
        [range(0, 3), range(0, 6)], [range(3, 4), range(6, 8)], [range(4, 5), range(8, 10)]
    ]  # fmt: skip
    ids = [Counter(row.tokens[0] for row in side.spread(0)) for side in (split.train, split.valid, split.test)]
    assert not (ids[0] & ids[1] or ids[0] & ids[2] or ids[1] & ids[2]) - Counter([1] * 100)


def test_token_data_split_takes_ratios_and_needs_no_test_part(data):
    split = data(train="b", split=[8, 2, 0], length=2)
    assert [side.sources[0].documents for side in (split.train, split.valid)] == [range(8), range(8, 10)]
    assert split.test is None
    assert data().test is None


def test_token_data_split_refuses_a_part_without_a_row(data):
    with pytest.raises(DataError, match=r"a: 0 tokens in documents 5 to 5 of 5 are less than one row of 6 \+ 1"):
        data(split=[0.98, 0.01, 0.01])


# ---------------------------------------------------------------- what is said, and what is refused


def test_token_data_describes_what_each_source_gives(data, folder):
    assert data(train=blend(a=1, b=3)).describe(40) == f"{folder}/a 25.00% (31 tokens, 2.00 epochs); {folder}/b 75.00% (90 tokens, 2.14 epochs)"


def test_token_data_says_what_it_could_not_check(data):
    assert data().notes == ()
    said = data(train="foreign").describe(5)
    assert said.endswith("foreign.json is missing: 31 ids are within the vocabulary, that they are this tokenizer's is not known")


def test_token_data_refuses_files_of_another_tokenizer(data, folder, tmp_path):
    other = train_tokenizer(["some words and more words. " * 20], 291, tmp_path)
    with pytest.raises(DataError, match="a.json: ids of tokenizer"):
        open_token_files(TokenFilesConfig(train="a", valid="valid"), lambda path: folder / path, LENGTH, other, 1)


def test_token_data_refuses_a_weight_too_small_to_count(data):
    with pytest.raises(DataError, match="a, b: weight 1e-09 is 1.0e-09 of all weights"):
        data(train=blend(a=1, b=1e-9))


def test_token_data_fingerprint_is_all_that_decides_the_order(data, folder, tokenizer):
    same = data(train=blend(a=1, b=2)).fingerprint
    assert data(train=blend(a=2, b=4)).fingerprint == same, "only ratios count"
    assert data(train=blend(foreign=1, b=2)).fingerprint == same, "the same files under another name"
    changes = [
        data(train=blend(a=1, b=3)), data(train=blend(b=2, a=1)), data(train=blend(a=1, valid=2)), data(train=blend(a=1, b=2), seed=4),
        data(train=blend(a=1, b=2), length=5), data(train=blend(a=1, b=2), reset_at_documents=True),
        data(train=blend(a=1, b=2), split=[0.6, 0.4, 0.0]),
    ]  # fmt: skip
    assert len({same, *(changed.fingerprint for changed in changes)}) == 8


def test_token_data_passes_the_configured_paths_on(data, folder, tokenizer):
    asked = []
    config = TokenFilesConfig(train=blend(a=1, b=1), valid="valid")

    def resolve(path: str) -> Path:
        asked.append(path)
        return folder / path

    open_token_files(config, resolve, LENGTH, tokenizer, 1)
    assert asked == ["a", "b", "valid"]
