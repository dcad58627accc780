"""The plain PyTorch version of every fused op: the definition that the fused versions are tested against, and what runs without them.

Differentiable by autograd. Low-precision inputs are computed in float32, float64 stays float64.
"""

import math

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


def bias_gelu(x: torch.Tensor, bias: torch.Tensor | None, approximate: str) -> torch.Tensor:
    """GELU of x + bias."""
    return F.gelu(x if bias is None else x + bias, approximate=approximate)


def bias_swiglu(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """silu(gate) * up, [gate; up] = x + bias."""
    gate, up = (x if bias is None else x + bias).chunk(2, dim=-1)
    return F.silu(gate) * up


def philox(counter_low: torch.Tensor, counter_high: torch.Tensor, key: int) -> torch.Tensor:
    """Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), in int64.

    counter_low, counter_high   [...] int64, the halves of a 128-bit counter; they broadcast
    key                         64 bits
    returns                     [..., 4] int64 in [0, 2^32)
    """
    mask = 0xFFFFFFFF
    counter_low, counter_high = torch.broadcast_tensors(counter_low, counter_high)
    c0, c1, c2, c3 = (word & mask for half in (counter_low, counter_high) for word in (half, half >> 32))
    k0, k1 = key & mask, key >> 32 & mask
    for _ in range(10):
        # int64 wraps around where the product of two 32-bit numbers does not fit; its 64 bits are right all the same.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = b >> 32 & mask ^ c1 ^ k0, b & mask, a >> 32 & mask ^ c3 ^ k1, a & mask
        k0, k1 = k0 + 0x9E3779B9 & mask, k1 + 0xBB67AE85 & mask
    return torch.stack((c0, c1, c2, c3), dim=-1)


def _philox_24_bits(key: int, row_ids: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """[b, count] int64 in [0, 2^24): for each element e in [first, first + count) of a row the upper bits of word e % 4 of
    philox(e // 4, row id)."""
    counters = torch.arange(first // 4, (first + count + 3) // 4, device=row_ids.device)
    words = philox(counters, row_ids[:, None], key).flatten(1)
    return words[:, first % 4 : first % 4 + count] >> 8


def philox_uniform(key: int, row_ids: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """[b, count] float32 in [0, 1), multiples of 2^-24: a function of (key, row id, element), for the elements [first, first + count)."""
    return _philox_24_bits(key, row_ids, first, count) * 2.0**-24


def keep_mask(p: float, key: int, row_ids: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """[b, count] bool: philox_uniform < 1 - p, compared without rounding 1 - p to float32."""
    return _philox_24_bits(key, row_ids, first, count) < math.ceil((1 - p) * 2**24)


def dropout_mask(p: float, key: int, row_ids: torch.Tensor, count: int, first: int, dtype: torch.dtype) -> torch.Tensor:
    """[b, count]: 1 / (1 - p) where kept, else 0."""
    return keep_mask(p, key, row_ids, first, count) * torch.tensor(1 / (1 - p), dtype=dtype, device=row_ids.device)


def bias_dropout_add(x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor, p: float, key: int, row_ids: torch.Tensor, first: int):
    """residual + mask * (x + bias) of [positions, b, h]; the element of a row is first + position * h + feature."""
    if p == 0:
        return residual + (x if bias is None else x + bias)
    length, batch, width = x.shape
    mask = dropout_mask(p, key, row_ids, length * width, first, x.dtype).view(batch, length, width).transpose(0, 1)
    return residual + mask * (x if bias is None else x + bias)


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
def truncated(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """What may not be sampled set to -inf.

    logits     [..., V], already divided by the temperature
    top_k      keep the k largest, and those equal to the k-th (0: all)
    top_p      of these the smallest set of most likely tokens whose probability reaches p, never none (1: all)
    """
    if 0 < top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        probability = ordered.softmax(-1)
        before = probability.cumsum(-1) - probability
        logits = logits.masked_fill(torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= top_p), -torch.inf)
    return logits


def sample(logits: torch.Tensor, draws: torch.Tensor, temperature: float, top_k: int, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One token for each row by inverting the cumulative distribution, and the logarithm of its untruncated probability; see kernels/sample.py.

    logits     [..., V]
    draws      [...] in [0, 1)
    returns    tokens [...] int64, logprobs [...] float32; computed in float64
    """
    width = logits.shape[-1]
    scaled = logits.double() / (temperature or 1.0)
    if temperature == 0:
        tokens = logits.argmax(-1)
    else:
        cumulative = truncated(scaled, top_k, top_p).softmax(-1).cumsum(-1)
        total = cumulative[..., -1:].contiguous()
        tokens = torch.searchsorted(cumulative, draws.double()[..., None] * total, right=True)
        tokens = torch.minimum(tokens, torch.searchsorted(cumulative, total))[..., 0]  # rounding must not point behind the last that is kept
    tokens = tokens.clamp(max=width - 1)
    logprobs = scaled.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    defined = scaled.amax(-1).isfinite()
    return torch.where(defined, tokens, -1), torch.where(defined, logprobs, torch.nan).float()


def few_row_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """y = x W^T + bias."""
    return F.linear(x, weight, bias)
