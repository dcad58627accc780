"""A trainable model: a GPT stage under a DeepSpeed ZeRO engine, driven by Megatron-core's schedules.

The schedule runs over the bare module, never over the engine: DeepSpeed then sees one backward of many and reduces once.
ZeRO 1-3 do so inside `coalesce_grad_reduction`; ZeRO 0 has no such block, so there the reduction and the clipping are
called by hand. (DeepSpeed's own clipping at ZeRO 0 forgets replicated parameters of later pipeline stages and counts tied
embeddings twice.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad
from torch import Tensor

from megagpt.config.schema import OptimizerConfig
from megagpt.engine.deepspeed_config import deepspeed_config
from megagpt.engine.deepspeed_scope import deepspeed_scope, join_world
from megagpt.engine.optimizer import build_optimizer
from megagpt.engine.schedule_run import run_schedule
from megagpt.model import param_map
from megagpt.model.gpt import GPT
from megagpt.parallel.mpu import DeepSpeedMpu

LossFunction = Callable[[Tensor, Any], tuple[Tensor, dict[str, float | Tensor]]]
"""(output of the last stage, microbatch) -> (summed loss of the microbatch, sums to report)."""


class Engine:
    """Forward, backward, clip and step of one model on its grid.

    Args:
        model: weights already loaded.
        optimizer: update rule, clipping bound.
        zero_stage: 0-3.

    Raises:
        ValueError: ZeRO 3 with a pipeline.
    """

    def __init__(self, model: GPT, optimizer: OptimizerConfig, zero_stage: int) -> None:
        groups = model.groups
        if zero_stage == 3 and groups.grid.pp > 1:
            raise ValueError("zero_stage 3 with pipeline_parallel_size > 1: not supported; take zero_stage 1 or 2")
        self.model, self.groups, self.zero_stage, self.clip_grad = model, groups, zero_stage, optimizer.clip_grad
        self._mpu = DeepSpeedMpu(groups)
        if model.tied_weight is not None and not model.pre_process:
            model.tied_weight.ds_pipe_replicated = True  # its gradient counts once in the norm, on the first stage
        # ZeRO 3 leaves empty parameters behind, so the table must be read before.
        self.entries = list(model.entries())
        with self.scope():
            join_world()
            self.deepspeed, *_ = deepspeed.initialize(
                model=model, optimizer=build_optimizer(model, optimizer), mpu=self._mpu,
                config=deepspeed_config(zero_stage, optimizer.clip_grad), dist_init_required=False,
            )
        if zero_stage == 0:
            self.deepspeed.enable_backward_allreduce = False

    def scope(self) -> contextlib.AbstractContextManager:
        """Where every use of the model must happen, forward passes included: ZeRO 3 gathers weights in its hooks."""
        return deepspeed_scope(self.groups, self._mpu)

    # ------------------------------------------------------------ training

    def accumulate(
        self, microbatches: Sequence[Any], loss_function: LossFunction, *, denominator: float, rows: int, length: int,
        dropout_key: tuple[int, int] | None = None,
    ) -> list[dict[str, Any]]:
        """Gradients of sum over the global batch of loss_function / denominator, reduced over the replicas.

        Args:
            microbatches: this replica's; each has `tokens` [rows, length] and `row_ids` [rows], its rows' numbers in
                the global batch.
            denominator: global count (valid tokens, groups, …) that the summed losses are divided by.
            dropout_key: (seed, step); None trains without dropout, whatever the model's probability.

        Returns:
            The reported sums of each microbatch on the last stage, [] elsewhere.
        """
        self.model.train(dropout_key is not None)
        # The schedule divides by its microbatches and DeepSpeed by the replicas; the loss is a plain sum over both.
        scale = len(microbatches) * self.groups.collection.dp_cp.size() / denominator

        def forward_step(model: GPT, batch: Any):
            def loss(output: Tensor):
                total, report = loss_function(output, batch)
                return total * scale, report

            if dropout_key is not None:
                model.dropout_state.set_key(*dropout_key, batch.row_ids)
            return model(batch.tokens), loss

        arguments = dict(rows=rows, length=length, forward_only=False)
        with self.scope():
            if self.zero_stage == 0:
                self.deepspeed.set_gradient_accumulation_boundary(True)
                collected = run_schedule(self.model, microbatches, forward_step, **arguments)
                self._sum_tied_gradients()
                self.deepspeed.allreduce_gradients()
            else:
                with self.deepspeed.coalesce_grad_reduction():
                    collected = run_schedule(self.model, microbatches, forward_step, **arguments)
                    self._sum_tied_gradients()
        return collected

    def _sum_tied_gradients(self) -> None:
        weight = self.model.tied_weight
        if weight is not None:
            dist.all_reduce(weight.grad, group=self.groups.collection.embd)

    def step(self, lr: float) -> float:
        """Clip, update the parameters, clear the gradients. Returns the global gradient norm before clipping."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr
        with self.scope():
            norm = self._clip_unsharded() if self.zero_stage == 0 else None
            self.deepspeed.step()
            return float(self.deepspeed.get_global_grad_norm()) if norm is None else norm

    def _clip_unsharded(self) -> float:
        """Global norm with every parameter counted once (Pascanu et al. 2013, algorithm 1); scales the gradients."""
        squares = torch.zeros((), dtype=torch.float64)
        counted_here = self.groups.coordinates.tp == 0
        for parameter, _ in self.entries:
            if parameter.grad is not None and not getattr(parameter, "ds_pipe_replicated", False):
                if parameter.tensor_model_parallel or counted_here:
                    squares += parameter.grad.double().pow(2).sum().cpu()
        squares = squares.to(self.entries[0][0].device)
        dist.all_reduce(squares, group=self.groups.collection.mp)
        norm = float(squares.sqrt())
        if self.clip_grad > 0 and norm > self.clip_grad:
            for parameter, _ in self.entries:
                if parameter.grad is not None:
                    parameter.grad.mul_(self.clip_grad / (norm + 1e-6))
        return norm

    # ------------------------------------------------------------ what the model holds, by canonical name

    def canonical_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Full-precision weights of this stage, whole on every rank of it. All ranks of the stage must iterate."""
        yield from self._gather(lambda p: p.data if self.zero_stage == 0 else safe_get_full_fp32_param(p))

    def canonical_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Reduced, unclipped gradients; to be read between `accumulate` and `step`."""
        yield from self._gather(lambda p: p.grad if self.zero_stage == 0 else safe_get_full_grad(p))

    def _gather(self, read: Callable[[torch.nn.Parameter], Tensor]) -> Iterator[tuple[str, Tensor]]:
        with self.scope():
            for parameter, entry in self.entries:
                if getattr(parameter, "ds_pipe_replicated", False):
                    continue  # the first stage holds the same
                local = read(parameter).reshape(getattr(parameter, "ds_shape", parameter.shape)).float().contiguous()
                yield from gather_canonical(self.model, entry, local)

    def close(self) -> None:
        """Take DeepSpeed's hooks off the model."""
        with self.scope():
            self.deepspeed.destroy()


def gather_canonical(model: GPT, entry: param_map.Entry, local: Tensor) -> Iterator[tuple[str, Tensor]]:
    """One parameter's canonical tensors from the shards of all tensor-parallel ranks."""
    group = model.groups.collection.tp
    shards = [local]
    if entry.axis is not None and group.size() > 1:
        shards = [torch.empty_like(local) for _ in range(group.size())]
        dist.all_gather(shards, local, group=group)
    yield from param_map.merge(entry, shards, model.shape).items()
