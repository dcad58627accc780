"""What the backward pass needs of the forward pass, bytes of one rank: ours, counted tensor by tensor, and the published formulas.

Legend: T tokens of a microbatch on this rank, h hidden size, f MLP width, k width of all keys, t tensor-parallel ranks,
s sequence length, b rows, a heads.
"""

from __future__ import annotations

from megagpt.plan.job import Job, without_recomputation


def layer_bytes(job: Job, mlp_tokens: int | None = None) -> int:
    """Of one transformer layer and one microbatch, as our modules keep it under autograd; `mlp_tokens` that its MLP works on, default: all.

    Between the layers, [T, h] each and shared by sequence parallelism: the inputs and outputs of two norms. Within, cut by
    tensor parallelism: query, key and value in one, attention's output, the MLP before and after its activation. FlashAttention
    (Dao et al. 2022, section 3.1) keeps one float32 a head and token in place of [a, s, s], so that selective recomputation
    saves little. Without the fused kernels `llama` keeps more, since its norms, rotation and activation are written out in
    PyTorch, and both families keep the masks of their dropout.
    """
    if job.parallel.recompute == "full":
        return job.tokens * job.shape.config.hidden_size // job.sequence_shards * job.num_bytes  # the layer's input
    shape, w, tp, tokens, shared = job.shape, job.num_bytes, job.grid.tp, job.tokens, job.sequence_shards
    h, f = shape.config.hidden_size, shape.ffn_hidden_size
    keys = shape.head_size * shape.num_query_groups
    heads = shape.config.num_attention_heads // tp
    keeps_scores = job.dropout > 0 and job.parallel.recompute == "none"
    mlp_tokens = tokens if mlp_tokens is None else mlp_tokens
    if shape.is_llama:
        # Unfused norms compute in float32 (their input, its length, and one over the other); query and key are kept turned too.
        norm, floats = (2 * h, 1) if job.fused else (h, 2 * h + 1)
        attention, mlp = (3 * h if keeps_scores else (h + 2 * keys) + (h + keys)) + h, (3 if job.fused else 5) * f
    else:
        norm, floats = 2 * h + 2, 0  # 2: mean and deviation
        attention, mlp = (h + 2 * keys) + (2 * h if keeps_scores else 0) + h, 2 * f
    kept = (tokens + mlp_tokens) * (w * norm + 4 * floats) // shared + w * (tokens * attention + mlp_tokens * mlp) // tp
    if shape.is_llama and not job.fused:
        kept += 4 * w * job.length // job.grid.cp * shape.head_size  # sines and cosines
    if job.dropout and not job.fused:
        kept += 2 * w * tokens * h  # masks of both residuals, drawn for whole rows
    if keeps_scores:
        return kept + 3 * heads * tokens * job.length * w  # weights, mask, and their product
    return kept + (4 * heads * tokens if job.parallel.recompute == "none" else 0)


def head_bytes(job: Job) -> int:
    """Of the last stage beyond its layers: the final norm, and the logits with their gradient.

    The fused kernel adds their gradient only. Plain PyTorch holds three float32 arrays beside them at its peak, early in the
    backward pass: the exponentials, and two gradients on their way back to the logits.
    """
    w = job.num_bytes
    ids = 24 * job.tokens  # tokens and labels, and what the loss keeps of each
    norm = ids + (8 + w if job.shape.is_llama and not job.fused else 2 * w) * job.last_tokens * job.shape.config.hidden_size // job.sequence_shards
    if job.scalar_head:
        return norm
    logits = job.head_tokens * job.shape.padded_vocab_size(job.grid.tp) // job.grid.tp
    return norm + logits * (w + (w if job.fused else 3 * 4))


def passing_bytes(job: Job) -> int:
    """Of the one layer in work, beyond what is kept: gradients of the MLP's activations and of its input; under full
    recomputation the whole layer again."""
    shape, w = job.shape, job.num_bytes
    passing = w * job.tokens * (2 * shape.ffn_hidden_size // job.grid.tp + 2 * shape.config.hidden_size)
    if job.parallel.recompute == "full":
        passing += layer_bytes(without_recomputation(job))
    return passing


def chunks_in_flight(job: Job, stage: int) -> int:
    """Passes of one block of layers of which a pipeline stage keeps the activations at most.

    1F1B (Narayanan et al. 2021, section 2.2.1): one microbatch for each stage from here on. Interleaved (section 2.2.2): the
    first stage warms up with 2 (p - 1) + (v - 1) p passes and starts one more; in all p v + p - 1, which is the factor
    1 + (p - 1) / (p v) of Korthikanti et al. 2022, section 4.2.3.
    """
    p, v, m = job.grid.pp, job.parallel.virtual_pipeline_size, job.num_microbatches
    if v == 1:
        return min(p - stage, m)
    return min(2 * (p - stage - 1) + (v - 1) * p + 1, m * v)


def stage_bytes(job: Job, stage: int) -> int:
    """Activations of one pipeline stage at their most."""
    blocks = job.layers(stage)
    kept = chunks_in_flight(job, stage)
    # The longest blocks are the ones in flight, where they differ.
    layers = sum(sorted(blocks * (-(-kept // len(blocks))), reverse=True)[:kept])
    output = job.tokens * job.shape.config.hidden_size // job.sequence_shards * job.num_bytes
    messages = kept * output if job.grid.pp > 1 else 0
    is_last = stage == job.grid.pp - 1
    head = head_bytes(job) if is_last else 0
    spared = layer_bytes(job) - layer_bytes(job, job.last_tokens) if is_last and blocks[-1] else 0
    return layers * layer_bytes(job) - spared + messages + max(head, passing_bytes(job))


def published_layer_bytes(s: int, b: int, h: int, a: int, t: int = 1, sequence_parallel: bool = False, recompute: str = "none") -> float:
    """One layer in 16 bits with dropout and without FlashAttention (Korthikanti et al. 2022, table 2).

    s b h (34 + 5 a s / h) at t = 1 (eq. 1); (10 + 24 / t + 5 a s / (h t)) with tensor parallelism (eq. 2); all of it over t with
    sequence parallelism (eq. 4); selective recomputation drops the last term (eq. 6); full keeps the input, 2 s b h.
    """
    if recompute == "full":
        return 2.0 * s * b * h
    attention = 0.0 if recompute == "selective" else 5.0 * a * s / h
    return s * b * h * ((34.0 + attention) / t if sequence_parallel else 10.0 + 24.0 / t + attention / t)
