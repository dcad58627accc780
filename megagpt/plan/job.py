"""What a plan is made of: one model on one grid, and how it is worked on."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

from megagpt.config.schema import ParallelConfig
from megagpt.model.param_map import TARGETS, canonical_shapes, entry, is_trained
from megagpt.model.shape import ModelShape
from megagpt.parallel.grid import Grid
from megagpt.plan.hardware import Hardware

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Job:
    """One model on its grid, and the sizes of its passes."""

    shape: ModelShape
    grid: Grid
    parallel: ParallelConfig
    hardware: Hardware
    rows: int
    """In a microbatch."""
    length: int
    """Tokens of a row, on all context-parallel ranks together."""
    num_microbatches: int
    """Of one optimizer step on each replica."""
    dtype: str = "fp32"
    """Of weights and activations."""
    scalar_head: bool = False
    dropout: float = 0.0
    optimizer: str = "adamw"
    head_length: int | None = None
    """Tokens of a row of which the head's output is wanted at most; default: all."""
    fused: bool = field(kw_only=True)
    """The ops of `kernels/` run as fused kernels, which keep what they read and nothing in between."""

    @property
    def tokens(self) -> int:
        """Of one microbatch on one rank, between the attentions."""
        return self.rows * self.length // self.grid.cp

    @property
    def head_tokens(self) -> int:
        """Of one microbatch on one rank that pass through the head."""
        return self.tokens if self.head_length is None else self.rows * self.head_length // self.grid.cp

    @property
    def last_tokens(self) -> int:
        """Of one microbatch on one rank that pass through the last layer's MLP and the final norm; a dropout mask is for whole rows."""
        return self.tokens if self.dropout else self.head_tokens

    @property
    def tokens_per_step(self) -> int:
        return self.rows * self.length * self.num_microbatches * self.grid.dp

    @property
    def num_bytes(self) -> int:
        """Of one weight or activation."""
        return BYTES[self.dtype]

    def bandwidth(self, num_neighbours: int) -> float:
        """Bytes a second between ranks of groups that each lie within so many consecutive ranks."""
        return self.hardware.bandwidth(num_neighbours, self.grid.offset)

    @property
    def sequence_shards(self) -> int:
        """Tensor-parallel ranks that share norms and residuals (Korthikanti et al. 2022, section 4.2.2)."""
        return self.grid.tp if self.parallel.sequence_parallel else 1

    @property
    def num_replicas(self) -> int:
        """Ranks over which ZeRO shards: those that hold the same weights."""
        return self.grid.dp * self.grid.cp

    @property
    def distinct_stages(self) -> list[int]:
        """Pipeline stages of which one needs the most of whatever is asked: all where they differ, else the ends (the first keeps
        the most microbatches, the last has the head) and the one after the first."""
        if self.parallel.stage_layers is not None:
            return list(range(self.grid.pp))
        return sorted({0, min(1, self.grid.pp - 1), self.grid.pp - 1})

    def layers(self, stage: int) -> list[int]:
        """Numbers of layers in the blocks of one pipeline stage."""
        given, chunks = self.parallel.stage_layers, self.parallel.virtual_pipeline_size
        if given is not None:
            return given[stage :: self.grid.pp]
        return [self.shape.config.num_layers // (self.grid.pp * chunks)] * chunks

    def parameters(self, stage: int) -> list[Parameter]:
        """Everything that a rank of this pipeline stage holds."""
        return stage_parameters(self.shape, self.grid.tp, sum(self.layers(stage)), stage == 0, stage == self.grid.pp - 1, self.scalar_head)

    def trained(self, stage: int) -> list[Parameter]:
        """What of it is trained: all, or adapters of low rank and a scalar head."""
        return [parameter for parameter in self.parameters(stage) if parameter.trained]


def without_recomputation(job: Job) -> Job:
    """The same where every activation is kept."""
    return replace(job, parallel=job.parallel.model_copy(update={"recompute": "none"}))


@dataclass(frozen=True)
class Parameter:
    """Tensors of one size on one rank."""

    size: int
    """Numbers in each."""
    count: int
    """How many there are."""
    decays: bool
    """A matrix, or all that is trained where that is adapters: weight decay applies, so it lies in the optimizer's first group."""
    trained: bool = True


def stage_parameters(shape: ModelShape, tp: int, num_layers: int, first: bool, last: bool, scalar_head: bool = False) -> list[Parameter]:
    """The tensors of one rank, from the table of `model/param_map.py`: what is cut, what is fused, what is padded.

    Args:
        first, last: the rank holds the embedding, or the final norm and the head. Tied embeddings of a model in one piece are
            one tensor; between stages the last one has a copy.
    """
    names = ["embedding.word_embeddings.weight"] * first + ["embedding.position_embeddings.weight"] * (first and not shape.is_llama)
    kinds = ("weight",) if shape.is_llama else ("weight", "bias")
    if last:
        names += [f"decoder.final_layernorm.{kind}" for kind in kinds]
        if scalar_head:
            names += ["scalar_head.weight", "scalar_head.bias"]
        elif not (shape.tied and first):
            names.append("output_layer.weight")
    modules = ("input_layernorm", "self_attention.linear_qkv", "self_attention.linear_proj", "pre_mlp_layernorm", "mlp.linear_fc1", "mlp.linear_fc2")
    layer = [f"decoder.layers.0.{module}.{kind}" for module in modules for kind in kinds]
    if shape.lora is not None:
        layer += [f"decoder.layers.0.{TARGETS[target]}.lora.{factor}" for target in shape.lora.targets for factor in "ab"]
    return [_parameter(shape, tp, name, 1, scalar_head) for name in names] + [_parameter(shape, tp, name, num_layers, scalar_head) for name in layer]


@functools.lru_cache(maxsize=4096)
def _parameter(shape: ModelShape, tp: int, name: str, count: int, scalar_head: bool) -> Parameter:
    facts, sizes = entry(name, shape), _sizes(shape, scalar_head)
    rows = sum(sizes[piece][0] for piece in facts.pieces)
    if facts.layout == "vocab":
        rows = shape.padded_vocab_size(tp)
    width = sizes[facts.pieces[0]][1:]
    size = rows * (width[0] if width else 1) // (1 if facts.axis is None else tp)
    return Parameter(size, count, bool(width) or shape.lora is not None, is_trained(facts.pieces[0], shape))


@functools.lru_cache(maxsize=64)
def _sizes(shape: ModelShape, scalar_head: bool) -> dict[str, tuple[int, ...]]:
    one_layer = replace(shape, config=shape.config.model_copy(update={"num_layers": 1}))  # all layers are alike
    return canonical_shapes(one_layer, scalar_head)


def total(parameters: list[Parameter]) -> int:
    """Numbers in all of them."""
    return sum(parameter.size * parameter.count for parameter in parameters)
