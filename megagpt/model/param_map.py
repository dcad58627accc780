"""The one table of canonical parameter names: global shape, shard axis, and how Megatron-core fuses and splits them.

Checkpoints, conversion, gathering in tests and weight movement between grids all read it. A Megatron-core parameter is
made of one or more canonical tensors:

- query, key and value are fused by query group: for each group its query heads, then its key, then its value;
- SwiGLU's gate and up projection are fused as [gate; up] on each tensor-parallel rank;
- vocabulary rows are padded to a multiple of tp; padding rows are zero and are never stored.

Adapters of low rank (`lora.py`) have two factors: B is made of one tensor for each that the adapted weight is made of, laid out as
that is; A is one tensor.

So the shards of a rank cannot simply be concatenated; `split` and `merge` know how. Only these two need torch: the planner
reads the table without it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megagpt.config.schema import LoraConfig
from megagpt.model.shape import ModelShape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Entry:
    """One Megatron-core parameter: the canonical tensors that it is made of and how."""

    pieces: tuple[str, ...]
    """Canonical names."""
    layout: str
    """`plain`, `qkv`, `gate_up` or `vocab`."""
    axis: int | None
    """Dimension that tensor-parallel ranks share; None where each holds all of it."""


_NORM = {"input_layernorm": "attention_norm", "pre_mlp_layernorm": "mlp_norm"}
TARGETS = {"qkv": "self_attention.linear_qkv", "proj": "self_attention.linear_proj", "fc1": "mlp.linear_fc1", "fc2": "mlp.linear_fc2"}
"""What an adapter is put on, by its name in the configuration -> Megatron-core's module in a layer."""
_TARGET_OF = {
    "attention.query": "qkv", "attention.key": "qkv", "attention.value": "qkv", "attention.output": "proj",
    "mlp.gate": "fc1", "mlp.up": "fc1", "mlp.down": "fc2",
}  # fmt: skip


def entry(name: str, shape: ModelShape) -> Entry:
    """Table look-up by Megatron-core's parameter name, with global layer numbers (`decoder.layers.7.…`).

    Raises:
        KeyError: a parameter that the table does not know.
    """
    if name == "embedding.word_embeddings.weight":
        return Entry(("embedding.tokens.weight",), "vocab", 0)
    if name == "output_layer.weight":
        # The last stage of a pipeline holds a copy of tied embeddings under this name.
        return Entry(("embedding.tokens.weight" if shape.tied else "output.weight",), "vocab", 0)
    if name == "embedding.position_embeddings.weight":
        return Entry(("embedding.positions.weight",), "plain", None)
    if match := re.fullmatch(r"decoder\.final_layernorm\.(weight|bias)", name):
        return Entry((f"final_norm.{match[1]}",), "plain", None)
    if match := re.fullmatch(r"scalar_head\.(weight|bias)", name):
        return Entry((name,), "plain", None)
    if match := re.fullmatch(r"(decoder\.layers\.(\d+)\.(.+))\.lora\.([ab])", name):
        weight = entry(f"{match[1]}.weight", shape)
        if match[4] == "b":
            return Entry(tuple(piece.replace(".weight", ".lora_b") for piece in weight.pieces), weight.layout, 0 if weight.axis == 0 else None)
        target = next(target for target, module in TARGETS.items() if module == match[3])
        return Entry((f"layers.{match[2]}.{target}.lora_a",), "plain", 1 if weight.axis == 1 else None)
    match = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match:
        layer, module, kind = f"layers.{match[1]}", match[2], match[3]
        if module in _NORM:
            return Entry((f"{layer}.{_NORM[module]}.{kind}",), "plain", None)
        if module == "self_attention.linear_qkv":
            return Entry(tuple(f"{layer}.attention.{part}.{kind}" for part in ("query", "key", "value")), "qkv", 0)
        if module == "self_attention.linear_proj":
            return Entry((f"{layer}.attention.output.{kind}",), "plain", 1 if kind == "weight" else None)
        if module == "mlp.linear_fc1":
            if shape.is_llama:
                return Entry((f"{layer}.mlp.gate.{kind}", f"{layer}.mlp.up.{kind}"), "gate_up", 0)
            return Entry((f"{layer}.mlp.up.{kind}",), "plain", 0)
        if module == "mlp.linear_fc2":
            return Entry((f"{layer}.mlp.down.{kind}",), "plain", 1 if kind == "weight" else None)
    raise KeyError(f"no canonical name for Megatron-core parameter {name!r}")


def factors_of(name: str, lora: LoraConfig) -> tuple[str, str] | None:
    """Canonical names of the factors A and B of the adapter that this tensor has, if it is a weight that has one."""
    match = re.fullmatch(r"layers\.(\d+)\.(.+)\.weight", name)
    target = _TARGET_OF.get(match[2]) if match else None
    return (f"layers.{match[1]}.{target}.lora_a", f"layers.{match[1]}.{match[2]}.lora_b") if target in lora.targets else None


