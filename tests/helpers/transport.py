"""Objects to bytes and back, for the pipes between pytest and its worker processes.

torch would send a tensor through shared memory and keep a file descriptor open for each; here a tensor travels as its bytes, and arrives
as a plain tensor on the CPU: detached, contiguous, a Parameter no longer a Parameter.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any):
        if not isinstance(obj, torch.Tensor):
            return NotImplemented
        flat = obj.detach().cpu().contiguous().reshape(-1)
        # By way of uint8, because numpy has no bfloat16.
        return _tensor, (flat.view(torch.uint8).numpy().tobytes(), obj.dtype, tuple(obj.shape))


def _tensor(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)  # frombuffer refuses an empty buffer
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def to_bytes(obj: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(obj)
    return buffer.getvalue()


def from_bytes(data: bytes) -> Any:
    return pickle.loads(data)
