"""The token files of a pre-training job: blends of many, split into training, validation and test rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path

from megagpt.config.schema import BlendSource, TokenFilesConfig
from megagpt.data.batch import EncodedRow
from megagpt.data.blend import Blend
from megagpt.data.errors import DataError
from megagpt.data.indexed import TokenFile
from megagpt.data.order import row_at
from megagpt.data.packed import PackedRows
from megagpt.data.sidecar import check_sidecar
from megagpt.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class BlendedRows:
    """Rows of several sources, mixed by weight."""

    sources: list[PackedRows]
    blend: Blend

    def __len__(self) -> int:
        """Rows of all sources, each counted once."""
        return sum(map(len, self.sources))

    def row(self, seed: int, position: int) -> EncodedRow:
        """The row at a position of a run. Each source has an order of its own for every epoch, whatever it is blended with."""
        source, number = self.blend.place(position)
        rows = self.sources[source]
        return rows[row_at(seed, number, len(rows))[1]]

    def spread(self, num_rows: int) -> list[EncodedRow]:
        """About so many rows, of each source its share, evenly spread over it (its first rows alone would be a few documents).

        Args:
            num_rows: 0 takes all rows of all sources.
        """
        wanted = self.blend.counts(num_rows) if num_rows else map(len, self.sources)
        counts = [min(count, len(rows)) for count, rows in zip(wanted, self.sources, strict=True)]
        return [rows[i * len(rows) // count] for count, rows in zip(counts, self.sources, strict=True) for i in range(count)]


@dataclass(frozen=True)
class TokenData:
    """All rows of a pre-training job. Which row stands at which position is a function of files, weights and seed alone."""

    train: BlendedRows
    valid: BlendedRows
    test: BlendedRows | None
    """Where a split leaves something for it."""
    seed: int
    notes: tuple[str, ...]
    """What could not be checked, a line each."""

    @property
    def num_train_rows(self) -> int:
        """Rows of all training sources, each counted once."""
        return len(self.train)

    def train_row(self, position: int) -> EncodedRow:
        """The row at a position of the run, counted from 0 over all steps and epochs."""
        return self.train.row(self.seed, position)

    def describe(self, num_rows: int) -> str:
        """One line about a run of so many rows: what each source gives to it."""
        counts = self.train.blend.counts(num_rows)
        parts = [
            f"{rows.file.prefix} {share:.2%} ({rows.num_tokens:,} tokens, {count / len(rows):.2f} epochs)"
            for rows, share, count in zip(self.train.sources, self.train.blend.shares, counts, strict=True)
        ]
        return "; ".join([*parts, *self.notes])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that decides which tokens stand at which position; a run goes on only with the same."""
        sources = [
            [rows.file.identity(), rows.documents.start, rows.documents.stop, rows.sequence_length, rows.reset_at_documents, float(share)]
            for rows, share in zip(self.train.sources, self.train.blend.shares, strict=True)
        ]
        return hashlib.sha256(json.dumps([self.seed, sources]).encode()).hexdigest()


def open_token_files(config: TokenFilesConfig, resolve: Callable[[str], Path], sequence_length: int, tokenizer: Tokenizer, seed: int) -> TokenData:
    """Open and check all token files of a job.

    Args:
        resolve: path of the configuration -> prefix of the files.
        sequence_length: tokens that a row feeds to the model.

    Raises:
        DataError: files that are missing, damaged or of another tokenizer; too little text; a weight too small to count.
    """
    notes: list[str] = []

    def blended(sources: Sequence[BlendSource], *parts: tuple[float, float]) -> list[BlendedRows | None]:
        """For each part the documents between two fractions of every source; None for a part without length."""
        files = [_open(resolve(source.path), tokenizer, notes) for source in sources]
        blend = _blend(sources)
        return [
            BlendedRows([PackedRows(file, _cut(file, *part), sequence_length, config.reset_at_documents) for file in files], blend)
            if part[0] < part[1] else None
            for part in parts
        ]  # fmt: skip

    if config.split is None:
        (train,), (valid,), test = blended(config.train, (0.0, 1.0)), blended(config.valid, (0.0, 1.0)), None
    else:
        bounds = list(accumulate(config.split, initial=0.0))
        train, valid, test = blended(config.train, *pairwise(bound / bounds[-1] for bound in bounds))
    return TokenData(train, valid, test, seed, tuple(notes))


def _cut(file: TokenFile, first: float, last: float) -> range:
    return range(round(first * file.num_documents), round(last * file.num_documents))


def _blend(sources: Sequence[BlendSource]) -> Blend:
    try:
        return Blend([source.weight for source in sources])
    except ValueError as error:
        raise DataError(", ".join(source.path for source in sources), str(error)) from error


def _open(prefix: Path, tokenizer: Tokenizer, notes: list[str]) -> TokenFile:
    """A file whose ids are this tokenizer's; where nothing vouches for that, a note says what was looked at."""
    file = TokenFile(prefix, tokenizer.vocab_size)
    if not check_sidecar(prefix, tokenizer):
        checked = file.check_sample()
        notes.append(f"{prefix}.json is missing: {checked:,} ids are within the vocabulary, that they are this tokenizer's is not known")
    return file
