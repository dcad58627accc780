"""The same bytes whatever the order of tasks, the memory and what was killed before."""

import os
import pickle
import random
import shutil
from functools import partial

import pytest

from megagpt.config.prepare import ExactDuplicatesConfig, NearDuplicatesConfig, RepeatedLinesConfig, RepeatedParagraphsConfig
from megagpt.prepare.dedup import layout as layout_module
from megagpt.prepare.dedup.database import database, files
from megagpt.prepare.dedup.fingerprints import Fingerprints
from megagpt.prepare.dedup.phases import dedup_phases
from megagpt.prepare.dedup.verdicts import Verdicts
from tests.helpers.dedup import Item, digests, prepare_config, run_phases, sentences, verdicts_of, with_changes, write_clean

EXACT = ExactDuplicatesConfig(
    tasks=2, paragraphs=RepeatedParagraphsConfig(min_characters=10), lines=RepeatedLinesConfig(min_characters=10, min_documents=2)
)
NEAR = NearDuplicatesConfig(buckets=6, hashes=4, tasks=2, tasks_per_bucket=2)


def corpus() -> list[list[Item]]:
    generator, items = random.Random(0), []
    for number in range(120):
        words = sentences(generator, 60) if number % 3 == 0 else with_changes(generator, items[-1].text.split(), generator.choice([0, 0.01, 0.3]))
        text = "\n\n".join([" ".join(words), generator.choice(["a shared paragraph", "another one\nof lines"])])
        items.append(Item(f"d{number}", items[-1].text.upper() if number % 7 == 6 else text, number % 5))
    return [items[:40], items[40:41], items[41:]]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The corpus after an undisturbed run, and the bytes of all its files."""
    work = tmp_path_factory.mktemp("files")
    config = prepare_config(EXACT, NEAR)
    for task, shard in enumerate(corpus()):
        write_clean(work, task, shard, config)
    run_phases(work, 3, config)
    return work, config, digests(work)


def test_dedup_files_hold_every_reason(done):
    work, config, _ = done
    verdicts = verdicts_of(work, corpus(), config).values()
    assert {verdict.reason for verdict in verdicts} == {None, "duplicate_document", "near_duplicate"}
    assert any(verdict.paragraphs for verdict in verdicts) and any(verdict.lines for verdict in verdicts)
    assert not list((work / "dedup/partial").iterdir())


@pytest.mark.parametrize("seed", [1, 2])
def test_dedup_files_do_not_depend_on_the_order_of_tasks_nor_on_memory(tmp_path, done, seed):
    config, order = prepare_config(EXACT, NEAR, memory_gib=0.5 * seed), random.Random(seed)
    shards = list(enumerate(corpus()))
    order.shuffle(shards)
    for task, shard in shards:
        write_clean(tmp_path, task, shard, config)
    run_phases(tmp_path, 3, config, order)
    assert digests(tmp_path) == done[2]


def test_dedup_phases_survive_pickling(tmp_path, done):
    """They go to other processes and machines."""
    work = tmp_path / "moved"
    shutil.copytree(done[0], work)
    for phase in dedup_phases(done[1], work, 3):
        step = pickle.loads(pickle.dumps(phase.step))
        step.run(None, 0, phase.num_tasks)
    assert digests(work) == done[2]


class Killed(BaseException):
    """As a signal would end it."""


def killed(monkeypatch, work, task, files_moved: int) -> bool:
    """Runs a task that dies when it has moved so many files to their names, and leaves what a killed process leaves. Whether it died."""
    real_move, real_clear, moved, cleared = os.replace, shutil.rmtree, [], set()

    def move(source, target):
        if len(moved) == files_moved:
            raise Killed
        moved.append(target)
        real_move(source, target)

    def clear(folder, ignore_errors):
        if folder not in cleared:  # before the work; behind it, nobody does
            real_clear(folder, ignore_errors)
        cleared.add(folder)

    with monkeypatch.context() as patch:
        patch.setattr(layout_module.os, "replace", move)
        patch.setattr(layout_module.shutil, "rmtree", clear)
        try:
            task()
        except Killed:
            for rest in (work / "dedup/partial").iterdir():
                (rest / "torn.parquet").write_bytes(b"PAR1 torn")
            return True
    return False


def test_dedup_killed_tasks_are_done_again(tmp_path, done, monkeypatch):
    """The first task of every phase dies before its first file has its name, and once more after."""
    config = done[1]
    phases = [[partial(write_clean, tmp_path, task, shard, config) for task, shard in enumerate(corpus())]]
    for phase in dedup_phases(config, tmp_path, 3):
        phases.append([partial(phase.step.run_task, task, phase.num_tasks) for task in range(phase.num_tasks)])
    for first, *others in phases:
        assert killed(monkeypatch, tmp_path, first, 0)
        killed(monkeypatch, tmp_path, first, 1)  # lives where there is one file only
        for task in (first, *others):
            task()
    assert digests(tmp_path) == done[2]


def test_dedup_files_of_a_failed_task_do_not_appear(tmp_path):
    config = prepare_config(EXACT, NEAR)
    with pytest.raises(OSError, match="disk"), Fingerprints(tmp_path, 0, config.steps) as fingerprints:
        fingerprints.add(0, "a", "some words that make one shingle", 0.0, "web")
        raise OSError("disk full")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_dedup_numbers_have_no_gaps(tmp_path):
    config = prepare_config(EXACT).steps
    with pytest.raises(ValueError, match="document 2 of task 4: 1 is the next one"), Fingerprints(tmp_path, 4, config) as fingerprints:
        fingerprints.add(0, "a", "text", 0.0, "web")
        fingerprints.add(2, "b", "text", 0.0, "web")


def test_dedup_verdicts_are_read_in_order(done):
    work, config, _ = done
    verdicts, expected = Verdicts(work, 2, config.steps), verdicts_of(work, corpus(), config)
    assert verdicts.of(5) == expected[corpus()[2][5].id] and verdicts.of(70) == expected[corpus()[2][70].id]
    with pytest.raises(ValueError, match="document 70 of task 2 asked for after that of 70"):
        verdicts.of(70)


def test_dedup_phases_follow_the_configuration(tmp_path):
    names = [[phase.name for phase in dedup_phases(prepare_config(exact, near), tmp_path, 5)] for exact, near in [
        (None, None), (ExactDuplicatesConfig(), None), (EXACT, NEAR), (ExactDuplicatesConfig(documents=False, lines=RepeatedLinesConfig()), None),
    ]]
    near = ["near_buckets", "near_candidates", "near_shingles", "near_verify", "duplicate_clusters"]
    assert names == [
        [], ["exact_documents", "duplicate_clusters"], ["exact_documents", *near, "repeated_paragraphs", "repeated_lines"], ["repeated_lines"],
    ]
    assert [phase.num_tasks for phase in dedup_phases(prepare_config(EXACT, NEAR), tmp_path, 5)] == [2, 12, 1, 5, 2, 1, 2, 2]


def test_dedup_paths_may_look_like_patterns(tmp_path):
    folder = tmp_path / "it's [a] *?"
    with database(folder, 0.5) as tables:
        tables.write("SELECT 1 AS one", folder / "a.parquet")
        assert tables.connection.sql(f"FROM {files(folder)}").fetchall() == [(1,)]
