"""Run microbatches through Megatron-core's schedules: no pipeline, or 1F1B over the stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.pipeline_parallel.schedules import (
    forward_backward_no_pipelining,
    forward_backward_pipelining_without_interleaving,
)
from torch import Tensor

from megagpt.model.gpt import GPT
from megagpt.runtime.cpu_backend import schedule_scope

ForwardStep = Callable[[GPT, Any], tuple[Tensor, Callable[[Tensor], tuple[Tensor, Any]]]]
"""(model, microbatch) -> (output of this stage, function of the last stage's output -> (loss, whatever to collect))."""


def run_schedule(
    model: GPT, microbatches: Sequence[Any], forward_step: ForwardStep, *, rows: int, length: int, forward_only: bool
) -> list[Any]:
    """Forward (and backward) over all microbatches; gradients are left on the parameters.

    Args:
        microbatches: the same number on every rank of the grid; each stage reads its own copy.
        rows, length: shape [rows, length] of every microbatch's tokens; sizes the messages between stages.

    Returns:
        What the loss functions collected, in microbatch order, on ranks of the last stage; [] elsewhere.
    """
    collection = model.groups.collection

    def step(iterator: Iterator[Any], inner: GPT):
        return forward_step(inner, next(iterator))

    arguments: dict[str, Any] = dict(
        forward_step_func=step, data_iterator=iter(microbatches), model=model, num_microbatches=len(microbatches),
        seq_length=length, micro_batch_size=rows, forward_only=forward_only, pg_collection=collection,
    )
    with schedule_scope(), torch.set_grad_enabled(not forward_only):
        if collection.pp.size() == 1:
            return forward_backward_no_pipelining(**arguments)
        communicator = P2PCommunicator(pp_group=collection.pp, config=model.config)
        collected = forward_backward_pipelining_without_interleaving(**arguments, p2p_communicator=communicator)
    return collected if model.post_process else []


def infer(model: GPT, microbatches: Sequence[Any], read: Callable[[Tensor, Any], Any], *, rows: int, length: int) -> list[Any]:
    """Forward only, without dropout: `read(output of the last stage, microbatch)` of every microbatch on the last stage."""
    was_training = model.training
    model.eval()

    def forward_step(inner: GPT, batch: Any):
        return inner(batch.tokens), lambda output: (torch.zeros(1), read(output, batch))

    try:
        return run_schedule(model, microbatches, forward_step, rows=rows, length=length, forward_only=True)
    finally:
        model.train(was_training)
