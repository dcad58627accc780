"""How well a tokenizer fits a text: compression, and texts that do not come back as they were."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from megagpt.tokenizer.tokenizer import Tokenizer

MAX_EXAMPLES = 5
"""Round-trip failures that the report shows."""
EXCERPT_CHARACTERS = 80


def tokenizer_report(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, Any]:
    """Measure a tokenizer on texts.

    Returns:
        A JSON-ready dict: vocab_size, content_hash, texts, bytes (UTF-8), tokens, bytes_per_token, used_ids (ids that
        occur), round_trip_failures (texts whose decode(encode) differs) and failure_examples.
    """
    num_texts = num_bytes = num_tokens = num_failures = 0
    used: set[int] = set()
    examples: list[dict[str, Any]] = []
    for text in texts:
        ids = tokenizer.encode(text)
        num_bytes += len(text.encode())
        num_tokens += len(ids)
        used.update(ids)
        if (decoded := tokenizer.decode(ids)) != text:
            num_failures += 1
            if len(examples) < MAX_EXAMPLES:
                examples.append(_difference(num_texts, text, decoded))
        num_texts += 1
    return {
        "vocab_size": tokenizer.vocab_size,
        "content_hash": tokenizer.content_hash,
        "texts": num_texts,
        "bytes": num_bytes,
        "tokens": num_tokens,
        "bytes_per_token": round(num_bytes / num_tokens, 4) if num_tokens else None,
        "used_ids": len(used),
        "round_trip_failures": num_failures,
        "failure_examples": examples,
    }


def summary_line(report: dict[str, Any]) -> str:
    """The report in one line."""
    return (
        f"{report['vocab_size']} ids, {report['bytes_per_token']} bytes a token on {report['texts']} texts "
        f"({report['bytes']} bytes), {report['used_ids']} ids used, "
        f"{report['round_trip_failures']} round-trip failures"
    )


def _difference(index: int, text: str, decoded: str) -> dict[str, Any]:
    """Where a text and its decoded form part."""
    position = next(
        (i for i, (a, b) in enumerate(zip(text, decoded, strict=False)) if a != b), min(len(text), len(decoded))
    )
    window = slice(position, position + EXCERPT_CHARACTERS)
    return {"text": index, "position": position, "original": text[window], "decoded": decoded[window]}
