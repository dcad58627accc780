"""fit(): load, loop, step, log, save, evaluate."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from megagpt.checkpoint.load import new_chunks
from megagpt.checkpoint.stage_output import StageOutput
from megagpt.config.check import check_pretrain
from megagpt.config.load import ConfigError
from megagpt.config.schema import PretrainConfig
from megagpt.data.batch import EncodedRow
from megagpt.data.token_data import TokenData, open_token_files
from megagpt.engine.anomaly import AnomalyGuard
from megagpt.engine.build import Engine
from megagpt.engine.schedule import batch_size, learning_rate, run_steps
from megagpt.engine.token_steps import count_targets, evaluate, replica_batches, train_step
from megagpt.model.layout import Layout
from megagpt.model.param_map import num_parameters
from megagpt.model.shape import ModelShape
from megagpt.parallel.groups import build_groups
from megagpt.parallel.placement import stage_grid
from megagpt.pretrain.evaluate import TextSize, unigram_cross_entropy
from megagpt.runtime.distributed import start, world_size_from_environment
from megagpt.runtime.log import is_main_rank, say
from megagpt.runtime.run_folder import RunFolder
from megagpt.runtime.stage_run import StageRun
from megagpt.tokenizer.tokenizer import Tokenizer, load_tokenizer

UNIGRAM_ROWS = 10_000
"""Rows of training text that token frequencies are counted on."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come; with the configuration, all that decides what the next step reads."""

    step: int = 0
    rows: int = 0
    """Trained on. Batch size and learning rate are functions of these."""
    skipped_rows: int = 0
    """Passed over after spikes."""

    @property
    def next_row(self) -> int:
        """Position of the next row to read."""
        return self.rows + self.skipped_rows


def fit(config: PretrainConfig, original: str = "") -> Path:
    """Pre-train from initial weights; returns the last checkpoint. Called on every rank of the job.

    Args:
        original: the configuration file as it was written, kept beside the resolved one.

    Raises:
        ConfigError, DataError, TokenizerError: before any process group exists.
    """
    grid = stage_grid(config.parallel, world_size_from_environment())
    check_pretrain(config, grid.dp)
    run = RunFolder(config.run)
    tokenizer = load_tokenizer(run.resolve(config.tokenizer))
    model_config = config.model.model_copy(update={"vocab_size": config.model.vocab_size or tokenizer.vocab_size})
    if model_config.vocab_size < tokenizer.vocab_size:
        raise ConfigError(f"model.vocab_size = {model_config.vocab_size}: less than the tokenizer's {tokenizer.vocab_size}")
    data = open_token_files(config.data, lambda path: run.resolve(path, ".idx"), config.sequence_length, tokenizer, config.run.seed)
    fixed = {
        "model": model_config.model_dump(mode="json"), "sequence_length": config.sequence_length,
        "data": data.fingerprint, "optimizer": {"name": config.optimizer.name},
    }
    output = StageOutput(config, tokenizer, parents={}, original=original, fixed=fixed)

    world = start(config.run.device, config.run.timeout_seconds)
    folder = output.open(world.device)
    groups, layout = build_groups(grid, config.run.timeout_seconds), Layout.of(config.parallel, config.precision)
    engine = Engine.of_stage(new_chunks(model_config, groups, world.device, layout, None if output.resumes else config.run.seed), config)
    trainer, shape = Trainer(config, engine, data, output, tokenizer, world.device), ModelShape(model_config)
    say(f"[pretrain] {num_parameters(shape):,} parameters, {grid}, ZeRO {engine.zero_stage}, {trainer.total_steps} steps")
    say(f"[pretrain] {data.describe(trainer.total_rows)}")
    flops = shape.flops_per_token(config.sequence_length, num_parameters(shape))
    with StageRun(config, folder, trainer.total_steps, trainer.done.step, world.device, flops) as around:
        checkpoint, loss, test_loss = trainer.train(around)
    if is_main_rank():  # counting reads many rows, and only this rank writes what comes of it
        conclude(trainer, checkpoint, loss, test_loss)
    return checkpoint


def conclude(trainer: Trainer, checkpoint: Path, loss: float, test_loss: float | None) -> None:
    """Compare with the loss that token frequencies alone would give; print, judge and record. On the main rank only.

    Args:
        loss, test_loss: on validation and test rows, nats a token.
    """
    data, output, bound, start_loss = trainer.data, trainer.output, trainer.config.gates.max_loss_over_unigram, trainer.start_loss
    sample = map(data.train_row, range(min(data.num_train_rows, UNIGRAM_ROWS)))
    unigram = unigram_cross_entropy(sample, trainer.held_out, trainer.tokenizer.vocab_size)
    say(f"[pretrain] held-out loss {loss:.3f} nats a token, from {start_loss:.3f}; unigram cross-entropy {unigram:.3f}")
    if bound is not None:
        output.gate("loss_over_unigram", loss / unigram, f"<= {bound}", loss / unigram <= bound)
        output.gate("loss_over_start", loss / start_loss, "< 1", loss < start_loss)
    output.finish(checkpoint, loss=loss, start_loss=start_loss, unigram_cross_entropy=unigram, test_loss=test_loss)


