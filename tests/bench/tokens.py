"""Speed of `megagpt tokenize` against the tokenizer libraries' own batch encoding, on the same documents and cores.

    python tests/bench/tokens.py [--megabytes 60] [--rounds 3] [--workers 2]      (inside .venv; about 2 minutes)

Ours is all of it: start the workers, read parquet, encode, write `.bin`, `.idx` and sidecar. Theirs is `encode_batch_fast` (Hugging Face) and
`encode(…, num_threads)` (sentencepiece) on texts that are in memory already, their ids left where they are. A ratio is the median over rounds of
tokens/s, ours / theirs; `cpu_ratio` is the same for tokens per second of CPU time, which a busy machine disturbs less. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SOURCES = ("pretrain_c4/c4_demo.jsonl.gz", "pretrain_wiki/wiki_demo.txt.gz", "pretrain_books/tinyshakespeare.txt.gz")
PIECE_CHARACTERS = 6000
"""Books are cut into documents of this length."""
BATCH = 1024
"""Texts that a library gets at a time; more at once made it no faster."""


def measure(megabytes: float = 60.0, rounds: int = 3, workers: int | None = None) -> dict[str, Any]:
    """Ratios of both libraries; `tokens_per_s_ratio` is the smaller."""
    workers = workers or len(os.sched_getaffinity(0))
    os.environ["RAYON_NUM_THREADS"] = str(workers)  # read once, before Hugging Face's library starts its threads
    results: dict[str, Any] = {"workers": workers, "megabytes": megabytes}
    with tempfile.TemporaryDirectory() as folder:
        texts, path = _corpus(megabytes), Path(folder, "documents.parquet")
        _write_parquet(path, texts)
        for kind in ("gpt2", "sentencepiece"):
            results |= _compare(kind, texts, path, Path(folder), rounds, workers)
    return results | {"tokens_per_s_ratio": min(results["gpt2_ratio"], results["sentencepiece_ratio"])}


def _compare(kind: str, texts: list[str], path: Path, folder: Path, rounds: int, workers: int) -> dict[str, Any]:
    from megagpt.config.schema import RunConfig, TokenizeConfig
    from megagpt.data.token_files import tokenize_documents

    tokenizer = _tokenizer(kind, texts, folder)
    config = TokenizeConfig(run=RunConfig(name="bench"), inputs={"train": [str(path)]}, workers=workers)

    def ours() -> int:
        return tokenize_documents(config, tokenizer, folder / "tokens")["train"]["tokens"] - len(texts)

    def theirs() -> int:
        batches = (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))
        if kind == "gpt2":
            return sum(len(one) for batch in batches for one in tokenizer._backend._tokenizer.encode_batch_fast(batch, add_special_tokens=False))
        processor = tokenizer._backend._processor
        return sum(len(one) for batch in batches for one in processor.encode(batch, num_threads=workers, return_type="numpy"))

    times = []
    for number in range(rounds):
        pair = [_timed(run) for run in (ours, theirs)]
        assert pair[0][0] == pair[1][0], "both make the same tokens"
        times.append([seconds for _, seconds in pair])
        print(f"{kind} round {number + 1}: ours {pair[0][0] / times[-1][0][0] / 1e6:.2f} M tokens/s, theirs {pair[1][0] / times[-1][1][0] / 1e6:.2f}", flush=True)
    return {
        f"{kind}_ratio": round(statistics.median(theirs[0] / ours[0] for ours, theirs in times), 3),
        f"{kind}_cpu_ratio": round(statistics.median(theirs[1] / ours[1] for ours, theirs in times), 3),
        f"{kind}_tokens_per_s": round(pair[0][0] / statistics.median(ours[0] for ours, _ in times)),
    }


def _timed(run: Callable[[], int]) -> tuple[int, tuple[float, float]]:
    """What it returns; seconds on the wall, and of CPU time of this process and its workers."""
    wall, used = time.perf_counter(), _cpu_seconds()
    return run(), (time.perf_counter() - wall, _cpu_seconds() - used)


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _tokenizer(kind: str, texts: list[str], folder: Path) -> Any:
    """GPT-2's vocabulary where it is at hand, else one of the same kind; sentencepiece BPE trained here."""
    from megagpt.tokenizer.tokenizer import load_tokenizer
    from megagpt.tokenizer.train import train_tokenizer

    if kind == "gpt2" and (SHARED / "tokenizers").is_dir():
        return load_tokenizer(SHARED / "tokenizers" / "gpt2_encoder.json")
    return train_tokenizer(texts, 8000, folder / kind, sample_characters=1_000_000, kind="byte_bpe" if kind == "gpt2" else "bpe")


def _corpus(megabytes: float) -> list[str]:
    """Real documents, over and over, each time under another heading."""
    once = [text[start : start + PIECE_CHARACTERS] for text in _texts() for start in range(0, len(text), PIECE_CHARACTERS)]
    left, texts = megabytes * 1e6, []
    for number, text in enumerate(itertools.cycle(once)):
        texts.append(f"Copy {number // len(once)}\n{text}")
        left -= len(texts[-1].encode())
        if left <= 0:
            return texts


def _texts() -> Iterator[str]:
    from megagpt.data.records import read_documents

    if not SHARED.is_dir():
        yield from topics.values()
        return
    for name in SOURCES:
        for document in read_documents(SHARED / name):
            yield document.text


def _write_parquet(path: Path, texts: list[str]) -> None:
    """As data preparation leaves them."""
    import pyarrow
    from pyarrow import parquet

    same = {"source": "bench", "url": "", "licence": "", "date": "", "meta": "{}"}
    columns = {"id": [f"bench/{number}" for number in range(len(texts))], "text": texts}
    columns |= {name: [value] * len(texts) for name, value in same.items()} | {"weight": [1.0] * len(texts)}
    parquet.write_table(pyarrow.table(columns), path, compression="zstd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=60.0, help="text, MB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, help="cores of both; default: all")
    options = parser.parse_args()
    print(json.dumps(measure(options.megabytes, options.rounds, options.workers)))


if __name__ == "__main__":
    main()
