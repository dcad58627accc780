"""A foreign model -> a whole checkpoint, from which `sft`, `reward`, `generate` and the others start as from any other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from megagpt.checkpoint.write import write_checkpoint
from megagpt.config.schema import ModelConfig
from megagpt.config.show import to_yaml
from megagpt.convert.source import ConvertError, Source, progress
from megagpt.runtime.log import say
from megagpt.runtime.version import code_version
from megagpt.tokenizer.tokenizer import Tokenizer

VOCABULARY_TENSORS = ("embedding.tokens.weight", "output.weight")
"""Tensors with one row for each token id."""


def import_model(source: Source, stage_folder: Path, dtype: torch.dtype | None = None, tokenizer: Tokenizer | None = None) -> Path:
    """Write `checkpoints/step_0` in a stage folder; one stored tensor and one file's worth of tensors are in memory at a time.

    Control tokens that the vocabulary lacks (padding, and the chat tokens where it has not those of ChatML) have got ids behind
    it. Ids without a row in the embedding get one: the mean of the others, so that none is likelier than a token that is known.
    A beginning-of-text token that a model saw in front of every text is not put there: our rows begin with the text.

    Args:
        dtype: of the weights; default: as they are stored, where that is float32, bfloat16 or float16, else float32.
        tokenizer: instead of the source's own.

    Raises:
        ConvertError: a tokenizer with more ids than the embedding has rows, numbers that are not finite, or there is a checkpoint already.
        SaveError: it cannot be written.
    """
    final = stage_folder / "checkpoints" / "step_0"
    if final.exists():
        raise ConvertError(f"{final}: exists already; remove it or name another folder")
    tokenizer = tokenizer or source.tokenizer()
    rows = source.model.vocab_size
    if tokenizer.own_size > rows:
        raise ConvertError(f"{source.path}: the tokenizer has {tokenizer.own_size} ids, the embedding only {rows} rows: not this model's tokenizer")
    model = source.model.model_copy(update={"vocab_size": max(rows, tokenizer.vocab_size)})
    if added := model.vocab_size - rows:
        names = [name for name, number in tokenizer.special_ids.items() if number >= rows]
        say(f"[convert] the vocabulary grows from {rows} to {model.vocab_size} for {', '.join(names)}; new rows are the mean of the others")
    write_checkpoint(
        final, progress(_written(source, dtype, added), source.num_tensors, "import"),
        {
            "step": 0, "stage": "import", "head": "lm", "model": model.model_dump(mode="json"), "tokenizer_hash": tokenizer.content_hash,
            "parents": {}, "code": code_version(), "source": {"path": str(source.path.resolve()), "vocab_size": rows},
        },
        config_yaml=_config_yaml(source.path, model), tokenizer=tokenizer,
    )
    return final


def _written(source: Source, dtype: torch.dtype | None, added: int) -> Iterator[tuple[str, Tensor]]:
    """The source's tensors with the added rows, in the type that they are written in, without anything that is not finite."""
    for name, tensor in source.tensors():
        if name in VOCABULARY_TENSORS:
            tensor = with_mean_rows(tensor, added)
        stays = tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)
        tensor = tensor.to(dtype or (tensor.dtype if stays else torch.float32))
        if not tensor.isfinite().all():
            raise ConvertError(f"{source.path}: {name} holds numbers that are not finite{f' in {dtype}' if dtype else ''}")
        yield name, tensor


def with_mean_rows(tensor: Tensor, count: int) -> Tensor:
    """[rows, h] -> [rows + count, h]: the last ones are the mean of the first."""
    if count == 0:
        return tensor
    mean = tensor.float().mean(dim=0, keepdim=True).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(count, -1)])


def _config_yaml(path: Path, model: ModelConfig) -> str:
    indented = "".join(f"  {line}\n" for line in to_yaml(model).splitlines())
    return f"# from {path}\nmodel:\n{indented}"
