"""A checkpoint of a language model -> a Hugging Face folder that transformers loads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from megagpt.checkpoint.layout import SaveError
from megagpt.checkpoint.load import Checkpoint
from megagpt.checkpoint.write import write_files
from megagpt.convert.huggingface import CONFIG, INDEX, ONE_FILE
from megagpt.convert.names import huggingface_names
from megagpt.convert.settings import huggingface_settings
from megagpt.convert.source import ConvertError, progress
from megagpt.model.shape import ModelShape
from megagpt.runtime import atomic
from megagpt.tokenizer.chat import stop_ids
from megagpt.tokenizer.export import huggingface_files


def export_model(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write config.json, safetensors (several with an index where one gigabyte is not enough) and the tokenizer; `folder` is absent until all is there.

    Args:
        dtype: of the weights; default: as they are stored.

    Raises:
        ConvertError: the folder exists.
        CheckpointError: a reward model, or a damaged checkpoint.
        TokenizerError: a vocabulary that Hugging Face's library cannot hold.
        SaveError: it cannot be written.
    """
    model, tokenizer = checkpoint.language_model().model_config, checkpoint.tokenizer()
    if folder.exists():
        raise ConvertError(f"{folder}: exists already; remove it or name another folder")
    names = huggingface_names(ModelShape(model))
    tokenizer_files = huggingface_files(tokenizer, model.max_sequence_length)
    unfinished = folder.with_name(folder.name + ".tmp")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        with checkpoint.tensors("model") as read:
            stored = read("embedding.tokens.weight").dtype

            def tensors() -> Iterator[tuple[str, Tensor]]:
                for name, parts in names.items():
                    yield name, parts.join([read(piece).to(dtype or stored) for piece in parts.pieces])

            index = write_files(unfinished, "model", progress(tensors(), len(names), "export"))
        files = sorted({facts["file"] for facts in index.values()})
        if len(files) == 1:
            os.replace(unfinished / files[0], unfinished / ONE_FILE)
        else:
            size = sum((unfinished / file).stat().st_size for file in files)
            weight_map = {name: facts["file"] for name, facts in index.items()}
            atomic.write_json(unfinished / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
        kind = str(dtype or stored).removeprefix("torch.")
        atomic.write_json(unfinished / CONFIG, huggingface_settings(model, kind, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id))
        atomic.write_json(unfinished / "generation_config.json", {"eos_token_id": sorted(set(stop_ids(tokenizer))), "pad_token_id": tokenizer.pad_id})
        for name, content in tokenizer_files.items():
            atomic.write_bytes(unfinished / name, content)
        os.replace(unfinished, folder)
    except (OSError, SafetensorError) as error:
        raise SaveError(f"{folder}: cannot be written ({getattr(error, 'strerror', None) or error})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
