"""The flash-attention package attends within documents where it is installed. (What stands in for it here is written out in PyTorch.)"""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from megagpt.kernels import apex, flash_attention, select
from megagpt.model.attention import CausalAttention
from megagpt.model.forward_pass import ForwardPass

SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2], [4, 4, 4, 4, 4, 4, 5, 5]])


def varlen(query, key, value, starts_q, starts_k, longest_q, longest_k, softmax_scale=None, causal=False):
    """As the package documents it: rows of all sequences one after the other, `starts` where each begins and the end of the last."""
    assert starts_q.dtype == torch.int32 and torch.equal(starts_q, starts_k) and causal
    assert longest_q == longest_k == int(starts_q.diff().max())
    parts = []
    for begin, end in zip(starts_q[:-1], starts_q[1:], strict=True):
        q, k, v = (x[begin:end].transpose(0, 1)[None] for x in (query, key, value))
        parts.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=softmax_scale, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU, as far as the choice goes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for package in (apex, flash_attention):
        package.missing.cache_clear()
    yield monkeypatch
    for package in (apex, flash_attention):
        package.missing.cache_clear()
    select.set_kernels("auto")


@pytest.fixture
def installed(gpu):
    gpu.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=varlen))
    return gpu


@pytest.fixture
def attention():
    """A layer's core attention on one rank, outside a model."""
    one = SimpleNamespace(rank=lambda: 0, size=lambda: 1)
    layer = CausalAttention(SimpleNamespace(), 1, pg_collection=SimpleNamespace(tp=one, cp=one))
    layer.current = SimpleNamespace(value=ForwardPass(segments=SEGMENTS))
    layer.dropout_state = SimpleNamespace(active=False)
    return layer


def test_flash_attention_within_documents_equals_the_masked_one(installed, attention):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 8, heads, 16, requires_grad=True) for heads in (4, 2, 2))
    assert not select.flash_attention_runs(query)
    masked = attention._attend(query, key, value)
    expected = torch.autograd.grad(masked.square().sum(), (query, key, value))
    installed.setattr(flash_attention, "takes", lambda query: True)
    calls = []
    installed.setattr(sys.modules["flash_attn"], "flash_attn_varlen_func", lambda *args, **kwargs: (calls.append(args), varlen(*args, **kwargs))[1])
    ours = attention._attend(query, key, value)
    assert calls[0][3].tolist() == [0, 3, 5, 8, 14, 16]
    torch.testing.assert_close(ours, masked)
    torch.testing.assert_close(torch.autograd.grad(ours.square().sum(), (query, key, value)), expected)


def test_flash_attention_is_left_out_where_it_is_not_wanted(installed, attention):
    installed.setattr(flash_attention, "takes", lambda query: True)
    installed.setattr(sys.modules["flash_attn"], "flash_attn_varlen_func", None)  # a call would fail
    query = torch.randn(2, 8, 4, 16)
    select.set_kernels("reference")
    attention._attend(query, query, query)
    select.set_kernels("auto")
    attention.current.value = ForwardPass()
    attention._attend(query, query, query)


def test_flash_attention_takes_16_bit_queries_on_a_gpu_only(installed):
    def on(device, dtype):
        return SimpleNamespace(device=torch.device(device), dtype=dtype)

    assert flash_attention.takes(on("cuda", torch.bfloat16)) and flash_attention.takes(on("cuda", torch.float16))
    assert not flash_attention.takes(on("cuda", torch.float32)) and not flash_attention.takes(on("cpu", torch.bfloat16))
    assert "flash-attention: attention within documents" in select.describe("cuda")


def test_flash_attention_that_is_missing_is_one_line(gpu):
    assert "not used: flash-attention (it is not installed: No module named 'flash_attn')" in select.describe("cuda")
