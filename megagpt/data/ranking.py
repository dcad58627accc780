"""Rankings to groups of rows and the pairs among them (`reward`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from megagpt.config.schema import RecordsConfig, RecordSource
from megagpt.data.batch import EncodedRow, encoded_row
from megagpt.data.errors import DataError
from megagpt.data.partial_order import longest_chains
from megagpt.data.records import Ranking, read_demonstrations, read_rankings
from megagpt.data.split import Split, prompt_key
from megagpt.data.stage_records import fits, read_split, require_both
from megagpt.runtime.log import left_out
from megagpt.tokenizer.chat import Message, encode_chat
from megagpt.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False, slots=True)
class EncodedGroup:
    """The ranked answers to one prompt; all of them go through the model together."""

    rows: tuple[EncodedRow, ...]
    """[K]; prompt and answer, ended by `<|end|>`. Their masks are 1 on the answer alone, not on what the assistant said in the prompt."""
    pairs: tuple[tuple[int, int], ...]
    """(winner, loser), indices into rows; of a partial order its transitive closure."""
    record: Ranking
    """What was ranked, in words; `rows` leave out its answers without a rank, or in no pair."""

    @property
    def weight(self) -> float:
        return self.record.weight

    @property
    def answers(self) -> list[str]:
        """[K]; the texts of `rows`."""
        return [self.record.answers[place] for place in compared(self.record)]

    @property
    def levels(self) -> list[int]:
        """[K]; place of each answer's rank among the ranks that occur, 0 is best: ranks 1, 4, 4 are levels 0, 1, 1. [] of a partial order."""
        ranks = [rank for rank in self.record.ranks if rank is not None]
        order = {rank: level for level, rank in enumerate(sorted(set(ranks)))}
        return [order[rank] for rank in ranks]

    @property
    def distances(self) -> list[int]:
        """[pairs]; levels between winner and loser, 1 for neighbours; in a partial order comparisons on the longest way between them."""
        if self.record.pairs:
            return list(longest_chains(self.record.pairs).values())
        levels = self.levels
        return [levels[loser] - levels[winner] for winner, loser in self.pairs]


def load_rankings(config: RecordsConfig, tokenizer: Tokenizer) -> tuple[Split[EncodedGroup], Counter[str]]:
    """Read, split and encode the rankings of a stage.

    Returns:
        Groups to train on and to hold out, and the number of records dropped by reason.

    Raises:
        DataError: unreadable files; an answer over max_length where `overlong` is `refuse`; nothing left.
    """
    dropped: Counter[str] = Counter()
    return encode_split(read_ranking_split(config, dropped), config, tokenizer, dropped), dropped


def read_ranking_split(config: RecordsConfig, dropped: Counter[str]) -> Split[Ranking]:
    """All that annotators said, to train on and to hold out; among it rankings in which all answers are tied.

    Raises:
        DataError: unreadable files, or fewer than two prompts to split.
    """
    return read_split(config, read_source, lambda record: prompt_key(record.prompt), dropped)


def read_source(source: RecordSource, dropped: Counter[str]) -> list[Ranking]:
    """Rankings of a source: under its slice if it names one, their own weights times its weight."""
    records = read_rankings(source.path, dropped)
    return [replace(record, slice=source.slice or record.slice, weight=record.weight * source.weight) for record in records]


def encode_split(records: Split[Ranking], config: RecordsConfig, tokenizer: Tokenizer, dropped: Counter[str]) -> Split[EncodedGroup]:
    """Both sides as groups.

    Raises:
        DataError: an answer over max_length where `overlong` is `refuse`; a side with nothing left.
    """
    groups = Split(*(encode_rankings(side, tokenizer, config.max_length, config.overlong, dropped) for side in records))
    require_both(config, groups, dropped)
    return groups


def encode_rankings(
    records: Iterable[Ranking],
    tokenizer: Tokenizer,
    max_length: int,
    overlong: Literal["refuse", "drop", "truncate"],
    dropped: Counter[str],
) -> list[EncodedGroup]:
    """Groups of rows. Answers without a rank or in no pair are left out; a group with an overlong answer is refused or dropped whole.

    A ranking that puts no answer above another is dropped: it has no pair.

    Raises:
        DataError: prompt and answer over max_length tokens and `overlong` is `refuse`.
    """
    groups = []
    for record in records:
        ranked = compared(record)
        pairs = tuple(pairs_of(record))
        if not pairs:
            dropped["all answers are tied"] += 1
            continue
        rows = tuple(_encode_answer(tokenizer, record.prompt, record.answers[i]) for i in ranked)
        if fits(max(map(len, rows)), max_length, overlong, record.where, dropped):
            groups.append(EncodedGroup(rows, pairs, record))
    return groups


def load_single_answers(files: Iterable[str], config: RecordsConfig, tokenizer: Tokenizer, dropped: Counter[str]) -> list[EncodedGroup]:
    """Demonstrations as groups of one answer without any pair: something to score.

    Raises:
        DataError: unreadable files; a conversation over max_length where `overlong` is `refuse`; nothing left.
    """
    groups = []
    for record in (record for file in files for record in read_demonstrations(file, dropped)):
        *prompt, answer = record.messages
        row = _encode_answer(tokenizer, prompt, answer["content"])
        if fits(len(row), config.max_length, config.overlong, record.where, dropped):
            groups.append(EncodedGroup((row,), (), Ranking(tuple(prompt), (answer["content"],), (0,), where=record.where)))
    if not groups:
        raise DataError(", ".join(files), f"no demonstration is left (max_length {config.max_length}){left_out(dropped)}")
    return groups


def compared(record: Ranking) -> list[int]:
    """Places of the answers that have a rank, or stand in a pair."""
    if record.pairs:
        return sorted({place for pair in record.pairs for place in pair})
    return [place for place, rank in enumerate(record.ranks) if rank is not None]


def pairs_of(record: Ranking) -> list[tuple[int, int]]:
    """All pairs (winner, loser), as indices into the compared answers.

    Of a partial order these are all that follow from the pairs that were compared (A > B and B > C give A > C), so that an order says
    the same whether it is written as ranks, as all its pairs or as those of neighbours.
    """
    places = compared(record)
    if not record.pairs:
        return ranked_pairs([record.ranks[place] for place in places])
    return [(places.index(better), places.index(worse)) for better, worse in longest_chains(record.pairs)]


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
    ids, targets = encode_chat(tokenizer, [*prompt, Message(role="assistant", content=answer)])
    start = len(targets) - targets[::-1].index(0)  # behind the token that opens the last message
    return encoded_row(ids, [0] * start + [1] * (len(ids) - start))
