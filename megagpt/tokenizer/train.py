"""Train a tokenizer that can spell every text: byte-pair encoding or a unigram model over characters, or byte-pair encoding over bytes."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from megagpt.tokenizer.backends import HuggingFaceBackend, SentencePieceBackend
from megagpt.tokenizer.special import CHAT_TOKENS, EOS, PAD
from megagpt.tokenizer.tokenizer import Tokenizer, TokenizerError

CHARACTER_COVERAGE = 0.9999
"""Share of the text's characters that get an id of their own; the rarer ones are spelled in bytes."""
MAX_LINE_BYTES = 1 << 20
"""sentencepiece leaves out longer lines."""

Kind = Literal["bpe", "unigram", "byte_bpe"]


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, output_folder: str | Path, *, sample_characters: int = 20_000_000, kind: Kind = "bpe"
) -> Tokenizer:
    """Train a tokenizer on texts, save it and return it.

    `bpe`, `unigram`: sentencepiece with byte fallback (Kudo & Richardson 2018; Kudo 2018). Ids: 0 unknown (never produced), end-of-text, padding,
    the chat tokens, 256 bytes, then pieces. Runs of spaces may become one piece, which code needs.
    `byte_bpe`: byte-pair encoding over the bytes of words (Radford et al. 2019), saved as `tokenizer.json`. Ids: end-of-text, padding, the chat
    tokens, 256 bytes, then merges.

    Text is taken as it is (no normalisation, no space put in front), so decode(encode(text)) == text for every text. The same texts give the
    same files, byte for byte.

    Args:
        texts: documents, in an order that does not matter much: they are read until `sample_characters` is reached.
        vocab_size: number of ids, all of the above included.
        output_folder: gets the tokenizer's files.
        sample_characters: most text to learn from, in characters.

    Raises:
        TokenizerError: no text, or too little of it for `vocab_size`.
    """
    sample = list(_first(texts, sample_characters))  # read before a library runs, which would dress up the readers' errors
    if not any(text.strip("\n") for text in sample):
        raise TokenizerError("tokenizer training: the documents hold no text")
    tokenizer = _train_byte_bpe(sample, vocab_size) if kind == "byte_bpe" else _train_sentencepiece(sample, vocab_size, kind)
    tokenizer.save(output_folder)
    return tokenizer


def _train_sentencepiece(texts: list[str], vocab_size: int, model_type: str) -> Tokenizer:
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=CHARACTER_COVERAGE,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=MAX_LINE_BYTES,
            unk_id=0,
            bos_id=-1,
            eos_id=1,
            pad_id=2,
            eos_piece=EOS,
            pad_piece=PAD,
            control_symbols=list(CHAT_TOKENS),
            num_threads=1,  # recorded in the model file: another number would be another hash
            minloglevel=2,
        )
    except RuntimeError as error:
        raise TokenizerError(f"vocab_size {vocab_size}: sentencepiece cannot train it on this text: {error}") from error
    return Tokenizer("sentencepiece", {SentencePieceBackend.MODEL: model.getvalue()})


def _train_byte_bpe(texts: list[str], vocab_size: int) -> Tokenizer:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, PAD, *CHAT_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # all 256 bytes, met or not
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    if (learned := library.get_vocab_size()) < vocab_size:
        raise TokenizerError(f"vocab_size {vocab_size}: Vocabulary size too high: this text gives {learned} at most")
    return Tokenizer("huggingface", {HuggingFaceBackend.MODEL: library.to_str(pretty=True).encode()})


def _first(texts: Iterable[str], sample_characters: int) -> Iterator[str]:
    """The texts until enough characters are read."""
    left = sample_characters
    for text in texts:
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Non-empty lines of the texts; a newline is always a byte token of its own."""
    return (line for text in texts for line in text.split("\n") if line)
