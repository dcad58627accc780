"""NVIDIA's apex is used where it is installed, and its absence is one line. (What stands in for it here records its arguments.)"""

import sys
from types import SimpleNamespace

import pytest
import torch

from megagpt.kernels import apex


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU, as far as the choice goes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    apex.missing.cache_clear()
    yield monkeypatch
    apex.missing.cache_clear()


@pytest.fixture
def installed(gpu):
    def fused_adam(groups, **settings):
        return SimpleNamespace(groups=groups, **settings)

    gpu.setitem(sys.modules, "apex", SimpleNamespace())
    gpu.setitem(sys.modules, "apex.optimizers", SimpleNamespace(FusedAdam=fused_adam))
    gpu.setitem(sys.modules, "apex.normalization", SimpleNamespace(FusedLayerNorm="apex layer norm", FusedRMSNorm="apex rms norm"))


def test_apex_is_used_where_it_is_installed(installed):
    assert apex.missing() is None
    assert (apex.norm_class("LayerNorm"), apex.norm_class("RMSNorm")) == ("apex layer norm", "apex rms norm")
    made = apex.adamw([{"params": []}], 1e-3, (0.9, 0.95), 1e-8)
    assert made == SimpleNamespace(groups=[{"params": []}], lr=1e-3, betas=(0.9, 0.95), eps=1e-8, adam_w_mode=True)
    assert apex.describe() == "AdamW and norms: NVIDIA's apex, fused"


def test_apex_that_is_missing_costs_one_line(gpu):
    assert apex.norm_class("LayerNorm") is torch.nn.LayerNorm and apex.norm_class("RMSNorm") is torch.nn.RMSNorm
    assert type(apex.adamw([{"params": [torch.nn.Parameter(torch.zeros(1))]}], 1e-3, (0.9, 0.95), 1e-8)) is torch.optim.AdamW
    assert apex.describe() == "AdamW and norms: torch's own (NVIDIA's apex is not installed (No module named 'apex'))"


def test_apex_of_the_package_index_is_another_project(gpu):
    gpu.setitem(sys.modules, "apex", SimpleNamespace())
    gpu.setitem(sys.modules, "apex.optimizers", SimpleNamespace())
    assert "is not installed" in apex.missing()


def test_apex_is_not_looked_for_without_a_gpu():
    assert apex.describe() == "AdamW and norms: torch's own (no GPU)"
