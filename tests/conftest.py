"""Fixtures of every test: the same random numbers each time, and no worker process left at the end."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `tests.helpers`, whatever command started pytest

import torch  # noqa: E402

from tests.helpers.spawn import close_pools  # noqa: E402


@pytest.fixture(autouse=True)
def seeded():
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def pools_closed():
    yield
    close_pools()
