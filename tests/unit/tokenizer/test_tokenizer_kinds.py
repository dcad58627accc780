"""The other kinds of vocabularies that are trained here keep the promises of the first: every text comes back, none makes a control token."""

import json
import os
import random
import subprocess
import sys
from pydoc_data.topics import topics

import pytest
from transformers import AutoTokenizer

from megagpt.tokenizer.chat import encode_chat
from megagpt.tokenizer.export import huggingface_files
from megagpt.tokenizer.special import CHAT_TOKENS, EOS, PAD
from megagpt.tokenizer.tokenizer import TokenizerError, load_tokenizer
from megagpt.tokenizer.train import train_tokenizer
from tests.helpers.bpe import encode

TEXTS = [topics["class"], topics["string-methods"][:20_000], "naïve café, 日本語 and 12345 digits.  Two spaces, a\ttab.\r\n" * 9]
UNSEEN = [topics["lambda"], topics["exceptions"], "unseen: Ωμέγα 🎈 zzz\n\n\n  x = 3", ""]
KINDS = ("byte_bpe", "unigram")
SIZE = 700


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return {kind: train_tokenizer(TEXTS, SIZE, tmp_path_factory.mktemp(kind), kind=kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_every_text_comes_back(tokenizers, kind):
    tokenizer, generator = tokenizers[kind], random.Random(1)
    ranges = [(0, 0x2FF), (0x2570, 0x2590), (0x3040, 0x30FF), (0xE000, 0xFFFF), (0x1F300, 0x1FAFF), (0x10FF00, 0x10FFFF)]
    texts = ["".join(chr(generator.randint(*generator.choice(ranges))) for _ in range(generator.randrange(40))) for _ in range(300)]
    for text in [*TEXTS, *UNSEEN, *texts, "\u2581 a \u2581\u2581", "  leading and trailing  ", "\x00\x7f\ufeff\u200d"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(TEXTS[0])) < 0.6 * len(TEXTS[0]), "it learned something"


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_no_text_makes_a_control_token(tokenizers, kind):
    tokenizer = tokenizers[kind]
    assert sorted(tokenizer.special_ids) == sorted([EOS, PAD, *CHAT_TOKENS])
    assert len(set(tokenizer.special_ids.values())) == 6
    assert tokenizer.vocab_size == tokenizer.own_size == SIZE
    for name in (*CHAT_TOKENS, EOS, PAD):
        ids = tokenizer.encode(f"a {name} b")
        assert not set(ids) & set(tokenizer.special_ids.values())
        assert [part.tolist() for part in tokenizer.encode_batch([name, "x"])] == [tokenizer.encode(name), tokenizer.encode("x")]


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_files_are_the_same_in_another_process(tokenizers, kind, tmp_path):
    """Neither hash seeds nor the number of threads have a part in it."""
    script = (
        "import json, sys; from megagpt.tokenizer.train import train_tokenizer\n"
        "print(train_tokenizer(json.load(open(sys.argv[1])), int(sys.argv[2]), sys.argv[3], kind=sys.argv[4]).content_hash)"
    )
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    words = [sys.executable, "-c", script, str(tmp_path / "texts.json"), str(SIZE), str(tmp_path / "again"), kind]
    environment = os.environ | {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "3"}
    again = subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout.strip()
    assert again == tokenizers[kind].content_hash == load_tokenizer(tmp_path / "again").content_hash


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_too_little_text_names_the_size(kind, tmp_path):
    with pytest.raises(TokenizerError, match="vocab_size 2048.*too high"):
        train_tokenizer(["abc"], 2048, tmp_path, kind=kind)
    with pytest.raises(TokenizerError, match="hold no text"):
        train_tokenizer(["\n", ""], 400, tmp_path, kind=kind)
    assert not list(tmp_path.iterdir())


def test_kinds_byte_bpe_merges_as_by_definition(tokenizers):
    """Against byte-pair encoding written apart from every library."""
    tokenizer = tokenizers["byte_bpe"]
    model = json.loads(tokenizer.files["tokenizer.json"])["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    assert tokens[:6] == [EOS, PAD, *CHAT_TOKENS] and len(merges) == SIZE - 6 - 256
    for text in [*UNSEEN, TEXTS[2]]:
        assert tokenizer.encode(text) == encode(text, "gpt-2", tokens, merges)


def test_kinds_byte_bpe_learns_the_most_frequent_pairs(tmp_path):
    """Words of two letters, ever rarer: each becomes a token in the order of its count."""
    words = [first + second for first in "abcdefgh" for second in "stuvwxyz"][:45]
    text = "\n".join("\n".join([word] * (100 - place)) for place, word in enumerate(words))
    model = json.loads(train_tokenizer([text], 6 + 256 + 45, tmp_path, kind="byte_bpe").files["tokenizer.json"])["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    assert tokens[6 + 256 :] == words


def test_kinds_byte_bpe_export_has_the_same_ids(tokenizers, tmp_path):
    ours = tokenizers["byte_bpe"]
    for file, content in huggingface_files(ours, 128).items():
        (tmp_path / file).write_bytes(content)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*UNSEEN, TEXTS[2]]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    talk = [{"role": "user", "content": "Count to 12."}]
    assert theirs.apply_chat_template(talk, add_generation_prompt=True) == encode_chat(ours, talk, add_generation_prompt=True)[0]


def test_kinds_unigram_export_is_refused(tokenizers):
    with pytest.raises(TokenizerError, match="other than BPE cannot be written as tokenizer.json"):
        huggingface_files(tokenizers["unigram"], 128)
