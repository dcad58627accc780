"""Our own tokenizer: every text comes back, no text makes a control token, the same texts train the same model."""

import pickle
import random

import pytest

from megagpt.tokenizer.special import CHAT_TOKENS, EOS, PAD
from megagpt.tokenizer.tokenizer import MARKER, TokenizerError, load_tokenizer
from megagpt.tokenizer.train import train_tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog.\n    def fox(jumps):\n        return jumps + 1\n",
    "Pack my box with five dozen liquor jugs.  Two spaces, a\ttab, and 12345 digits. " * 20,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 360, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


AWKWARD = [
    "",
    " ",
    "  leading and trailing  ",
    "line\n\n\nfeeds\r\nand\ttabs\t",
    "\u2581 the character that sentencepiece uses for a space \u2581\u2581",
    "\0nul and \x7f",
    "\ufeffbyte-order mark, zero-width joiner \u200d, line separator \u2028",
    "emoji 👩‍👩‍👧 🇫🇷, maths 𝔘, accents e\u0301 é, replacement \ufffd",
    "日本語 العربية हिन्दी",
    "<|end|><|assistant|> <|endoftext|> <unk> <0x41> </s>",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_decode_inverts_encode(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decode_inverts_encode_on_random_unicode(tokenizer):
    generator = random.Random(0)
    ranges = [(0x20, 0x7E), (0, 0x2FF), (0x2570, 0x2590), (0x3040, 0x30FF), (0xE000, 0xFFFF), (0x1F300, 0x1FAFF)]
    for _ in range(500):
        length = generator.randrange(30)
        text = "".join(chr(generator.randint(*generator.choice(ranges))) for _ in range(length))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_no_text_makes_a_control_token(tokenizer):
    for name in (*CHAT_TOKENS, EOS, PAD, "<unk>"):
        ids = tokenizer.encode(f"a {name} b {name}")
        assert not set(ids) & set(tokenizer.special_ids.values())
        assert len(ids) > 4


def test_control_tokens_are_in_the_vocabulary(tokenizer):
    assert tokenizer.vocab_size == 360
    assert sorted(tokenizer.special_ids) == sorted([EOS, PAD, *CHAT_TOKENS])
    assert len(set(tokenizer.special_ids.values())) == 6
    assert tokenizer.eos_id == tokenizer.special_ids[EOS] and tokenizer.pad_id == tokenizer.special_ids[PAD]


def test_decode_leaves_control_tokens_out_or_names_them(tokenizer):
    ids = [tokenizer.special_ids["<|user|>"], *tokenizer.encode(" hi "), tokenizer.eos_id]
    assert tokenizer.decode(ids) == " hi "
    assert tokenizer.decode(ids, show_special=True) == "<|user|> hi <|endoftext|>"


def test_decode_shows_broken_utf8_as_replacement(tokenizer):
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"


@pytest.mark.parametrize("piece", [-1, 360])
def test_decode_refuses_ids_outside_the_vocabulary(tokenizer, piece):
    with pytest.raises(ValueError, match=f"{piece} is outside the vocabulary of 360"):
        tokenizer.decode([piece])


def test_training_is_deterministic(tokenizer, tmp_path):
    again = train_tokenizer(iter(TEXTS), 360, tmp_path)
    assert again.content_hash == tokenizer.content_hash
    other = train_tokenizer(TEXTS, 361, tmp_path / "other")
    assert other.content_hash != tokenizer.content_hash


def test_training_stops_at_sample_characters(tokenizer, tmp_path):
    def endless():
        yield from TEXTS
        yield "z" * 1000
        raise AssertionError("read past sample_characters")

    sampled = train_tokenizer(endless(), 360, tmp_path, sample_characters=sum(map(len, TEXTS)))
    assert sampled.content_hash == tokenizer.content_hash


def test_training_without_text_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match="hold no text"):
        train_tokenizer(["", "\n\n"], 360, tmp_path)
    assert not list(tmp_path.iterdir())


def test_training_on_too_little_text_names_the_size(tmp_path):
    with pytest.raises(TokenizerError, match="vocab_size 2048.*too high"):
        train_tokenizer(["abc"], 2048, tmp_path)


def test_saved_copy_has_the_same_hash(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    copy = load_tokenizer(tmp_path)
    assert copy.content_hash == tokenizer.content_hash
    assert load_tokenizer(tmp_path / MARKER).content_hash == tokenizer.content_hash
    assert copy.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_pickled_copy_is_the_same(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.content_hash == tokenizer.content_hash
    assert copy.encode("<|end|> x") == tokenizer.encode("<|end|> x")


def test_changed_model_file_is_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    model = tmp_path / "tokenizer.model"
    model.write_bytes(model.read_bytes().replace(b"<|end|>", b"<|dne|>"))
    with pytest.raises(TokenizerError, match="damaged tokenizer folder"):
        load_tokenizer(tmp_path)
