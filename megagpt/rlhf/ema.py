"""Exponential moving average of the policy's weights (Ouyang et al. 2022, appendix C.4)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from megagpt.checkpoint.load import Checkpoint
from megagpt.engine.build import Engine
from megagpt.model import param_map


class WeightAverage:
    """average <- decay average + (1 - decay) weights, of whatever part of the float32 weights that are trained this rank holds: under ZeRO 3 its
    share of each."""

    def __init__(self, engine: Engine, decay: float) -> None:
        self._engine, self._decay = engine, decay
        self._averages = [weight.clone() for weight in self._weights()]

    def update(self) -> None:
        """Take in the weights as they are; after every optimizer step."""
        torch._foreach_lerp_(self._averages, self._weights(), 1.0 - self._decay)

    def canonical_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The averages by canonical name, whole, and what is not trained as it is; all ranks of the stage must iterate."""
        averages = {parameter: average for (parameter, _), average in zip(self._engine.trained, self._averages, strict=True)}
        yield from self._engine.gather(lambda parameter: self._whole(parameter, averages[parameter]) if parameter in averages else parameter.data)

    def load(self, checkpoint: Checkpoint) -> None:
        """Averages as they were saved, under whatever layout this engine has."""
        engine, tp = self._engine, self._engine.groups.collection.tp
        with checkpoint.tensors("model", merged=False) as read:
            for (_, entry), average in zip(engine.trained, self._averages, strict=True):
                whole = param_map.split(entry, [read(name) for name in entry.pieces], engine.model.shape, tp.size(), tp.rank()).flatten()
                if engine.zero_stage == 3:
                    group = engine.groups.collection.dp_cp
                    whole = torch.nn.functional.pad(whole, (0, average.numel() * group.size() - whole.numel()))
                    whole = whole[dist.get_rank(group) * average.numel() :][: average.numel()]
                average.copy_(whole.view_as(average))

    def _weights(self) -> list[Tensor]:
        shares = self._engine.zero_stage == 3
        return [parameter.ds_tensor.data if shares else parameter.data for parameter, _ in self._engine.trained]

    def _whole(self, parameter: torch.nn.Parameter, average: Tensor) -> Tensor:
        """Of one parameter, but for tensor parallelism."""
        if self._engine.zero_stage < 3:
            return average
        group = self._engine.groups.collection.dp_cp
        shares = [torch.empty_like(average) for _ in range(group.size())]
        dist.all_gather(shares, average, group=group)
        return torch.cat(shares)[: parameter.ds_numel]
