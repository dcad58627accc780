"""One tokenizer interface over sentencepiece, GPT-2 and Hugging Face vocabularies.

Every tokenizer, whatever it was loaded from, has an end-of-text id, a padding id and the control tokens of the chat
template. A foreign vocabulary that lacks one gets an extra id behind its own, counted in `vocab_size`. One that has the
control tokens of ChatML needs none: its chat template is then ChatML (`chat.py`), and padding, which is always masked, is
its end-of-text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np

from megagpt.runtime.errors import Foreseen
from megagpt.tokenizer.backends import (
    BACKENDS,
    Backend,
    Gpt2Backend,
    HuggingFaceBackend,
    SentencePieceBackend,
)
from megagpt.tokenizer.special import CHAT_TOKENS, CHATML_END, CHATML_START, END, EOS, PAD

MARKER = "megagpt_tokenizer.json"
"""Lies in every folder that `Tokenizer.save` wrote: kind of vocabulary, control ids, hash."""


class TokenizerError(Foreseen, ValueError):
    """A tokenizer that is missing, ambiguous or damaged; the message names the path and the rule."""


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        vocab_size: number of ids, control tokens included; ids are 0 .. vocab_size - 1.
        special_ids: name of each control token (`special.py`) -> id.
        eos_id, pad_id: ids of the end-of-text and the padding token.
        own_size: ids that the vocabulary itself has; those from there on were added.
        kind, files: what it was made from.
    """

    def __init__(
        self,
        kind: str,
        files: dict[str, bytes],
        special_ids: dict[str, int] | None = None,
        eos_name: str | None = None,
    ):
        """
        Args:
            kind: a key of `BACKENDS`.
            files: canonical file name -> content; all that defines the vocabulary.
            special_ids: as saved by an earlier instance; default: found in the vocabulary or added behind it.
            eos_name: name of the end-of-text token where the vocabulary's own files do not say it.
        """
        self.kind = kind
        self.files = files
        self._backend: Backend = BACKENDS[kind](files)
        self.special_ids = special_ids or _find_special_ids(self._backend, eos_name)
        self._names = {piece: name for name, piece in self.special_ids.items()}
        self.own_size = self._backend.size
        self.vocab_size = max(self._backend.size, 1 + max(self.special_ids.values()))
        self.eos_id = self.special_ids[EOS]
        self.pad_id = self.special_ids[PAD]

    def __reduce__(self):
        return Tokenizer, (self.kind, self.files, self.special_ids)

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Never a control token: a name like `<|end|>` inside the text is spelled out.

        Raises:
            TokenizerError: half a surrogate pair in the text, which UTF-8 cannot spell (`data/repair.py` makes it U+FFFD).
        """
        try:
            return self._backend.encode(text)
        except (TypeError, ValueError, RuntimeError) as error:  # each library raises a type of its own
            raise _surrogate_error(text) or error from error

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """`encode` of each text, int32, as the library does it fastest.

        Raises:
            TokenizerError: as `encode`.
        """
        try:
            return self._backend.encode_batch(texts)
        except (TypeError, ValueError, RuntimeError) as error:  # each library raises a type of its own
            raise next(filter(None, map(_surrogate_error, texts)), error) from error

    def decode(self, ids: Iterable[int], *, show_special: bool = False) -> str:
        """Text of ids; control tokens are left out, or written by name with `show_special`.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        parts: list[str] = []
        run: list[int] = []
        for piece in map(int, ids):
            if not 0 <= piece < self.vocab_size:
                raise ValueError(f"token id {piece} is outside the vocabulary of {self.vocab_size}")
            if piece not in self._names:
                run.append(piece)
                continue
            parts.append(self._backend.decode(run))
            parts.append(self._names[piece] if show_special else "")
            run = []
        parts.append(self._backend.decode(run))
        return "".join(parts)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over all that defines the mapping; equal hashes mean equal ids for every text."""
        digest = hashlib.sha256(json.dumps([self.kind, self.special_ids], sort_keys=True).encode())
        for name in sorted(self.files):
            digest.update(f"\n{name} {len(self.files[name])}\n".encode())
            digest.update(self.files[name])
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write a folder that `load_tokenizer` reads back to the same hash; the marker comes last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        marker = {"kind": self.kind, "special_ids": self.special_ids, "content_hash": self.content_hash}
        (folder / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer from a folder or from one of its files.

    A folder may be one that `Tokenizer.save` wrote, or hold `tokenizer.json` (Hugging Face), `vocab.json` with
    `merges.txt` or `encoder.json` with `vocab.bpe` (GPT-2; a common prefix is allowed), or one sentencepiece
    `*.model`; the first of these that is there counts.

    Raises:
        TokenizerError: nothing there, several models there, or a damaged file.
    """
    path = Path(path)
    if not path.exists():
        raise TokenizerError(f"{path}: no such tokenizer folder or file")
    if path.name == MARKER or (path / MARKER).is_file():
        return _load_saved(path.parent if path.is_file() else path)
    kind, files = _find_files(path)
    content = {name: file.read_bytes() for name, file in files.items()}
    try:
        return Tokenizer(kind, content, eos_name=_declared_eos(path if path.is_dir() else path.parent))
    except Exception as error:  # each library raises a type of its own (RuntimeError, KeyError, a bare Exception)
        raise TokenizerError(f"{path}: not a {kind} tokenizer: {error}") from error


