"""What a foreign model is, wherever it came from: its settings, its tensors under our names, its tokenizer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor
from tqdm import tqdm

from megagpt.config.schema import ModelConfig
from megagpt.runtime.errors import Foreseen
from megagpt.tokenizer.tokenizer import Tokenizer

Item = TypeVar("Item")


class ConvertError(Foreseen, ValueError):
    """A model that cannot be converted; the message names the file, the setting or tensor, and the rule."""


@dataclass(frozen=True)
class Source:
    """A foreign model, opened for reading. Its settings, names and shapes have been checked."""

    path: Path
    model: ModelConfig
    """`vocab_size` is the number of embedding rows, which may be more than the tokenizer has ids."""
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    """Starts a pass over all canonical names and tensors; one stored tensor is in memory at a time."""
    num_tensors: int
    """Canonical tensors in one pass."""
    tokenizer: Callable[[], Tokenizer]
    """Loads the tokenizer that came with the model."""


@contextlib.contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """A Hugging Face folder (GPT-2 and Llama families, safetensors) or a GGUF file (architecture `llama`).

    Raises:
        ConvertError: nothing there, another format, or a model that we do not compute as its authors do.
    """
    if path.is_dir():
        from megagpt.convert.huggingface import open_folder as opener
    elif path.suffix == ".gguf" and path.is_file():
        from megagpt.convert.gguf_file import open_gguf as opener
    elif path.is_file():
        raise ConvertError(f"{path}: neither a Hugging Face folder nor a .gguf file")
    else:
        raise ConvertError(f"{path}: no such folder or file")
    with opener(path) as source:
        yield source


def progress(items: Iterable[Item], total: int, what: str) -> Iterable[Item]:
    """The same items, with a progress line once the work has taken two seconds."""
    interval = 1.0 if sys.stderr.isatty() else 15.0
    return tqdm(items, total=total, desc=what, unit="tensor", file=sys.stderr, delay=2.0, mininterval=interval, dynamic_ncols=True)
