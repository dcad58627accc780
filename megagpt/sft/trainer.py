"""fit(): the pre-training objective on the assistant's tokens of demonstrations."""

from __future__ import annotations

from pathlib import Path

from megagpt.checkpoint.layout import HeldOut, best_checkpoint, find_checkpoint, held_out_of
from megagpt.checkpoint.load import Checkpoint, load_chunks
from megagpt.checkpoint.stage_output import StageOutput
from megagpt.config.check import check_parent
from megagpt.config.schema import SftConfig
from megagpt.config.show import one_line
from megagpt.data.batch import fingerprint
from megagpt.data.conversation import load_demonstrations
from megagpt.data.order import epoch_ends, step_rows
from megagpt.data.packing import describe, pack_rows
from megagpt.engine.anomaly import require_finite
from megagpt.engine.build import Engine
from megagpt.engine.schedule import learning_rate
from megagpt.engine.token_steps import count_targets, evaluate, replica_batches, train_step
from megagpt.model.layout import Layout
from megagpt.model.lora import describe as describe_lora
from megagpt.model.param_map import num_parameters, num_trained
from megagpt.parallel.groups import build_groups
from megagpt.parallel.placement import stage_grid
from megagpt.runtime.distributed import start, world_size_from_environment
from megagpt.runtime.log import left_out, say
from megagpt.runtime.run_folder import RunFolder
from megagpt.runtime.stage_run import StageRun


def fit(config: SftConfig, original: str = "") -> Path:
    """Fine-tune on demonstrations; returns the checkpoint that is best on held-out ones. Called on every rank of the job.

    Args:
        original: the configuration file as it was written, kept beside the resolved one.

    Raises:
        ConfigError, CheckpointError, DataError: before any process group exists.
        AnomalyError: the weights broke.
    """
    grid = stage_grid(config.parallel, world_size_from_environment())
    run = RunFolder(config.run)
    parent = Checkpoint.open(find_checkpoint(config.parent, run)).language_model()
    model_config = parent.model_config
    check_parent(config, model_config, grid.dp)
    tokenizer = parent.tokenizer()
    conversations, dropped = load_demonstrations(run.resolve_records(config.data), tokenizer)
    max_length = config.data.max_length
    train, valid = (pack_rows(rows, max_length) for rows in conversations) if config.packing else conversations
    fixed = {
        "packing": config.packing, "data": fingerprint(train), "held_out_data": fingerprint(valid),
        "batch": {"global_batch_size": config.batch.global_batch_size}, "optimizer": {"name": config.optimizer.name},
        "lora": one_line(config.lora),
    }
    output = StageOutput(config, tokenizer, {"parent": parent}, original=original, fixed=fixed)

    world = start(config.run.device, config.run.timeout_seconds)
    folder = output.open(world.device)
    groups, layout = build_groups(grid, config.run.timeout_seconds), Layout.of(config.parallel, config.precision)
    models = load_chunks(parent, groups, world.device, layout, scalar_head=False, dropout=config.dropout, seed=config.run.seed, lora=config.lora)
    dropout = models[0].dropout_state.probability > 0
    engine = Engine.of_stage(models, config)
    rows_per_step, micro, seed = config.batch.global_batch_size, config.batch.micro_batch_size, config.run.seed
    ends = epoch_ends(config.epochs, rows_per_step, len(train))
    resumed = output.resume(engine) or {"step": 0}
    total_steps = max(ends[-1], resumed["step"])
    numbers = f"{len(conversations.train)} demonstrations, {len(conversations.valid)} held out{left_out(dropped)}"
    say(f"[sft] {numbers}, {grid}, ZeRO {engine.zero_stage}, {total_steps} steps{describe_lora(models[0].shape)}")
    if config.packing:
        say(f"[sft] packed: {describe(conversations.train, train, max_length)}")
    measured: dict[int, float] = {}

    def measure(step: int) -> float:
        with around.phase("evaluation"):
            loss = evaluate(engine, valid, micro, tokenizer.pad_id, world.device)
        around.log.evaluation(step, {"eval_loss": loss})
        measured[step] = loss
        return loss

    def save(step: int) -> Path:
        with around.phase("save"):
            held_out = HeldOut("loss", measured[step], "lower") if step in measured else None
            return output.save(step, engine, model_config, head="lm", held_out=held_out, start_loss=start_loss)

    shape = models[0].shape
    flops = shape.flops_per_token(max_length, num_parameters(shape), num_trained(shape))
    with StageRun(config, folder, total_steps, resumed["step"], world.device, flops) as around:
        start_loss = resumed.get("start_loss") or measure(0)
        for step in range(resumed["step"] + 1, total_steps + 1):
            with around.step(step):
                with around.phase("data"):
                    rows = [train[item] for _, item in step_rows(seed, step - 1, rows_per_step, len(train))]
                    batches = replica_batches(rows, engine, micro, tokenizer.pad_id, world.device)
                lr = learning_rate(config.optimizer, step, total_steps)
                metrics = train_step(engine, batches, count_targets(rows), lr, (seed, step) if dropout else None, around.phase)
            around.record(step, metrics, sum(map(len, rows)))
            ends_epoch = step in ends and step < total_steps
            if ends_epoch or around.due(config.every.evaluate, step):
                measure(step)
            around.end_step(step, save, output.wait, milestone=ends_epoch)
        last_loss = measure(total_steps)
        last = save(total_steps)
        output.wait()
    checkpoint = best_checkpoint(folder) or last
    found = held_out_of(checkpoint)
    loss = found.value if found else last_loss
    require_finite("sft", "held-out loss", loss)
    say(f"[sft] held-out response loss {loss:.3f} nats a token, from {start_loss:.3f}; best checkpoint: {checkpoint.name} "
        f"(the last, {last.name}: {last_loss:.3f})")  # fmt: skip
    if config.gates.max_loss_over_start is not None:
        bound = config.gates.max_loss_over_start
        output.gate("response_loss_over_start", loss / start_loss, f"<= {bound}", loss / start_loss <= bound)
    output.finish(checkpoint, loss=loss, start_loss=start_loss)
    return checkpoint
