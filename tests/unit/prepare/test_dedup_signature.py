"""Signatures equal datatrove's to the bit, and find what the arithmetic says."""

import random
import re

import numpy as np
import pytest
import xxhash
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashDedupSignature

from megagpt.config.prepare import NearDuplicatesConfig
from megagpt.prepare.dedup import signature
from megagpt.prepare.dedup.signature import PRIME, Signature, minhash_config, recall
from megagpt.prepare.dedup.words import UNSPACED, Words
from tests.helpers.dedup import Item, prepare_config, sentences, with_changes, write_clean

CONFIG = NearDuplicatesConfig()


def datatroves(folder, config=CONFIG) -> MinhashDedupSignature:
    """datatrove's own; it hands strings to xxhash, which takes bytes only since version 4."""
    theirs = MinhashDedupSignature(str(folder), minhash_config(config), Words())
    theirs._hash_func = lambda run: xxhash.xxh64_intdigest(run.encode())
    return theirs


def texts() -> list[str]:
    generator = random.Random(0)
    made = [" ".join(sentences(generator, length)) for length in (0, 1, 4, 5, 6, 100, 3000)]
    other = ["Straße, ÉCOLE naïve; İstanbul — 3.14 and_so_on…", "日本語の文章です。 mixed 文章 text"]
    return [*made, "same same same same same same same same", *other]


@pytest.mark.parametrize("shape", [(16, 7, 5), (14, 8, 5), (3, 1, 1), (1, 20, 13)])
def test_dedup_signature_equals_datatroves(tmp_path, shape):
    config = NearDuplicatesConfig(buckets=shape[0], hashes=shape[1], shingle_words=shape[2])
    ours, theirs = Signature(config), datatroves(tmp_path, config)
    for text in texts():
        shingles = ours.get_shingles(text)
        np.testing.assert_array_equal(shingles, theirs.get_shingles(text))
        if len(shingles):
            assert ours.get_signature(shingles) == theirs.get_signature(shingles)


@pytest.mark.parametrize("block", [1, 7, 100, 1000])
def test_dedup_signature_does_not_depend_on_blocks(tmp_path, monkeypatch, block):
    monkeypatch.setattr(signature, "BLOCK", block)
    shingles = np.random.default_rng(0).integers(0, 1 << 64, (333, 1), np.uint64)
    assert Signature(CONFIG).get_signature(shingles) == datatroves(tmp_path).get_signature(shingles)


def test_dedup_signature_of_products_at_the_prime(tmp_path):
    """Products that leave 0 to 7, or wrap at 2^64: as good as never met, and the only ones where the remainder takes a second step."""
    ours, theirs = Signature(CONFIG), datatroves(tmp_path)
    odd = int(np.argmax(ours.parameters[0][0] % 2))  # a hash function whose factor has an inverse modulo 2^64
    a, b = (int(numbers[0, odd]) for numbers in ours.parameters)
    remainders = [0, 1, 6, 7, 8]
    products = [quotient * int(PRIME) + rest for quotient in range(9) for rest in remainders if quotient * int(PRIME) + rest < 1 << 64]
    shingles = np.array([(product - b) * pow(a, -1, 1 << 64) % (1 << 64) for product in products], np.uint64)
    for shingle in shingles:
        np.testing.assert_array_equal(ours.minima(shingle.reshape(1, 1)), np.concatenate(theirs.get_signature(shingle.reshape(1, 1))))
    assert [int(ours.minima(shingle.reshape(1, 1))[odd]) for shingle in shingles[:5]] == remainders


def test_dedup_signature_files_equal_datatroves(tmp_path):
    generator = random.Random(1)
    alike = [" ".join(sentences(generator, 30, 3)) for _ in range(3000)]
    items = [Item(f"{number}", text) for number, text in enumerate([*texts(), *alike, *texts()])]
    write_clean(tmp_path, 7, items, prepare_config(near=CONFIG))
    theirs = datatroves(tmp_path / "theirs")
    theirs.run((Document(text=item.text, id=item.id) for item in items), rank=7)
    files = sorted((tmp_path / "theirs").rglob("*.sig"))
    assert len(files) == CONFIG.buckets
    for file in files:
        assert file.read_bytes() == (tmp_path / "dedup/signatures" / file.relative_to(tmp_path / "theirs")).read_bytes()
    assert all(file.stat().st_size == 60 * sum(len(item.text.split()) >= 5 or "日" in item.text for item in items) for file in files)


def test_dedup_recall_by_arithmetic():
    assert recall(CONFIG.threshold, CONFIG.buckets, CONFIG.hashes) == pytest.approx(0.977, abs=5e-4)
    assert recall(0.8, 14, 8) == pytest.approx(0.924, abs=5e-4)  # as datatrove's own source says of its default
    for similarity, found in zip((0.5, 0.6, 0.7, 0.8, 0.9), (0.118, 0.365, 0.747, 0.977, 0.99997), strict=True):
        assert recall(similarity, 16, 7) == pytest.approx(found, abs=5e-4)


def test_dedup_recall_by_measurement():
    """1,000 pairs of sets with similarity 0.8 exactly: 80 numbers in both, 10 in each."""
    ours, generator, found = Signature(CONFIG), np.random.default_rng(2), 0
    for _ in range(1000):
        numbers = generator.integers(0, 1 << 64, 100, np.uint64)
        first, second = (ours.minima(part).reshape(CONFIG.buckets, -1) for part in (numbers[:90], numbers[10:]))
        found += bool((first == second).all(axis=1).any())
    deviation = np.sqrt(1000 * 0.977 * 0.023)
    assert abs(found - 1000 * recall(0.8, 16, 7)) < 4 * deviation


def test_dedup_words_split_scripts_without_spaces():
    assert Words().word_tokenize("naïve_1 Straße—x 東京へ行く。v2 ไทย") == ["naïve_1", "Straße", "x", *"東京へ行く", "v2", *"ไทย"]


def test_dedup_words_equal_a_regular_expression():
    r"""Every character but the surrogates, and its neighbours: `\w+` apart from the scripts without spaces."""
    plain = re.compile(rf"(?!\W)[{UNSPACED}]|[^\W{UNSPACED}]+").findall
    every = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    shuffled = "".join(random.Random(0).sample(every, 200_000))
    for text in (every, shuffled, "", " ", "a"):
        assert Words().word_tokenize(text) == plain(text)
    latin = "".join(chr(code) for code in range(0x500) for _ in range(2))
    assert Words().word_tokenize(latin) == re.findall(r"\w+", latin)


def test_dedup_signature_forgives_few_changes():
    generator = random.Random(3)
    words = sentences(generator, 2000)
    ours = Signature(CONFIG)
    first, second = (ours.minima(ours.get_shingles(" ".join(text))).reshape(16, 7) for text in (words, with_changes(generator, words, 0.01)))
    assert (first == second).all(axis=1).any()
