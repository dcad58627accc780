"""Our tokenizers as AutoTokenizer reads them: the same ids, the same chat, and the same tokenizer when they come back."""

import json
from pydoc_data.topics import topics

import pytest
from transformers import AutoTokenizer

from megagpt.tokenizer.chat import encode_chat
from megagpt.tokenizer.export import huggingface_files
from megagpt.tokenizer.special import CHAT_TOKENS, EOS, PAD
from megagpt.tokenizer.tokenizer import Tokenizer, TokenizerError, load_tokenizer
from megagpt.tokenizer.train import train_tokenizer
from tests.helpers.huggingface import TEXTS, tiny_vocabulary

LEARNED, UNSEEN = topics["class"] + topics["string-methods"][:40_000], topics["lambda"] + topics["exceptions"]
TALK = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count to 12."},
    {"role": "assistant", "content": "1, 2 …"}, {"role": "user", "content": "Go on."},
]  # fmt: skip


def huggingface() -> Tokenizer:
    return Tokenizer("huggingface", {"tokenizer.json": tiny_vocabulary().to_str().encode()})


def chatml() -> Tokenizer:
    vocabulary = tiny_vocabulary()
    vocabulary.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return Tokenizer("huggingface", {"tokenizer.json": vocabulary.to_str().encode()}, eos_name="<|im_end|>")


def gpt2() -> Tokenizer:
    model = json.loads(tiny_vocabulary().to_str())["model"]
    merges = "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]) + "\n"
    return Tokenizer("gpt2", {"vocab.json": json.dumps(model["vocab"]).encode(), "merges.txt": merges.encode()})


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    trained = train_tokenizer([LEARNED, *TEXTS], 900, tmp_path_factory.mktemp("trained"))
    return {"huggingface": huggingface(), "chatml": chatml(), "gpt2": gpt2(), "sentencepiece": trained}


@pytest.mark.parametrize("name", ["huggingface", "chatml", "gpt2", "sentencepiece"])
def test_tokenizer_export_has_the_same_ids(tokenizers, name, tmp_path):
    ours = tokenizers[name]
    for file, content in huggingface_files(ours, 128).items():
        (tmp_path / file).write_bytes(content)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "".join(TEXTS), "unseen: Ωμέγα 🎈 zzz", UNSEEN]:
        ids = ours.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert theirs.decode(ids) == text
    for talk, more in [(TALK[:1], False), (TALK, False), (TALK, True), (TALK[1:], True)]:
        assert theirs.apply_chat_template(talk, add_generation_prompt=more) == encode_chat(ours, talk, add_generation_prompt=more)[0]
    assert (theirs.eos_token_id, theirs.pad_token_id, len(theirs), theirs.model_max_length) == (ours.eos_id, ours.pad_id, ours.vocab_size, 128)
    back = load_tokenizer(tmp_path)
    assert (back.special_ids, back.vocab_size) == (ours.special_ids, ours.vocab_size)


def test_tokenizer_export_chatml_needs_no_new_ids():
    ours = chatml()
    assert ours.vocab_size == ours.own_size == 322
    assert not {*CHAT_TOKENS} - {"<|end|>"} & ours.special_ids.keys()
    assert ours.special_ids[EOS] == ours.special_ids[PAD] == 0  # documents end as in pre-training, whatever a chat model declares


def test_tokenizer_export_refuses_a_vocabulary_with_gaps():
    model = json.loads(tiny_vocabulary().to_str())
    last = max(model["model"]["vocab"], key=model["model"]["vocab"].get)
    model["model"]["vocab"][last] += 7
    with pytest.raises(TokenizerError, match=r"control token <\|pad\|> has id 327, and 320 in Hugging Face's library"):
        huggingface_files(Tokenizer("huggingface", {"tokenizer.json": json.dumps(model).encode()}), 128)
