"""The view of a model's process groups that DeepSpeed expects (its `mpu` argument)."""

from __future__ import annotations

import torch.distributed as dist

from megagpt.parallel.groups import Groups


class DeepSpeedMpu:
    """Answers DeepSpeed's questions about one grid.

    "Model parallel" means tensor x pipeline: DeepSpeed sums gradient norms over that group. "Data parallel" is the
    group over which ZeRO shards.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups = groups.collection
        self._tensor_source = dist.get_process_group_ranks(groups.collection.tp)[0]

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self._groups.mp

    def get_model_parallel_rank(self) -> int:
        return self._groups.mp.rank()

    def get_model_parallel_world_size(self) -> int:
        return self._groups.mp.size()

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self._groups.dp_cp

    def get_data_parallel_rank(self) -> int:
        return self._groups.dp_cp.rank()

    def get_data_parallel_world_size(self) -> int:
        return self._groups.dp_cp.size()

    def get_tensor_model_parallel_group(self) -> dist.ProcessGroup:
        return self._groups.tp

    def get_tensor_model_parallel_rank(self) -> int:
        return self._groups.tp.rank()

    def get_tensor_model_parallel_world_size(self) -> int:
        return self._groups.tp.size()

    def get_tensor_model_parallel_src_rank(self) -> int:
        return self._tensor_source

    def get_pipeline_model_parallel_group(self) -> dist.ProcessGroup:
        return self._groups.pp

    def get_pipeline_model_parallel_rank(self) -> int:
        return self._groups.pp.rank()

    def get_pipeline_model_parallel_world_size(self) -> int:
        return self._groups.pp.size()
