"""Rankings to groups of rows and the pairs among them (`reward`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from megagpt.config.schema import RecordsConfig
from megagpt.data.batch import EncodedRow, encoded_row
from megagpt.data.records import Ranking, read_rankings
from megagpt.data.split import Split, prompt_key
from megagpt.data.stage_records import fits, read_split, require_both
from megagpt.tokenizer.chat import Message, encode_chat
from megagpt.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False, slots=True)
class EncodedGroup:
    """The ranked answers to one prompt; all of them go through the model together."""

    rows: tuple[EncodedRow, ...]
    """[K]; prompt and answer, ended by `<|end|>`."""
    pairs: tuple[tuple[int, int], ...]
    """(winner, loser), indices into rows."""
    record: Ranking
    """What was ranked, in words; `rows` leave out its answers without a rank."""

    @property
    def weight(self) -> float:
        return self.record.weight


def load_rankings(config: RecordsConfig, tokenizer: Tokenizer) -> tuple[Split[EncodedGroup], Counter[str]]:
    """Read, split and encode the rankings of a stage.

    Returns:
        Groups to train on and to hold out, and the number of records dropped by reason.

    Raises:
        DataError: unreadable files; an answer over max_length where `overlong` is `refuse`; nothing left.
    """
    dropped: Counter[str] = Counter()
    records = read_split(config, read_rankings, lambda record: prompt_key(record.prompt), dropped)
    groups = Split(*(encode_rankings(side, tokenizer, config.max_length, config.overlong, dropped) for side in records))
    require_both(config, groups)
    return groups, dropped


def encode_rankings(
    records: Iterable[Ranking],
    tokenizer: Tokenizer,
    max_length: int,
    overlong: Literal["refuse", "drop"],
    dropped: Counter[str],
) -> list[EncodedGroup]:
    """Groups of rows. Answers without a rank are left out; a group with an overlong answer is refused or dropped whole.

    Raises:
        DataError: prompt and answer over max_length tokens and `overlong` is `refuse`.
    """
    groups = []
    for record in records:
        ranked = [i for i, rank in enumerate(record.ranks) if rank is not None]
        rows = tuple(_encode_answer(tokenizer, record.prompt, record.answers[i]) for i in ranked)
        if fits(max(map(len, rows)), max_length, overlong, record.where, dropped):
            pairs = tuple(ranked_pairs([record.ranks[i] for i in ranked]))
            groups.append(EncodedGroup(rows, pairs, record))
    return groups


def ranked_pairs(ranks: Sequence[int | None]) -> list[tuple[int, int]]:
    """All pairs (winner, loser) of answers, as indices. Ties and answers without a rank make no pair.

    Without them these are the K (K - 1) / 2 pairs of K answers.
    """
    return [
        (winner, loser)
        for winner, better in enumerate(ranks)
        for loser, worse in enumerate(ranks)
        if better is not None and worse is not None and better < worse
    ]


def _encode_answer(tokenizer: Tokenizer, prompt: Sequence[Message], answer: str) -> EncodedRow:
    return encoded_row(*encode_chat(tokenizer, [*prompt, Message(role="assistant", content=answer)]))
