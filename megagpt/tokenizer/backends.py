"""The two libraries that hold vocabularies, behind one small interface.

A backend is built from the bytes of its files alone, so that a tokenizer can be hashed, copied into a checkpoint and
sent to worker processes. It knows nothing of chat; `tokenizer.py` adds the ids that a foreign vocabulary lacks.
"""

from __future__ import annotations

import json
from typing import Protocol

import numpy as np


class Backend(Protocol):
    size: int
    """Ids are 0 .. size - 1 (a vocabulary with gaps counts them)."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text; control tokens spelled out in the text are ordinary characters."""

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """`encode` of each text, as the library does it fastest; int32."""

    def decode(self, ids: list[int]) -> str:
        """Text of ids; control tokens give no text, broken UTF-8 gives U+FFFD."""

    def control_id(self, name: str) -> int | None:
        """Id of a control token of this name, None where the vocabulary has none."""

    def end_id(self) -> int | None:
        """Id of the vocabulary's own end-of-text token."""


class SentencePieceBackend:
    """A sentencepiece model: ours, or one that came with a foreign model."""

    MODEL = "tokenizer.model"
    _SPACE = "\u2581"
    """sentencepiece writes a space as this character and reads it back as a space."""

    def __init__(self, files: dict[str, bytes]):
        from sentencepiece import SentencePieceProcessor

        self._processor = SentencePieceProcessor(model_proto=files[self.MODEL])
        self.size = self._processor.get_piece_size()
        self._space_bytes = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in self._SPACE.encode()]
        # A literal U+2581 would come back as a space. Spelling it in byte tokens keeps it, which is only right where
        # the pieces of a text may be encoded apart: byte tokens exist and no space is put in front or taken away.
        probe = "  a  "
        has_bytes = all(self._processor.is_byte(piece) for piece in self._space_bytes)
        self.keeps_text = has_bytes and self._processor.decode(self._processor.encode(probe)) == probe

    def encode(self, text: str) -> list[int]:
        if not self.keeps_text or self._SPACE not in text:
            return self._processor.encode(text)
        first, *others = text.split(self._SPACE)
        ids = self._processor.encode(first)
        for part in others:
            ids += self._space_bytes + self._processor.encode(part)
        return ids

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        found = self._processor.encode(texts, return_type="numpy", num_threads=1)
        if self.keeps_text:
            for place, text in enumerate(texts):
                if self._SPACE in text:
                    found[place] = np.array(self.encode(text), np.int32)
        return found

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def control_id(self, name: str) -> int | None:
        piece = self._processor.piece_to_id(name)
        return piece if self._processor.is_control(piece) else None

    def end_id(self) -> int | None:
        piece = self._processor.eos_id()
        return piece if piece >= 0 else None


class HuggingFaceBackend:
    """A `tokenizer.json` of the Hugging Face tokenizers library."""

    MODEL = "tokenizer.json"
    _ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
    """Names under which known vocabularies keep their end-of-text token, most specific first."""

    def __init__(self, files: dict[str, bytes]):
        self._tokenizer = self.library(files)
        self._tokenizer.encode_special_tokens = True  # control tokens in a user's text stay text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._control = {
            token.content: piece for piece, token in self._tokenizer.get_added_tokens_decoder().items() if token.special
        }
        self.size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def library(cls, files: dict[str, bytes]):
        """The vocabulary as the library's own `tokenizers.Tokenizer`."""
        from tokenizers import Tokenizer

        return Tokenizer.from_str(files[cls.MODEL].decode())

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array(encoding.ids, np.int32) for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def control_id(self, name: str) -> int | None:
        return self._control.get(name)

    def end_id(self) -> int | None:
        return next((piece for name in self._ENDS if (piece := self._control.get(name)) is not None), None)


class Gpt2Backend(HuggingFaceBackend):
    """GPT-2's byte-level BPE from its two files, vocabulary and merges."""

    VOCABULARY = "vocab.json"
    MERGES = "merges.txt"

    @classmethod
    def library(cls, files: dict[str, bytes]):
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        vocabulary = json.loads(files[cls.VOCABULARY])
        lines = files[cls.MERGES].decode().split("\n")
        merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        tokenizer = Tokenizer(models.BPE(vocabulary, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        # No merge leads to it, but only an added token is known to the library as a control token.
        tokenizer.add_special_tokens([name for name in cls._ENDS if name in vocabulary])
        return tokenizer


BACKENDS: dict[str, type[Backend]] = {
    "sentencepiece": SentencePieceBackend,
    "huggingface": HuggingFaceBackend,
    "gpt2": Gpt2Backend,
}
