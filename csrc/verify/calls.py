"""A reference call of every op: what csrc/verify.sh measures, in the emulator and on a GPU.

Each function takes the number of rows and their width, a dtype and a device, and returns what to run, forward and backward, and the fewest bytes
that it can move: every large tensor read or written once. What all rows share and what there is one of for each row is left out, as in
csrc/cuda/vec.cuh.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Call = tuple[Callable[[], object], int]


def norm(rows: int, width: int, dtype: torch.dtype, device: str) -> Call:
    from megagpt.kernels.norm import layer_norm

    x, residual, grad = _random(3, (rows, width), dtype, device)
    weight, bias = _random(2, (width,), dtype, device)
    forward = partial(layer_norm, x, weight, bias, residual=residual, implementation="fused")
    # Forward x, residual, sum, y; backward two gradients in, sum, one out.
    return _forward_backward(forward, (x, residual, weight, bias), grad), 8 * x.nbytes


def token_logprob(rows: int, width: int, dtype: torch.dtype, device: str) -> Call:
    from megagpt.kernels.token_logprob import token_logprob

    (logits,), targets = _random(1, (rows, width), dtype, device), torch.randint(width, (rows,), device=device)
    grad = torch.ones(rows, device=device)
    return _forward_backward(partial(token_logprob, logits, targets, implementation="fused"), (logits,), grad), 3 * logits.nbytes


def masked_softmax(rows: int, width: int, dtype: torch.dtype, device: str) -> Call:
    from megagpt.kernels.masked_softmax import masked_softmax

    x, grad = _random(2, (1, 1, rows, width), dtype, device)
    return _forward_backward(partial(masked_softmax, x, 0.5, implementation="fused"), (x,), grad), 5 * x.nbytes


def rotary(rows: int, width: int, dtype: torch.dtype, device: str) -> Call:
    from megagpt.kernels.rotary import rotary, rotary_table

    x, grad = _random(2, (rows, width // 128, 128), dtype, device)
    table = rotary_table(rows, 128, device=device)
    return _forward_backward(partial(rotary, x, torch.arange(rows, device=device), table, implementation="fused"), (x,), grad), 4 * x.nbytes


def bias_gelu(rows: int, width: int, dtype: torch.dtype, device: str) -> Call:
    from megagpt.kernels.bias_gelu import bias_gelu

    (x, grad), (bias,) = _random(2, (rows, width), dtype, device), _random(1, (width,), dtype, device)
    return _forward_backward(partial(bias_gelu, x, bias, implementation="fused"), (x, bias), grad), 5 * x.nbytes


def bias_swiglu(rows: int, width: int, dtype: torch.dtype, device: str) -> Call:
    from megagpt.kernels.bias_swiglu import bias_swiglu

    (x,), (grad,), (bias,) = (_random(1, shape, dtype, device) for shape in ((rows, 2 * width), (rows, width), (2 * width,)))
    return _forward_backward(partial(bias_swiglu, x, bias, implementation="fused"), (x, bias), grad), 8 * grad.nbytes


def bias_dropout_add(rows: int, width: int, dtype: torch.dtype, device: str) -> Call:
    from megagpt.kernels.bias_dropout_add import bias_dropout_add

    (x, residual, grad), (bias,) = _random(3, (rows // 2, 2, width), dtype, device), _random(1, (width,), dtype, device)
    ids = torch.arange(2, device=device)
    forward = partial(bias_dropout_add, x, bias, residual, 0.1, 1, ids, implementation="fused")
    # The residual's gradient is grad itself.
    return _forward_backward(forward, (x, bias, residual), grad), 5 * x.nbytes


def adamw(rows: int, width: int, dtype: torch.dtype, device: str) -> Call:
    """The parameters in float32, gradients in `dtype`."""
    from megagpt.kernels.adamw import adamw

    (grad,), state = _random(1, (rows, width), dtype, device), [torch.ones(rows, width, device=device) for _ in range(3)]
    lists = [[state[0]], [grad.detach()], [state[1]], [state[2]]]
    settings = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "step": 1}
    return partial(adamw, *lists, **settings, implementation="fused"), 6 * state[0].nbytes + grad.nbytes


def gae(rows: int, width: int, dtype: torch.dtype, device: str) -> Call:
    """In float32, whatever `dtype`."""
    from megagpt.kernels.gae import gae

    rewards, values = (tensor.detach() for tensor in _random(2, (rows, width), torch.float32, device))
    mask = torch.ones_like(rewards)
    return partial(gae, rewards, values, mask, gamma=0.99, gae_lambda=0.95, implementation="fused"), 5 * rewards.nbytes


def ppo_loss(rows: int, width: int, dtype: torch.dtype, device: str) -> Call:
    """The policy's, in float32 whatever `dtype`; forward only, which computes the gradient as well."""
    from megagpt.kernels.ppo_loss import ppo_policy_loss

    logprobs, old, advantages = _random(3, (rows, width), torch.float32, device)
    mask = torch.ones_like(old).detach()
    return partial(ppo_policy_loss, logprobs, old.detach(), advantages.detach(), mask, 0.2, implementation="fused"), 5 * old.nbytes


def sample(rows: int, width: int, dtype: torch.dtype, device: str) -> Call:
    from megagpt.kernels.sample import sample

    (logits,), draws = _random(1, (rows, width), dtype, device), torch.rand(rows, dtype=torch.float64, device=device)
    return partial(sample, logits.detach(), draws, implementation="fused"), logits.nbytes


def _random(number: int, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype, device=device).requires_grad_() for _ in range(number)]


def _forward_backward(forward: Callable[[], object], inputs: tuple[Tensor, ...], grad: Tensor) -> Callable[[], object]:
    def work():
        outputs = forward()
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return torch.autograd.grad(outputs, inputs, [grad.detach()] * len(outputs))

    return work


CALLS: dict[str, Callable[[int, int, torch.dtype, str], Call]] = {
    function.__name__: function
    for function in (norm, token_logprob, masked_softmax, rotary, bias_gelu, bias_swiglu, bias_dropout_add, adamw, gae, ppo_loss, sample)
}
