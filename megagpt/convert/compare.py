"""Is a checkpoint the model that a foreign folder or file holds? Tensor by tensor, and setting by setting."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megagpt.checkpoint.load import Checkpoint
from megagpt.config.schema import ModelConfig
from megagpt.convert.import_model import VOCABULARY_TENSORS
from megagpt.convert.source import ConvertError, Source, progress
from megagpt.model.shape import ModelShape


@dataclass(frozen=True)
class Comparison:
    """What was found; two models are the same where `settings` is empty and `difference` small enough."""

    settings: tuple[str, ...]
    """One line for each setting that differs and that the model's output depends on."""
    difference: float
    """Largest absolute difference of two numbers; inf where one of them is NaN."""
    worst: str
    """Canonical name of the tensor that holds it."""
    num_tensors: int
    num_different: int
    """Tensors with any difference at all."""
    only_in_one: int
    """Vocabulary rows that only one of the two has: those that an import added. They are not compared."""


def compare(checkpoint: Checkpoint, source: Source) -> Comparison:
    """Compare in float32, one tensor at a time.

    Raises:
        ConvertError: models of other sizes, whose tensors cannot be compared.
    """
    ours, theirs = _settings(checkpoint.language_model().model_config), _settings(source.model)
    for name in ("family", "layers", "hidden size", "MLP width", "positions", "query groups", "tied embeddings"):
        if ours[name] != theirs[name]:
            raise ConvertError(f"{checkpoint.path}: {name} = {ours[name]}, and {theirs[name]} in {source.path}: not the same model")
    settings = tuple(f"{name}: {ours[name]} in the checkpoint, {theirs[name]} in {source.path}" for name in ours if ours[name] != theirs[name])
    differences: dict[str, float] = {}
    with checkpoint.tensors("model") as read:
        for name, tensor in progress(source.tensors(), source.num_tensors, "verify"):
            mine, rows = read(name), None
            if name in VOCABULARY_TENSORS:
                rows = min(len(mine), len(tensor))
            difference = (mine[:rows].float() - tensor[:rows].float()).abs().max().item()
            differences[name] = math.inf if math.isnan(difference) else difference
    worst = max(differences, key=differences.__getitem__)
    return Comparison(
        settings, differences[worst], worst, len(differences), sum(difference > 0 for difference in differences.values()),
        abs(checkpoint.model_config.vocab_size - source.model.vocab_size),
    )


def _settings(model: ModelConfig) -> dict[str, object]:
    """What the output depends on besides the tensors, defaults filled in."""
    shape = ModelShape(model)
    settings: dict[str, object] = {
        "family": model.family, "layers": model.num_layers, "hidden size": model.hidden_size, "MLP width": shape.ffn_hidden_size,
        "heads": model.num_attention_heads, "query groups": shape.num_query_groups, "tied embeddings": shape.tied, "norm_epsilon": model.norm_epsilon,
    }  # fmt: skip
    # Learned positions are a tensor; rotary ones a base, and any length.
    return settings | ({"positions": "rotary", "rotary_base": model.rotary_base} if shape.is_llama else {"positions": model.max_sequence_length})