class Trainer:
    """The loop, and all that changes in it: the engine, how far the run has come, what went wrong on the way."""

    def __init__(
        self, config: PretrainConfig, engine: Engine, data: TokenData, output: StageOutput, tokenizer: Tokenizer, device: torch.device
    ) -> None:
        self.config, self.engine, self.data, self.output, self.tokenizer, self.device = config, engine, data, output, tokenizer, device
        self.held_out = data.valid.spread(config.eval_rows)
        self.guard = AnomalyGuard(config.anomaly)
        state = output.resume(engine)
        self.done, self.start_loss = Progress(), None
        if state is not None:
            self.done, self.start_loss = Progress(**state["progress"]), state["start_loss"]
            self.guard.load(state["anomaly"])
        left = run_steps(config.batch, config.train_tokens, config.sequence_length, first_row=self.done.rows)
        self.total_steps = self.done.step + len(left)
        self.total_rows = left[-1].stop if left else self.done.rows

    def train(self, around: StageRun) -> tuple[Path, float, float | None]:
        """All steps that are left. Returns the last checkpoint, and the losses on validation and test rows (nats a token).

        Raises:
            Stopped: on request, with a checkpoint.
            AnomalyError: skipping steps and going back did not help.
        """
        if self.start_loss is None:
            self.start_loss = self._measure(around)
        while self.done.step < self.total_steps:
            metrics = self._step(around)
            if self.guard.observe(self.done.step + 1, metrics["loss"], metrics["grad_norm"]) == "rollback" and self._go_back(around, metrics):
                continue
            size = metrics["batch_size"]
            self.done = replace(self.done, step=self.done.step + 1, rows=self.done.rows + size)
            around.record(self.done.step, metrics | self.guard.counts(), size * self.config.sequence_length)
            if around.due(self.config.every.evaluate, self.done.step):
                self._measure(around)
            around.end_step(self.done.step, lambda _: self._save(around), self.output.wait)
        loss = self._measure(around)
        test_loss = None if self.data.test is None else self._loss_on(self.data.test.spread(self.config.eval_rows), around)
        checkpoint = self._save(around)
        self.output.wait()
        return checkpoint, loss, test_loss

    def _step(self, around: StageRun) -> dict[str, Any]:
        """One update on the rows that are next."""
        config, done = self.config, self.done
        step, size = done.step + 1, batch_size(config.batch, done.rows * config.sequence_length)
        tokens = (done.rows + size) * config.sequence_length
        with around.step(step):
            with around.phase("data"):
                rows = [self.data.train_row(done.next_row + place) for place in range(size)]
                batches = replica_batches(rows, self.engine, config.batch.micro_batch_size, self.tokenizer.pad_id, self.device)
            lr = learning_rate(config.optimizer, tokens, self.total_rows * config.sequence_length)
            dropout_key = (config.run.seed, step) if config.model.dropout > 0 else None
            metrics = train_step(self.engine, batches, count_targets(rows), lr, dropout_key, around.phase)
        return {**metrics, "tokens": tokens, "batch_size": size}

    def _go_back(self, around: StageRun, metrics: dict[str, Any]) -> bool:
        """To the last good checkpoint, and past the rows that were read since; False where there is none."""
        step, next_row = self.done.step + 1, self.done.next_row + metrics["batch_size"]
        state = self.output.reload(self.engine)
        if state is None:
            say(f"[pretrain] loss {metrics['loss']:.3f} at step {step} is a spike, and there is no checkpoint to go back to")
            return False
        before = Progress(**state["progress"])
        self.done = replace(before, skipped_rows=next_row - before.rows)
        self.guard.went_back()
        around.log.go_back(before.step)
        say(f"[pretrain] loss {metrics['loss']:.3f} at step {step} is a spike: back to step {before.step}, past {next_row - before.next_row} rows")
        return True

    def _save(self, around: StageRun) -> Path:
        facts = {
            "progress": asdict(self.done), "tokens": self.done.rows * self.config.sequence_length, "anomaly": self.guard.state(),
            "start_loss": self.start_loss,
        }
        with around.phase("save"):
            return self.output.save(self.done.step, self.engine, self.engine.model.shape.config, head="lm", **facts)

    def _measure(self, around: StageRun) -> float:
        """Loss on the validation rows; nats a token."""
        loss = self._loss_on(self.held_out, around)
        if is_main_rank():
            around.log.evaluation(self.done.step, self._held_out_size.describe(loss))
        return loss

    @cached_property
    def _held_out_size(self) -> TextSize:
        """Once, since all held-out rows are decoded for it."""
        return TextSize.of(self.held_out, self.tokenizer)

    def _loss_on(self, rows: list[EncodedRow], around: StageRun) -> float:
        with around.phase("evaluation"):
            return evaluate(self.engine, rows, self.config.batch.micro_batch_size, self.tokenizer.pad_id, self.device)
