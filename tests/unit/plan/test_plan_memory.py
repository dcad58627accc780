"""Rules of the memory plan that need no measurement: pipelines, ZeRO, offload, hardware profiles."""

import pytest

from megagpt.config.load import ConfigError
from megagpt.config.schema import ModelConfig, ParallelConfig
from megagpt.engine.sharding import REDUCE_BUCKET, reduce_bucket
from megagpt.model.shape import ModelShape
from megagpt.parallel.grid import Grid
from megagpt.plan.activations import chunks_in_flight, layer_bytes, stage_bytes
from megagpt.plan.hardware import FOLDER, load_hardware
from megagpt.plan.job import Job, total
from megagpt.plan.memory import offloaded_bytes, partition, resident, training_phases

MODEL = ModelConfig(num_layers=24, hidden_size=256, num_attention_heads=8, max_sequence_length=512, vocab_size=1000)


def job_of(grid: Grid, num_microbatches: int = 64, **parallel) -> Job:
    sizes = {"tensor_parallel_size": grid.tp, "pipeline_parallel_size": grid.pp, "context_parallel_size": grid.cp}
    return Job(
        ModelShape(MODEL), grid, ParallelConfig(**sizes, **parallel), load_hardware("a100-80gb"),
        rows=2, length=512, num_microbatches=num_microbatches, dtype="bf16", fused=False,
    )  # fmt: skip


def test_plan_memory_microbatches_in_flight():
    """1F1B keeps p - stage of them; interleaved the first stage keeps 1 + (p - 1) / (p v) of its layers' worth of all p."""
    assert [chunks_in_flight(job_of(Grid(pp=4)), stage) for stage in range(4)] == [4, 3, 2, 1]
    assert [chunks_in_flight(job_of(Grid(pp=4), num_microbatches=2), stage) for stage in range(4)] == [2, 2, 2, 1]
    p, v = 4, 3
    in_flight = chunks_in_flight(job_of(Grid(pp=p), virtual_pipeline_size=v), 0)
    assert in_flight * 24 / (p * v) == 24 * (1 + (p - 1) / (p * v)), "Korthikanti et al. 2022, section 4.2.3"


def test_plan_memory_of_uneven_stages():
    even, uneven = job_of(Grid(pp=2)), job_of(Grid(pp=2), stage_layers=[16, 8])
    assert stage_bytes(uneven, 0) - stage_bytes(even, 0) == 2 * 4 * layer_bytes(even), "two microbatches of four layers more"
    assert total(uneven.parameters(0)) - total(even.parameters(0)) == 4 * (12 * 256**2 + 13 * 256)


def test_plan_memory_sharding_divides():
    """Sequence and context parallelism and full recomputation lower a layer's activations; what they divide, exactly."""
    whole = layer_bytes(job_of(Grid()))
    assert layer_bytes(job_of(Grid(tp=4), sequence_parallel=True)) == whole / 4
    assert whole / 4 < layer_bytes(job_of(Grid(tp=4))) < whole
    assert layer_bytes(job_of(Grid(cp=2))) == whole / 2
    assert layer_bytes(job_of(Grid(), recompute="full")) == 2 * 2 * 512 * 256 < layer_bytes(job_of(Grid(), recompute="selective")) < whole


def test_plan_memory_zero_shards_over_data_and_context_parallel_ranks():
    parameters = job_of(Grid()).parameters(0)
    for zero in (1, 2, 3):
        assert partition(parameters, zero, 8) == pytest.approx(total(parameters) / 8, rel=1e-4)
        assert resident(job_of(Grid(dp=4, cp=2), zero_stage=zero), 0).optimizer == 12 * partition(parameters, zero, 8)
    assert partition(parameters, 0, 8) == total(parameters)


