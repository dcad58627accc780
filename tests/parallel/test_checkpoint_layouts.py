"""Checkpoints: saved on one grid and loaded on another, bit for bit; killed while saving; turned into a reward model."""

import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from megagpt.checkpoint.layout import CheckpointError, complete_checkpoints, find_checkpoint, verify
from megagpt.checkpoint.load import Checkpoint, load_model
from megagpt.checkpoint.save import Saver
from megagpt.config.schema import ModelConfig, OptimizerConfig, RunConfig
from megagpt.engine.build import Engine, gather_canonical
from megagpt.model.gpt import GPT
from megagpt.model.init import initial_tensor
from megagpt.model.param_map import canonical_shapes
from megagpt.model.shape import ModelShape
from megagpt.parallel.grid import Grid
from megagpt.parallel.groups import build_groups
from megagpt.runtime.run_folder import RunFolder
from tests.helpers.gather import held_here, merge_ranks
from tests.helpers.plain import plain_init
from tests.helpers.sharded import accumulate, sharded_model
from tests.helpers.spawn import RankFailure, run_ranks, run_ranks_fresh
from tests.helpers.tiny import tiny_batches, tiny_model
from tests.helpers.tiny_checkpoint import StubTokenizer
from tests.helpers.tiny_checkpoint import save_tensors as save

SAVED = [(Grid(), 0), (Grid(dp=4), 3), (Grid(tp=4), 2), (Grid(pp=4), 1), (Grid(tp=2, pp=2), 0), (Grid(tp=2, dp=2), 3), (Grid(pp=2, dp=2), 2)]
LOADED = [Grid(), Grid(tp=2), Grid(pp=2), Grid(tp=4), Grid(pp=4), Grid(tp=2, pp=2), Grid(tp=2, dp=2)]
MODELS = {"gpt": tiny_model("gpt", True), "llama": tiny_model("llama", False)}


def train_and_save(folder: Path, config: ModelConfig, grid: Grid, zero_stage: int) -> dict[str, torch.Tensor]:
    """One step, so that what is saved is what the optimizer holds; returns this rank's stage."""
    engine = Engine(sharded_model(config, plain_init(config, seed=1), grid), OptimizerConfig(lr=1e-2), zero_stage)
    accumulate(engine, tiny_batches(1)[0])
    engine.step(1e-2)
    save(folder, 1, engine.canonical_parameters(), engine.groups, config)
    held = held_here(engine.canonical_parameters())
    engine.close()
    return held


def held_by(model: GPT | None) -> dict[str, torch.Tensor]:
    """As `held_here`, of a model without an engine; a tied embedding also from the last stage's copy. None: a rank outside the grid."""
    parts = [] if model is None else model.entries()
    return held_here(pair for parameter, entry in parts for pair in gather_canonical(model, entry, parameter.data))


def load(path: Path, grids: list[Grid], scalar_head: bool = False) -> list[dict[str, torch.Tensor]]:
    """What this rank's stage holds on each grid; {} where it is outside."""
    held = []
    for grid in grids:
        groups = build_groups(grid)
        held.append(held_by(load_model(Checkpoint.open(path), groups, torch.device("cpu"), scalar_head=scalar_head, seed=7) if groups else None))
    return held


def loaded_under(grids: list[Grid], path: Path, **arguments) -> list[dict[str, torch.Tensor]]:
    """The whole model as each grid holds it."""
    return [merge_ranks(per_rank) for per_rank in zip(*run_ranks(4, load, path, grids, **arguments), strict=True)]


