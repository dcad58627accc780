"""What a forward pass carries beside the hidden states, and layers that are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from megagpt.model.key_value_cache import KeyValueCache


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """One microbatch's pass through one stage."""

    dropout_key: tuple[int, int] | None = None
    """(seed, step); None: no dropout."""
    row_ids: tuple[int, ...] = ()
    """Which rows of the global batch the microbatch holds."""
    segments: Tensor | None = None
    """[b, length]: number of the document that each token of the whole row belongs to; attention stays within it."""
    visible: Tensor | None = None
    """[b, 1, s, s] bool: what each token of the row sees, where neither order nor documents say it (continuations of one beginning)."""
    cache: KeyValueCache | None = None
    """Keys and values of earlier tokens (decoding)."""
    positions: Tensor | None = None
    """[b or 1, s]: where this rank's tokens stand in their documents; what rotary embedding turns by."""
    only: Tensor | None = None
    """Places whose output is wanted, as `GPT.forward` takes them; all: None."""


class CurrentPass:
    """The pass that is being computed; one object for each model, which all its modules share.

    A pipeline runs the backward pass of one microbatch between the forward passes of others. A layer that is computed
    again there must see its own microbatch's pass, so `recomputed` remembers it.
    """

    def __init__(self) -> None:
        self.value = ForwardPass()

    def recomputed(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, of whose activations only the arguments are kept for the backward pass (Chen et al. 2016).

        Random-number states are not restored: dropout is a function of the pass (`dropout.py`).
        """

        def run(*args, **kwargs):
            mine = self.value

            def again(*args, **kwargs):
                before, self.value = self.value, mine
                try:
                    return forward(*args, **kwargs)
                finally:
                    self.value = before

            return checkpoint(again, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

        return run
