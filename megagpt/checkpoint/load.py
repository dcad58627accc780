"""Read a checkpoint into a model on any grid; each rank reads only the tensors of its own stage."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from megagpt.checkpoint.layout import INDEX, CheckpointError, read_json, read_state
from megagpt.config.schema import LoraConfig, ModelConfig
from megagpt.model import param_map
from megagpt.model.gpt import GPT, build_chunks
from megagpt.model.init import initial_tensor
from megagpt.model.layout import Layout
from megagpt.model.lora import merged_weight
from megagpt.model.shape import ModelShape
from megagpt.parallel.groups import Groups
from megagpt.tokenizer.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk, opened for reading."""

    path: Path
    state: dict[str, Any]

    @classmethod
    def open(cls, path: Path, *, check_sizes: bool = True) -> Checkpoint:
        """Raises CheckpointError for an incomplete or damaged folder, or tensors that are not those of its model."""
        checkpoint = cls(path, read_state(path, check_sizes=check_sizes))
        stored = read_json(path, INDEX["model"])
        for name, needed in param_map.canonical_shapes(ModelShape(checkpoint.model_config, checkpoint.lora), checkpoint.scalar_head).items():
            if name not in stored:
                raise CheckpointError(f"{path}: holds no tensor {name!r}")
            if stored[name]["shape"] != list(needed):
                raise CheckpointError(f"{path}: {name} has shape {stored[name]['shape']}; the model needs {list(needed)}")
        return checkpoint

    def language_model(self) -> Checkpoint:
        """Itself; raises CheckpointError for a reward model."""
        if self.scalar_head:
            raise CheckpointError(f"{self.path}: holds a reward model; a language model is needed here")
        return self

    def reward_model(self) -> Checkpoint:
        """Itself; raises CheckpointError for a language model."""
        if not self.scalar_head:
            raise CheckpointError(f"{self.path}: holds a language model; a reward model is needed here")
        return self

    @property
    def model_config(self) -> ModelConfig:
        return ModelConfig.model_validate(self.state["model"])

    @property
    def lora(self) -> LoraConfig | None:
        """Adapters that it holds beside the weights that they adapt."""
        stored = self.state.get("lora")
        return None if stored is None else LoraConfig.model_validate(stored, strict=False)

    @property
    def scalar_head(self) -> bool:
        return self.state["head"] == "scalar"

    @contextlib.contextmanager
    def tensors(self, kind: str, *, merged: bool = True) -> Iterator[Callable[[str], Tensor]]:
        """name -> tensor of this kind (`model`, `optimizer`), from memory-mapped files that are open within the block.

        Args:
            merged: adapters are put into the weights that they adapt, as all need that do not go on training them.

        Raises:
            CheckpointError: by the function, for a name that is not there.
        """
        index = read_json(self.path, INDEX[kind])
        files: dict[str, Any] = {}
        with contextlib.ExitStack() as stack:

            def read(name: str) -> Tensor:
                if name not in index:
                    raise CheckpointError(f"{self.path}: holds no tensor {name!r}")
                file = index[name]["file"]
                if file not in files:
                    files[file] = stack.enter_context(safe_open(str(self.path / file), framework="pt"))
                return files[file].get_tensor(name)

            lora = self.lora if merged and kind == "model" else None
            yield read if lora is None else lambda name: merged_weight(name, read, lora)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with."""
        tokenizer = load_tokenizer(self.path / "tokenizer")
        if tokenizer.content_hash != self.state["tokenizer_hash"]:
            raise CheckpointError(f"{self.path / 'tokenizer'}: is not the tokenizer that the model was trained with")
        return tokenizer


def load_model(
    checkpoint: Checkpoint, groups: Groups, device: torch.device, *, scalar_head: bool, dropout: float | None = None, seed: int = 0,
    lora: LoraConfig | None = None, dtype: torch.dtype = torch.float32,
) -> GPT:
    """The checkpoint's model on this grid, in one block of layers on each stage."""
    (model,) = load_chunks(checkpoint, groups, device, Layout(dtype), scalar_head=scalar_head, dropout=dropout, seed=seed, lora=lora)
    return model


def load_chunks(
    checkpoint: Checkpoint, groups: Groups, device: torch.device, layout: Layout, *, scalar_head: bool, dropout: float | None = None, seed: int = 0,
    lora: LoraConfig | None = None, num_layers: int | None = None,
) -> list[GPT]:
    """This rank's blocks of layers of the checkpoint's model.

    Args:
        scalar_head: build a reward or value model; a language-model checkpoint gets a new scalar head from `seed`.
        dropout: overrides the probability that the model was trained with.
        lora: put new adapters on the model, from `seed`; those of the checkpoint are part of its weights by now.
        num_layers: take only so many layers, from the bottom.

    Raises:
        CheckpointError: a tensor is missing or has another shape, or a language model is asked of a reward model.
    """
    if not scalar_head:
        checkpoint.language_model()
    config = checkpoint.model_config
    if dropout is not None:
        config = config.model_copy(update={"dropout": dropout})
    if num_layers is not None:
        config = config.model_copy(update={"num_layers": num_layers})
    shape = ModelShape(config, lora)
    models = build_chunks(shape, groups, scalar_head=scalar_head, layout=layout)
    expected = param_map.canonical_shapes(shape, scalar_head)
    with checkpoint.tensors("model") as stored:

        def read(name: str) -> Tensor:
            if name.endswith((".lora_a", ".lora_b")) or (name.startswith("scalar_head.") and not checkpoint.scalar_head):
                return initial_tensor(name, expected[name], shape, seed)
            tensor = stored(name)
            if tuple(tensor.shape) != expected[name]:
                raise CheckpointError(f"{checkpoint.path}: {name} has shape {list(tensor.shape)}; the model needs {list(expected[name])}")
            return tensor

        for model in models:
            model.load_canonical(read)
    return [model.to(device) for model in models]


def new_chunks(config: ModelConfig, groups: Groups, device: torch.device, layout: Layout, seed: int | None) -> list[GPT]:
    """This rank's blocks of layers of a language model with initial weights, the same under every layout.

    Args:
        seed: None leaves the weights undefined, for a checkpoint that is about to fill them.
    """
    shape = ModelShape(config)
    models = build_chunks(shape, groups, layout=layout)
    sizes = param_map.canonical_shapes(shape)
    for model in models if seed is not None else ():
        model.load_canonical(lambda name: initial_tensor(name, sizes[name], shape, seed))
    return [model.to(device) for model in models]
