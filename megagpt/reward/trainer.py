"""fit(): a reward model from K-way rankings; reports pair accuracy against two floors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from megagpt.checkpoint.layout import find_checkpoint
from megagpt.checkpoint.load import Checkpoint, load_chunks
from megagpt.checkpoint.stage_output import StageOutput
from megagpt.config.check import check_parent
from megagpt.config.schema import RankingLossConfig, RewardConfig
from megagpt.config.show import content_hash, one_line
from megagpt.data.activations import Activations
from megagpt.data.batch import fingerprint
from megagpt.data.order import step_rows
from megagpt.data.ranking import EncodedGroup, encode_split, load_single_answers, read_ranking_split
from megagpt.data.ranking_batch import RankingBatch, replica_batches
from megagpt.engine.anomaly import require_finite
from megagpt.engine.answer_scores import score_answers
from megagpt.engine.build import Engine
from megagpt.engine.schedule import learning_rate
from megagpt.model.layout import Layout
from megagpt.model.lora import describe as describe_lora
from megagpt.model.param_map import num_parameters, num_trained
from megagpt.parallel.collectives import sum_reports
from megagpt.parallel.groups import build_groups
from megagpt.parallel.placement import stage_grid
from megagpt.reward.evaluate import longer_answer_accuracy, overlap_accuracy, pair_accuracy
from megagpt.reward.frozen_layers import activations_folder, fill, weights_of
from megagpt.reward.loss import ranking_loss
from megagpt.reward.normalise import score_statistics
from megagpt.reward.report import clear_evaluation, evaluation_report, summary, write_evaluation
from megagpt.runtime.distributed import start, world_size_from_environment
from megagpt.runtime.log import is_main_rank, left_out, say
from megagpt.runtime.run_folder import RunFolder
from megagpt.runtime.stage_run import StageRun


def fit(config: RewardConfig, original: str = "") -> Path:
    """Train on rankings; returns the last checkpoint. Called on every rank of the job.

    Args:
        original: the configuration file as it was written, kept beside the resolved one.

    Raises:
        ConfigError, CheckpointError, DataError: before any process group exists.
        AnomalyError: the weights broke.
    """
    grid = stage_grid(config.parallel, world_size_from_environment())
    run = RunFolder(config.run)
    parent = Checkpoint.open(find_checkpoint(config.parent, run))
    model_config = parent.model_config
    check_parent(config, model_config, grid.dp)
    model_config = model_config.model_copy(update={"num_layers": config.keep_layers or model_config.num_layers})
    tokenizer = parent.tokenizer()
    data, dropped = run.resolve_records(config.data), Counter()
    records = read_ranking_split(data, dropped)
    train, valid = encode_split(records, data, tokenizer, dropped)
    good = load_single_answers([str(run.resolve(file)) for file in config.normalise_on], data, tokenizer, dropped) if config.normalise_on else None
    floors = {"longer_answer_floor": longer_answer_accuracy(valid), "overlap_floor": overlap_accuracy(valid)}
    fixed = {
        "data": fingerprint(row for group in train for row in group.rows), "weights": content_hash(repr([group.weight for group in train])),
        "batch": {"global_batch_size": config.batch.global_batch_size}, "optimizer": {"name": config.optimizer.name}, "loss": config.loss.model_dump(),
        "lora": one_line(config.lora),
        "trainable_layers": config.trainable_layers, "keep_layers": config.keep_layers, "pooling": None if config.pooling == "last" else config.pooling,
    }
    output = StageOutput(config, tokenizer, {"parent": parent}, original=original, fixed=fixed)

    world = start(config.run.device, config.run.timeout_seconds)
    folder = output.open(world.device)
    groups, layout = build_groups(grid, config.run.timeout_seconds), Layout.of(config.parallel, config.precision)
    depth = 0 if config.trainable_layers is None else model_config.num_layers - config.trainable_layers
    if config.trainable_layers is not None:
        layout = replace(layout, num_chunks=2, stage_layers=(depth, config.trainable_layers))
    *frozen, model = load_chunks(
        parent, groups, world.device, layout, scalar_head=True, dropout=config.dropout, seed=config.run.seed, lora=config.lora,
        num_layers=model_config.num_layers,
    )
    activations = None
    if frozen:
        activations = Activations(activations_folder(config, folder, parent, depth), model_config.hidden_size, layout.dtype)
        fill(activations, frozen[0], [*train, *valid, *(good or [])], world.device)
    models = [model]
    dropout = models[0].dropout_state.probability > 0
    engine = Engine.of_stage(models, config)
    groups_per_step, micro, seed = config.batch.global_batch_size, config.batch.micro_batch_size, config.run.seed
    total_steps = -(-config.epochs * len(train) // groups_per_step)
    resumed = output.resume(engine) or {"step": 0}
    total_steps = max(total_steps, resumed["step"])
    numbers, trained = f"{len(train)} rankings, {len(valid)} held out{left_out(dropped)}", describe_lora(models[0].shape, scalar_head=True)
    say(f"[reward] {numbers}, {grid}, ZeRO {engine.zero_stage}, {total_steps} steps{trained}")
    say(f"[reward] floors on held-out pairs: longer answer {floors['longer_answer_floor']:.3f}, overlap with the prompt {floors['overlap_floor']:.3f}")

    def measure(step: int) -> list[list[float]]:
        """Scores of the held-out groups, and their pair accuracy in the log."""
        with around.phase("evaluation"):
            scores = score_groups(engine, valid, micro, tokenizer.pad_id, world.device, activations, config.pooling)
        around.log.evaluation(step, {"eval_accuracy": pair_accuracy(valid, scores)})
        return scores

    def save(step: int) -> tuple[Path, list[list[float]], dict[str, float]]:
        """The scale of the scores goes with the weights: PPO normalises by it."""
        scores = measure(step)
        with around.phase("evaluation"):
            shown = None if good is None else score_groups(engine, good, micro, tokenizer.pad_id, world.device, activations, config.pooling)
        statistics = score_statistics(best_scores(valid, scores) if shown is None else [score for (score,) in shown])
        with around.phase("save"):
            path = output.save(step, engine, model_config, head="scalar", frozen=weights_of(frozen), pooling=config.pooling, **statistics)
        return path, scores, statistics

    shape = models[0].shape
    flops = shape.flops_per_token(config.data.max_length, num_parameters(shape), num_trained(shape))
    with StageRun(config, folder, total_steps, resumed["step"], world.device, flops) as around:
        if resumed["step"] == 0:
            if is_main_rank():
                clear_evaluation(folder)
            measure(0)
        for step in range(resumed["step"] + 1, total_steps + 1):
            with around.step(step):
                with around.phase("data"):
                    members = [train[item] for _, item in step_rows(seed, step - 1, groups_per_step, len(train))]
                    batches = replica_batches(members, engine.groups, micro, tokenizer.pad_id, world.device, activations, config.pooling)
                lr = learning_rate(config.optimizer, step, total_steps)
                metrics = train_step(engine, batches, members, lr, (seed, step) if dropout else None, config.loss)
            around.record(step, metrics, sum(len(row) for group in members for row in group.rows))
            if around.due(config.every.evaluate, step) and not around.due(config.every.save, step):
                measure(step)
            around.end_step(step, save, output.wait)
        checkpoint, scores, statistics = save(total_steps)
        output.wait()
    require_finite("reward", "scores of good answers", statistics["reward_mean"])
    accuracy, report = pair_accuracy(valid, scores), evaluation_report(valid, scores, records.valid)
    if is_main_rank():
        write_evaluation(folder, {"step": total_steps, **report})
    say(f"[reward] {summary(report)}")
    if config.gates.min_pair_accuracy is not None:
        bound = config.gates.min_pair_accuracy
        output.gate("pair_accuracy", accuracy, f">= {bound}", accuracy >= bound)
        floor = max(floors.values())
        output.gate("pair_accuracy_over_floors", accuracy - floor, "> 0", accuracy > floor)
    output.finish(checkpoint, accuracy=accuracy, **floors, **statistics)
    return checkpoint


def train_step(
    engine: Engine, batches: Sequence[RankingBatch], members: Sequence[EncodedGroup], lr: float, dropout_key: tuple[int, int] | None,
    terms: RankingLossConfig = RankingLossConfig(),
) -> dict[str, float]:
    """One update on a global batch of groups. Returns mean loss and accuracy a prompt (nats, share), and grad_norm."""

    def loss(scalars: Tensor, batch: RankingBatch):
        total, correct = ranking_loss(
            _scores(scalars, batch), batch.winners, batch.losers, batch.weights,
            margins=terms.margin * batch.distances, label_smoothing=terms.label_smoothing, centring=terms.centring,
        )
        return total, {"loss": total.detach(), "correct": correct}

    weight = sum(group.weight for group in members)
    rows, length = batches[0].tokens.shape
    reports = engine.accumulate(batches, loss, denominator=weight, rows=rows, length=length, dropout_key=dropout_key)
    sums = sum_reports(engine.groups, reports, ("loss", "correct"))
    return {"loss": sums["loss"] / weight, "accuracy": sums["correct"] / weight, "grad_norm": engine.step(lr), "lr": lr}


def score_groups(
    engine: Engine, members: Sequence[EncodedGroup], micro_batch_size: int, pad_id: int, device: torch.device, activations: Activations | None = None,
    pooling: str = "last",
) -> list[list[float]]:
    """Scores of every answer of every group, on every rank of the job."""
    return score_answers(engine, members, _scores, micro_batch_size, pad_id, device, activations, pooling)


def best_scores(members: Sequence[EncodedGroup], scores: Sequence[Sequence[float]]) -> list[float]:
    """Scores of the answers that no other answer of their group beats."""
    beaten = [{loser for _, loser in group.pairs} for group in members]
    return [score for row, losers in zip(scores, beaten, strict=True) for place, score in enumerate(row) if place not in losers]


def _scores(scalars: Tensor, batch: RankingBatch) -> Tensor:
    """The mean of the scalars at the places where each answer is read; [answers]."""
    sums = scalars.new_zeros(batch.num_answers).index_add(0, batch.reader, scalars.flatten()[batch.read_at])
    return sums / torch.bincount(batch.reader, minlength=batch.num_answers).clamp(min=1)
