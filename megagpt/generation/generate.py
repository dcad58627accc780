"""Continuous batching with a key/value cache, under any tensor x pipeline layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megagpt.generation.sample import Sampling, choose
from megagpt.generation.slots import SlotTable, Step
from megagpt.model.decode import Decoder, can_decode
from megagpt.model.gpt import GPT
from megagpt.model.key_value_cache import KeyValueCache
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
    prompt_tokens: int = 0
    """Tokens that passed through the model as part of a whole prompt."""
    response_tokens: int = 0
    """Tokens that passed through it one a row."""


@torch.no_grad()
def generate(
    model: GPT, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, stop_ids: Sequence[int], sampling: Sampling,
    prompt_ids: Sequence[int] | None = None, sample_numbers: Sequence[int] | None = None, max_rows: int | None = None,
    lockstep: dist.ProcessGroup | None = None, on_ended: Callable[[int], None] | None = None,
) -> Generated:
    """Continue every prompt. All ranks of one replica (tp x pp) call this with the same arguments and get the same answer.

    Nothing is padded, a prompt that several rows have is computed once, and a row that has ended makes room for the next.

    Args:
        prompts: token ids, none empty.
        max_new_tokens: tokens sampled at most for each prompt.
        stop_ids: a row ends with the first of these.
        prompt_ids: counters for randomness; default 0, 1, …
        sample_numbers: which of several samples of one prompt this row is; default 0.
        max_rows: rows decoded at the same time; default all. No answer depends on it.
        lockstep: replicas that must take the same number of steps, since ZeRO 3 gathers weights over them at each one.
        on_ended: called with the number of rows that have ended, whenever there are more.

    Raises:
        ValueError: a prompt that is empty, holds an unknown token or leaves no room for max_new_tokens in the context; or
            counters that are not one for each prompt.
    """
    if not prompts:
        return Generated([], [], [])
    lengths = [len(prompt) for prompt in prompts]
    longest, context = max(lengths), model.shape.config.max_sequence_length
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows = {max_rows}: must be 1 or more")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens = {max_new_tokens}: must be 1 or more")
    if 0 in lengths:
        raise ValueError(f"prompt {lengths.index(0)} is empty: at least one token is needed")
    for number, prompt in enumerate(prompts):
        if min(prompt) < 0 or max(prompt) >= model.shape.vocab_size:
            raise ValueError(f"prompt {number} holds a token outside the vocabulary: ids are 0 to {model.shape.vocab_size - 1}")
    for name, counters in (("prompt_ids", prompt_ids), ("sample_numbers", sample_numbers)):
        if counters is not None and len(counters) != len(prompts):
            raise ValueError(f"{name}: {len(counters)} counters for {len(prompts)} prompts")
    if longest + max_new_tokens > context:
        raise ValueError(f"prompt of {longest} tokens + max_new_tokens {max_new_tokens} is longer than the context of {context}")
    ids = np.arange(len(prompts)) if prompt_ids is None else np.asarray(prompt_ids, dtype=np.int64)
    numbers = np.zeros_like(ids) if sample_numbers is None else np.asarray(sample_numbers, dtype=np.int64)
    stops, device = frozenset(stop_ids), next(model.parameters()).device
    tokens_out: list[list[int]] = [[] for _ in prompts]
    logprobs_out: list[list[float]] = [[] for _ in prompts]
    stopped = [False] * len(prompts)

    was_training = model.training
    model.eval()
    num_slots = min(max_rows or len(prompts), len(prompts))
    cache = model.new_cache(num_slots, longest + max_new_tokens)
    table = SlotTable(prompts, num_slots, cache.copy)
    run = _Passes(model, cache, sampling)
    num_ended = 0
    while True:
        step = table.next_step()
        if not _anyone_runs(step is not None, lockstep, device):
            break
        if step is None:
            run(_ALONG, ids[:1], numbers[:1])
            continue
        rows = table.rows
        tokens, logprobs = run(step, ids[rows], numbers[rows])
        for slot, others, length in step.shares:
            cache.copy(slot, others, length)
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            tokens_out[row].append(token)
            logprobs_out[row].append(logprob)
            stopped[row] = token in stops
        ended = [stopped[row] or len(tokens_out[row]) == max_new_tokens for row in rows]
        table.advance(tokens, ended)
        if on_ended is not None and any(ended):
            num_ended += sum(ended)
            on_ended(num_ended)
    model.train(was_training)
    return Generated(tokens_out, logprobs_out, stopped, run.prompt_tokens, run.response_tokens)


_ALONG = Step(tokens=[0], positions=[0], going_on=[0], last=[0])
"""What a replica computes for nothing while others still have rows."""


def _anyone_runs(here: bool, lockstep: dist.ProcessGroup | None, device: torch.device) -> bool:
    return here if lockstep is None else max_over(lockstep, float(here), device) > 0


class _Passes:
    """Steps through all pipeline stages."""

    def __init__(self, model: GPT, cache: KeyValueCache, sampling: Sampling) -> None:
        self.model, self.cache, self.sampling = model, cache, sampling
        self.decoder = Decoder(model) if can_decode(model) else None
        self.prompt_tokens = self.response_tokens = 0

    def __call__(self, step: Step, prompt_ids: np.ndarray, sample_numbers: np.ndarray) -> tuple[list[int], list[float]]:
        """Returns the next token of each slot and its log-probability, the same on every rank."""
        model, device = self.model, self.cache.device
        groups, pp = model.groups, model.groups.collection.pp
        neighbours = dist.get_process_group_ranks(pp)
        self.response_tokens += len(step.going_on)
        self.prompt_tokens += len(step.tokens) - len(step.going_on)
        self.cache.expect(step.going_on, step.positions[: len(step.going_on)], step.prompts)
        tokens, positions = torch.tensor([step.tokens, step.positions], device=device)[:, None]
        last, received = torch.tensor(step.last, device=device), None
        if not groups.is_first_stage:
            received = torch.empty(len(step.tokens), 1, model.config.hidden_size, dtype=model.config.params_dtype, device=device)
            dist.recv(received, neighbours[groups.coordinates.pp - 1], group=pp)
        output = self._stage(tokens, positions, last, received)
        chosen = torch.empty(2, len(last), dtype=torch.float64, device=device)
        if groups.is_last_stage:
            logits = gather_last_dim(output[0], groups.collection.tp)[:, : model.shape.vocab_size]
            counters = np.array(step.positions)[step.last] + 1  # where the new tokens will stand
            chosen[0], chosen[1] = choose(logits, self.sampling, prompt_ids, sample_numbers, counters)
        else:
            dist.send(output.contiguous(), neighbours[groups.coordinates.pp + 1], group=pp)
        if pp.size() > 1:
            dist.broadcast(chosen, neighbours[-1], group=pp)
        return chosen[0].long().tolist(), chosen[1].tolist()

    def _stage(self, tokens: Tensor, positions: Tensor, last: Tensor, received: Tensor | None) -> Tensor:
        if self.decoder is not None:
            return self.decoder(tokens, positions, self.cache, last, received)
        if received is not None:
            self.model.set_input_tensor(received)
        return self.model(tokens, positions, self.cache, last)
