"""fit(): direct preference optimization on the reward stage's rankings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
from torch import Tensor

from megagpt.checkpoint.layout import HeldOut, best_checkpoint, find_checkpoint, read_state
from megagpt.checkpoint.load import Checkpoint, load_chunks
from megagpt.checkpoint.stage_output import StageOutput
from megagpt.config.check import check_parent
from megagpt.config.schema import DpoConfig, DpoLossConfig
from megagpt.config.show import content_hash, one_line
from megagpt.data.batch import fingerprint
from megagpt.data.order import epoch_ends, step_rows
from megagpt.data.ranking import EncodedGroup, load_rankings
from megagpt.data.ranking_batch import RankingBatch, replica_batches
from megagpt.dpo.evaluate import preference_metrics
from megagpt.dpo.loss import SUMS, implicit_rewards, preference_loss
from megagpt.engine.anomaly import require_finite
from megagpt.engine.answer_scores import score_answers
from megagpt.engine.build import Engine
from megagpt.engine.schedule import learning_rate
from megagpt.model.gpt import GPT
from megagpt.model.layout import Layout
from megagpt.model.lora import describe as describe_lora
from megagpt.model.param_map import num_parameters, num_trained
from megagpt.model.token_loss import response_logprobs
from megagpt.parallel.collectives import sum_reports
from megagpt.parallel.groups import build_groups
from megagpt.parallel.placement import stage_grid
from megagpt.runtime.distributed import start, world_size_from_environment
from megagpt.runtime.log import left_out, say
from megagpt.runtime.run_folder import RunFolder
from megagpt.runtime.stage_run import StageRun


def fit(config: DpoConfig, original: str = "") -> Path:
    """Train a policy on rankings; returns the checkpoint of the lowest held-out loss. Called on every rank of the job.

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
    (train, valid), dropped = load_rankings(run.resolve_records(config.data), tokenizer)
    fixed = {
        "data": _hash(train), "held_out_data": _hash(valid), "batch": {"global_batch_size": config.batch.global_batch_size},
        "optimizer": {"name": config.optimizer.name}, "loss": config.loss.model_dump(), "lora": one_line(config.lora),
    }
    output = StageOutput(config, tokenizer, {"parent": parent}, original=original, fixed=fixed)

    world = start(config.run.device, config.run.timeout_seconds)
    folder = output.open(world.device)
    groups, layout = build_groups(grid, config.run.timeout_seconds), Layout.of(config.parallel, config.precision)
    models = load_chunks(parent, groups, world.device, layout, scalar_head=False, dropout=config.dropout, seed=config.run.seed, lora=config.lora)
    engine = Engine.of_stage(models, config)
    groups_per_step, micro, seed, terms = config.batch.global_batch_size, config.batch.micro_batch_size, config.run.seed, config.loss
    ends = epoch_ends(config.epochs, groups_per_step, len(train))

    def logprobs_of(members: Sequence[EncodedGroup]) -> list[list[float]]:
        return score_answers(engine, members, lambda logits, batch: answer_logprobs(engine.model, logits, batch), micro, tokenizer.pad_id, world.device)

    say(f"[dpo] {len(train)} rankings, {len(valid)} held out{left_out(dropped)}, {grid}, ZeRO {engine.zero_stage}{describe_lora(models[0].shape)}")
    # Before the first step, and before a resume changes them, the engine's weights are the reference's.
    reference, held_out_reference = logprobs_of(train), logprobs_of(valid)
    resumed = output.resume(engine) or {"step": 0}
    total_steps = max(ends[-1], resumed["step"])
    say(f"[dpo] the reference has scored {sum(map(len, reference)) + sum(map(len, held_out_reference))} answers; {total_steps} steps")
    measured: dict[int, dict[str, float]] = {}

    def measure(step: int) -> dict[str, float]:
        with around.phase("evaluation"):
            found = preference_metrics(valid, logprobs_of(valid), held_out_reference, terms)
        around.log.evaluation(step, {f"eval_{name}": value for name, value in found.items()})
        measured[step] = found
        return found

    def save(step: int) -> Path:
        found = measured.get(step) or measure(step)
        with around.phase("save"):
            return output.save(step, engine, model_config, head="lm", held_out=HeldOut("loss", found["loss"], "lower"), evaluation=found)

    shape = models[0].shape
    flops = shape.flops_per_token(config.data.max_length, num_parameters(shape), num_trained(shape))
    with StageRun(config, folder, total_steps, resumed["step"], world.device, flops) as around:
        if resumed["step"] == 0:
            measure(0)
        for step in range(resumed["step"] + 1, total_steps + 1):
            with around.step(step):
                with around.phase("data"):
                    items = [item for _, item in step_rows(seed, step - 1, groups_per_step, len(train))]
                    members = [train[item] for item in items]
                    batches = replica_batches(members, engine.groups, micro, tokenizer.pad_id, world.device, ranks_per_row=layout.ranks_per_row(grid))
                lr = learning_rate(config.optimizer, step, total_steps)
                dropout_key = (seed, step) if config.dropout > 0 else None
                metrics = train_step(engine, batches, members, [reference[item] for item in items], lr, dropout_key, terms, around.phase)
            around.record(step, metrics, sum(len(row) for group in members for row in group.rows))
            ends_epoch = step in ends and step < total_steps
            if around.due(config.every.evaluate, step):
                measure(step)
            around.end_step(step, save, output.wait, milestone=ends_epoch)
        last = save(total_steps)
        output.wait()
    checkpoint = best_checkpoint(folder) or last
    found = read_state(checkpoint)["evaluation"]
    require_finite("dpo", "held-out loss", found["loss"])
    say(f"[dpo] held-out pair accuracy {found['accuracy']:.3f} by the implicit reward, margin {found['margin']:+.3f}, loss {found['loss']:.3f}; "
        f"best checkpoint: {checkpoint.name} (the last: {last.name})")  # fmt: skip
    if config.gates.min_implicit_pair_accuracy is not None:
        bound = config.gates.min_implicit_pair_accuracy
        output.gate("implicit_pair_accuracy", found["accuracy"], f">= {bound}", found["accuracy"] >= bound)
    output.finish(checkpoint, **found)
    return checkpoint


