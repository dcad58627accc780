"""Log-probability of given tokens, from logits that may be sharded over the vocabulary: the core of every loss of the project. Cross-entropy is
its negative. Log-sum-exp and entropy of the distribution come with it where asked for.

The fused version (csrc/ops/token_logprob.h) reads the logits and writes a few numbers per token; the softmax never exists in memory.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megagpt.kernels import reference, select
from megagpt.kernels.operators import call, register


class TokenStatistics(NamedTuple):
    """Of each token, with y = logits / temperature over all shards; [...] float32 (float64 for float64 logits), the same on every rank.

    logprob         y[target] - log_sum_exp
    log_sum_exp     log(sum(exp(y)))
    entropy         -sum(p * log p) with p = softmax(y), 0 log 0 counting as 0; None unless asked for
    """

    logprob: Tensor
    log_sum_exp: Tensor
    entropy: Tensor | None


def token_logprob(
    logits: Tensor,
    targets: Tensor,
    *,
    tp_group: dist.ProcessGroup | None = None,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    implementation: str = "auto",
) -> Tensor:
    """log softmax(logits / temperature)[target] for each token.

    logits          [..., V_local] float32, float16 or bfloat16 (float64: reference only). Rank r of tp_group holds the columns of the
                    global ids [r * V_local, (r + 1) * V_local).
    targets         [...] int64 global ids, the same on every rank of tp_group
    tp_group        the tensor-parallel group; None where this process holds the whole vocabulary
    vocab_size      true global size; ids from there on are padding and get no probability and zero gradient. Default: no padding
    temperature     positive
    implementation  "auto", "fused" or "reference" (megagpt.kernels.select)
    returns         [...] float32 (float64 for float64 logits), the same on every rank

    Differentiable once with respect to logits, in their dtype: d out / d logits[j] = ([j == target] - softmax[j]) / temperature. Under
    tp_group every rank must give backward the same gradient, as it does when all compute the same loss. Arithmetic is float32.
    Communication: one all_reduce MAX and one all_reduce SUM forward, none backward.

    A logit of -inf has probability zero; a row that holds NaN, +inf or only -inf gives NaN.
    Raises ValueError for wrong shapes, dtypes, vocab_size or temperature, and for a target outside [0, vocab_size). That last check is
    made on CPU tensors only, since it would stall a GPU; there such a target gives a wrong number and no error.
    """
    options = {"tp_group": tp_group, "vocab_size": vocab_size, "temperature": temperature, "implementation": implementation}
    return token_statistics(logits, targets, **options).logprob


def token_statistics(
    logits: Tensor,
    targets: Tensor,
    *,
    entropy: bool = False,
    tp_group: dist.ProcessGroup | None = None,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    implementation: str = "auto",
) -> TokenStatistics:
    """token_logprob with log-sum-exp, and with the entropy where asked for, all differentiable; see there for the arguments.

    With p = softmax(y), H the entropy and z = y - log_sum_exp, and d/dy to be divided by the temperature:
    d log_sum_exp / d y[j] = p[j]       d H / d y[j] = -p[j] * (z[j] + H)
    """
    group_size, rank = (1, 0) if tp_group is None else (dist.get_world_size(tp_group), dist.get_rank(tp_group))
    if group_size == 1:
        tp_group = None
    if vocab_size is None and logits.dim() > 0:
        vocab_size = logits.shape[-1] * group_size
    _check(logits, targets, group_size, vocab_size, temperature)

    first = rank * logits.shape[-1]
    num_valid = min(max(vocab_size - first, 0), logits.shape[-1])
    ids = targets - first
    if select.choose("token_logprob", logits, implementation) == "fused":
        return TokenStatistics(*_FusedTokenStatistics.apply(logits, ids, num_valid, 1.0 / temperature, tp_group, entropy))
    return TokenStatistics(*reference.token_statistics(logits, ids, num_valid, temperature, tp_group, entropy))


def _check(logits, targets, group_size, vocab_size, temperature) -> None:
    if logits.dim() == 0 or logits.shape[-1] == 0 or targets.shape != logits.shape[:-1]:
        shapes = f"logits {list(logits.shape)} and targets {list(targets.shape)}"
        raise ValueError(f"token_logprob: {shapes}; they must be [..., V_local] and [...], V_local > 0")
    if targets.dtype != torch.int64:
        raise ValueError(f"token_logprob: targets are {targets.dtype}; they must be torch.int64")
    if not 0 < vocab_size <= logits.shape[-1] * group_size:
        raise ValueError(f"token_logprob: vocab_size is {vocab_size}; it must be in [1, {logits.shape[-1] * group_size}], the columns of all shards")
    if not 0 < temperature < math.inf:
        raise ValueError(f"token_logprob: temperature is {temperature}; it must be positive and finite")
    if targets.device.type == "cpu" and targets.numel():
        low, high = (bound.item() for bound in targets.aminmax())
        if low < 0 or high >= vocab_size:
            raise ValueError(f"token_logprob: targets reach from {low} to {high}; each must be in [0, vocab_size = {vocab_size})")


class _FusedTokenStatistics(torch.autograd.Function):
    """A function and not an operator's gradient, since shards talk to each other between the kernel and what is saved."""

    @staticmethod
    def forward(ctx, logits, ids, num_valid, scale, tp_group, with_entropy):
        if logits.stride(-1) != 1:  # the kernel takes rows wherever they lie, but each one dense
            logits = logits.contiguous()
        local_top, sum_exp, target, weighted = call("token_logprob_forward", logits, ids, num_valid, scale, with_entropy)
        top = local_top
        if tp_group is not None:
            top = local_top.clone()
            dist.all_reduce(top, dist.ReduceOp.MAX, group=tp_group)
            shift = local_top - top
            sums = [sum_exp * shift.exp(), target]
            if with_entropy:
                # A shard without probability has shift -inf, which must add nothing.
                sums.append((weighted + shift.clamp(min=-200.0) * sum_exp) * shift.exp())
            sums = torch.stack(sums)
            dist.all_reduce(sums, group=tp_group)
            sum_exp, target, weighted = sums if with_entropy else (*sums, None)
        log_sum = sum_exp.log()
        entropy = log_sum - weighted / sum_exp if with_entropy else None
        ctx.save_for_backward(logits, ids, top, log_sum, entropy)
        ctx.num_valid, ctx.scale = num_valid, scale
        ctx.set_materialize_grads(False)
        # In this order, for digits: target - top is exact near the maximum, where top + log_sum has been rounded.
        return target - top - log_sum, top + log_sum, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logprob, grad_lse, grad_entropy):
        grad = call("token_logprob_backward", grad_logprob, grad_lse, grad_entropy, *ctx.saved_tensors, ctx.num_valid, ctx.scale)
        return grad, None, None, None, None, None


def _forward_fake(logits, ids, num_valid, scale, entropy):
    stats = [torch.empty(ids.shape, dtype=torch.float32, device=logits.device) for _ in range(4)]
    return (*stats[:3], stats[3] if entropy else stats[3].new_empty(0))


def _backward_fake(grad_logprob, grad_lse, grad_entropy, logits, ids, top, log_sum, entropy, num_valid, scale):
    return torch.empty_like(logits)


register("token_logprob_forward", _forward_fake)
register("token_logprob_backward", _backward_fake)
