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


def token_logprob(
    logits: torch.Tensor,
    ids: torch.Tensor,
    num_valid: int,
    temperature: float,
    tp_group: dist.ProcessGroup | None,
) -> torch.Tensor:
    """log softmax(logits / temperature)[id], over the columns of all shards.

    logits     [..., V_local] this rank's shard of the vocabulary; columns from num_valid on are padding, without probability
    ids        [...] int64, counted from this shard's first column; outside [0, num_valid) the token lies on another shard
    returns    [...] float32 (float64 for float64 logits)

    With y = logits / temperature, top = max of y and target = y[id], both over all shards:
    out = target - top - log(sum(exp(y - top))).
    """
    y = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    width = y.shape[-1]
    y = y.masked_fill(torch.arange(width, device=y.device) >= num_valid, -torch.inf)

    top = y.detach().amax(-1)  # cancels out of the result, hence no gradient
    if tp_group is not None:
        dist.all_reduce(top, dist.ReduceOp.MAX, group=tp_group)
    sum_exp = (y - top[..., None]).exp().sum(-1)

    here = (ids >= 0) & (ids < num_valid)
    target = y.gather(-1, ids.clamp(0, width - 1)[..., None])[..., 0]
    target = torch.where(here, target, 0.0)

    if tp_group is not None:
        sum_exp, target = _SumOverRanks.apply(torch.stack((sum_exp, target)), tp_group)
    return target - top - sum_exp.log()


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


def masked_softmax(x: torch.Tensor, scale: float, causal: bool, mask: torch.Tensor | None = None) -> torch.Tensor:
    """softmax(scale * x) over the keys that each query sees, 0 elsewhere; x [b, heads, s_q, s_k], mask [b, s_k] bool, True = seen."""
    visible = torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device)
    if causal:
        visible = visible.tril(x.shape[-1] - x.shape[-2])
    if mask is not None:
        visible = visible & mask[:, None, None]
    scores = (x.to(torch.promote_types(x.dtype, torch.float32)) * scale).masked_fill(~visible, -torch.inf)
    # The second filling is for rows that see nothing, whose softmax is NaN.
    return scores.softmax(-1).masked_fill(~visible, 0.0).to(x.dtype)


def rotary(x: torch.Tensor, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """x * cos + rotate(x) * sin as in Megatron-core, for x [..., heads, width], positions [...], cos and sin [max_position, size / 2]; the
    columns of x from size on stay as they are. rotate makes (-v, u) of each pair (u, v)."""
    size = 2 * cos.shape[1]
    turned, rest = x[..., :size].to(torch.promote_types(x.dtype, torch.float32)), x[..., size:]
    # One head for all: [..., 1, size / 2], then each value for both of its pair.
    cos, sin = cos[positions][..., None, :], sin[positions][..., None, :]
    if interleaved:
        cos, sin = cos.repeat_interleave(2, dim=-1), sin.repeat_interleave(2, dim=-1)
        rotated = torch.stack((-turned[..., 1::2], turned[..., ::2]), dim=-1).flatten(-2)
    else:
        cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)
        u, v = turned.chunk(2, dim=-1)
        rotated = torch.cat((-v, u), dim=-1)
    return torch.cat(((turned * cos + rotated * sin).to(x.dtype), rest), dim=-1)