def train_step(
    engine: Engine, batches: Sequence[RankingBatch], members: Sequence[EncodedGroup], reference: Sequence[Sequence[float]], lr: float,
    dropout_key: tuple[int, int] | None, terms: DpoLossConfig, phase: Callable[[str], AbstractContextManager] = nullcontext,
) -> dict[str, float]:
    """One update on a global batch of groups.

    Args:
        reference: log-probabilities of each group's K answers under the reference, nats.
        phase: names what goes on within a block, for the watchdog.

    Returns:
        means over prompts of what `preference_loss` reports (`correct` as `accuracy`), grad_norm and lr.
    """
    before = torch.tensor([*(value for row in reference for value in row), 0.0], device=batches[0].tokens.device)  # 0 for rows that only fill up

    def loss(logits: Tensor, batch: RankingBatch):
        rewards = implicit_rewards(answer_logprobs(engine.model, logits, batch), before[batch.row_ids.to(before.device)], terms.beta)
        return preference_loss(rewards, batch.winners, batch.losers, batch.weights, **terms.model_dump())

    weight, cp = sum(group.weight for group in members), engine.groups.grid.cp
    rows, length = batches[0].tokens.shape
    with phase("forward-backward"):
        reports = engine.accumulate(batches, loss, denominator=weight, rows=rows, length=length * cp, dropout_key=dropout_key)
        # Every context-parallel rank reports the same whole rows.
        means = {name: total / weight / cp for name, total in sum_reports(engine.groups, reports, SUMS).items()}
    with phase("optimizer"):
        norm = engine.step(lr)
    means["accuracy"] = means.pop("correct")
    return {**means, "grad_norm": norm, "lr": lr}


def answer_logprobs(model: GPT, logits: Tensor, batch: RankingBatch) -> Tensor:
    """log p(answer and the token that closes it | prompt) of each row, [rows] in nats, equal on all ranks that share the rows.

    Args:
        logits: [rows, T, padded vocabulary / tp], of this context-parallel rank's part of the rows.
    """
    here = (response_logprobs(model, logits, batch.labels) * batch.answer_mask).sum(1)
    # A sum over the parts, each of which takes the whole sum's gradient: the engine then adds up what the ranks make of it.
    return reduce_from_tensor_model_parallel_region(here, group=model.groups.collection.cp)


def _hash(members: Sequence[EncodedGroup]) -> str:
    """Of all tokens, pairs and weights in their order: what a resume must find again."""
    return content_hash(fingerprint(row for group in members for row in group.rows) + repr([(group.pairs, group.weight) for group in members]))
