"""What SFT and reward training do alike with their record files: read, hold out, refuse what is too long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from megagpt.config.schema import RecordsConfig, RecordSource
from megagpt.data.errors import DataError
from megagpt.data.records import Demonstration, Ranking
from megagpt.data.split import Split, held_out_keys, split_by
from megagpt.runtime.log import left_out

Record = TypeVar("Record", Demonstration, Ranking)


def fits(length: int, max_length: int, overlong: Literal["refuse", "drop", "truncate"], where: str, dropped: Counter[str]) -> bool:
    """Apply the rule for records of too many tokens that stay whole or go: False (counted in `dropped`) or an error, as `overlong` says."""
    if length <= max_length:
        return True
    if overlong == "refuse":
        raise DataError(where, f"{length} tokens, max_length is {max_length} (overlong: drop leaves such records out)")
    dropped["longer than max_length"] += 1
    return False


def read_split(
    config: RecordsConfig,
    read: Callable[[RecordSource, Counter[str]], list[Record]],
    key: Callable[[Record], str],
    dropped: Counter[str],
) -> Split[Record]:
    """Records to train on and to hold out: from `config.valid`, or split by prompt where that is not given.

    Of a source that nothing is held out of, records with a held-out key are dropped.
    """
    if config.valid is not None:
        return Split(*([record for source in sources for record in read(source, dropped)] for sources in (config.train, config.valid)))
    whole, kept = ([record for source in config.train if source.hold_out == hold_out for record in read(source, dropped)] for hold_out in (True, False))
    try:
        held_out = held_out_keys(map(key, whole), config.valid_fraction, "stage")
    except ValueError as error:
        raise DataError(_names([source for source in config.train if source.hold_out]), str(error)) from error
    split, rest = split_by(whole, key, held_out), split_by(kept, key, held_out)
    dropped += Counter({"opens with a held-out prompt": len(rest.valid)})
    return Split(split.train + rest.train, split.valid)


def require_both(config: RecordsConfig, split: Split, dropped: Counter[str]) -> None:
    """Refuse a split of which one side is empty, and say what was left out of the whole."""
    for side, records in zip(split._fields, split, strict=True):
        if not records:
            files = config.train if side == "train" or config.valid is None else config.valid
            raise DataError(_names(files), f"no record is left for {side} (max_length {config.max_length}){left_out(dropped)}")


def _names(sources: Sequence[RecordSource]) -> str:
    return ", ".join(source.path for source in sources)
