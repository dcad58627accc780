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


@torch.no_grad()
def adamw(params, grads, exp_avgs, exp_avg_sqs, copies, grad_scale, overflow, lr, beta1, beta2, eps, weight_decay, step) -> None:
    """Loshchilov & Hutter 2019, algorithm 2, in place; `copies` may be empty, `grad_scale` and `overflow` None."""
    if overflow is not None and overflow != 0:
        return
    for i, (param, exp_avg, exp_avg_sq) in enumerate(zip(params, exp_avgs, exp_avg_sqs, strict=True)):
        grad = grads[i].to(param.dtype)
        if grad_scale is not None:
            grad = grad * grad_scale.reshape(())
        param.mul_(1 - lr * weight_decay)
        exp_avg.lerp_(grad, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        denominator = (exp_avg_sq.sqrt() / (1 - beta2**step) ** 0.5).add_(eps)
        param.addcdiv_(exp_avg, denominator, value=-lr / (1 - beta1**step))
        if copies:
            copies[i].copy_(param)


def gae(rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, gae_lambda: float):
    """delta_t = r_t + gamma V_{t+1} - V_t,  A_t = delta_t + gamma lambda A_{t+1}; (A, A + V), both 0 where the mask is."""
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = rewards.new_zeros(rewards.shape[0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = (delta + gamma * gae_lambda * next_advantage) * mask[:, t]
        next_value, next_advantage = values[:, t] * mask[:, t], advantages[:, t]
    return advantages, (advantages + values) * mask


def ppo_policy_loss(logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, clip_ratio: float):
    """- sum min(rho A, clip(rho, 1 - eps, 1 + eps) A), and (clipped tokens, |rho - 1|, rho - 1 - log rho) summed."""
    log_ratio = (logprobs - old_logprobs) * mask
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_ratio, 1.0 + clip_ratio)
    loss = -(torch.minimum(ratio * advantages, clipped * advantages) * mask).sum()
    report = torch.stack([(x * mask).sum() for x in ((ratio != clipped).to(ratio.dtype), (ratio - 1.0).abs(), ratio - 1.0 - log_ratio)])
    return loss, report.detach()


def ppo_value_loss(values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, clip_value: float):
    """1/2 sum max((V - R)^2, (V_old + clip(V - V_old) - R)^2), and (V - R)^2 summed."""
    clipped = old_values + (values - old_values).clamp(-clip_value, clip_value)
    errors = torch.maximum((values - returns).square(), (clipped - returns).square())
    return 0.5 * (errors * mask).sum(), ((values - returns).square() * mask).sum().detach()[None]
