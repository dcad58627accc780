"""Parameter groups and the optimizer that ZeRO wraps."""

from __future__ import annotations

import torch

from megagpt.config.schema import OptimizerConfig
from megagpt.kernels import apex
from megagpt.kernels.adamw import FusedAdamW
from megagpt.kernels.select import choose


def build_optimizer(model: torch.nn.Module, config: OptimizerConfig, offloaded: bool = False) -> torch.optim.Optimizer:
    """AdamW with decoupled decay (Loshchilov & Hutter 2019, algorithm 2), or SGD with the same decay rule.

    Decay applies to matrices only, never to norms and biases (Brown et al. 2020, appendix B, as their successors do). Where adapters of low
    rank are trained, it applies to the one vector among them too, a scalar head's bias: DeepSpeed sums the gradient norm over all ranks
    of the model one group after the other, so that every pipeline stage must have the same groups.

    Args:
        offloaded: states live in host memory while the model is on a GPU; DeepSpeed's vectorised CPU AdamW then steps there.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adapters_only = len(parameters) < len(list(model.parameters()))
    groups = [
        {"params": [p for p in parameters if p.dim() > 1 or adapters_only], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1 and not adapters_only], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr)
    if offloaded and parameters[0].is_cuda:
        from deepspeed.ops.adam import DeepSpeedCPUAdam  # compiles its op at first use

        return DeepSpeedCPUAdam(groups, lr=config.lr, betas=config.betas, eps=config.eps, adamw_mode=True)
    choice, settings = choose("adamw", parameters[0].new_empty(0, dtype=torch.float32)), {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if choice == "apex":
        return apex.adamw(groups, **settings)
    return FusedAdamW(groups, **settings) if choice == "fused" else torch.optim.AdamW(groups, fused=True, **settings)
