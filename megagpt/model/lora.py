"""Low-rank adapters (LoRA, Hu et al. 2021, eq. 3): y = W x + alpha / rank * B A x, in which A and B are trained and W is not.

B is zero at the start, so that a model with new adapters computes what it did without them; `merged_weight` puts the two
products back into one, and `adapters_off` leaves the second one out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor

from megagpt.config.schema import LoraConfig
from megagpt.model import param_map
from megagpt.model.shape import ModelShape


class LowRank(torch.nn.Module):
    """The product alpha / rank * B A x beside one linear layer of Megatron-core, cut over tensor-parallel ranks as that layer is.

    A layer whose outputs are shared has all of A on every rank, and of B the rows of its outputs. One whose inputs are shared has the
    columns of A for its inputs, and all of B. Either way the ranks exchange A x, which has `rank` numbers a token: its gradient where
    B is cut, A x itself where A is. So a factor that each rank holds whole gets the same gradient on all of them; with sequence
    parallelism it meets other tokens on each, and is marked for `engine/build.py` to add up, as norms are.

    Weights are uninitialised until `GPT.load_canonical`.
    """

    def __init__(self, linear: torch.nn.Module, config: LoraConfig) -> None:
        super().__init__()
        rows, columns = linear.weight.shape
        self.a = torch.nn.Parameter(linear.weight.new_empty(config.rank, columns))
        self.b = torch.nn.Parameter(linear.weight.new_empty(rows, config.rank))
        self.scale, self.active = config.alpha / config.rank, True
        self._cuts_inputs, self._group = isinstance(linear, RowParallelLinear), linear.tp_group
        self._sequence_parallel = linear.sequence_parallel
        (self.b if self._cuts_inputs else self.a).sequence_parallel = linear.sequence_parallel

    def forward(self, inputs: Tensor, product: Tensor) -> Tensor:
        """The layer's product with ours added to it."""
        if not self.active:
            return product
        low = self._exchanged(F.linear(inputs, self.a))  # [s, b, rank]
        added = torch.addmm(product.flatten(0, 1), low.flatten(0, 1), self.b.t(), alpha=self.scale)
        return added.view_as(product)

    def _exchanged(self, low: Tensor) -> Tensor:
        """A x of one rank -> what B is multiplied by there."""
        if self._cuts_inputs:
            reduce = reduce_scatter_to_sequence_parallel_region if self._sequence_parallel else reduce_from_tensor_model_parallel_region
            return reduce(low, group=self._group)
        spread = gather_from_sequence_parallel_region if self._sequence_parallel else copy_to_tensor_model_parallel_region
        return spread(low, group=self._group)

    def local(self, product: Tensor, inputs: Tensor) -> Tensor:
        """This rank's part of the layer's product W x [t, out], with its part of ours added: outputs of its own, or one term of the sum over
        the ranks that share the inputs [t, in]. For decoding, where nothing is sent back."""
        if not self.active:
            return product
        return torch.addmm(product, F.linear(inputs, self.a), self.b.t(), alpha=self.scale)


def attach(model: torch.nn.Module, config: LoraConfig) -> None:
    """Give the target layers of a GPT their adapters."""
    for layer in model.decoder.layers:
        for target in config.targets:
            linear = layer.get_submodule(param_map.TARGETS[target])
            linear.lora = LowRank(linear, config)
            linear.register_forward_hook(_with_adapter)


def _with_adapter(linear: torch.nn.Module, inputs: tuple[Tensor], output: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """(The layer's product, its bias or None), the adapter's added to the product. The adapter is called as a module, since ZeRO 3 gathers weights
    in the hooks of the module that owns them."""
    product, bias = output
    return linear.lora(inputs[0], product), bias


@contextlib.contextmanager
def adapters_off(model: torch.nn.Module) -> Iterator[None]:
    """Within the block the model is the one that its adapters were put on."""
    adapters = [module for module in model.modules() if isinstance(module, LowRank)]
    for adapter in adapters:
        adapter.active = False
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.active = True


def merged_weight(name: str, read: Callable[[str], Tensor], config: LoraConfig) -> Tensor:
    """A canonical tensor of the model without adapters that computes the same: W + alpha / rank * B A where there are some, worked out in
    float32 and rounded to W's type."""
    weight, factors = read(name), param_map.factors_of(name, config)
    if factors is None:
        return weight
    a, b = (read(factor).float() for factor in factors)
    return torch.addmm(weight.float(), b, a, alpha=config.alpha / config.rank).to(weight.dtype)


def describe(shape: ModelShape, scalar_head: bool = False) -> str:
    """A part of a line for the log; nothing where the whole model is trained."""
    if shape.lora is None:
        return ""
    trained, total = param_map.num_trained(shape, scalar_head), param_map.num_parameters(shape, scalar_head)
    return f", LoRA of rank {shape.lora.rank} on {', '.join(shape.lora.targets)}: {trained:,} of {total:,} parameters train"
