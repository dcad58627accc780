"""Our settings -> DeepSpeed's JSON. Nothing else of the project writes that JSON."""

from __future__ import annotations

import math

import torch

from megagpt.config.schema import LossScaleConfig
from megagpt.engine.sharding import REDUCE_BUCKET


def deepspeed_config(
    zero_stage: int, clip_grad: float, dtype: torch.dtype = torch.float32, *,
    loss_scale: LossScaleConfig = LossScaleConfig(), offload_optimizer: str = "none", offload_path: str | None = None, bucket: int = REDUCE_BUCKET,
) -> dict:
    """DeepSpeed configuration for a model that a Megatron-core schedule drives.

    - One gradient-accumulation step: the schedule already divides by its microbatches, and DeepSpeed would divide a
      second time, silently.
    - The batch sizes are formalities here; DeepSpeed uses them only for its own data loader and throughput.
    - At ZeRO 0 clipping is ours (`build.py` says why).
    - Gradients travel between replicas in float32. At ZeRO 1 and 2 their accumulation in float32 is arranged in
      `build.py`: asked for here, DeepSpeed would take another optimizer class at ZeRO 1, and at ZeRO 2 still add up in 16 bits.
    """
    zero: dict = {
        "stage": zero_stage,
        # Small models: parameters below this size stay whole on every rank. 0 shards everything, as the name says.
        "stage3_param_persistence_threshold": 0,
        # It would replace torch's linear in the whole process and for good; Megatron-core's linears do not call it anyway.
        "memory_efficient_linear": False,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": REDUCE_BUCKET,  # cuts what is gathered; it has no buffer
    }
    if offload_optimizer != "none":
        zero["offload_optimizer"] = {"device": offload_optimizer, "pin_memory": torch.cuda.is_available()}
        if offload_path is not None:
            zero["offload_optimizer"]["nvme_path"] = offload_path
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip_grad if zero_stage > 0 else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's own AdamW and SGD are not on DeepSpeed's list
        "zero_force_ds_cpu_optimizer": False,  # `optimizer.py` chooses
        "communication_data_type": "fp32",
        "steps_per_print": 2**31 - 1,
    }
    if dtype != torch.float32 and zero_stage == 3:
        # Its contiguous buffer would hold 16-bit gradients.
        zero["contiguous_gradients"] = False
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if dtype == torch.bfloat16:
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
    if dtype == torch.float16:
        config["fp16"] = {
            "enabled": True,
            "loss_scale": 0,  # dynamic
            "initial_scale_power": round(math.log2(loss_scale.initial)),
            "loss_scale_window": loss_scale.window,
            "hysteresis": loss_scale.hysteresis,
            "min_loss_scale": loss_scale.minimum,
        }
    return config
