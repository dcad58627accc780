"""Batched decoding with a key/value cache, under any tensor x pipeline layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megagpt.generation.sample import Sampling, choose
from megagpt.model.attention import KeyValueCache
from megagpt.model.gpt import GPT
from megagpt.parallel.collectives import gather_last_dim, max_over


@dataclass(frozen=True)
class Generated:
    """Responses to a batch of prompts."""

    tokens: list[list[int]]
    """Sampled tokens of each row, the stop token included."""
    logprobs: list[list[float]]
    """Their log-probabilities under softmax(logits / temperature)."""
    stopped: list[bool]
    """False where the row was cut at max_new_tokens."""


@torch.no_grad()
def generate(
    model: GPT, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, stop_ids: Sequence[int], sampling: Sampling,
    prompt_ids: Sequence[int] | None = None, sample_numbers: Sequence[int] | None = None, lockstep: dist.ProcessGroup | None = None,
) -> Generated:
    """Continue every prompt. All ranks of one replica (tp x pp) call this with the same arguments and get the same answer.

    Prompts may differ in length: they are padded on the right and every row keeps its own position, so padding is never seen.

    Args:
        prompts: token ids, none empty.
        max_new_tokens: tokens sampled at most for each prompt.
        stop_ids: a row ends with the first of these.
        prompt_ids: counters for randomness; default 0, 1, …
        sample_numbers: which of several samples of one prompt this row is; default 0.
        lockstep: replicas that must take the same number of steps, since ZeRO 3 gathers weights over them at each one.

    Raises:
        ValueError: a prompt that is empty, holds an unknown token or leaves no room for max_new_tokens in the context; or
            counters that are not one for each prompt.
    """
    if not prompts:
        return Generated([], [], [])
    lengths = np.array([len(prompt) for prompt in prompts])
    longest, context = int(lengths.max()), model.shape.config.max_sequence_length
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens = {max_new_tokens}: must be 1 or more")
    if lengths.min() == 0:
        raise ValueError(f"prompt {int(lengths.argmin())} is empty: at least one token is needed")
    for number, prompt in enumerate(prompts):
        if min(prompt) < 0 or max(prompt) >= model.shape.vocab_size:
            raise ValueError(f"prompt {number} holds a token outside the vocabulary: ids are 0 to {model.shape.vocab_size - 1}")
    for name, counters in (("prompt_ids", prompt_ids), ("sample_numbers", sample_numbers)):
        if counters is not None and len(counters) != len(prompts):
            raise ValueError(f"{name}: {len(counters)} counters for {len(prompts)} prompts")
    if longest + max_new_tokens > context:
        raise ValueError(f"prompt of {longest} tokens + max_new_tokens {max_new_tokens} is longer than the context of {context}")
    device = next(model.parameters()).device
    rows = np.arange(len(prompts))  # the rows that still run, by their place in `prompts`
    ids = rows if prompt_ids is None else np.asarray(prompt_ids, dtype=np.int64)
    numbers = np.zeros_like(rows) if sample_numbers is None else np.asarray(sample_numbers, dtype=np.int64)
    stop = torch.tensor(list(stop_ids), device=device)
    tokens_out: list[list[int]] = [[] for _ in prompts]
    logprobs_out: list[list[float]] = [[] for _ in prompts]
    stopped = [False] * len(prompts)

    padded = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = torch.as_tensor(prompt)
    was_training = model.training
    model.eval()
    cache = KeyValueCache(len(prompts), longest + max_new_tokens)
    positions = torch.arange(longest, device=device).expand(len(prompts), -1)
    last = torch.as_tensor(lengths - 1, device=device)
    step_tokens = padded.to(device)
    for count in range(max_new_tokens):
        new_tokens, new_logprobs = _step(model, step_tokens, positions, cache, last, sampling, ids[rows], numbers[rows], lengths[rows] + count)
        ended = torch.isin(new_tokens, stop)
        for row, token, logprob, end in zip(rows, new_tokens.tolist(), new_logprobs.tolist(), ended.tolist()):
            if not stopped[row]:
                tokens_out[row].append(token)
                logprobs_out[row].append(logprob)
                stopped[row] = end
        running = torch.tensor([place for place, row in enumerate(rows) if not stopped[row]], dtype=torch.int64, device=device)
        if not _anyone_runs(len(running) > 0, lockstep, device):
            break
        if len(running) == 0:
            running = running.new_zeros(1)  # a finished row goes along until the other replicas are done
        if len(running) < len(rows):
            rows, new_tokens = rows[running.cpu().numpy()], new_tokens[running]
            cache.keep_rows(running)
        step_tokens = new_tokens[:, None]
        positions = torch.as_tensor(lengths[rows] + count, device=device)[:, None]
        last = torch.zeros(len(rows), dtype=torch.int64, device=device)
    model.train(was_training)
    return Generated(tokens_out, logprobs_out, stopped)


def _anyone_runs(here: bool, lockstep: dist.ProcessGroup | None, device: torch.device) -> bool:
    return here if lockstep is None else max_over(lockstep, float(here), device) > 0


def _step(
    model: GPT, tokens: Tensor, positions: Tensor, cache: KeyValueCache, last: Tensor, sampling: Sampling,
    prompt_ids: np.ndarray, sample_numbers: np.ndarray, counters: np.ndarray,
) -> tuple[Tensor, Tensor]:
    """Tokens [b, s] through all stages; returns the next token of each row and its log-probability, [b] on every rank."""
    groups, pp = model.groups, model.groups.collection.pp
    neighbours = dist.get_process_group_ranks(pp)
    batch, length = tokens.shape
    if not groups.is_first_stage:
        hidden = torch.empty(length, batch, model.config.hidden_size, dtype=model.config.params_dtype, device=tokens.device)
        dist.recv(hidden, neighbours[groups.coordinates.pp - 1], group=pp)
        model.set_input_tensor(hidden)
    output = model(tokens, positions, cache, only=last)
    chosen = torch.empty(2, batch, dtype=torch.float64, device=tokens.device)
    if groups.is_last_stage:
        logits = gather_last_dim(output[:, 0], groups.collection.tp)[:, : model.shape.vocab_size]
        chosen[0], chosen[1] = choose(logits, sampling, prompt_ids, sample_numbers, counters)
    else:
        dist.send(output.contiguous(), neighbours[groups.coordinates.pp + 1], group=pp)
    if pp.size() > 1:
        dist.broadcast(chosen, neighbours[-1], group=pp)
    return chosen[0].long(), chosen[1].float()
