"""Which task reads which files."""

from __future__ import annotations

import os

import pytest

from megagpt.config.prepare import PrepareConfig
from megagpt.data.errors import DataError
from megagpt.prepare.shards import plan_shards, shard_of, write_plan


def config_of(*sources, **more):
    return PrepareConfig.model_validate({"run": {"name": "x"}, "sources": [{"name": name, "kind": "rows", "files": files} for name, files in sources], **more})


def shards_of(config, work):
    plan = plan_shards(config)
    write_plan(work, plan)
    return [shard_of(config, work, task) for task in range(len(plan["shards"]))]


def write(folder, **contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_text(content)
    return str(folder)


def test_prepare_shards_an_empty_file_is_of_its_own_source(tmp_path):
    """Also as the first file of all, and as the first of a source behind another."""
    a, b = write(tmp_path / "a", x=""), write(tmp_path / "b", x="", y="text")
    shards = shards_of(config_of(("a", [a]), ("b", [b])), tmp_path / "work")
    assert [(shard.source.name, [name for _, name in shard.files]) for shard in shards] == [("a", ["x"]), ("b", ["x", "y"])]


def test_prepare_shards_hold_so_much_at_most_but_for_one_larger_file(tmp_path):
    files = write(tmp_path / "a", a="x" * 600, b="x" * 400, c="x", d="x" * 5000, e="x")
    shards = shards_of(config_of(("a", [files]), shard_mib=1000 / 2**20), tmp_path / "work")
    assert [[name for _, name in shard.files] for shard in shards] == [["a", "b"], ["c"], ["d"], ["e"]]


def test_prepare_shards_files_whose_names_are_no_text(tmp_path):
    write(tmp_path / "a")
    with open(os.fsencode(tmp_path / "a") + b"/b\xff.jsonl", "w") as file:
        file.write("{}")
    [shard] = shards_of(config_of(("a", [str(tmp_path / "a")])), tmp_path / "work")
    [(path, name)] = shard.files
    assert os.fsencode(name) == b"b\xff.jsonl" and os.path.exists(path)


def test_prepare_shards_relative_and_absolute_names_together(tmp_path, monkeypatch):
    write(tmp_path / "a", x="1")
    write(tmp_path / "b", y="2")
    monkeypatch.chdir(tmp_path)
    [shard] = shards_of(config_of(("a", ["a", str(tmp_path / "b")])), tmp_path / "work")
    assert sorted(name for _, name in shard.files) == ["a/x", "b/y"]


@pytest.mark.parametrize("change", ["content", "another file", "configuration"])
def test_prepare_shards_key_changes_with_files_and_configuration(tmp_path, change):
    files = write(tmp_path / "a", x="1")
    before = plan_shards(config_of(("a", [files])))["key"]
    assert plan_shards(config_of(("a", [files])))["key"] == before
    if change == "content":
        write(tmp_path / "a", x="12")
    elif change == "another file":
        write(tmp_path / "a", y="")
    more = {"max_document_characters": 7} if change == "configuration" else {}
    assert plan_shards(config_of(("a", [files]), **more))["key"] != before


@pytest.mark.parametrize("what", ["folder", "list"])
def test_prepare_shards_what_may_not_be_read_is_one_line(tmp_path, monkeypatch, what):
    """Root may read everything, hence the stand-ins."""
    files, domains = write(tmp_path / "a", x="1"), tmp_path / "domains.txt"
    domains.write_text("a.org")

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(*((os, "scandir", refuse) if what == "folder" else ("megagpt.runtime.atomic.sha256_file", refuse)))
    with pytest.raises(DataError, match=r"(a: cannot be listed|domains.txt: cannot be read) \(Permission denied\)"):
        plan_shards(config_of(("a", [files]), steps={"url": {"domains": [str(domains)]}}))