def _load_saved(folder: Path) -> Tokenizer:
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        names = _canonical_names(marker["kind"])
        files = {name: (folder / name).read_bytes() for name in names}
        tokenizer = Tokenizer(marker["kind"], files, marker["special_ids"])
    except Exception as error:
        raise TokenizerError(f"{folder}: damaged tokenizer folder: {error}") from error
    if tokenizer.content_hash != marker["content_hash"]:
        raise TokenizerError(f"{folder}: damaged tokenizer folder: its files do not have the hash in {MARKER}")
    return tokenizer


def _canonical_names(kind: str) -> tuple[str, ...]:
    backend = BACKENDS[kind]
    return (backend.VOCABULARY, backend.MERGES) if backend is Gpt2Backend else (backend.MODEL,)


def _find_files(path: Path) -> tuple[str, dict[str, Path]]:
    """Kind of the vocabulary at a foreign path, and canonical name -> file."""
    folder, candidates = (path, sorted(path.iterdir())) if path.is_dir() else (path.parent, [path])
    for file in candidates:
        if file.name == "tokenizer.json":
            return "huggingface", {HuggingFaceBackend.MODEL: file}
    for file in candidates:
        for vocabulary, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
            prefix = next((file.name.removesuffix(n) for n in (vocabulary, merges) if file.name.endswith(n)), None)
            pair = None if prefix is None else (folder / (prefix + vocabulary), folder / (prefix + merges))
            if pair and all(part.is_file() for part in pair):
                return "gpt2", dict(zip(_canonical_names("gpt2"), pair, strict=True))
    models = [file for file in candidates if file.suffix == ".model"]
    if len(models) == 1:
        return "sentencepiece", {SentencePieceBackend.MODEL: models[0]}
    if models:
        raise TokenizerError(f"{path}: several sentencepiece models, name one: {', '.join(m.name for m in models)}")
    if path.is_file() and path.suffix == ".json":
        return "huggingface", {HuggingFaceBackend.MODEL: path}
    raise TokenizerError(
        f"{path}: no tokenizer here; expected tokenizer.json, vocab.json + merges.txt, "
        "encoder.json + vocab.bpe, or a sentencepiece .model"
    )


def _declared_eos(folder: Path) -> str | None:
    """Name of the end-of-text token in a Hugging Face `tokenizer_config.json`, where there is one."""
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return None
    declared = json.loads(file.read_text(encoding="utf-8")).get("eos_token")
    return declared["content"] if isinstance(declared, dict) else declared


def _surrogate_error(text: str) -> TokenizerError | None:
    """What is to be said of a text with half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return TokenizerError(f"text: half a surrogate pair (U+{ord(text[error.start]):04X}) at character {error.start}; UTF-8 has no bytes for it")
    return None


def _find_special_ids(backend: Backend, eos_name: str | None) -> dict[str, int]:
    """Control tokens that the vocabulary has, and new ids behind it for those it lacks."""
    start, end = backend.control_id(CHATML_START), backend.control_id(CHATML_END)
    if start is not None and end is not None:
        # A chat model declares the end of a message as its end-of-text; documents end as they did when it was pre-trained.
        document_end = end if (own := backend.end_id()) is None else own
        return {EOS: document_end, PAD: document_end, CHATML_START: start, END: end}
    eos = backend.control_id(eos_name) if eos_name else None
    found = {EOS: backend.end_id() if eos is None else eos}
    found |= {name: backend.control_id(name) for name in (PAD, *CHAT_TOKENS)}
    missing = [name for name, piece in found.items() if piece is None]
    return found | {name: backend.size + offset for offset, name in enumerate(missing)}
