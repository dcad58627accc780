"""The flash-attention package (Dao 2023), where it is installed on a GPU machine: attention within documents that share a row.

Everything else it can do is in PyTorch's `scaled_dot_product_attention` as well. That one, though, takes documents only as a mask of
length x length, which none of its fast kernels accepts.
"""

from __future__ import annotations

import functools
import importlib

import torch
import torch.nn.functional as F
from torch import Tensor


@functools.cache
def missing() -> str | None:
    """Why flash-attention is not used in this process; None where it is."""
    if not torch.cuda.is_available():
        return "no GPU"
    try:
        importlib.import_module("flash_attn").flash_attn_varlen_func  # noqa: B018
    except (ImportError, AttributeError) as error:
        return f"it is not installed: {error}"
    return None


def takes(query: Tensor) -> bool:
    """Whether it can run on these queries."""
    return query.device.type == "cuda" and query.dtype in (torch.float16, torch.bfloat16) and missing() is None


def within_documents(query: Tensor, key: Tensor, value: Tensor, segments: Tensor, scale: float | None) -> Tensor:
    """Causal attention in which a token sees its own document alone.

    query       [b, s, heads, d]; key and value [b, s, groups, d], float16 or bfloat16
    segments    [b, s] document of each token, which stand one after the other
    scale       of the scores; None: 1 / sqrt(d)
    returns     [b, s, heads, d]
    """
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    starts = F.pad(begins.flatten().nonzero().flatten(), (0, 1), value=segments.numel()).int()
    longest = int(starts.diff().max())
    attend = importlib.import_module("flash_attn").flash_attn_varlen_func
    rows = [x.flatten(0, 1) for x in (query, key, value)]
    return attend(*rows, starts, starts, longest, longest, softmax_scale=scale, causal=True).view_as(query)