def test_plan_memory_of_the_reduction():
    """DeepSpeed's bucket is as large as all gradients, up to a bound, and a rank keeps its part of their sums; offloaded ones go to the host."""
    job, offloaded = (job_of(Grid(dp=2), zero_stage=1, offload_optimizer=offload) for offload in ("none", "cpu"))
    parameters = job.parameters(0)
    assert training_phases(job, 0)["reduce and step"].buffers == 4 * total(parameters) + 4 * partition(parameters, 1, 2)
    assert training_phases(offloaded, 0)["reduce and step"].buffers == 4 * total(parameters)
    assert reduce_bucket(REDUCE_BUCKET - 1) == REDUCE_BUCKET - 1 and reduce_bucket(10**12) == REDUCE_BUCKET


def test_plan_memory_offload_moves_the_optimizer():
    kept, moved = job_of(Grid(dp=2), zero_stage=2), job_of(Grid(dp=2), zero_stage=2, offload_optimizer="cpu")
    assert resident(moved, 0).optimizer == 0 and offloaded_bytes(moved) == resident(kept, 0).optimizer and offloaded_bytes(kept) == 0


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_plan_hardware_profiles(path):
    hardware = load_hardware(path.stem)
    assert hardware == load_hardware(str(path)) and path.read_text().startswith("#"), "the source comes first"
    assert hardware.price_per_device_hour is None
    assert hardware.runtime_bytes < hardware.memory_bytes / 10


# Dense FLOP/s in fp32, bf16, fp16; memory, its bandwidth, links within and between nodes and to the host in one direction (bytes, bytes/s).
DATA_SHEETS = {
    "v100-32gb": (15.7e12, 15.7e12, 125e12, 32e9, 900e9, 150e9, 12.5e9, 15.75e9),
    "a100-40gb": (19.5e12, 312e12, 312e12, 40e9, 1555e9, 300e9, 25e9, 31.5e9),
    "a100-80gb": (19.5e12, 312e12, 312e12, 80e9, 2039e9, 300e9, 25e9, 31.5e9),
    "h100-sxm": (67e12, 989e12, 989e12, 80e9, 3350e9, 450e9, 50e9, 63e9),
    "h200": (67e12, 989e12, 989e12, 141e9, 4800e9, 450e9, 50e9, 63e9),
    "b200": (75e12, 2250e12, 2250e12, 180e9, 8000e9, 900e9, 50e9, 63e9),
}
# Of the usual host of eight: channels of memory on both sockets, their million transfers a second, 8 bytes each.
HOSTS = {"v100-32gb": (8, 2133), "a100-40gb": (16, 3200), "a100-80gb": (16, 3200), "h100-sxm": (16, 4800), "h200": (16, 4800), "b200": (16, 5600)}


def test_plan_hardware_figures_are_those_of_the_data_sheets():
    for name, figures in DATA_SHEETS.items():
        found = load_hardware(name)
        links = found.intra_node_bandwidth, found.inter_node_bandwidth, found.host_link_bandwidth
        assert (*found.peak_flops.model_dump().values(), found.memory_bytes, found.memory_bandwidth, *links) == pytest.approx(figures), name
        channels, transfers = HOSTS[name]
        assert found.host_memory_bandwidth == pytest.approx(channels * transfers * 1e6 * 8 / 8, rel=0.01), name
        assert found.devices_per_node == 8
    assert DATA_SHEETS.keys() == {path.stem for path in FOLDER.glob("*.yaml")} - {"cpu"}


def test_plan_hardware_groups_across_nodes_take_the_slow_links():
    hardware = load_hardware("a100-80gb")  # 8 a node
    fast, slow = hardware.intra_node_bandwidth, hardware.inter_node_bandwidth
    assert [hardware.bandwidth(size) for size in (1, 2, 3, 4, 6, 8, 12, 16)] == [fast, fast, slow, fast, slow, fast, slow, slow]
    assert hardware.bandwidth(8, first=4) == slow and hardware.bandwidth(4, first=4) == fast


def test_plan_hardware_that_is_not_there():
    with pytest.raises(ConfigError, match="--hardware h100: must be a .yaml file or one of a100-40gb, .* h100-sxm"):
        load_hardware("h100")
