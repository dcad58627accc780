"""Log-probability of given tokens, from logits that may be sharded over the vocabulary: the core of every loss of the project.

The fused version (csrc/cpu/token_logprob.cpp) reads the logits and writes a few numbers per token; the softmax never exists in memory.
"""

import math

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from megagpt.kernels import reference, select


def token_logprob(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    tp_group: dist.ProcessGroup | None = None,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    implementation: str = "auto",
) -> torch.Tensor:
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
        return _FusedTokenLogprob.apply(logits, ids, num_valid, 1.0 / temperature, tp_group)
    return reference.token_logprob(logits, ids, num_valid, temperature, tp_group)


def _check(logits, targets, group_size, vocab_size, temperature) -> None:
    if logits.dim() == 0 or logits.shape[-1] == 0 or targets.shape != logits.shape[:-1]:
        raise ValueError(f"token_logprob: logits {list(logits.shape)} and targets {list(targets.shape)}; they must be [..., V_local] and [...], V_local > 0")
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


class _FusedTokenLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, ids, num_valid, scale, tp_group):
        if logits.stride(-1) != 1:  # the kernel takes rows wherever they lie, but each one dense
            logits = logits.contiguous()
        local_top, sum_exp, target = torch.ops.megagpt.token_logprob_forward(logits, ids, num_valid, scale)
        top = local_top
        if tp_group is not None:
            top = local_top.clone()
            dist.all_reduce(top, dist.ReduceOp.MAX, group=tp_group)
            # An empty shard has local_top -inf and sum_exp 0, and adds exp(-inf) * 0 = 0.
            sums = torch.stack((sum_exp * (local_top - top).exp(), target))
            dist.all_reduce(sums, group=tp_group)
            sum_exp, target = sums
        log_sum = sum_exp.log()
        ctx.save_for_backward(logits, ids, top + log_sum)
        ctx.num_valid, ctx.scale = num_valid, scale
        # In this order, for digits: target - top is exact near the maximum, where top + log_sum has been rounded.
        return target - top - log_sum

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        logits, ids, lse = ctx.saved_tensors
        grad = torch.ops.megagpt.token_logprob_backward(grad_out, logits, ids, lse, ctx.num_valid, ctx.scale)
        return grad, None, None, None, None


if select.extension_missing() is None:
    # What the operators return for tensors without data: shapes, dtypes and strides.

    @torch.library.register_fake("megagpt::token_logprob_forward")
    def _forward_fake(logits, ids, num_valid, scale):
        return tuple(torch.empty(ids.shape, dtype=torch.float32, device=logits.device) for _ in range(3))

    @torch.library.register_fake("megagpt::token_logprob_backward")
    def _backward_fake(grad_out, logits, ids, lse, num_valid, scale):
        return torch.empty_like(logits)
