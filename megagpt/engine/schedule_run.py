"""Run microbatches through Megatron-core's schedules: no pipeline, or 1F1B over the stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.pipeline_parallel.schedules import (
    forward_backward_no_pipelining,
    forward_backward_pipelining_with_interleaving,
    forward_backward_pipelining_without_interleaving,
)
from torch import Tensor

from megagpt.model.gpt import GPT
from megagpt.runtime.cpu_backend import model_scope, schedule_scope

ForwardStep = Callable[[GPT, Any], tuple[Tensor, Callable[[Tensor], tuple[Tensor, Any]]]]
"""(model, microbatch) -> (output of this stage, function of the last stage's output -> (loss, whatever to collect))."""


def run_schedule(
    models: Sequence[GPT], microbatches: Sequence[Any], forward_step: ForwardStep, *, rows: int, length: int, forward_only: bool
) -> list[Any]:
    """Forward (and backward) over all microbatches; gradients are left on the parameters.

    Args:
        models: this rank's blocks of layers; several for interleaved 1F1B (Narayanan et al. 2021, section 2.2.2), which
            wants a multiple of the pipeline's ranks as number of microbatches.
        microbatches: the same number on every rank of the grid; each stage reads its own copy.
        rows, length: shape [rows, length] of every microbatch's tokens, whole rows; sizes the messages between stages.

    Returns:
        What the loss functions collected, in microbatch order, on ranks of the last stage; [] elsewhere.
    """
    collection = models[0].groups.collection

    def step(iterator: Iterator[Any], inner: GPT):
        with model_scope():
            return forward_step(inner, next(iterator))

    arguments: dict[str, Any] = dict(
        forward_step_func=step, num_microbatches=len(microbatches), seq_length=length, micro_batch_size=rows,
        forward_only=forward_only, pg_collection=collection,
    )
    with schedule_scope(), torch.set_grad_enabled(not forward_only):
        if collection.pp.size() == 1:
            return forward_backward_no_pipelining(model=models[0], data_iterator=iter(microbatches), **arguments)
        arguments["p2p_communicator"] = P2PCommunicator(pp_group=collection.pp, config=models[0].config)
        if len(models) > 1:
            iterators = [iter(microbatches) for _ in models]
            collected = forward_backward_pipelining_with_interleaving(model=list(models), data_iterator=iterators, **arguments)
        else:
            collected = forward_backward_pipelining_without_interleaving(model=models[0], data_iterator=iter(microbatches), **arguments)
    return collected if models[-1].post_process else []


def row_structure(batch: Any) -> dict[str, Tensor | None]:
    """What a microbatch says about its rows beyond their tokens, as GPT.forward takes it."""
    return {name: getattr(batch, name, None) for name in ("segments", "branches", "hidden", "only")}


def infer(
    models: GPT | Sequence[GPT], microbatches: Sequence[Any], read: Callable[[Tensor, Any], Any], *, rows: int, length: int
) -> list[Any]:
    """Forward only, without dropout: `read(output of the last stage, microbatch)` of every microbatch on the last stage."""
    models = [models] if isinstance(models, GPT) else models
    was_training = models[0].training
    for model in models:
        model.eval()

    def forward_step(inner: GPT, batch: Any):
        return inner(batch.tokens, **row_structure(batch)), lambda output: (torch.zeros(1), read(output, batch))

    try:
        return run_schedule(models, microbatches, forward_step, rows=rows, length=length, forward_only=True)
    finally:
        for model in models:
            model.train(was_training)
