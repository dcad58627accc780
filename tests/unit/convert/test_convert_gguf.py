"""GGUF files: a tiny model in the file's own order of rows, quantised tensors, and vocabularies against BPE by its definition."""

import json

import numpy as np
import pytest
import torch

from megagpt.convert.gguf_file import gguf_tokenizer
from megagpt.convert.huggingface import open_folder
from megagpt.convert.source import ConvertError, open_source
from megagpt.tokenizer.chat import encode_chat
from megagpt.tokenizer.special import END, EOS, PAD
from tests.helpers import bpe
from tests.helpers.huggingface import TEXTS, random_model, save_folder, tiny_vocabulary
from tests.helpers.tolerance import Q8_0_STEPS

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed (setup.py, extra gguf)")
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def fields(pre: str = "smollm") -> dict:
    """What a GGUF file says of a vocabulary with ChatML's control tokens in front."""
    model = json.loads(tiny_vocabulary(300).to_str())["model"]
    ordinary = [piece for piece in sorted(model["vocab"], key=model["vocab"].get) if piece not in CONTROL]
    tokens = CONTROL + ordinary
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(CONTROL) + [1] * len(ordinary), "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
    }  # fmt: skip


def write_gguf(path, model, quantise=(), **extra):
    """transformers' Llama as llama.cpp's converter writes it."""
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    for name, value in {**fields(), **extra}.items():
        (writer.add_array if isinstance(value, list) else writer.add_string)(name, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        for kind, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if kind in name:  # the permutation of llama.cpp's convert_hf_to_gguf.py
                values = values.reshape(heads, 2, len(values) // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)
        theirs = names.get_name(name, try_suffixes=(".weight",))
        if theirs in quantise:
            values = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(theirs, values, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(theirs, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_convert_gguf_holds_the_tensors_of_the_folder(tmp_path, tied):
    model = random_model("llama", tie_word_embeddings=tied, rope_theta=50000.0)
    with open_source(write_gguf(tmp_path / "m.gguf", model)) as source, open_folder(save_folder(model, tmp_path / "hf")) as folder:
        assert source.model == folder.model
        theirs = dict(folder.tensors())
        ours = dict(source.tensors())
        assert ours.keys() == theirs.keys() and source.num_tensors == len(ours)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_convert_gguf_dequantises(tmp_path):
    """Q8_0 keeps, for 32 numbers, their largest magnitude / 127 (in float16) and eight bits each."""
    model = random_model("llama")
    exact = model.model.layers[0].mlp.up_proj.weight.detach()
    with open_source(write_gguf(tmp_path / "m.gguf", model, quantise=("blk.0.ffn_up.weight",))) as source:
        ours = dict(source.tensors())["layers.0.mlp.up.weight"]
    step = exact.reshape(-1, 32).abs().amax(dim=1, keepdim=True) / 127
    error = (ours - exact).reshape(-1, 32).abs()
    assert ours.dtype == torch.float32 and 0 < error.max() and (error <= Q8_0_STEPS * step).all()


def test_convert_gguf_refuses_what_it_cannot_read(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\x03\0\0\0")
    (tmp_path / "other.txt").write_text("")
    expected = {"broken.gguf": "not a whole GGUF file", "other.txt": "neither a Hugging Face folder nor a .gguf", "none.gguf": "no such folder"}
    for name, message in expected.items():
        with pytest.raises(ConvertError, match=message), open_source(tmp_path / name):
            pass
    whole = write_gguf(tmp_path / "m.gguf", random_model("llama")).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConvertError, match="cut.gguf: not a whole GGUF file"), open_source(tmp_path / "cut.gguf"):
        pass


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe"])
def test_convert_gguf_vocabulary_is_bpe_by_its_definition(pre):
    own = fields(pre)
    own["tokenizer.ggml.tokens"].append("Ġcapital")  # no merge leads to it: Llama 3 takes it whole all the same
    own["tokenizer.ggml.token_type"].append(1)
    tokenizer = gguf_tokenizer(own, "x")
    assert (len(own["tokenizer.ggml.tokens"]) - 1 in tokenizer.encode(TEXTS[0])) == (pre == "llama-bpe")
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == bpe.encode(text, pre, own["tokenizer.ggml.tokens"], own["tokenizer.ggml.merges"])
        assert tokenizer.decode(ids) == text
    assert not set(tokenizer.encode("a<|im_end|>")) & {0, 1, 2}


def test_convert_gguf_vocabulary_keeps_chatml():
    tokenizer = gguf_tokenizer(fields(), "x")
    assert tokenizer.vocab_size == tokenizer.own_size == len(fields()["tokenizer.ggml.tokens"])
    assert (tokenizer.special_ids[EOS], tokenizer.special_ids[END], tokenizer.special_ids[PAD]) == (0, 2, 0)
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    ids, mask = encode_chat(tokenizer, talk)
    line = tokenizer.encode("\n")
    answer = [*tokenizer.encode("yo"), 2]
    assert ids == [1, *tokenizer.encode("user\n"), *tokenizer.encode("hi"), 2, *line, 1, *tokenizer.encode("assistant\n"), *answer]
    assert mask == [0] * (len(ids) - len(answer)) + [1] * len(answer)
    asked, _ = encode_chat(tokenizer, talk[:1], add_generation_prompt=True)
    assert asked == ids[: len(asked)] and len(asked) == len(ids) - len(answer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "llama"}, "x: tokenizer.ggml.model = 'llama': only 'gpt2' .* --tokenizer"),
        ({"tokenizer.ggml.pre": "viking"}, "x: tokenizer.ggml.pre = 'viking': only gpt-2, smollm, llama-bpe are known"),
    ],
)
def test_convert_gguf_vocabulary_refused_by_name(change, message):
    with pytest.raises(ConvertError, match=message):
        gguf_tokenizer(fields() | change, "x")
