"""The model that a stage starts from: of its checkpoint, or of the configuration beside it that will make one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megagpt.checkpoint.layout import CheckpointError, find_checkpoint, read_state
from megagpt.config.chain import STAGES
from megagpt.config.load import ConfigError, apply_overrides, build_config, load_data
from megagpt.config.schema import ModelConfig, PretrainConfig, RlhfConfig, RunConfig, StageConfig
from megagpt.runtime.run_folder import RunFolder

TRAINING = ("pretrain", "sft", "reward", "dpo", "rlhf")


def read_stage(path: Path, overrides: list[str]) -> StageConfig | RlhfConfig:
    """A training stage's configuration; which stage it is for says its key `stage`, or else the end of its name, or else its keys.

    Raises:
        ConfigError: none of these names a training stage, or the file is not a configuration of that stage.
    """
    data = apply_overrides(load_data(path), overrides)
    stage = data.get("stage") or next((stage for stage in TRAINING if path.stem.endswith(stage)), None) or _by_keys(data)
    if stage not in TRAINING:
        raise ConfigError(f"{path}: stage = {stage}: nothing to plan; must be one of {', '.join(TRAINING)}, in the file or by --set stage=…")
    return build_config(STAGES[stage], data, str(path))


def _by_keys(data: dict[str, Any]) -> str | None:
    return "pretrain" if "train_tokens" in data else "rlhf" if "placement" in data else None


def starting_model(start: str, run: RunConfig, folder: Path, children: tuple[Path, ...] = ()) -> ModelConfig:
    """Sizes of the model in the checkpoint `start` of a run; where it is still to come, of the configuration of that stage in
    `folder`, the file whose name ends in the stage and that has the same run.name.

    Args:
        children: configurations whose models come from this one.

    Raises:
        ConfigError: neither is there, or a configuration comes from itself.
    """
    try:
        return ModelConfig.model_validate(read_state(find_checkpoint(start, RunFolder(run)))["model"])
    except CheckpointError:
        pass
    path = _beside(start, run, folder)
    if path is None:
        raise ConfigError(
            f"parent {start}: no checkpoint in {RunFolder(run).path / start}, and {folder} has no *{start}.yaml with run.name {run.name}; "
            "train it first, or put its configuration there"
        )
    if path in children:
        raise ConfigError(f"parent {start}: {path} starts from itself; name a stage before it, or a checkpoint")
    config = read_stage(path, [])
    if isinstance(config, PretrainConfig):
        return pretrain_model(config, folder)
    return starting_model(config.policy if isinstance(config, RlhfConfig) else config.parent, run, folder, (*children, path))


def pretrain_model(config: PretrainConfig, folder: Path) -> ModelConfig:
    """The configured model; the size of its vocabulary may come from the tokenizer's configuration beside it."""
    if config.model.vocab_size is not None:
        return config.model
    path = _beside("tokenizer", config.run, folder)
    if path is None:
        raise ConfigError(
            f"model.vocab_size: comes from the tokenizer, and {folder} has no *tokenizer.yaml of run.name {config.run.name}; --set it"
        )
    return config.model.model_copy(update={"vocab_size": load_data(path)["vocab_size"]})


def _beside(stage: str, run: RunConfig, folder: Path) -> Path | None:
    for path in sorted(folder.glob(f"*{stage}.yaml")):
        if load_data(path).get("run", {}).get("name") == run.name:
            return path
    return None


def count_records(files: list[str]) -> int | None:
    """Records in line-based files; None where one is not there or is of another kind."""
    count = 0
    for file in files:
        if not file.endswith(".jsonl") or not Path(file).is_file():
            return None
        with open(file, "rb") as lines:
            count += sum(1 for line in lines if line.strip())
    return count
