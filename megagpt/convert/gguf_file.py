"""Read a GGUF file of architecture `llama`: settings, dequantised tensors, and the byte-level BPE vocabulary in its metadata.

The `gguf` package reads the format and dequantises; what its fields mean is written down in ggml's docs/gguf.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megagpt.convert.names import check_names, gguf_names
from megagpt.convert.settings import model_from_gguf
from megagpt.convert.source import ConvertError, Source
from megagpt.model.param_map import canonical_shapes
from megagpt.model.shape import ModelShape
from megagpt.tokenizer.backends import HuggingFaceBackend
from megagpt.tokenizer.tokenizer import Tokenizer

_CONTROL, _USER_DEFINED = 3, 4
"""Kinds of tokens in `tokenizer.ggml.token_type` that stand outside of the merges."""


@contextlib.contextmanager
def open_gguf(file: Path) -> Iterator[Source]:
    """The model of a GGUF file; its tensors are float32, whatever they are quantised to.

    Raises:
        ConvertError: the `gguf` package is missing, the file is damaged, or its settings and tensors are not those of the llama family.
    """
    try:
        from gguf import GGUFReader
        from gguf.quants import dequantize
    except ImportError:
        raise ConvertError(f"{file}: reading GGUF needs a package that is not installed: pip install 'megagpt[gguf]'") from None
    try:
        reader = GGUFReader(file)
    except Exception as error:  # numpy's and its own, by what is damaged
        raise ConvertError(f"{file}: not a whole GGUF file ({error})") from None
    stored = {tensor.name: tensor for tensor in reader.tensors}
    if "rope_freqs.weight" in stored:
        raise ConvertError(f"{file}: tensor 'rope_freqs.weight': scaled rotary positions are not computed here")
    metadata = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
    sizes = {name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in stored.items()}  # the file counts from the last axis
    if "token_embd.weight" not in sizes:
        raise ConvertError(f"{file}: holds no tensor 'token_embd.weight'")
    model = model_from_gguf(metadata, vocab_size=sizes["token_embd.weight"][0], tied="output.weight" not in sizes, where=file)
    shape = ModelShape(model)
    names, shapes = gguf_names(shape), canonical_shapes(shape)
    check_names(file, sizes, names, shape)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, parts in names.items():
            values = torch.from_numpy(dequantize(stored[name].data, stored[name].tensor_type).copy()).float()
            yield from parts.split(values.reshape(sizes[name]), shapes)

    def tokenizer() -> Tokenizer:
        return gguf_tokenizer({name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.")}, file)

    yield Source(file, model, tensors, len(shapes), tokenizer)


def gguf_tokenizer(metadata: Mapping[str, Any], where: object) -> Tokenizer:
    """The vocabulary of a GGUF file as a Hugging Face tokenizer: the same pieces, merges and splitting rule.

    Args:
        metadata: the file's fields `tokenizer.…`.
        where: stands in front of messages.

    Raises:
        ConvertError: another kind of vocabulary than byte-level BPE, or a splitting rule that is not known here.
    """
    from tokenizers import AddedToken, decoders, models
    from tokenizers import Tokenizer as Library

    own = {name.removeprefix("tokenizer.ggml."): value for name, value in metadata.items()}
    splitters, instead = _splitters(), "name the folder of the model's own tokenizer with --tokenizer"
    if own.get("model") != "gpt2":
        raise ConvertError(f"{where}: tokenizer.ggml.model = {own.get('model')!r}: only 'gpt2' (byte-level BPE) is read; {instead}")
    if own.get("pre") not in splitters:
        raise ConvertError(f"{where}: tokenizer.ggml.pre = {own.get('pre')!r}: only {', '.join(splitters)} are known; {instead}")
    vocabulary = {piece: number for number, piece in enumerate(own["tokens"])}
    merges = [tuple(line.split(" ")) for line in own["merges"]]
    # Llama 3 was trained so: a word that is a piece itself is taken whole, whether or not merges lead to it.
    library = Library(models.BPE(vocabulary, merges, ignore_merges=own["pre"] == "llama-bpe"))
    library.pre_tokenizer, library.decoder = splitters[own["pre"]], decoders.ByteLevel()
    for piece, kind in zip(own["tokens"], own["token_type"], strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            library.add_tokens([AddedToken(piece, normalized=False, special=kind == _CONTROL)])
    return Tokenizer("huggingface", {HuggingFaceBackend.MODEL: library.to_str().encode()})


def _splitters() -> dict[str, Any]:
    """`tokenizer.ggml.pre` -> how text is cut into words before the merges, as in llama.cpp's table of the same names (src/llama-vocab.cpp).

    `gpt-2` is the rule of GPT-2 (Radford et al. 2019, section 2.2). `smollm` first makes every digit a word of its own. `llama-bpe` is
    Llama 3's: up to three digits together, letters with one character in front that is neither letter, digit nor line break.
    """
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    llama3 = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    words = ByteLevel(add_prefix_space=False)
    return {
        "gpt-2": words,
        "smollm": Sequence([Digits(individual_digits=True), words]),
        "llama-bpe": Sequence([Split(Regex(llama3), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]),
    }
