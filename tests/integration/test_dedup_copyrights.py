"""Near-duplicates among real texts: 247 copyright notices, with the similarity of every pair that shares half of its shingles."""

from __future__ import annotations

import gzip
import itertools
import json

import pytest

from megagpt.config.prepare import ExactDuplicatesConfig, NearDuplicatesConfig
from tests.helpers.dedup import Item, dedup, prepare_config
from tests.helpers.tiny_run import ROOT

FOLDER = ROOT.parent / "shared/data/dedup_copyrights"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"needs the real data set {FOLDER}")
THRESHOLD = 0.8


@pytest.fixture(scope="module")
def items() -> list[Item]:
    with gzip.open(FOLDER / "docs.jsonl.gz", "rt", encoding="utf-8") as file:
        return [Item(row["id"], row["text"], quality=len(row["text"])) for row in map(json.loads, file)]


@pytest.fixture(scope="module")
def truth() -> dict[frozenset[str], float]:
    with open(FOLDER / "pairs_jaccard5.tsv", encoding="utf-8") as file:
        return {frozenset((a, b)): float(value) for a, b, value in (line.split("\t") for line in file)}


@pytest.mark.parametrize("exact", [None, ExactDuplicatesConfig(tasks=3)])
def test_dedup_copyrights_recall_and_precision(tmp_path, items, truth, exact):
    verdicts = dedup(tmp_path, [items[start::4] for start in range(4)], prepare_config(exact, NearDuplicatesConfig(tasks=3)))
    similar = {pair for pair, value in truth.items() if value >= THRESHOLD}
    together = {frozenset(pair) for pair in itertools.combinations(verdicts, 2) if len({verdicts[name].cluster for name in pair} - {None}) == 1
                and all(verdicts[name].cluster for name in pair)}
    recall, precision = len(similar & together) / len(similar), len(similar & together) / len(together)
    misses, false = sorted(map(sorted, similar - together)), sorted(map(sorted, together - similar))
    print(f"recall {recall:.4f} of {len(similar)} pairs, missed {misses}; precision {precision:.4f} of {len(together)}, false {false}")
    assert recall >= 0.95, misses
    assert precision >= 0.99, false
    dropped = {frozenset((name, verdict.kept)): verdict.jaccard for name, verdict in verdicts.items() if verdict.reason == "near_duplicate"}
    assert dropped and all(truth[pair] >= THRESHOLD for pair in dropped)
    assert all(value == pytest.approx(truth[pair], abs=5e-5) for pair, value in dropped.items() if value is not None)