def canonical_shapes(shape: ModelShape, scalar_head: bool = False) -> dict[str, tuple[int, ...]]:
    """Every canonical tensor of a model with its global, unpadded shape, in the order of the forward pass."""
    config, hidden, ffn = shape.config, shape.config.hidden_size, shape.ffn_hidden_size
    query, key = shape.head_size * config.num_attention_heads, shape.head_size * shape.num_query_groups
    kinds = ("weight",) if shape.is_llama else ("weight", "bias")
    table: dict[str, tuple[int, ...]] = {"embedding.tokens.weight": (shape.vocab_size, hidden)}
    if not shape.is_llama:
        table["embedding.positions.weight"] = (config.max_sequence_length, hidden)

    def linear(name: str, rows: int, columns: int) -> None:
        for kind in kinds:
            table[f"{name}.{kind}"] = (rows, columns) if kind == "weight" else (rows,)
        if shape.lora is not None and (factors := factors_of(f"{name}.weight", shape.lora)) is not None:
            table[factors[0]], table[factors[1]] = (shape.lora.rank, columns), (rows, shape.lora.rank)

    def norm(name: str) -> None:
        for kind in kinds:
            table[f"{name}.{kind}"] = (hidden,)

    for i in range(config.num_layers):
        norm(f"layers.{i}.attention_norm")
        linear(f"layers.{i}.attention.query", query, hidden)
        linear(f"layers.{i}.attention.key", key, hidden)
        linear(f"layers.{i}.attention.value", key, hidden)
        linear(f"layers.{i}.attention.output", hidden, query)
        norm(f"layers.{i}.mlp_norm")
        if shape.is_llama:
            linear(f"layers.{i}.mlp.gate", ffn, hidden)
        linear(f"layers.{i}.mlp.up", ffn, hidden)
        linear(f"layers.{i}.mlp.down", hidden, ffn)
    norm("final_norm")
    if scalar_head:
        table["scalar_head.weight"], table["scalar_head.bias"] = (1, hidden), (1,)
    elif not shape.tied:
        table["output.weight"] = (shape.vocab_size, hidden)
    return table


def num_parameters(shape: ModelShape, scalar_head: bool = False) -> int:
    """Numbers in all tensors, tied weights counted once."""
    return sum(math.prod(size) for size in canonical_shapes(shape, scalar_head).values())


def is_trained(name: str, shape: ModelShape) -> bool:
    """Of a canonical tensor: all are, but where there are adapters these alone, and a scalar head."""
    return shape.lora is None or name.endswith((".lora_a", ".lora_b")) or name.startswith("scalar_head.")


def num_trained(shape: ModelShape, scalar_head: bool = False) -> int:
    """Numbers in the tensors that are trained."""
    return sum(math.prod(size) for name, size in canonical_shapes(shape, scalar_head).items() if is_trained(name, shape))


def split(entry: Entry, pieces: list[Tensor], shape: ModelShape, tp: int, rank: int) -> Tensor:
    """Canonical tensors -> the shard that tensor-parallel rank `rank` of `tp` holds."""
    import torch

    if entry.layout == "qkv":
        groups, size = shape.num_query_groups, shape.head_size
        # [groups, heads of this kind in a group, head size, ...]
        by_group = [piece.unflatten(0, (groups, -1, size)) for piece in pieces]
        return torch.cat(by_group, dim=1).chunk(tp, dim=0)[rank].flatten(0, 2).contiguous()
    if entry.layout == "gate_up":
        return torch.cat([piece.chunk(tp, dim=0)[rank] for piece in pieces], dim=0)
    (piece,) = pieces
    if entry.layout == "vocab":
        padding = shape.padded_vocab_size(tp) - piece.size(0)
        piece = torch.cat([piece, piece.new_zeros(padding, *piece.shape[1:])]) if padding else piece
    return piece if entry.axis is None else piece.chunk(tp, dim=entry.axis)[rank].contiguous()


def merge(entry: Entry, shards: list[Tensor], shape: ModelShape) -> dict[str, Tensor]:
    """All tensor-parallel shards of one parameter, in rank order -> its canonical tensors."""
    import torch

    if entry.layout == "qkv":
        groups, size, per_group = shape.num_query_groups, shape.head_size, shape.config.num_attention_heads // shape.num_query_groups
        fused = torch.cat(shards, dim=0).unflatten(0, (groups, per_group + 2, size))
        parts = fused.split([per_group, 1, 1], dim=1)
        return {name: part.flatten(0, 2).contiguous() for name, part in zip(entry.pieces, parts)}
    if entry.layout == "gate_up":
        halves = [shard.chunk(2, dim=0) for shard in shards]
        return {name: torch.cat([half[i] for half in halves]) for i, name in enumerate(entry.pieces)}
    whole = shards[0] if entry.axis is None else torch.cat(shards, dim=entry.axis)
    if entry.layout == "vocab":
        whole = whole[: shape.vocab_size]
    return {entry.pieces[0]: whole.contiguous()}
