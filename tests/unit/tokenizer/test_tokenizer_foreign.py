"""Foreign vocabularies: GPT-2 (the parity oracle), Hugging Face, other sentencepiece models."""

import gzip
import json
import pickle
from pathlib import Path

import pytest
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import models, pre_tokenizers

from megagpt.tokenizer.special import CHAT_TOKENS, EOS, PAD
from megagpt.tokenizer.tokenizer import TokenizerError, load_tokenizer

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
needs_vocabularies = pytest.mark.skipif(not (SHARED / "tokenizers").is_dir(), reason="no ../shared/data/tokenizers")


@pytest.fixture(scope="module")
def gpt2():
    return load_tokenizer(SHARED / "tokenizers" / "gpt2_encoder.json")


@needs_vocabularies
def test_gpt2_known_ids(gpt2):
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.eos_id == 50256
    assert gpt2.vocab_size == 50257 + 5  # padding and chat tokens are added


@needs_vocabularies
def test_gpt2_counts_tinyshakespeare_as_published(gpt2):
    with gzip.open(SHARED / "pretrain_books" / "tinyshakespeare.txt.gz", "rt", encoding="utf-8") as file:
        text = file.read()
    ids = gpt2.encode(text)
    assert len(ids) == 338_025
    assert gpt2.decode(ids) == text
    assert gpt2.encode_batch([text])[0].tolist() == ids


@needs_vocabularies
def test_gpt2_equals_transformers(gpt2, tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.json").write_bytes((SHARED / "tokenizers" / "gpt2_encoder.json").read_bytes())
    (tmp_path / "merges.txt").write_bytes((SHARED / "tokenizers" / "gpt2_vocab.bpe").read_bytes())
    peer = transformers.GPT2Tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    for text in [
        "  two spaces\n\n\tdef f(x): return x**2",
        "naïve café 日本語 👩‍👩‍👧 don't I'LL 1234567",
        "x" * 50 + " " * 9,
    ]:
        assert gpt2.encode(text) == peer.encode(text)
    assert load_tokenizer(tmp_path).content_hash == gpt2.content_hash  # whatever the files are called


@needs_vocabularies
def test_gpt2_text_cannot_forge_end_of_text(gpt2):
    for copy in (gpt2, pickle.loads(pickle.dumps(gpt2))):
        ids = copy.encode("a<|endoftext|>b<|user|>")
        assert not set(ids) & set(copy.special_ids.values())
        assert copy.decode(ids) == "a<|endoftext|>b<|user|>"


@needs_vocabularies
def test_gpt2_saved_copy_has_the_same_hash(gpt2, tmp_path):
    gpt2.save(tmp_path)
    copy = load_tokenizer(tmp_path)
    assert (copy.content_hash, copy.special_ids) == (gpt2.content_hash, gpt2.special_ids)


@needs_vocabularies
def test_foreign_sentencepiece_gets_the_chat_tokens_behind_its_own():
    tokenizer = load_tokenizer(SHARED / "tokenizers" / "spm_test_model.model")
    assert tokenizer.vocab_size == 1000 + 5
    assert [tokenizer.special_ids[name] for name in (PAD, *CHAT_TOKENS)] == [1000, 1001, 1002, 1003, 1004]
    assert tokenizer.eos_id == 2
    assert tokenizer.decode(tokenizer.encode("I have a cat.")) == "I have a cat."


@pytest.fixture
def huggingface_folder(tmp_path):
    """A word tokenizer whose only control tokens are its own end of text and `<|user|>`."""
    words = {"a": 0, "b": 1, "<unk>": 2}
    tokenizer = HuggingFaceTokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<end>", "<|user|>"])
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<end>"}}))
    return tmp_path


def test_huggingface_folder_keeps_its_own_control_tokens(huggingface_folder):
    tokenizer = load_tokenizer(huggingface_folder)
    assert tokenizer.special_ids[EOS] == 3
    assert tokenizer.special_ids["<|user|>"] == 4
    assert tokenizer.special_ids[PAD] == 5
    assert tokenizer.vocab_size == 5 + 4
    assert tokenizer.encode("a b a") == [0, 1, 0]  # its truncation is switched off


def test_huggingface_text_cannot_forge_control_tokens(huggingface_folder):
    tokenizer = load_tokenizer(huggingface_folder)
    assert not set(tokenizer.encode("a <end> <|user|>")) & set(tokenizer.special_ids.values())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no tokenizer here"),
        ({"a.model": b"x", "b.model": b"x"}, "several sentencepiece models, name one: a.model, b.model"),
        ({"a.model": b"x"}, "not a sentencepiece tokenizer"),
        ({"tokenizer.json": b"{"}, "not a huggingface tokenizer"),
        ({"megagpt_tokenizer.json": b"{}"}, "damaged tokenizer folder"),
    ],
)
def test_unusable_folders_are_refused_by_name(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=f"{tmp_path}: {message}"):
        load_tokenizer(tmp_path)


def test_missing_tokenizer_is_refused_by_name(tmp_path):
    with pytest.raises(TokenizerError, match="nowhere: no such tokenizer"):
        load_tokenizer(tmp_path / "nowhere")
