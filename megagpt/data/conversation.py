"""Demonstrations to rows with a loss mask (`sft`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from megagpt.config.schema import RecordsConfig
from megagpt.data.batch import EncodedRow, encoded_row
from megagpt.data.records import Demonstration, read_demonstrations
from megagpt.data.split import Split, prompt_key
from megagpt.data.stage_records import fits, read_split, require_both
from megagpt.tokenizer.chat import encode_chat
from megagpt.tokenizer.tokenizer import Tokenizer


def load_demonstrations(config: RecordsConfig, tokenizer: Tokenizer) -> tuple[Split[EncodedRow], Counter[str]]:
    """Read, split and encode the demonstrations of a stage.

    Returns:
        Rows of at most `config.max_length` tokens to train on and to hold out, and the number of records dropped by
        reason.

    Raises:
        DataError: unreadable files; a conversation over max_length where `overlong` is `refuse`; nothing left.
    """
    dropped: Counter[str] = Counter()
    records = read_split(config, lambda source, dropped: read_demonstrations(source.path, dropped), lambda record: prompt_key(record.messages), dropped)
    rows = Split(
        *(encode_demonstrations(side, tokenizer, config.max_length, config.overlong, dropped) for side in records)
    )
    require_both(config, rows)
    return rows, dropped


def encode_demonstrations(
    records: Iterable[Demonstration],
    tokenizer: Tokenizer,
    max_length: int,
    overlong: Literal["refuse", "drop"],
    dropped: Counter[str],
) -> list[EncodedRow]:
    """Rows whose targets are the assistant's contents and the `<|end|>` behind each.

    Raises:
        DataError: a conversation over max_length tokens and `overlong` is `refuse`.
    """
    rows = []
    for record in records:
        ids, loss_mask = encode_chat(tokenizer, record.messages)
        if fits(len(ids), max_length, overlong, record.where, dropped):
            rows.append(encoded_row(ids, loss_mask))
    return rows
