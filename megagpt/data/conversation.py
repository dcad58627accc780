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
    require_both(config, rows, dropped)
    return rows, dropped


def encode_demonstrations(
    records: Iterable[Demonstration],
    tokenizer: Tokenizer,
    max_length: int,
    overlong: Literal["refuse", "drop", "truncate"],
    dropped: Counter[str],
) -> list[EncodedRow]:
    """Rows whose targets are the assistant's contents and the `<|end|>` behind each.

    With `truncate` an overlong conversation keeps its first max_length tokens. An answer that is cut has no `<|end|>`, so nobody learns to stop
    there; where no answer has begun by then, there is nothing to learn, and the conversation is dropped.

    Raises:
        DataError: a conversation over max_length tokens and `overlong` is `refuse`.
    """
    rows = []
    for record in records:
        ids, loss_mask = encode_chat(tokenizer, record.messages)
        if overlong == "truncate" and len(ids) > max_length:
            ids, loss_mask = ids[:max_length], loss_mask[:max_length]
            if not any(loss_mask):
                dropped["no answer within max_length"] += 1
                continue
        if fits(len(ids), max_length, overlong, record.where, dropped):
            rows.append(encoded_row(ids, loss_mask))
    return rows
