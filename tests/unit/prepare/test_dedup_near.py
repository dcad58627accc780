"""Near-duplicates: candidates as datatrove's, similarities and clusters as brute force."""

import itertools
import random
import struct
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets

from megagpt.config.prepare import ExactDuplicatesConfig, NearDuplicatesConfig
from megagpt.prepare.dedup.clusters import connect
from megagpt.prepare.dedup.database import database
from megagpt.prepare.dedup.layout import TASK_BITS
from megagpt.prepare.dedup.near import bucket_pairs, jaccard
from megagpt.prepare.dedup.phases import dedup_phases
from megagpt.prepare.dedup.signature import minhash_config
from tests.helpers.dedup import Item, dedup, jaccard_sets, prepare_config, run_phases, sentences, shingle_set, with_changes, write_clean

NEAR = NearDuplicatesConfig(tasks=3)


def families(seed: int, num_families: int = 40) -> list[Item]:
    """Texts of some hundred words, each with up to five changed copies, and texts by themselves."""
    generator, items = random.Random(seed), []
    for family in range(num_families):
        words = sentences(generator, generator.randrange(20, 400))
        for copy in range(generator.randrange(1, 7)):
            changed = with_changes(generator, words, generator.choice([0, 0.005, 0.01, 0.02, 0.04, 0.2])) if copy else words
            items.append(Item(f"f{family}.{copy}", " ".join(changed), quality=generator.randrange(3)))
    generator.shuffle(items)
    return items


def rows(path: Path, columns: str = "*") -> list[tuple]:
    return duckdb.sql(f"SELECT {columns} FROM read_parquet('{path}')").fetchall()


