"""What an engine must remember to go on exactly, free of the layout: float32 weights, AdamW's moments, counters.

ZeRO 0 keeps moments for each parameter, ZeRO 1 and 2 in flat partitions of all of them, ZeRO 3 in partitions of each; here
they have canonical names and global shapes, so that what was read under one layout goes back under any other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state, safe_set_full_fp32_param, safe_set_full_optimizer_state
from torch import Tensor

from megagpt.engine.build import Engine
from megagpt.model import param_map

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's first and second moment (Kingma & Ba 2015, algorithm 1), as torch names them."""
MASTER = "master"
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def optimizer_tensors(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """`exp_avg.NAME`, `exp_avg_sq.NAME`, and `master.NAME` where the weights have 16 bits; NAME is canonical, of a tensor that is trained.

    Whole tensors, float32. All ranks of a stage must iterate. Nothing before the first update, nor for SGD in float32.
    """
    if engine.model.layout.dtype != torch.float32:
        yield from ((f"{MASTER}.{name}", tensor) for name, tensor in engine.gather(safe_get_full_fp32_param, engine.trained))
    if engine.has_moments and engine.num_updates:
        _link(engine)
        for key in MOMENTS:
            for name, tensor in engine.gather(lambda parameter: _moment(engine, parameter, key), engine.trained):
                yield f"{key}.{name}", tensor


def counters(engine: Engine) -> dict[str, Any]:
    """What the optimizer counts: updates made (for the bias correction), and FP16's loss scaler."""
    scaler = {name: getattr(engine.deepspeed.optimizer.loss_scaler, name) for name in _SCALER} if engine.model.layout.dtype == torch.float16 else None
    return {"num_updates": engine.num_updates, "loss_scaler": scaler}


def restore(engine: Engine, weight: Callable[[str], Tensor], moment: Callable[[str], Tensor], counted: dict[str, Any]) -> None:
    """Put weights, moments and counters back, under whatever layout this engine has. All ranks of the grid call this.

    Args:
        weight: canonical name -> float32 weight.
        moment: `exp_avg.NAME` or `exp_avg_sq.NAME` -> moment.
        counted: what `counters` returned.
    """
    engine.num_updates = counted["num_updates"]
    with engine.scope(), torch.no_grad():
        _put_all(engine, engine.entries, None, weight)
        if engine.has_moments and engine.num_updates:
            _make_moments(engine)
            for key in MOMENTS:
                _put_all(engine, engine.trained, key, lambda name: moment(f"{key}.{name}"))
        if engine.zero_stage == 3:
            zero = engine.deepspeed.optimizer
            for group in range(len(zero.fp16_groups)):
                with _in_memory(zero, group):
                    zero._reassign_or_swap_out_partitioned_parameters(group)
            zero._post_step(timer_names=[])
        elif engine.zero_stage > 0:
            engine.deepspeed.optimizer.update_lp_params()
    if counted["loss_scaler"] is not None and engine.model.layout.dtype == torch.float16:
        for name, value in counted["loss_scaler"].items():
            setattr(engine.deepspeed.optimizer.loss_scaler, name, value)


@torch.no_grad()
def put_masters(engine: Engine, weight: Callable[[str], Tensor]) -> None:
    """Write the float32 weights of what is trained alone: canonical name -> weight. What the passes use stays as it was, unless that is the same."""
    with engine.scope():
        _put_all(engine, engine.trained, None, weight)


def _put_all(
    engine: Engine, entries: list[tuple[torch.nn.Parameter, param_map.Entry]], key: str | None, read: Callable[[str], Tensor]
) -> None:
    tp = engine.groups.collection.tp
    for parameter, entry in entries:
        local = param_map.split(entry, [read(name) for name in entry.pieces], engine.model.shape, tp.size(), tp.rank())
        _put(engine, parameter, key, local.to(parameter.device))


def _base(engine: Engine) -> torch.optim.Optimizer:
    """The optimizer that DeepSpeed wraps, if it does."""
    return engine.deepspeed.optimizer.optimizer if engine.zero_stage > 0 else engine.deepspeed.optimizer


def _moment(engine: Engine, parameter: torch.nn.Parameter, key: str) -> Tensor:
    if engine.zero_stage == 0:
        return _base(engine).state[parameter][key]
    return safe_get_full_optimizer_state(parameter, key)


def _make_moments(engine: Engine) -> None:
    """An optimizer has no state before its first step: make it, as that step would, and set its count of updates."""
    zero, base = engine.deepspeed.optimizer, _base(engine)
    for group, tensor in enumerate(engine.masters):
        with _in_memory(zero, group) if engine.zero_stage == 3 else contextlib.nullcontext():
            state = base.state[tensor]
            if not state:
                state.update({key: torch.zeros_like(tensor.data) for key in MOMENTS})
            # torch's AdamW counts in a tensor (a fused one on the device), DeepSpeed's for the CPU in an integer.
            device = tensor.device if base.defaults.get("fused") else "cpu"
            state["step"] = torch.tensor(float(engine.num_updates), device=device) if isinstance(base, torch.optim.AdamW) else engine.num_updates
    for group in base.param_groups if not isinstance(base, torch.optim.AdamW) else ():
        group["step"] = engine.num_updates  # where apex's counts
    _link(engine)


@contextlib.contextmanager
def _in_memory(zero: Any, group: int) -> Iterator[None]:
    """Masters and moments of one of ZeRO 3's flat groups, within the block: on a drive when they are offloaded to it, and written back behind it."""
    swaps = zero._swappable_optimizer_subgroup(group)
    if swaps:
        zero._optimizer_states_and_gradient_swap_in(group)
    yield
    if swaps:
        zero._optimizer_states_and_gradient_swap_out(group)


def _link(engine: Engine) -> None:
    """Let the parameters find their moments. ZeRO 1 and 2 do so after the step of their first parameter group, when the other has none yet."""
    if engine.zero_stage in (1, 2):
        engine.deepspeed.optimizer._hp_optimizer_states_linked = False
        engine.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()


def _put(engine: Engine, parameter: torch.nn.Parameter, key: str | None, value: Tensor) -> None:
    """Write a moment, or the float32 weight (key None), to where the optimizer keeps this rank's part of it."""
    if engine.zero_stage == 0 or (engine.zero_stage < 3 and not parameter.requires_grad):
        (parameter.data if key is None else _base(engine).state[parameter][key]).copy_(value)
    elif engine.zero_stage < 3:
        value = value.float().contiguous()
        safe_set_full_fp32_param(parameter, value) if key is None else safe_set_full_optimizer_state(parameter, value, key)
    else:
        # DeepSpeed's own setter for whole values refuses those that do not divide evenly over the replicas.
        size, place = parameter.ds_tensor.numel(), engine.deepspeed.optimizer._get_param_partition_rank(parameter)
        part = torch.zeros(size, dtype=torch.float32, device=value.device)
        mine = value.flatten()[place * size : (place + 1) * size]
        part[: mine.numel()] = mine
        if parameter.requires_grad:
            engine.deepspeed.optimizer.set_local_hp_param(part, parameter, key)
        else:
            parameter.ds_tensor.copy_(part)  # the optimizer has none of it
