"""The next token of each row of logits: temperature, top-k (Fan et al. 2018, section 5.4), top-p (Holtzman et al. 2020, section 3.1).

The fused version (csrc/ops/sample.h) neither sorts the row nor writes a distribution: it finds where to cut by histograms, and the token by a sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megagpt.kernels import reference, select
from megagpt.kernels.operators import call, register


@torch.no_grad()
def sample(
    logits: Tensor, draws: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, implementation: str = "auto"
) -> tuple[Tensor, Tensor]:
    """A token of each row by inverting the cumulative distribution, and the logarithm of its probability; without gradient.

    logits          [..., V] float32, float16 or bfloat16 (float64: reference only), V at most 2^23
    draws           [...] float32 or float64, uniform in [0, 1); what lies outside counts as the nearest that does not, NaN as 0
    temperature     positive; 0 takes the largest logit, the first of equal ones, whatever the rest
    top_k           keeps the k largest logits, and those equal to the k-th; 0 or at least V: all
    top_p           of these the smallest set of most likely tokens whose probability among them reaches p, never none; of equally likely ones the
                    first count first; 1: all
    returns         tokens [...] int64, logprobs [...] float32

    token = the first one in the order of the vocabulary up to which the kept tokens' probability exceeds draw times that of all kept.
    logprob = log softmax(logits / temperature)[token], untruncated; at temperature 0 that of temperature 1.
    A row with NaN or +inf, or of nothing but -inf, has token -1 and logprob NaN.

    The fused version computes each probability in float32 and adds them without error, the reference computes in float64. They choose the same
    token unless the draw lies within 4e-6 of where the reference's cumulative distribution steps from one token to the next, or what a token adds
    crosses top_p that closely; then it may be a neighbour, or one token more or less may be kept. Which tokens top_k keeps is the same always.
    Tokens less likely than 2^-40 times the likeliest are never drawn.

    The fused version raises RuntimeError for shapes, types or settings outside of these.
    """
    if select.choose("sample", logits, implementation) == "fused":
        return call("sample", logits if logits.stride(-1) == 1 else logits.contiguous(), draws.double(), temperature, top_k, top_p)
    return reference.sample(logits, draws, temperature, top_k, top_p)


def _fake(logits, draws, temperature, top_k, top_p):
    return tuple(torch.empty(draws.shape, dtype=dtype, device=logits.device) for dtype in (torch.int64, torch.float32))


register("sample", _fake)
