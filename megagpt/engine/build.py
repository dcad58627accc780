"""A trainable model: a GPT stage under a DeepSpeed ZeRO engine, driven by Megatron-core's schedules.

The schedule runs over the bare module, never over the engine: DeepSpeed then sees one backward of many and reduces once.
ZeRO 1-3 do so inside `coalesce_grad_reduction`; ZeRO 0 has no such block, so there the reduction and the clipping are
ours. (DeepSpeed's own reduction at ZeRO 0 copies every gradient into a bucket and back; its clipping forgets replicated
parameters of later pipeline stages and counts tied embeddings twice.)
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad
from torch import Tensor

from megagpt.config.schema import LossScaleConfig, OptimizerConfig, StageConfig
from megagpt.engine.deepspeed_config import deepspeed_config
from megagpt.engine.deepspeed_scope import deepspeed_scope, join_world
from megagpt.engine.optimizer import build_optimizer
from megagpt.engine.schedule_run import row_structure, run_schedule
from megagpt.engine.sharding import reduce_bucket, useful_zero_stage
from megagpt.kernels.adamw import FusedAdamW
from megagpt.model import param_map
from megagpt.model.gpt import GPT
from megagpt.parallel.collectives import sum_in_place
from megagpt.parallel.mpu import DeepSpeedMpu
from megagpt.runtime.memory import storage_bytes

LossFunction = Callable[[Tensor, Any], tuple[Tensor, dict[str, float | Tensor]]]
"""(output of the last stage, microbatch) -> (summed loss of the microbatch, sums to report)."""


class Engine:
    """Forward, backward, clip and step of one model on its grid.

    Args:
        model: weights already loaded; several blocks of layers where the layout has virtual pipeline stages.
        optimizer: update rule, clipping bound.
        zero_stage: 0-3.
        loss_scale: of FP16.
        offload_optimizer, offload_path: as in ParallelConfig.

    Raises:
        ValueError: ZeRO 3 with a pipeline, or 16-bit weights at ZeRO 0.
    """

    def __init__(
        self, model: GPT | Sequence[GPT], optimizer: OptimizerConfig, zero_stage: int, *,
        loss_scale: LossScaleConfig = LossScaleConfig(), offload_optimizer: str = "none", offload_path: str | None = None,
    ) -> None:
        self.models = [model] if isinstance(model, GPT) else list(model)
        self.model = self.models[0]
        groups, dtype = self.model.groups, self.model.layout.dtype
        if zero_stage == 3 and groups.grid.pp > 1:
            raise ValueError("zero_stage 3 with pipeline_parallel_size > 1: not supported; take zero_stage 1 or 2")
        if zero_stage == 0 and dtype != torch.float32:
            raise ValueError("zero_stage 0 with bf16 or fp16: float32 masters are kept by zero_stage 1 to 3 only")
        self.groups, self.zero_stage, self.clip_grad = groups, zero_stage, optimizer.clip_grad
        self.offload_optimizer, self._offloads = offload_optimizer, offload_optimizer != "none" and zero_stage < 3
        self.gradient_bytes = 0
        """Of the sums over microbatches, before replicas share them; of the last accumulation."""
        self.overflow = False
        """The last step was skipped, on all ranks, since a gradient was not finite."""
        self.num_updates = 0
        """Steps that were not skipped."""
        self.has_moments = optimizer.name == "adamw"
        self._mpu = DeepSpeedMpu(groups)
        self._tied = [(weight, model.pre_process) for model in self.models if (weight := model.tied_weight) is not None]
        for weight, is_first in self._tied:
            if not is_first:
                weight.ds_pipe_replicated = True  # its gradient counts once in the norm, on the first stage
        # ZeRO 3 leaves empty parameters behind, so the table must be read before.
        self.entries = [entry for model in self.models for entry in model.entries()]
        self.trained = [(parameter, entry) for parameter, entry in self.entries if parameter.requires_grad]
        """All of them, but where there are adapters of low rank. Only these have gradients and optimizer states."""
        self._shared_over_tp = [p for p, _ in self.trained if getattr(p, "sequence_parallel", False)]
        for parameter, _ in self.trained:
            parameter.grad_dtype = torch.float32  # microbatches add up in float32, whatever the weights' type
        module = self.model if len(self.models) == 1 else torch.nn.ModuleList(self.models)
        with self.scope():
            join_world()
            self.deepspeed, *_ = deepspeed.initialize(
                model=module, optimizer=build_optimizer(module, optimizer, offload_optimizer != "none"), mpu=self._mpu,
                config=deepspeed_config(
                    zero_stage, optimizer.clip_grad, dtype, loss_scale=loss_scale, offload_optimizer=offload_optimizer, offload_path=offload_path,
                    bucket=reduce_bucket(sum(parameter.numel() for parameter, _ in self.trained)),
                ),
                dist_init_required=False,
            )
        if dtype == torch.float16:
            self.deepspeed.optimizer.loss_scaler.raise_error_at_min_scale = False  # it stays there, as the configuration says
        if zero_stage == 0:
            self.deepspeed.enable_backward_allreduce = False
        elif dtype != torch.float32 and zero_stage < 3:
            # Reduce float32 gradients over the replicas, which DeepSpeed does of its own only with FP16 at ZeRO 1.
            zero = self.deepspeed.optimizer
            zero.gradient_accumulation_dtype, zero.use_separate_grad_accum, zero.use_grad_accum_attribute = torch.float32, True, True

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by before the backward pass (1 unless FP16)."""
        return float(self.deepspeed.optimizer.loss_scale) if self.model.layout.dtype == torch.float16 else 1.0

    @classmethod
    def of_stage(cls, models: Sequence[GPT], config: StageConfig) -> Engine:
        """The engine of a pre-training, SFT or reward job, with all that its configuration says."""
        parallel = config.parallel
        zero_stage = useful_zero_stage(parallel.zero_stage, models[0].groups.grid, config.precision.dtype, parallel.offload_optimizer)
        return cls(
            models, config.optimizer, zero_stage, loss_scale=config.precision.loss_scale,
            offload_optimizer=parallel.offload_optimizer, offload_path=parallel.offload_path,
        )

    @property
    def masters(self) -> list[Tensor]:
        """The float32 weights that the optimizer steps: of ZeRO this rank's part, flat and padded, in host memory where that is offloaded."""
        zero = self.deepspeed.optimizer
        if self.zero_stage == 3:
            return list(zero.fp32_partitioned_groups_flat)
        return list(zero.single_partition_of_fp32_groups) if self.zero_stage > 0 else [parameter for parameter, _ in self.trained]

    def held_bytes(self) -> dict[str, int]:
        """What this rank's device holds of the model: between the steps, but for `gradients`, which are there within one. `buffers`: ZeRO 3's own."""
        zero, masters = self.deepspeed.optimizer, self.masters if self.zero_stage > 0 else []
        moments = [tensor for state in (zero.optimizer if masters else zero).state.values() for tensor in state.values() if torch.is_tensor(tensor)]
        buffers = [zero.grad_partitions_flat_buffer, *(bucket.buffer for bucket in zero.ipg_buckets.values())] if self.zero_stage == 3 else []
        if self.offload_optimizer != "none":
            masters, moments, buffers = [], [], buffers[1:]
        return {
            "weights": storage_bytes(getattr(parameter, "ds_tensor", parameter.data) for parameter, _ in self.entries),
            "gradients": self.gradient_bytes,
            "optimizer": storage_bytes([*masters, *(tensor for tensor in moments if tensor.dim() > 0)]),
            "buffers": storage_bytes(buffers),
        }

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
            microbatches: this replica's; each has `tokens` [rows, length], `row_ids` [rows], its rows' numbers in the
                global batch, and may have `segments`, `branches`, `hidden` and `only`, as GPT.forward takes them.
            denominator: global count (valid tokens, groups, …) that the summed losses are divided by.
            dropout_key: (seed, step); None trains without dropout, whatever the model's probability.

        Returns:
            The reported sums of each microbatch on the last stage, [] elsewhere.
        """
        for model in self.models:
            model.train(dropout_key is not None)
        # The schedule divides by its microbatches and multiplies by cp, ZeRO divides by dp x cp; the loss is a plain sum.
        factor = self.groups.grid.dp if self.zero_stage > 0 else 1 / self.groups.grid.cp
        scale = len(microbatches) * factor / denominator * self.loss_scale

        def forward_step(model: GPT, batch: Any):
            def loss(output: Tensor):
                total, report = loss_function(output, batch)
                return total * scale, report

            row_ids = batch.row_ids.tolist() if dropout_key is not None else ()
            return model(batch.tokens, **row_structure(batch), dropout_key=dropout_key, row_ids=row_ids), loss

        arguments = dict(rows=rows, length=length, forward_only=False)
        with self.scope():
            if self.zero_stage == 0:
                self.deepspeed.set_gradient_accumulation_boundary(True)
                collected = run_schedule(self.models, microbatches, forward_step, **arguments)
                self._sum_shared_gradients()
                sum_in_place([p.grad for p, _ in self.trained if p.grad is not None], self.groups.collection.dp_cp)
            else:
                with self.deepspeed.coalesce_grad_reduction():
                    collected = run_schedule(self.models, microbatches, forward_step, **arguments)
                    self._sum_shared_gradients()
        return collected

    def _sum_shared_gradients(self) -> None:
        """Gradients of weights that several ranks of a replica hold: tied embeddings, and what sequence parallelism splits over tokens."""
        self.gradient_bytes = storage_bytes(parameter.grad for parameter, _ in self.trained)
        for weight, _ in self._tied:
            if weight.requires_grad:
                dist.all_reduce(weight.grad, group=self.groups.collection.embd)
        sum_in_place([parameter.grad for parameter in self._shared_over_tp], self.groups.collection.tp)
        if getattr(self.deepspeed.optimizer, "use_grad_accum_attribute", False):
            for parameter, _ in self.trained:  # where ZeRO 1 and 2 then look for float32 gradients
                parameter.grad_accum, parameter.grad = parameter.grad, None

    def step(self, lr: float) -> float:
        """Clip, update the parameters, clear the gradients. Returns the global gradient norm before clipping.

        A step whose gradients are not finite is skipped on all ranks: the norm is infinite and `overflow` true.
        """
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr
        with self.scope():
            if self.zero_stage == 0:
                norm = self._clip_unsharded()
                self.overflow = not math.isfinite(norm)
                if self.overflow:
                    self.deepspeed.zero_grad()
                    return math.inf
                self.deepspeed.step()
                self.num_updates += 1
                return norm
            self.deepspeed.step()
            self.overflow = bool(self.deepspeed.optimizer.overflow)
            self.num_updates += not self.overflow
            if self.overflow and self._offloads:
                # DeepSpeed leaves the infinity in the buffer that the next gradients are added to.
                sums = self.deepspeed.optimizer.averaged_gradients
                sums.update(dict.fromkeys(sums))
            return math.inf if self.overflow else float(self.deepspeed.get_global_grad_norm())

    def _clip_unsharded(self) -> float:
        """Global norm with every parameter counted once (Pascanu et al. 2013, algorithm 1); scales the gradients."""
        counted_here = self.groups.coordinates.tp == 0
        counted = [
            parameter.grad for parameter, _ in self.trained
            if parameter.grad is not None and not getattr(parameter, "ds_pipe_replicated", False) and (parameter.tensor_model_parallel or counted_here)
        ]
        squares = _sum_of_squares(counted, self.entries[0][0].device)
        dist.all_reduce(squares, group=self.groups.collection.mp)
        norm = float(squares.sqrt())
        coefficient = self.clip_grad / (norm + 1e-6) if self.clip_grad > 0 and norm > self.clip_grad else None
        if isinstance(self.deepspeed.optimizer, FusedAdamW):  # scales as it reads
            self.deepspeed.optimizer.clip_coefficient = None if coefficient is None else squares.new_full((1,), coefficient, dtype=torch.float32)
        elif coefficient is not None:
            for parameter, _ in self.trained:
                if parameter.grad is not None:
                    parameter.grad.mul_(coefficient)
        return norm

    # ------------------------------------------------------------ what the model holds, by canonical name

    def canonical_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Full-precision weights of this stage, whole on every rank of it; what is not trained, as it is. All ranks of the stage must iterate."""
        yield from self.gather(lambda p: safe_get_full_fp32_param(p) if self.zero_stage > 0 and p.requires_grad else self._whole(p))

    def _whole(self, parameter: torch.nn.Parameter) -> Tensor:
        """What is not trained, or not sharded, as the forward pass reads it."""
        if self.zero_stage < 3:
            return parameter.data
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.data.clone()

    def canonical_weights(self) -> Iterator[tuple[str, Tensor]]:
        """What is trained, as the forward pass reads it; of ZeRO 1 and 2 without a word between replicas. All ranks of the stage must iterate."""
        yield from self.gather(lambda p: safe_get_full_fp32_param(p) if self.zero_stage == 3 else p.data, self.trained)

    def canonical_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Reduced, unclipped gradients; to be read between `accumulate` and `step`."""
        yield from self.gather(lambda p: p.grad if self.zero_stage == 0 else safe_get_full_grad(p), self.trained)

    def gather(
        self, read: Callable[[torch.nn.Parameter], Tensor], entries: Sequence[tuple[torch.nn.Parameter, param_map.Entry]] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Something that every parameter of this stage has, or each of these, by canonical name, float32; `read` gives it whole but for tensor
        parallelism."""
        with self.scope():
            for parameter, entry in self.entries if entries is None else entries:
                if getattr(parameter, "ds_pipe_replicated", False):
                    continue  # the first stage holds the same
                local = read(parameter).reshape(getattr(parameter, "ds_shape", parameter.shape)).float().contiguous()
                yield from gather_canonical(self.model, entry, local)

    def close(self) -> None:
        """Take DeepSpeed's hooks off the model."""
        with self.scope():
            self.deepspeed.destroy()


_BLOCK = 65536
"""Elements whose squares are added up in float32; the sums of blocks are added up in float64."""


def _sum_of_squares(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Of all elements of contiguous tensors, float64 []."""
    blocks = [block for tensor in tensors for block in tensor.flatten().split(_BLOCK)]
    if not blocks:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack(torch._foreach_norm(blocks)).double().square().sum()


def gather_canonical(model: GPT, entry: param_map.Entry, local: Tensor) -> Iterator[tuple[str, Tensor]]:
    """One parameter's canonical tensors from the shards of all tensor-parallel ranks."""
    group = model.groups.collection.tp
    shards = [local]
    if entry.axis is not None and group.size() > 1:
        shards = [torch.empty_like(local) for _ in range(group.size())]
        dist.all_gather(shards, local, group=group)
    yield from param_map.merge(entry, shards, model.shape).items()
