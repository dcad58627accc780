"""Prompts -> responses, part by part: the policy writes one while other ranks already score the one before."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from megagpt.config.schema import RlhfConfig
from megagpt.generation.generate import generate
from megagpt.generation.sample import Sampling
from megagpt.parallel.groups import host_group
from megagpt.parallel.route import begin_sharing, replica_rows
from megagpt.rlhf.experience import Rollout
from megagpt.rlhf.four_models import FourModels
from megagpt.runtime.timeline import Timeline


@dataclass(frozen=True)
class Questions:
    """Rows that wait for a response, the same on every rank."""

    prompts: Sequence[Sequence[int]]
    """Token ids."""
    prompt_ids: Sequence[int]
    sample_numbers: Sequence[int]
    """Counters of randomness: which prompt, and which of its samples."""
    stop_ids: Sequence[int]
    seed: int


class Writing:
    """One response to each question by the current policy, and how it reaches every rank of the job.

    Nobody can wait for ever. All ranks post the same broadcasts on the same group in the same order, part by part and in each replica by
    replica: a rank that writes posts those of a part once it has written it, which asks nothing of other grids; any other rank posts all of
    them before it does anything else. So the earliest broadcast that is not over is the next one everywhere, and its sender comes.

    Args:
        num_parts: equal parts of the questions.
    """

    def __init__(
        self, models: FourModels, config: RlhfConfig, questions: Questions, num_parts: int, device: torch.device, timeline: Timeline
    ) -> None:
        self._models, self._config, self._questions, self._num_parts, self._timeline = models, config, questions, num_parts, timeline
        self._groups, self._grid = models.groups[models.writer], models.grids[models.writer]
        self._length = length = config.prompts.max_prompt_length + config.prompts.max_response_length
        self._group = host_group(config.run.timeout_seconds)
        n = len(questions.prompts)
        # One float64 row for each response: tokens | log-probabilities | prompt length, length, stopped. In host memory, as `host_group` wants.
        self._sheet = torch.zeros(n, 2 * length + 3, dtype=torch.float64)
        self.rollout = Rollout(
            tokens=torch.empty(n, length, dtype=torch.int64, device=device), prompt_lengths=torch.empty(n, dtype=torch.int64, device=device),
            lengths=torch.empty(n, dtype=torch.int64, device=device), stopped=torch.empty(n, dtype=torch.bool, device=device),
            sampler_logprobs=torch.empty(n, length - 1, device=device),
        )  # fmt: skip
        """Filled by `parts`."""
        self.seconds = 0.0
        """That writing took, on ranks that write."""

    def parts(self) -> Iterator[tuple[int | None, Rollout]]:
        """(number, part) as soon as this rank may score it: each as it arrives; on ranks that write (None, all), once the last one is written."""
        writes, works, began = self._groups is not None, [], time.perf_counter()
        for number, sheet in enumerate(self._sheet.chunk(self._num_parts)):
            if writes:
                with self._timeline.span("generate", self._models.writer, number):
                    self._write(number)
            works.append(begin_sharing(sheet, self._grid, self._group))
        self.seconds = time.perf_counter() - began
        for number, arrivals in enumerate(works):
            with self._timeline.span("wait", part=number):
                for work in arrivals:
                    work.wait()
            part = self._read(number)
            if not writes:
                yield number, part
        if writes:
            yield None, self.rollout

    def _rows(self, number: int) -> range:
        each = len(self._questions.prompts) // self._num_parts
        return range(number * each, (number + 1) * each)

    def _write(self, number: int) -> None:
        """This replica's responses of a part go onto the sheet."""
        models, config, asked, length = self._models, self._config, self._questions, self._length
        groups, rows = self._groups, self._rows(number)
        mine = [rows[i] for i in replica_rows(len(rows), groups.grid, groups.coordinates.dp)]
        in_lockstep = models.writer == "policy" and models.policy.zero_stage == 3
        with models.scope(models.writer):
            generated = generate(
                models.module(models.writer), [asked.prompts[i] for i in mine],
                max_new_tokens=config.prompts.max_response_length, stop_ids=asked.stop_ids,
                sampling=Sampling(temperature=config.ppo.temperature, seed=asked.seed),
                prompt_ids=[asked.prompt_ids[i] for i in mine], sample_numbers=[asked.sample_numbers[i] for i in mine],
                max_rows=config.ppo.generation_batch_size, lockstep=groups.collection.dp_cp if in_lockstep else None,
            )
        for i, response, logprobs, stopped in zip(mine, generated.tokens, generated.logprobs, generated.stopped, strict=True):
            prompt, row = list(asked.prompts[i]), self._sheet[i]
            row[: len(prompt) + len(response)] = torch.tensor(prompt + response, dtype=torch.float64)
            start = length + len(prompt) - 1  # prediction t - 1 is about token t
            row[start : start + len(response)] = torch.tensor(logprobs, dtype=torch.float64)
            row[-3:] = torch.tensor([len(prompt), len(prompt) + len(response), stopped], dtype=torch.float64)

    def _read(self, number: int) -> Rollout:
        """A part that has arrived."""
        rows, length = self._rows(number), self._length
        sheet, part = self._sheet[rows.start : rows.stop], self.rollout.rows(rows.start, rows.stop)
        part.tokens.copy_(sheet[:, :length])
        part.sampler_logprobs.copy_(sheet[:, length : 2 * length - 1])
        part.prompt_lengths.copy_(sheet[:, -3])
        part.lengths.copy_(sheet[:, -2])
        part.stopped.copy_(sheet[:, -1] > 0)
        return part
