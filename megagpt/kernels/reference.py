"""The plain PyTorch version of every fused op: the definition that the fused versions are tested against, and what runs without them.

Differentiable by autograd. Low-precision inputs are computed in float32, float64 stays float64.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F


class _SumOverRanks(torch.autograd.Function):
    """Sum over a group. Every rank then holds the same value and computes the same loss from it, so a rank's own term has exactly the
    gradient that this rank computed: backward is the identity, and another sum would count the loss once per rank."""

    @staticmethod
    def forward(ctx, local, group):
        total = local.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad_total):
        return grad_total, None


def token_statistics(
    logits: torch.Tensor,
    ids: torch.Tensor,
    num_valid: int,
    temperature: float,
    tp_group: dist.ProcessGroup | None,
    entropy: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """log softmax(logits / temperature)[id], log-sum-exp and, where asked for, entropy over the columns of all shards.

    logits     [..., V_local] this rank's shard of the vocabulary; columns from num_valid on are padding, without probability
    ids        [...] int64, counted from this shard's first column; outside [0, num_valid) the token lies on another shard
    returns    three times [...] float32 (float64 for float64 logits)

    With y = logits / temperature, top = max of y, z = y - top and target = y[id], all over all shards, and log_sum = log(sum(exp(z))):
    target - top - log_sum, top + log_sum, log_sum - sum(exp(z) * z) / sum(exp(z)).
    """
    y = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    width = y.shape[-1]
    y = y.masked_fill(torch.arange(width, device=y.device) >= num_valid, -torch.inf)

    top = y.detach().amax(-1)  # cancels out of the results, hence no gradient
    if tp_group is not None:
        dist.all_reduce(top, dist.ReduceOp.MAX, group=tp_group)
    exp = (y - top[..., None]).exp()

    here = (ids >= 0) & (ids < num_valid)
    target = y.gather(-1, ids.clamp(0, width - 1)[..., None])[..., 0]
    sums = [exp.sum(-1), torch.where(here, target, 0.0)]
    if entropy:
        z = (y - top[..., None]).masked_fill(exp == 0, 0.0)
        sums.append((exp * z).sum(-1))

    if tp_group is not None:
        sums = _SumOverRanks.apply(torch.stack(sums), tp_group)
    sum_exp, target, *weighted = sums
    log_sum = sum_exp.log()
    return target - top - log_sum, top + log_sum, log_sum - weighted[0] / sum_exp if entropy else None


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, residual: torch.Tensor | None = None):
    """y = (s - mean) / sqrt(variance + eps) * weight + bias, s = x + residual; (y, s) with a residual, else y."""
    s = x if residual is None else x + residual
    y = F.layer_norm(s, s.shape[-1:], weight, bias, eps)
    return y if residual is None else (y, s)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None):
    """y = s / sqrt(mean(s^2) + eps) * weight, s = x + residual; (y, s) with a residual, else y."""
    s = x if residual is None else x + residual
    y = F.rms_norm(s, s.shape[-1:], weight, eps)
    return y if residual is None else (y, s)


def sample(logits: torch.Tensor, draws: torch.Tensor, temperature: float, top_k: int, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One token for each row by inverting the cumulative distribution, and the logarithm of its untruncated probability; see kernels/sample.py.

    logits     [..., V]
    draws      [...] in [0, 1)
    returns    tokens [...] int64, logprobs [...] float32; computed in float64
    """
    width = logits.shape[-1]
    scaled = logits.double() / (temperature or 1.0)
    kept = scaled
    if 0 < top_k < width:
        kth = scaled.topk(top_k, dim=-1).values[..., -1:]
        kept = kept.masked_fill(scaled < kth, -torch.inf)
    if top_p < 1.0:
        ordered, order = kept.sort(dim=-1, descending=True, stable=True)
        probability = ordered.softmax(-1)
        before = probability.cumsum(-1) - probability
        kept = kept.masked_fill(torch.zeros_like(kept, dtype=torch.bool).scatter(-1, order, before >= top_p), -torch.inf)
    if temperature == 0:
        tokens = logits.argmax(-1)
    else:
        cumulative = kept.softmax(-1).cumsum(-1)
        total = cumulative[..., -1:].contiguous()
        tokens = torch.searchsorted(cumulative, draws.double()[..., None] * total, right=True)
        tokens = torch.minimum(tokens, torch.searchsorted(cumulative, total))[..., 0]  # rounding must not point behind the last that is kept
    tokens = tokens.clamp(max=width - 1)
    logprobs = scaled.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    defined = scaled.amax(-1).isfinite()
    return torch.where(defined, tokens, -1), torch.where(defined, logprobs, torch.nan).float()
