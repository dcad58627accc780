"""Ranks of the 175B layout (tp 8, pp 16, dp 8: 1,024 of them) are built on a CPU, without memory and without the other ranks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megagpt.config.load import load_config
from megagpt.config.schema import PretrainConfig
from megagpt.model.shape import ModelShape
from megagpt.plan.job import stage_parameters, total

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/pretrain/gpt3_175b_1024gpu_tp8_pp16.yaml"
TP, DP, PP, CHUNKS = 8, 8, 16, 3
SHAPE = ModelShape(load_config(PretrainConfig, CONFIG).model)

BUILD = """
import json, sys
import torch, torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from megagpt.config.load import load_config
from megagpt.config.schema import PretrainConfig
from megagpt.model.gpt import build_chunks
from megagpt.model.layout import Layout
from megagpt.model.shape import ModelShape
from megagpt.parallel.groups import build_groups
from megagpt.parallel.placement import stage_grid
from megagpt.runtime import cpu_backend
from pathlib import Path

cpu_backend.install()
rank = int(sys.argv[2])
dist.init_process_group("fake", rank=rank, world_size=1024, store=FakeStore())
config = load_config(PretrainConfig, Path(sys.argv[1]), [])
groups = build_groups(stage_grid(config.parallel, 1024))
with torch.device("meta"):
    chunks = build_chunks(ModelShape(config.model), groups, layout=Layout.of(config.parallel, config.precision))
members = {name: dist.get_process_group_ranks(getattr(groups.collection, name)) for name in ("tp", "pp", "dp", "mp")}
embd = groups.collection.embd
members["embd"] = [] if embd is None else dist.get_process_group_ranks(embd)
print(json.dumps({
    "groups": members,
    "bytes": [sum(p.numel() * p.element_size() for p in chunk.parameters()) for chunk in chunks],
    "layers": [[layer.layer_number for layer in chunk.decoder.layers] for chunk in chunks],
    "ends": [[chunk.pre_process, chunk.post_process] for chunk in chunks],
}))
"""


def build(rank: int) -> dict:
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", BUILD, str(CONFIG), str(rank)], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


# Rank = tp + 8 * (dp + 8 * pp).
@pytest.mark.parametrize(("rank", "tp", "dp", "pp"), [(0, 0, 0, 0), (517, 5, 0, 8), (1023, 7, 7, 15)])
def test_thousand_ranks_groups_and_bytes_of_the_175b_layout(rank, tp, dp, pp):
    built = build(rank)
    first = rank - tp  # of the tensor-parallel group
    assert built["groups"]["tp"] == list(range(first, first + TP))
    assert built["groups"]["dp"] == [tp + TP * (other + DP * pp) for other in range(DP)]
    assert built["groups"]["pp"] == [tp + TP * (dp + DP * other) for other in range(PP)]
    assert built["groups"]["mp"] == sorted(t + TP * (dp + DP * p) for t in range(TP) for p in range(PP))
    ends = [tp + TP * dp, tp + TP * (dp + DP * (PP - 1))]
    assert built["groups"]["embd"] == (ends if pp in (0, PP - 1) else [])

    assert built["layers"] == [[2 * (chunk * PP + pp) + 1, 2 * (chunk * PP + pp) + 2] for chunk in range(CHUNKS)]
    assert built["ends"] == [[pp == 0 and chunk == 0, pp == PP - 1 and chunk == CHUNKS - 1] for chunk in range(CHUNKS)]
    planned = [stage_parameters(SHAPE, TP, 2, *ends) for ends in built["ends"]]
    assert built["bytes"] == [2 * total(parameters) for parameters in planned], "bfloat16"
