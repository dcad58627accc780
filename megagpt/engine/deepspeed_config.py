"""Our settings -> DeepSpeed's JSON. Nothing else of the project writes that JSON."""

from __future__ import annotations


def deepspeed_config(zero_stage: int, clip_grad: float) -> dict:
    """DeepSpeed configuration for a model that a Megatron-core schedule drives.

    - One gradient-accumulation step: the schedule already divides by its microbatches, and DeepSpeed would divide a
      second time, silently.
    - The batch sizes are formalities here; DeepSpeed uses them only for its own data loader and throughput.
    - At ZeRO 0 clipping is ours (`build.py` says why).
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip_grad if zero_stage > 0 else 0.0,
        "zero_optimization": {
            "stage": zero_stage,
            # Small models: parameters below this size stay whole on every rank. 0 shards everything, as the name says.
            "stage3_param_persistence_threshold": 0,
        },
        "zero_allow_untested_optimizer": True,  # torch's own AdamW and SGD are not on DeepSpeed's list
        "steps_per_print": 2**31 - 1,
    }
