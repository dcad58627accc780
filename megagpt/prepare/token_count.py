"""How many tokens a text has, for the ledger's before and after."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from megagpt.tokenizer.tokenizer import load_tokenizer


@lru_cache(maxsize=1)
def token_counter(path: str | None) -> Callable[[str], int | None]:
    """A counter by the tokenizer at a path; None for every text where there is none.

    Raises:
        TokenizerError: no tokenizer there.
    """
    if path is None:
        return lambda text: None
    tokenizer = load_tokenizer(path)
    return lambda text: len(tokenizer.encode(text))
