"""Byte-level byte-pair encoding by its definition: slow, and written apart from every library that has it."""

from __future__ import annotations

import regex

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_letters() -> list[str]:
    """The letter that stands for each byte: itself where it is printable, else the next free one from U+0100 (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def words(text: str, rule: str) -> list[str]:
    """The text cut as llama.cpp's rules of these names cut it."""
    if rule == "smollm":  # every digit apart, then GPT-2's rule on what is between
        return [word for part in regex.findall(r"\p{N}|[^\p{N}]+", text) for word in regex.findall(GPT2, part)]
    return regex.findall({"gpt-2": GPT2, "llama-bpe": LLAMA3}[rule], text)


def encode(text: str, rule: str, tokens: list[str], merges: list[str]) -> list[int]:
    """Ids of a text: in each word, always the pair of the earliest merge, the leftmost first."""
    letters, ids = byte_letters(), {token: number for number, token in enumerate(tokens)}
    ranks = {tuple(line.split(" ")): rank for rank, line in enumerate(merges)}
    found = []
    for word in words(text, rule):
        parts = [letters[byte] for byte in word.encode()]
        if rule == "llama-bpe" and "".join(parts) in ids:
            parts = ["".join(parts)]
        while pairs := [(ranks[pair], place) for place, pair in enumerate(zip(parts, parts[1:])) if pair in ranks]:
            _, place = min(pairs)
            parts[place : place + 2] = ["".join(parts[place : place + 2])]
        found += [ids[part] for part in parts]
    return found
