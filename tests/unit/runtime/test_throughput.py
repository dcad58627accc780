"""Speed and memory figures, against sums done by hand."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from megagpt.config.schema import ModelConfig
from megagpt.model.shape import ModelShape
from megagpt.runtime import throughput
from megagpt.runtime.throughput import Meter, memory, peak_flops, speed
from tests.helpers.tiny_run import environment_of


def test_throughput_of_megatrons_175b_run():
    """Narayanan et al. 2021, section 5.1: GPT-3 on 1,024 A100 with batches of 1,536 rows at 140 TFLOP/s per GPU.

    Their FLOPs (eq. 3) count every activation twice, for full recomputation; three quarters of them are the model's own.
    """
    layers, hidden, length, vocabulary, batch = 96, 12288, 2048, 51200, 1536
    theirs = 96 * batch * length * layers * hidden**2 * (1 + length / (6 * hidden) + vocabulary / (16 * layers * hidden))
    seconds = theirs / (140e12 * 1024)
    shape = ModelShape(ModelConfig(num_layers=layers, hidden_size=hidden, num_attention_heads=96, max_sequence_length=length, vocab_size=vocabulary))
    numbers = 12 * layers * hidden**2 + vocabulary * hidden
    found = speed(
        num_tokens=batch * length, seconds=seconds, flops_per_token=shape.flops_per_token(length, numbers), num_devices=1024, peak=312e12
    )
    assert found["tflops_per_device"] == pytest.approx(140 * 3 / 4, rel=0.005)
    assert found["mfu"] == pytest.approx(140 * 3 / 4 / 312, rel=0.005)
    assert found["tokens_per_s"] == pytest.approx(batch * length / seconds)


def test_throughput_without_a_known_peak_has_no_mfu():
    assert speed(num_tokens=100, seconds=0.5, flops_per_token=1e9, num_devices=2, peak=None) == {"tokens_per_s": 200.0, "tflops_per_device": 0.1}


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989), ("NVIDIA H100 PCIe", "bf16", 756), ("NVIDIA H200", "fp16", 989), ("NVIDIA GB200", "bf16", 2500),
        ("NVIDIA B200", "bf16", 2250), ("NVIDIA A100-SXM4-80GB", "fp32", 19.5), ("Tesla V100-SXM2-32GB", "fp16", 125),
        ("Tesla V100-SXM2-32GB", "bf16", None),
        ("Some Card", "fp32", None),
    ],
)  # fmt: skip
def test_throughput_peaks_by_the_devices_name(monkeypatch, name, dtype, tera):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    found = peak_flops(torch.device("cuda", 0), dtype)
    assert found == (None if tera is None else tera * 1e12)
    assert peak_flops(torch.device("cpu"), dtype) is None


def test_throughput_meter_times_a_step_alone(monkeypatch):
    clock = iter([100.0, 102.0, 500.0, 501.0])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    meter = Meter(1e9, 2, torch.device("cpu"), "fp32")
    found = []
    for _ in range(2):
        meter.start()
        found.append(meter.stop(1000))
    assert [metrics["tokens_per_s"] for metrics in found] == [500.0, 1000.0] and found[0]["tflops_per_device"] == 0.25
    assert found[0].keys() == {"tokens_per_s", "tflops_per_device", "memory_gib", "memory_peak_gib"}


def test_memory_of_a_process_grows_with_what_it_holds():
    """128 MiB, in a process of its own since the peak never falls."""
    script = """
import torch
from megagpt.runtime.throughput import memory
before = memory(torch.device("cpu"))
held = torch.ones(2**25)
during = memory(torch.device("cpu"))
del held
after = memory(torch.device("cpu"))
print(during["memory_gib"] - before["memory_gib"], after["memory_peak_gib"] - before["memory_gib"], during["memory_gib"] - after["memory_gib"])
"""
    result = subprocess.run([sys.executable, "-c", script], env=environment_of(), capture_output=True, text=True, timeout=60, check=True)
    grown, peak, freed = map(float, result.stdout.split())
    assert grown == pytest.approx(0.125, rel=0.1) and peak >= 0.12 and freed == pytest.approx(0.125, rel=0.1)


def test_memory_of_cuda_counts_tensors_and_reserve(monkeypatch):
    counts = SimpleNamespace(max_memory_allocated=lambda _: 2**30, max_memory_reserved=lambda _: 3 * 2**30)
    monkeypatch.setattr(throughput, "torch", SimpleNamespace(cuda=counts))
    assert memory(torch.device("cuda", 0)) == {"memory_gib": 1.0, "memory_reserved_gib": 3.0}
