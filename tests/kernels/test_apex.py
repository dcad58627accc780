"""NVIDIA's apex is used where it is installed, and its absence is one line. (What stands in for it here records its arguments.)"""

import sys
from types import SimpleNamespace

import pytest
import torch

from megagpt.kernels import apex, select


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU, as far as the choice goes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    apex.missing.cache_clear()
    yield monkeypatch
    apex.missing.cache_clear()
    select.set_kernels("auto")


@pytest.fixture
def installed(gpu):
    def fused_adam(groups, **settings):
        return SimpleNamespace(groups=groups, **settings)

    gpu.setitem(sys.modules, "apex", SimpleNamespace())
    gpu.setitem(sys.modules, "apex.optimizers", SimpleNamespace(FusedAdam=fused_adam))
    norms = SimpleNamespace(fused_layer_norm_affine=lambda *arguments: ("layer", *arguments), fused_rms_norm_affine=lambda *arguments: ("rms", *arguments))
    gpu.setitem(sys.modules, "apex.normalization", norms)


ON_GPU = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16)


def test_apex_is_used_where_it_is_installed(installed):
    assert apex.missing() is None
    x, weight, bias = (torch.ones(4) for _ in range(3))
    assert apex.layer_norm(x, weight, bias, 1e-5) == ("layer", x, weight, bias, weight.shape, 1e-5)
    assert apex.rms_norm(x, weight, 1e-5) == ("rms", x, weight, weight.shape, 1e-5)
    made = apex.adamw([{"params": []}], 1e-3, (0.9, 0.95), 1e-8)
    assert made == SimpleNamespace(groups=[{"params": []}], lr=1e-3, betas=(0.9, 0.95), eps=1e-8, adam_w_mode=True)
    assert [select.choose(op, ON_GPU) for op in apex.OPS] == ["apex"] * 3
    assert f"NVIDIA's apex: {', '.join(apex.OPS)}" in select.describe("cuda")


def test_apex_can_be_asked_for_and_left_out(installed):
    select.set_kernels("apex")
    assert select.choose("rms_norm", ON_GPU) == "apex"
    assert select.choose("rms_norm", ON_GPU, "reference") == "reference"
    with pytest.raises(RuntimeError, match="rms_norm: NVIDIA's apex was asked for, but the tensor is on cpu"):
        select.choose("rms_norm", torch.zeros(1))
    select.set_kernels("reference")
    assert select.choose("rms_norm", ON_GPU) == "reference"


def test_apex_that_is_missing_is_one_line(gpu):
    assert "not used: NVIDIA's apex (it is not installed: No module named 'apex')" in select.describe("cuda")
    with pytest.raises(select.KernelError, match="kernels = apex: it is not installed: No module named 'apex'; take auto"):
        select.set_kernels("apex")


def test_apex_of_the_package_index_is_another_project(gpu):
    gpu.setitem(sys.modules, "apex", SimpleNamespace())
    gpu.setitem(sys.modules, "apex.optimizers", SimpleNamespace())
    assert "is not installed" in apex.missing()


def test_apex_is_not_looked_for_without_a_gpu():
    assert apex.missing() == "no GPU"
    with pytest.raises(select.KernelError, match="kernels = apex: no GPU; take auto"):
        select.set_kernels("apex")
