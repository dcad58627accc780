"""Train with megagpt on the ranks of a grid what `plain.py` trains in one process. Every function runs on each rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from megagpt.config.schema import LoraConfig, ModelConfig, OptimizerConfig
from megagpt.data.batch import TokenBatch
from megagpt.engine.build import Engine
from megagpt.engine.schedule_run import infer
from megagpt.engine.token_steps import part_of_rows
from megagpt.kernels.select import set_kernels
from megagpt.model.gpt import GPT, build_chunks
from megagpt.model.layout import Layout
from megagpt.model.shape import ModelShape
from megagpt.model.token_loss import token_nll
from megagpt.parallel.collectives import gather_last_dim, sum_reports
from megagpt.parallel.grid import Grid
from megagpt.parallel.groups import build_groups
from megagpt.parallel.route import replica_rows
from tests.helpers.gather import held_here
from tests.helpers.plain import PlainRun
from tests.helpers.tiny import TinyBatch, microbatches


def sharded_model(config: ModelConfig, state: Mapping[str, Tensor], grid: Grid, layout: Layout = Layout()) -> GPT:
    """This rank's part of the model with these canonical weights, and a scalar head where they have one."""
    (model,) = sharded_chunks(config, state, grid, layout)
    return model


def sharded_chunks(config: ModelConfig, state: Mapping[str, Tensor], grid: Grid, layout: Layout, lora: LoraConfig | None = None) -> list[GPT]:
    """The same for layouts with several blocks of layers on each rank, and with adapters."""
    chunks = build_chunks(ModelShape(config, lora), build_groups(grid), scalar_head="scalar_head.weight" in state, layout=layout)
    for chunk in chunks:
        chunk.load_canonical(state.__getitem__)
    return chunks


def accumulate(engine: Engine, batch: TinyBatch, dropout_key: tuple[int, int] | None = None, num_microbatches: int = 4) -> float:
    """Gradients of one global batch, as the trainers make them; returns the loss."""
    groups = engine.groups

    def loss_function(logits: Tensor, part: TokenBatch):
        nll = token_nll(engine.model, logits, part.labels, part.loss_mask)
        return nll, {"nll": nll.item()}

    dp, dp_rank = groups.grid.dp, groups.coordinates.dp
    row_ids = replica_rows(len(batch.tokens), groups.grid, dp_rank)
    parts = [
        TokenBatch(*part, ids)
        for part, ids in zip(microbatches(batch, dp_rank, dp, num_microbatches), torch.tensor(row_ids).chunk(num_microbatches), strict=True)
    ]
    num_valid = batch.loss_mask.sum().item()
    rows, length = parts[0].tokens.shape
    parts = [part_of_rows(part, groups.coordinates.cp, groups.grid.cp) for part in parts]
    reports = engine.accumulate(parts, loss_function, denominator=num_valid, rows=rows, length=length, dropout_key=dropout_key)
    return sum_reports(groups, reports, ("nll",))["nll"] / num_valid


def sharded_train(
    config: ModelConfig, state: Mapping[str, Tensor], batches: Sequence[TinyBatch], optimizer: OptimizerConfig, grid: Grid, zero_stage: int,
    layout: Layout = Layout(), kernels: str = "auto", lora: LoraConfig | None = None, **engine_options,
) -> PlainRun:
    """`plain_train` on a grid, with these kernels; the tensors are those of this rank's stage."""
    set_kernels(kernels)
    engine = Engine(sharded_chunks(config, state, grid, layout, lora), optimizer, zero_stage, **engine_options)
    losses, norms, gradients_of_step_0 = [], [], {}
    for batch in batches:
        losses.append(accumulate(engine, batch))
        gradients_of_step_0 = gradients_of_step_0 or held_here(engine.canonical_gradients())
        norms.append(engine.step(optimizer.lr))
    parameters = held_here(engine.canonical_parameters())
    engine.close()
    set_kernels("auto")
    return PlainRun(losses, norms, gradients_of_step_0, parameters)


@torch.no_grad()
def full_forward(model: GPT, tokens: Tensor) -> Tensor | None:
    """Logits [b, s, V] of the true vocabulary, or scalars [b, s], on the ranks of the last stage; None elsewhere."""

    def read(output: Tensor, batch: TinyBatch) -> Tensor:
        return output if model.has_scalar_head else whole_vocabulary(model, output)

    rows, length = tokens.shape
    outputs = infer(model, [TinyBatch(tokens, tokens, tokens)], read, rows=rows, length=length)
    return outputs[0] if outputs else None


def whole_vocabulary(model: GPT, logits: Tensor) -> Tensor:
    """[..., padded vocabulary / tp] -> [..., V]."""
    return gather_last_dim(logits, model.groups.collection.tp)[..., : model.shape.vocab_size]
