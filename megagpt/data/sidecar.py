"""`<prefix>.json` beside a token file: which tokenizer made its ids, and what belongs to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megagpt.data.errors import DataError
from megagpt.runtime import atomic
from megagpt.tokenizer.tokenizer import Tokenizer


def write_sidecar(prefix: Path, tokenizer: Tokenizer, *, num_documents: int, num_tokens: int, dtype: str) -> None:
    """Written last: it vouches for the pair that lies beside it."""
    facts = {"tokenizer_hash": tokenizer.content_hash, "num_documents": num_documents, "num_tokens": num_tokens, "dtype": dtype}
    atomic.write_json(Path(f"{prefix}.json"), facts | _sizes(prefix))


def check_sidecar(prefix: Path, tokenizer: Tokenizer) -> bool:
    """Whether the pair has a sidecar; token files of others have none.

    Raises:
        DataError: an unreadable sidecar, ids of another tokenizer, or files that it does not describe.
    """
    path = Path(f"{prefix}.json")
    if not path.exists():
        return False
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        tokenizer_hash, sizes = facts["tokenizer_hash"], {name: facts[name] for name in _sizes(prefix)}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(path, f"damaged: no description of token files ({type(error).__name__}: {error})") from error
    if tokenizer_hash != tokenizer.content_hash:
        ours, theirs = tokenizer.content_hash[:16], str(tokenizer_hash)[:16]
        raise DataError(path, f"ids of tokenizer {theirs}, this run's is {ours}; tokenize the text again with it")
    for name, size in _sizes(prefix).items():
        if sizes[name] != size:
            raise DataError(f"{prefix}.{name.removesuffix('_bytes')}", f"damaged: {size} bytes, {path.name} says {sizes[name]}")
    return True


def _sizes(prefix: Path) -> dict[str, int]:
    return {f"{end}_bytes": Path(f"{prefix}.{end}").stat().st_size for end in ("bin", "idx")}
