"""How foreign files name and lay out the canonical tensors of `model/param_map.py`; both directions read this one table.

- Llama, Hugging Face: the same tensors under other names.
- GPT-2, Hugging Face: linear weights are [in, out] (its `Conv1D`), and query, key and value stand side by side in one.
- Llama, GGUF: rows of query and key are interleaved within each head. Hugging Face's rotation turns columns i and i + d/2
  of a head, GGUF's turns 2i and 2i + 1, so its converter stores row i + j d/2 as row 2i + j (j = 0, 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megagpt.convert.source import ConvertError
from megagpt.model.param_map import canonical_shapes
from megagpt.model.shape import ModelShape

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Stored:
    """One tensor of a foreign file: the canonical tensors that lie in it, one behind the other."""

    pieces: tuple[str, ...]
    transposed: bool = False
    """Columns and rows are exchanged."""
    interleaved_heads: int = 0
    """Number of heads whose rows are interleaved as GGUF's rotation wants them; 0: none."""

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        """Its shape in the file, from the canonical shapes."""
        rows, *columns = shapes[self.pieces[0]]
        whole = (sum(shapes[piece][0] for piece in self.pieces), *columns)
        return whole[::-1] if self.transposed else whole

    def split(self, tensor: Tensor, shapes: Shapes) -> Iterator[tuple[str, Tensor]]:
        """As it lies in the file -> its canonical tensors."""
        tensor = tensor.T if self.transposed else tensor
        if self.interleaved_heads:
            tensor = tensor.unflatten(0, (self.interleaved_heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        for name, piece in zip(self.pieces, tensor.split([shapes[piece][0] for piece in self.pieces])):
            yield name, piece.contiguous()

    def join(self, pieces: Sequence[Tensor]) -> Tensor:
        """The inverse of `split`."""
        tensor = torch.cat(list(pieces)) if len(pieces) > 1 else pieces[0]
        if self.interleaved_heads:
            tensor = tensor.unflatten(0, (self.interleaved_heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        return (tensor.T if self.transposed else tensor).contiguous()


_LLAMA = {
    "embedding.tokens": "model.embed_tokens", "final_norm": "model.norm", "output": "lm_head",
    "attention_norm": "input_layernorm", "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj", "attention.output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm", "mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj",
}  # fmt: skip
_GPT2 = {
    "embedding.tokens": "transformer.wte", "embedding.positions": "transformer.wpe", "final_norm": "transformer.ln_f", "output": "lm_head",
    "attention_norm": "ln_1", "attention.query": "attn.c_attn", "attention.key": "attn.c_attn", "attention.value": "attn.c_attn",
    "attention.output": "attn.c_proj", "mlp_norm": "ln_2", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj",
}  # fmt: skip
_GGUF_LLAMA = {
    "embedding.tokens": "token_embd", "final_norm": "output_norm", "output": "output",
    "attention_norm": "attn_norm", "attention.query": "attn_q", "attention.key": "attn_k", "attention.value": "attn_v",
    "attention.output": "attn_output", "mlp_norm": "ffn_norm", "mlp.gate": "ffn_gate", "mlp.up": "ffn_up", "mlp.down": "ffn_down",
}  # fmt: skip


def huggingface_names(shape: ModelShape) -> dict[str, Stored]:
    """Every tensor of a transformers `LlamaForCausalLM` or `GPT2LMHeadModel` by its name there, in the order of the forward pass."""
    if shape.is_llama:
        return _stored(shape, _LLAMA, "model.layers.")
    names = _stored(shape, _GPT2, "transformer.h.")
    conv1d = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    return {name: Stored(stored.pieces, transposed=name.endswith(conv1d)) for name, stored in names.items()}


def gguf_names(shape: ModelShape) -> dict[str, Stored]:
    """Every tensor of a GGUF file of architecture `llama` by its name there, in the order of the forward pass."""
    heads = {"attn_q.weight": shape.config.num_attention_heads, "attn_k.weight": shape.num_query_groups}
    names = _stored(shape, _GGUF_LLAMA, "blk.")
    return {
        name: Stored(stored.pieces, interleaved_heads=next((number for end, number in heads.items() if name.endswith(end)), 0))
        for name, stored in names.items()
    }


def _stored(shape: ModelShape, modules: Mapping[str, str], layer_prefix: str) -> dict[str, Stored]:
    """Their name -> the canonical tensors that fall on it."""
    pieces: dict[str, tuple[str, ...]] = {}
    for name in canonical_shapes(shape):
        module, kind = name.rsplit(".", 1)
        if module.startswith("layers."):
            _, number, module = module.split(".", 2)
            theirs = f"{layer_prefix}{number}.{modules[module]}.{kind}"
        else:
            theirs = f"{modules[module]}.{kind}"
        pieces[theirs] = (*pieces.get(theirs, ()), name)
    return {name: Stored(parts) for name, parts in pieces.items()}


def check_names(where: object, found: Shapes, names: Mapping[str, Stored], shape: ModelShape) -> None:
    """Do the tensors of a file fit the model that its settings describe?

    Args:
        found: name in the file -> its shape there; without those that may be left out.

    Raises:
        ConvertError: one is missing, has another shape, or is none that this model has.
    """
    shapes = canonical_shapes(shape)
    for name, stored in names.items():
        if name not in found:
            raise ConvertError(f"{where}: holds no tensor {name!r}, which its settings ask for")
        if tuple(found[name]) != stored.shape(shapes):
            raise ConvertError(f"{where}: {name} has shape {list(found[name])}; its settings ask for {list(stored.shape(shapes))}")
    if unknown := sorted(found.keys() - names.keys()):
        more = f" and {len(unknown) - 1} others" if len(unknown) > 1 else ""
        raise ConvertError(f"{where}: tensor {unknown[0]!r}{more}: the {shape.config.family} family has no place for it")
