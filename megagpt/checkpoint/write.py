"""Write tensors from one process, file by file: a whole checkpoint, or safetensors files alone. No process group is needed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from megagpt.checkpoint.layout import FORMAT, INDEX, SaveError
from megagpt.checkpoint.save import SavesTokenizer, complete
from megagpt.runtime import atomic

FILE_BYTES = 1 << 30
"""Tensors that are held in memory until they become one file; a larger tensor gets a file of its own."""


def write_files(folder: Path, stem: str, tensors: Iterable[tuple[str, Tensor]], file_bytes: int = FILE_BYTES) -> dict[str, dict[str, Any]]:
    """Tensors -> `<stem>-<i>-of-<n>.safetensors`. Returns name -> {"file", "shape"}."""
    parts: list[dict[str, list[int]]] = []
    held: dict[str, Tensor] = {}

    def flush() -> None:
        if held:
            parts.append({name: list(tensor.shape) for name, tensor in held.items()})
            save_file(held, str(folder / f"{stem}-{len(parts)}.part"), metadata={"format": "pt"})
            held.clear()

    for name, tensor in tensors:
        if sum(other.nbytes for other in held.values()) + tensor.nbytes > file_bytes:
            flush()
        held[name] = tensor.contiguous()
    flush()
    index = {}
    for number, shapes in enumerate(parts, 1):
        file = folder / f"{stem}-{number:05d}-of-{len(parts):05d}.safetensors"
        os.replace(folder / f"{stem}-{number}.part", file)
        atomic.sync(file)
        index |= {name: {"file": file.name, "shape": shape} for name, shape in shapes.items()}
    return index


def write_checkpoint(
    final: Path, tensors: Iterable[tuple[str, Tensor]], state: Mapping[str, Any], *, config_yaml: str, tokenizer: SavesTokenizer
) -> None:
    """A whole checkpoint of a model's canonical tensors, without optimizer states; `final` is absent until it is whole.

    Args:
        state: what state.json says, `step` included; `format` is added.

    Raises:
        SaveError: it cannot be written.
    """
    folder = final.with_name(final.name + ".tmp")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        index: dict[str, Any] = {kind: {} for kind in INDEX} | {"model": write_files(folder, "model", tensors)}
        complete(folder, final, index, {"format": FORMAT, **state}, config_yaml=config_yaml, tokenizer=tokenizer)
    except (OSError, SafetensorError) as error:
        raise SaveError(f"{final}: cannot be written ({getattr(error, 'strerror', None) or error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