def components(pairs) -> dict:
    """Union-find, the plain way: the least member of each component by member."""
    parent = {}

    def root(item):
        while parent.setdefault(item, item) != item:
            item = parent[item]
        return item

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return {item: root(item) for item in list(parent)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A corpus in three tasks, every pair's similarity by brute force, and what the phases made of it."""
    work, items = tmp_path_factory.mktemp("near"), families(0)
    shards = [items[:50], [], items[50:]]
    verdicts = dedup(work, shards, prepare_config(near=NEAR))
    sets = {item.id: shingle_set(item.text) for item in items}
    truth = {frozenset(pair): jaccard_sets(sets[pair[0]], sets[pair[1]]) for pair in itertools.combinations(sets, 2)}
    ids = {(task << TASK_BITS) + n: item.id for task, shard in enumerate(shards) for n, item in enumerate(shard)}
    return work, shards, verdicts, truth, ids


def test_dedup_near_verified_pairs_have_the_similarity_of_brute_force(made):
    work, _, _, truth, ids = made
    verified = rows(work / "dedup/verified/*.parquet")
    assert len(verified) > 50
    for a, b, found in verified:
        assert found == pytest.approx(truth[frozenset((ids[a], ids[b]))], abs=1e-12) and found >= 0.8
    candidates = rows(work / "dedup/candidates.parquet")
    assert candidates == sorted(set(candidates)) and all(a < b for a, b in candidates)
    below = {(a, b) for a, b in candidates} - {(a, b) for a, b, _ in verified}
    assert below and all(truth[frozenset((ids[a], ids[b]))] < 0.8 for a, b in below)


def test_dedup_near_finds_what_brute_force_finds(made):
    _, _, verdicts, truth, _ = made
    similar = [pair for pair, value in truth.items() if value >= 0.8]
    clusters = [[verdicts[name].cluster for name in pair] for pair in similar]
    found = [pair for pair in clusters if pair[0] is not None and pair[0] == pair[1]]
    assert len(similar) > 100 and len(found) >= 0.95 * len(similar)


def test_dedup_near_clusters_are_components_and_keep_the_best(made):
    work, shards, verdicts, _, ids = made
    items = {item.id: item for shard in shards for item in shard}
    of = components((a, b) for a, b, _ in rows(work / "dedup/verified/*.parquet"))
    assert {ids[doc] for doc in of} == {name for name, verdict in verdicts.items() if verdict.cluster is not None}
    for first in set(of.values()):
        members = sorted(doc for doc in of if of[doc] == first)
        best = ids[min(members, key=lambda doc: (-items[ids[doc]].quality, doc))]
        for doc in members:
            verdict = verdicts[ids[doc]]
            assert verdict.cluster == ids[first]
            assert (verdict.reason, verdict.kept) == ((None, None) if ids[doc] == best else ("near_duplicate", best))


def test_dedup_near_tells_the_similarity_to_the_kept_one_where_it_was_compared(made):
    work, _, verdicts, truth, ids = made
    compared = {frozenset((ids[a], ids[b])) for a, b, _ in rows(work / "dedup/verified/*.parquet")}
    dropped = {name: verdict for name, verdict in verdicts.items() if verdict.reason}
    for name, verdict in dropped.items():
        pair = frozenset((name, verdict.kept))
        assert verdict.jaccard == (pytest.approx(truth[pair], abs=1e-12) if pair in compared else None)
    assert sum(verdict.jaccard is not None for verdict in dropped.values()) > 0.5 * len(dropped) > 0


def datatroves_pairs(work: Path, folder: Path) -> list[set[tuple[int, int]]]:
    """The pairs of each bucket by datatrove's second stage, from the same signature files."""
    stage = MinhashDedupBuckets(str(work / "dedup/signatures"), str(folder), config=minhash_config(NEAR))
    pairs = []
    for bucket in range(NEAR.buckets):
        stage.run(None, bucket, NEAR.buckets)
        content = (folder / f"{bucket:05d}_00.dups").read_bytes()
        pairs.append({((a << TASK_BITS) + m, (b << TASK_BITS) + n) for a, m, b, n in struct.iter_unpack("<4I", content)})
    return pairs


def test_dedup_near_buckets_give_datatroves_pairs_and_those_with_the_first(made, tmp_path):
    work = made[0]
    theirs = datatroves_pairs(work, tmp_path)
    assert sum(map(len, theirs)) > 500
    for bucket, pairs in enumerate(theirs):
        first = components(pairs)
        assert set(rows(work / f"dedup/pairs/{bucket:05d}.parquet")) == pairs | {(first[b], b) for _, b in pairs}


def test_dedup_near_buckets_can_be_split_into_tasks(made, tmp_path):
    """More tasks than the largest file of a bucket has records, one of them empty, and the first file empty: all of it is one search."""
    items = made[1][0][:7]
    whole, split = (prepare_config(near=NearDuplicatesConfig(buckets=4, hashes=2, tasks_per_bucket=parts)) for parts in (1, 9))
    found = []
    for number, config in enumerate((whole, split)):
        work = tmp_path / str(number)
        for task, shard in enumerate([[], items, items]):
            write_clean(work, task, shard, config)
        phase = next(phase for phase in dedup_phases(config, work, 3) if phase.name == "near_buckets")
        for task in range(phase.num_tasks):
            phase.step.run_task(task, phase.num_tasks)
        found.append(sorted(rows(work / "dedup/pairs/*.parquet")))
    assert found[0] == found[1] and len(found[0]) >= 4 * 7


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_dedup_bucket_pairs_do_not_depend_on_batches(size):
    generator = random.Random(0)
    records = sorted((generator.randrange(8), generator.randrange(3), doc) for doc in range(60))
    hashes = {f"h{k}": pa.array([record[k] for record in records], pa.uint64()) for k in (0, 1)}
    table = pa.table({"doc": [record[2] for record in records], **hashes})
    pairs = [pair for a, b in bucket_pairs(iter(table.to_batches(max_chunksize=size))) for pair in zip(a.tolist(), b.tolist(), strict=True)]
    expected = []
    for _, run in itertools.groupby(records, key=lambda record: record[:2]):
        docs = [record[2] for record in run]
        expected += list(itertools.pairwise(docs)) + [(docs[0], doc) for doc in docs[2:]]
    assert sorted(pairs) == sorted(expected)


def test_dedup_jaccard_equals_python_sets():
    generator = np.random.default_rng(0)
    for _ in range(300):
        a, b = (np.unique(generator.integers(0, 30, generator.integers(0, 40), dtype=np.uint64)) for _ in range(2))
        assert jaccard(a, b) == jaccard_sets(set(a.tolist()), set(b.tolist()))


def test_dedup_near_large_cluster_gives_few_pairs(tmp_path):
    """600 versions of one page: 180,000 pairs are similar, and a dozen for each document are looked at."""
    generator = random.Random(4)
    words = sentences(generator, 300)
    items = [Item(str(number), " ".join([*words, f"visitor{number}"])) for number in range(600)]
    verdicts = dedup(tmp_path, [items[:300], items[300:]], prepare_config(near=NEAR))
    assert {verdict.cluster for verdict in verdicts.values()} == {"0"}
    assert sum(verdict.reason is None for verdict in verdicts.values()) == 1
    assert len(rows(tmp_path / "dedup/candidates.parquet")) < 2 * 600 * 2


def edges_of(folder: Path, pairs) -> tuple[dict, int]:
    with database(folder, 0.5) as tables:
        tables.connection.register("verified", pa.table({"a": [min(pair) for pair in pairs], "b": [max(pair) for pair in pairs]}))
        rounds = connect(tables)
        return dict(tables.connection.sql("FROM edges").fetchall()), rounds


@pytest.mark.parametrize("seed", range(6))
def test_dedup_components_equal_union_find(tmp_path, seed):
    generator = random.Random(seed)
    pairs = {tuple(generator.sample(range(300), 2)) for _ in range([20, 100, 150, 200, 400, 2000][seed])}
    edges, _ = edges_of(tmp_path, pairs)
    assert edges == {doc: first for doc, first in components(pairs).items() if doc != first}


def test_dedup_components_of_a_long_chain_take_few_rounds(tmp_path):
    order = random.Random(0).sample(range(5000), 5000)
    for chain in (range(5000), order):
        edges, rounds = edges_of(tmp_path, list(itertools.pairwise(chain)))
        assert set(edges.values()) == {0} and len(edges) == 4999
        assert rounds <= 16, "a few more than log2 of 5,000"


def test_dedup_near_copies_follow_the_document_they_copy(tmp_path):
    """b and its copy B, near to a, which is better; c and its copy C by themselves."""
    generator = random.Random(5)
    words, other = sentences(generator, 100), sentences(generator, 100)
    near = " ".join([*words, "more"])
    items = [Item("B", near.upper(), 1), Item("b", near, 2), Item("a", " ".join(words), 3)]
    items += [Item("c", " ".join(other), 0), Item("C", " ".join(other).upper(), 0)]
    config = prepare_config(ExactDuplicatesConfig(tasks=3), NEAR)
    verdicts = {name: (v.reason, v.cluster, v.kept) for name, v in dedup(tmp_path, [items[:2], items[2:]], config).items()}
    assert verdicts == {
        "B": ("duplicate_document", "B", "a"), "b": ("near_duplicate", "B", "a"), "a": (None, "B", None),
        "c": (None, "c", None), "C": ("duplicate_document", "c", "c"),
    }
    assert len(rows(tmp_path / "dedup/candidates.parquet")) == 1, "copies take no part in the search"


def test_dedup_near_leaves_out_exempt_kinds_and_short_texts(tmp_path):
    text = "one two three four five six"
    items = [Item("a", text), Item("b", text, kind="code"), Item("c", "one two"), Item("d", "one two"), Item("e", text)]
    config = prepare_config(near=NearDuplicatesConfig(exempt_kinds=["code"]))
    assert {name for name, verdict in dedup(tmp_path, [items], config).items() if verdict.cluster} == {"a", "e"}


def test_dedup_near_nothing_to_find(tmp_path):
    config = prepare_config(ExactDuplicatesConfig(), NEAR)
    write_clean(tmp_path, 0, [], config)
    run_phases(tmp_path, 1, config)
    assert rows(tmp_path / "dedup/verdicts.parquet") == []
