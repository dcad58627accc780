"""Read a Hugging Face folder: config.json, *.safetensors with or without an index, tokenizer files."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from megagpt.convert.names import check_names, huggingface_names
from megagpt.convert.settings import model_from_huggingface
from megagpt.convert.source import ConvertError, Source
from megagpt.model.param_map import canonical_shapes
from megagpt.model.shape import ModelShape
from megagpt.tokenizer.tokenizer import load_tokenizer

CONFIG, ONE_FILE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_MASK = re.compile(r"h\.\d+\.attn\.(masked_)?bias$|rotary_emb\.inv_freq$")
"""Constants that older versions of transformers saved beside the weights: the causal mask, the frequencies of the rotation."""


@contextlib.contextmanager
def open_folder(folder: Path) -> Iterator[Source]:
    """The model of a Hugging Face folder, open within the block.

    Raises:
        ConvertError: a file is missing or damaged, weights are a pickle, or settings and tensors are not those of our two families.
    """
    settings = _read_json(folder / CONFIG)
    model = model_from_huggingface(settings, folder / CONFIG)
    shape = ModelShape(model)
    names, shapes = huggingface_names(shape), canonical_shapes(shape)
    with contextlib.ExitStack() as stack:
        where: dict[str, Any] = {}
        for file in _weight_files(folder):
            try:
                opened = stack.enter_context(safe_open(str(file), framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ConvertError(f"{file}: damaged ({error})") from None
            where |= {name: opened for name in opened.keys()}
        # A model saved without its head (`GPT2Model`, `LlamaModel`) leaves the first word of its names out; so does OpenAI's GPT-2.
        prefix = "model." if shape.is_llama else "transformer."
        bare = not any(name.startswith(prefix) for name in where)
        theirs = {(prefix + name if bare and not name.startswith("lm_head.") else name): name for name in where if not _MASK.search(name)}
        if shape.tied:
            theirs.pop("lm_head.weight", None)  # a second copy of the embedding
        check_names(folder, {name: tuple(where[stored].get_slice(stored).get_shape()) for name, stored in theirs.items()}, names, shape)

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for name, stored in names.items():
                yield from stored.split(where[theirs[name]].get_tensor(theirs[name]), shapes)

        yield Source(folder, model, tensors, len(shapes), lambda: load_tokenizer(folder))


def _weight_files(folder: Path) -> list[Path]:
    """All safetensors files of the model."""
    if (folder / INDEX).is_file():
        try:
            files = [folder / name for name in sorted(set(_read_json(folder / INDEX)["weight_map"].values()))]
        except (KeyError, AttributeError, TypeError):
            raise ConvertError(f"{folder / INDEX}: has no weight_map") from None
    elif (folder / ONE_FILE).is_file():
        files = [folder / ONE_FILE]
    else:
        files = sorted(folder.glob("*.safetensors"))
    for file in files:
        if not file.is_file():
            raise ConvertError(f"{file}: missing; {INDEX} names it")
    if not files and (pickles := sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])):
        raise ConvertError(
            f"{pickles[0]}: a pickle, which can run any code when it is read; where you trust it, save it as safetensors: "
            f"python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\""
        )
    if not files:
        raise ConvertError(f"{folder}: no *.safetensors here")
    return files


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConvertError(f"{file}: missing; a Hugging Face folder has one") from None
    except (OSError, ValueError) as error:
        raise ConvertError(f"{file}: damaged ({error})") from None
    if not isinstance(content, dict):
        raise ConvertError(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content