def assert_same_bits(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(("grid", "zero"), SAVED, ids=[f"tp{grid.tp}-pp{grid.pp}-dp{grid.dp}-zero{zero}" for grid, zero in SAVED])
def test_checkpoint_loads_on_every_grid_bit_for_bit(grid, zero, family, tmp_path):
    config = MODELS[family]
    saved = merge_ranks(run_ranks(grid.size, train_and_save, tmp_path, config, grid, zero))
    assert not torch.equal(saved["final_norm.weight"], plain_init(config, seed=1)["final_norm.weight"]), "it was trained"
    (path,) = complete_checkpoints(tmp_path)
    assert verify(path) == []

    for loaded in loaded_under(LOADED, path):
        assert_same_bits(loaded, saved)

    stored = {}
    for file in sorted(path.glob("model-*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            stored |= {name: tensors.get_tensor(name) for name in tensors.keys()}
    assert len(list(path.glob("model-*.safetensors"))) == grid.size, "every rank writes its share"
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == canonical_shapes(ModelShape(config)), "no padding, nothing twice"


def make_reward_model(path: Path, folder: Path, grid: Grid) -> dict[str, torch.Tensor]:
    groups = build_groups(grid)
    model = load_model(Checkpoint.open(path), groups, torch.device("cpu"), scalar_head=True, seed=7)
    engine = Engine(model, OptimizerConfig(lr=1e-2), zero_stage=1)
    save(folder, 1, engine.canonical_parameters(), groups, model.shape.config, head="scalar")
    held = held_here(engine.canonical_parameters())
    engine.close()
    return held


@pytest.mark.parametrize("family", MODELS)
def test_checkpoint_of_a_language_model_becomes_a_reward_model(family, tmp_path):
    config, shape = MODELS[family], ModelShape(MODELS[family])
    run_ranks(1, train_and_save, tmp_path / "sft", config, Grid(), 0)
    (path,) = complete_checkpoints(tmp_path / "sft")
    (body,) = loaded_under([Grid()], path)

    expected = {name: tensor for name, tensor in body.items() if name != "output.weight"}
    for name, size in (("scalar_head.weight", (1, 32)), ("scalar_head.bias", (1,))):
        expected[name] = initial_tensor(name, size, shape, seed=7)
    for loaded in loaded_under(LOADED, path, scalar_head=True):
        assert_same_bits(loaded, expected)

    saved = merge_ranks(run_ranks(4, make_reward_model, path, tmp_path / "reward", Grid(tp=2, pp=2)))
    assert_same_bits(saved, expected)
    (path,) = complete_checkpoints(tmp_path / "reward")
    for loaded in loaded_under(LOADED, path, scalar_head=True):
        assert_same_bits(loaded, expected)
    with pytest.raises(RankFailure, match=f"CheckpointError: {path}: holds a reward model; a language model is needed here"):
        run_ranks(1, load, path, [Grid()])


def save_several(folder: Path, steps: list[int], keep: int) -> None:
    config = MODELS["gpt"]
    model = sharded_model(config, plain_init(config, seed=1), Grid())
    for step in steps:
        save(folder, step, iter(held_by(model).items()), model.groups, config, keep=keep)


def test_checkpoint_folder_keeps_the_newest(tmp_path):
    left = tmp_path / "checkpoints" / "step_30.tmp"  # of a run that was killed
    left.mkdir(parents=True)
    (left / "model-00001-of-00001.safetensors").write_text("half")
    run_ranks(1, save_several, tmp_path, [8, 9, 10, 30], keep=2)
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == ["step_10", "step_30"]
    assert [verify(path) for path in complete_checkpoints(tmp_path)] == [[], []]
    before = (tmp_path / "checkpoints/step_30/model.index.json").stat().st_mtime_ns
    run_ranks(1, save_several, tmp_path, [30], keep=2)  # the same step again
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step_10", "step_30"]
    assert (tmp_path / "checkpoints/step_30/model.index.json").stat().st_mtime_ns > before


class DeadlyTokenizer:
    """Is saved last, when the tensors are already written."""

    def save(self, folder: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def dies_after(count: int, pairs):
    for number, pair in enumerate(pairs):
        if number == count:
            os.kill(os.getpid(), signal.SIGKILL)
        yield pair


def save_again_and_be_killed(folder: Path) -> None:
    """Step 1 is saved twice; the second time this rank is killed where the new folder would get its name."""
    save_several(folder, [1], keep=2)
    rename = os.replace

    def replace_or_die(source, target):
        if Path(source).name == "step_1.tmp":
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.replace = replace_or_die
    save_several(folder, [1], keep=2)


def test_checkpoint_saved_again_is_never_deleted_before_the_new_one_has_its_name(tmp_path):
    with pytest.raises(RankFailure, match="exit code -9"):
        run_ranks_fresh(1, save_again_and_be_killed, tmp_path)
    assert verify(tmp_path / "checkpoints/step_1.old") == [] and verify(tmp_path / "checkpoints/step_1.tmp") == []


def save_and_be_killed(folder: Path, when: str, rank: int) -> None:
    """Step 1 is saved; then this rank is killed in the middle of step 2."""
    config, grid = MODELS["gpt"], Grid(pp=2)
    model = sharded_model(config, plain_init(config, seed=1), grid)
    save(folder, 1, iter(held_by(model).items()), model.groups, config)
    mine = model.groups.coordinates.pp == rank
    parameters = iter(held_by(model).items())
    if when == "tensors" and mine:
        parameters = dies_after(5, parameters)
    save(folder, 2, parameters, model.groups, config, tokenizer=DeadlyTokenizer() if when == "tokenizer" and mine else None)


@pytest.mark.parametrize(("when", "rank"), [("tensors", 1), ("tokenizer", 0)])
def test_checkpoint_survives_a_kill_while_the_next_is_saved(when, rank, tmp_path):
    run = RunFolder(RunConfig(name="run", root=str(tmp_path)))
    with pytest.raises(RankFailure, match="exit code -9"):
        run_ranks_fresh(2, save_and_be_killed, run.path / "pretrain", when, rank)
    assert (run.path / "pretrain/checkpoints/step_2.tmp").is_dir(), "killed in the middle"

    path = find_checkpoint("pretrain", run)
    assert path.name == "step_1" and verify(path) == []
    (loaded,) = loaded_under([Grid(tp=2)], path)
    assert_same_bits(loaded, plain_init(MODELS["gpt"], seed=1))
    with pytest.raises(CheckpointError, match="step_2.tmp: the checkpoint is incomplete"):
        Checkpoint.open(run.path / "pretrain/checkpoints/step_2.tmp")

    run_ranks(1, save_several, run.path / "pretrain", [2], keep=2)
    assert find_checkpoint("pretrain", run).name == "step_2"


def save_with_little_room(folder: Path, steps: list[int], limited_at: int) -> list[bool]:
    """Whether each step was written. At one step files cannot grow beyond 10 kB on the last rank, as on a full disk."""
    config = MODELS["gpt"]
    model = sharded_model(config, plain_init(config, seed=1), Grid(dp=2))
    saver, held, written = Saver(folder, model.groups, config_yaml="", tokenizer=StubTokenizer(), prune=lambda: None), held_by(model), []
    state = {"model": config.model_dump(mode="json"), "head": "lm"}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for step in steps:
        if step == limited_at and model.groups.whole.rank() == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        saver.save(step, {"model": iter(held.items())}, state)
        written.append(saver.wait())
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return written


def test_checkpoint_that_cannot_be_written_leaves_the_others_whole(tmp_path):
    for written in run_ranks(2, save_with_little_room, tmp_path, [1, 2, 3], 2):
        assert written == [True, False, True]
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step_1", "step_3"]
    assert [verify(path) for path in complete_checkpoints(tmp_path)] == [[], []]
    assert not list((tmp_path / "checkpoints").glob("*.tmp")), "room for the next"
