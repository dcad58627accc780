"""Train a byte-pair tokenizer that can spell every text."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from megagpt.tokenizer.backends import SentencePieceBackend
from megagpt.tokenizer.special import CHAT_TOKENS, EOS, PAD
from megagpt.tokenizer.tokenizer import Tokenizer, TokenizerError

CHARACTER_COVERAGE = 0.9999
"""Share of the text's characters that get an id of their own; the rarer ones are spelled in bytes."""
MAX_LINE_BYTES = 1 << 20
"""sentencepiece leaves out longer lines."""


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, output_folder: str | Path, *, sample_characters: int = 20_000_000
) -> Tokenizer:
    """Train sentencepiece BPE with byte fallback on texts, save it and return it.

    Ids: 0 unknown (never produced), end-of-text, padding, the chat tokens, 256 bytes, then pieces. Text is taken as
    it is (no normalisation, no space put in front), so decode(encode(text)) == text for every text; runs of spaces
    may become one piece, which code needs. The same texts give the same model, byte for byte.

    Args:
        texts: documents, in an order that does not matter much: they are read until `sample_characters` is reached.
        vocab_size: number of ids, all of the above included.
        output_folder: gets the tokenizer's files.
        sample_characters: most text to learn from, in characters.

    Raises:
        TokenizerError: no text, or too little of it for `vocab_size`.
    """
    from sentencepiece import SentencePieceTrainer

    lines = list(_lines(texts, sample_characters))  # read before sentencepiece runs, which would dress up the readers' errors
    if not lines:
        raise TokenizerError("tokenizer training: the documents hold no text")
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
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
    tokenizer = Tokenizer("sentencepiece", {SentencePieceBackend.MODEL: model.getvalue()})
    tokenizer.save(output_folder)
    return tokenizer


def _lines(texts: Iterable[str], sample_characters: int) -> Iterator[str]:
    """Non-empty lines of the texts, until enough characters are read; a newline is always a byte token of its own."""
    left = sample_characters
    for text in texts:
        for line in text[:left].split("\n"):
            if line:
                yield line
        left -= len(text)
        if left <= 0:
            return
