"""fit(): load, loop, step, log, save, evaluate."""

from __future__ import annotations

from pathlib import Path

from megagpt.checkpoint.load import new_chunks
from megagpt.checkpoint.stage_output import StageOutput
from megagpt.config.check import check_pretrain
from megagpt.config.load import ConfigError
from megagpt.config.schema import PretrainConfig
from megagpt.data.batch import EncodedRow
from megagpt.data.token_data import open_token_files
from megagpt.engine.build import Engine
from megagpt.engine.schedule import due, learning_rate, run_steps
from megagpt.engine.token_steps import count_targets, evaluate, replica_batches, train_step
from megagpt.model.layout import Layout
from megagpt.model.param_map import num_parameters
from megagpt.model.shape import ModelShape
from megagpt.parallel.groups import build_groups
from megagpt.parallel.placement import stage_grid
from megagpt.pretrain.evaluate import describe_loss, unigram_cross_entropy
from megagpt.runtime.distributed import start, world_size_from_environment
from megagpt.runtime.log import StageLog, say
from megagpt.runtime.run_folder import RunFolder
from megagpt.tokenizer.tokenizer import load_tokenizer

UNIGRAM_ROWS = 10_000
"""Rows of training text that token frequencies are counted on."""


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
    held_out = data.valid.spread(config.eval_rows)

    fixed = {
        "model": model_config.model_dump(mode="json"), "sequence_length": config.sequence_length,
        "data": data.fingerprint, "optimizer": {"name": config.optimizer.name},
    }
    output = StageOutput(config, tokenizer, parents={}, original=original, fixed=fixed)

    world = start(config.run.device, config.run.timeout_seconds)
    folder = output.open(world.device)
    groups, layout = build_groups(grid, config.run.timeout_seconds), Layout.of(config.parallel, config.precision)
    engine = Engine.of_stage(new_chunks(model_config, groups, world.device, layout, config.run.seed), config)
    resumed = output.resume(engine) or {"step": 0, "rows": 0}
    seed, done = config.run.seed, resumed["step"]
    steps = run_steps(config.batch, config.train_tokens, config.sequence_length, first_row=resumed["rows"])
    total_steps = done + len(steps)
    total_tokens = (steps[-1].stop if steps else resumed["rows"]) * config.sequence_length
    say(f"[pretrain] {num_parameters(ModelShape(model_config)):,} parameters, {grid}, ZeRO {config.parallel.zero_stage}, {total_steps} steps")
    say(f"[pretrain] {data.describe(total_tokens // config.sequence_length)}")
    dropout = model_config.dropout > 0

    def save(step: int, rows: int) -> Path:
        return output.save(step, engine, model_config, head="lm", rows=rows, tokens=rows * config.sequence_length, start_loss=start_loss)

    def loss_on(rows: list[EncodedRow]) -> float:
        return evaluate(engine, rows, config.batch.micro_batch_size, tokenizer.pad_id, world.device)

    def measure(step: int) -> float:
        loss = loss_on(held_out)
        log.evaluation(step, describe_loss(loss, held_out, tokenizer))
        return loss

    with StageLog(folder, "pretrain", total_steps, config.every.log, resumed["step"]) as log:
        start_loss = resumed.get("start_loss") or measure(0)
        for step, positions in enumerate(steps, start=done + 1):
            rows = [data.train_row(position) for position in positions]
            batches = replica_batches(rows, engine, config.batch.micro_batch_size, tokenizer.pad_id, world.device)
            tokens = positions.stop * config.sequence_length
            lr = learning_rate(config.optimizer, tokens, total_tokens)
            metrics = train_step(engine, batches, count_targets(rows), lr, (seed, step) if dropout else None)
            log.step(step, {**metrics, "tokens": tokens, "batch_size": len(rows)})
            if due(config.every.evaluate, step, total_steps):
                measure(step)
            if due(config.every.save, step, total_steps):
                save(step, positions.stop)
        loss = measure(total_steps)
        test_loss = None if data.test is None else loss_on(data.test.spread(config.eval_rows))
    checkpoint = save(total_steps, total_tokens // config.sequence_length)
    output.wait()
    sample = map(data.train_row, range(min(data.num_train_rows, UNIGRAM_ROWS)))
    unigram = unigram_cross_entropy(sample, held_out, tokenizer.vocab_size)
    say(f"[pretrain] held-out loss {loss:.3f} nats a token, from {start_loss:.3f}; unigram cross-entropy {unigram:.3f}")
    if config.gates.max_loss_over_unigram is not None:
        bound = config.gates.max_loss_over_unigram
        output.gate("loss_over_unigram", loss / unigram, f"<= {bound}", loss / unigram <= bound)
        output.gate("loss_over_start", loss / start_loss, "< 1", loss < start_loss)
    output.finish(checkpoint, loss=loss, start_loss=start_loss, unigram_cross_entropy=unigram, test_loss=test_loss)
    return checkpoint
