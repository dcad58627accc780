"""Fixtures of every test: the same random numbers each time, and no worker process left at the end."""

import os
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `tests.helpers`, whatever command started pytest

import torch  # noqa: E402

from tests.helpers.spawn import close_pools  # noqa: E402


def pytest_collection_modifyitems(config, items):
    """Tests that cannot run on this machine are left out, not skipped."""
    impossible = {name for name, possible in (("gpu", torch.cuda.is_available()), ("root", os.geteuid() == 0)) if not possible}
    left_out = [item for item in items if impossible & {mark.name for mark in item.iter_markers()}]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def seeded():
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def pools_closed():
    yield
    close_pools()


@pytest.fixture
def no_process_group(monkeypatch):
    """Fails a test in which the product would start a process group: bad input is refused before."""

    def refuse(*_, **__):
        raise AssertionError("a process group was about to start")

    monkeypatch.setattr(torch.distributed, "init_process_group", refuse)
    before = dict(os.environ)
    yield
    os.environ.clear()  # a start that came as far as this has set RANK and the like
    os.environ.update(before)
