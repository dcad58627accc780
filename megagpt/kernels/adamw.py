"""AdamW with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2) on many tensors at once.

The fused version (csrc/ops/adamw.h) reads and writes each number once, whatever the number of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megagpt.kernels import reference, select
from megagpt.kernels.operators import call, register


def adamw(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    copies: Sequence[Tensor] = (),
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: Tensor | None = None,
    overflow: Tensor | None = None,
    implementation: str = "auto",
) -> None:
    """One update of every parameter, in place: m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, with g = grad * grad_scale, and then
    p = p - lr weight_decay p - lr / (1 - b1^step) * m / (sqrt(v / (1 - b2^step)) + eps).

    params                  float32 masters of any shapes, contiguous (float64: reference only)
    grads                   of the same shapes, all in one of float32, float16 and bfloat16
    exp_avgs, exp_avg_sqs   the moments m and v, of the parameters' type, contiguous
    copies                  none, or a copy of each parameter in float16 or bfloat16, which is overwritten with the new value
    step                    number of this update, counted from 1
    grad_scale              one float32 on the same device, such as a clip coefficient or the inverse of a loss scale
    overflow                one float32 on the same device: unless it is 0, nothing is changed. The fused version reads neither on the host, so
                            the caller must see for itself whether this step counts

    No two tensors may share memory. Raises RuntimeError for shapes, types or numbers that do not fit, and where "fused" is asked for and
    cannot run.
    """
    if not params:
        return
    with torch.no_grad():
        if select.choose("adamw", params[0], implementation) == "fused":
            call("adamw", params, grads, exp_avgs, exp_avg_sqs, copies, grad_scale, overflow, lr, *betas, eps, weight_decay, step)
        else:
            reference.adamw(params, grads, exp_avgs, exp_avg_sqs, copies, grad_scale, overflow, lr, *betas, eps, weight_decay, step)


class FusedAdamW(torch.optim.AdamW):
    """torch.optim.AdamW with another step(): the same parameter groups and state, so that either loads what the other has saved.

    `step` stays a float32 tensor on the CPU, where it is read without waiting for a GPU. Not offered: amsgrad, maximize, sparse gradients,
    complex parameters.

    Args:
        implementation: as in megagpt.kernels.select.
    """

    def __init__(
        self, params, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 1e-2,
        *, implementation: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__(params, lr, betas, eps, weight_decay)
        self.implementation = implementation
        self.clip_coefficient: Tensor | None = None
        """One float32 that every gradient is multiplied by as it is read, on the parameters' device; None: 1."""
        self._calls: dict[int, tuple[list[int], list[_Call]]] = {}

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every parameter that has a gradient, with one call for each group of equal step and types."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            # By identity: ZeRO steps one group at a time, as if it were the only one.
            wanted = [id(param) for param in group["params"] if param.grad is not None]
            known, calls = self._calls.get(id(group), ([], []))
            if wanted != known or not all(call.holds(self.state) for call in calls) or group["amsgrad"] or group["maximize"]:
                calls = self._sort(group)
                self._calls[id(group)] = wanted, calls
            for call in calls:
                call.steps.add_(1)
                adamw(
                    call.params, [param.grad for param in call.params], call.exp_avgs, call.exp_avg_sqs, lr=float(group["lr"]), betas=group["betas"],
                    eps=group["eps"], weight_decay=group["weight_decay"], step=int(call.steps[0]), grad_scale=self.clip_coefficient,
                    implementation=self.implementation,
                )  # fmt: skip
        return loss

    def _sort(self, group: dict) -> list[_Call]:
        """The calls that update this group. Their parameters' `step`s become views of one tensor each, so that counting is one operation."""
        lists = params, grads, exp_avgs, exp_avg_sqs, _, steps = [[] for _ in range(6)]
        has_complex = self._init_group(group, *lists)
        if has_complex or group["amsgrad"] or group["maximize"]:
            raise NotImplementedError("FusedAdamW: a group asks for amsgrad, maximize or complex parameters; torch.optim.AdamW has them")
        alike: dict[tuple, list[tuple[Tensor, ...]]] = {}
        for param, grad, exp_avg, exp_avg_sq, step in zip(params, grads, exp_avgs, exp_avg_sqs, steps):
            alike.setdefault((int(step), param.device, param.dtype, grad.dtype), []).append((param, exp_avg, exp_avg_sq))
        calls = []
        for (step, _, _, grad_dtype), tensors in alike.items():
            counted = torch.full((len(tensors),), float(step), device="cpu")
            call = _Call(*map(list, zip(*tensors)), counted, list(counted.unbind()), grad_dtype)
            for param, view in zip(call.params, call.step_views):
                self.state[param]["step"] = view
            calls.append(call)
        return calls


@dataclass(frozen=True)
class _Call:
    """Parameters that one kernel updates, and their state: reading it anew for every step takes longer than the update of small tensors."""

    params: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    steps: Tensor
    """[parameters] float32 on the CPU, all equal"""
    step_views: list[Tensor]
    """Its elements, which stand in the optimizer's state."""
    grad_dtype: torch.dtype

    def holds(self, state: dict[Tensor, dict[str, Tensor]]) -> bool:
        """Whether nobody has put other tensors, or other numbers of steps, into the optimizer's state since."""
        for param, exp_avg, exp_avg_sq, step in zip(self.params, self.exp_avgs, self.exp_avg_sqs, self.step_views):
            now = state[param]
            if now.get("exp_avg") is not exp_avg or now.get("exp_avg_sq") is not exp_avg_sq or now.get("step") is not step:
                return False
            if param.grad is None or param.grad.dtype is not self.grad_dtype:
                return False
        low, high = self.steps.aminmax()
        return bool(low == high)


def _fake(*_) -> None:
    return None


register("adamw", _fake)
