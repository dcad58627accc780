"""Steps that go wrong in the middle of pre-training: one without a finite gradient is skipped, a spike sends the run back, both are counted."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from torch import Tensor

from megagpt.checkpoint.layout import INDEX, read_json, read_state
from megagpt.checkpoint.load import Checkpoint
from megagpt.config.load import build_config
from megagpt.config.schema import PretrainConfig, RunConfig, TokenizeConfig
from megagpt.data.token_files import tokenize_documents
from megagpt.pretrain import trainer
from tests.helpers.spawn import RankFailure, run_ranks_fresh
from tests.helpers.tiny_run import documents, toy_tokenizer, write_rows
from tests.helpers.tolerance import PARITY_RELATIVE, assert_tensors_close

STEPS, BATCH, LENGTH = 12, 4, 32


def settings(folder: Path, anomaly: dict) -> dict:
    return {
        "run": {"name": "r", "root": str(folder / "runs"), "device": "cpu"},
        "tokenizer": str(folder / "tokenizer"),
        "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "max_sequence_length": LENGTH},
        "optimizer": {"lr": 1e-2},
        "batch": {"micro_batch_size": 2, "global_batch_size": BATCH},
        "data": {"train": str(folder / "tokens/train"), "valid": str(folder / "tokens/train")},
        "sequence_length": LENGTH,
        "train_tokens": STEPS * BATCH * LENGTH,
        "eval_rows": 4,
        "every": {"save": 3, "keep": 2},
        "anomaly": anomaly,
    }


def prepare(folder: Path) -> Path:
    """Tokenizer and token files."""
    tokenizer = toy_tokenizer(folder / "tokenizer")
    inputs = {"train": [write_rows(folder / "documents.jsonl", documents(20))]}
    tokenize_documents(TokenizeConfig(run=RunConfig(name="toy"), inputs=inputs), tokenizer, folder / "tokens")
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return prepare(tmp_path)


def train(config: dict, spikes_at: list[int], infinite_at: list[int]) -> list[int]:
    """Pre-train on every rank; the loss is reported ten times too high at some calls, and a gradient is made infinite at others (from 1).

    Returns the positions of the rows that this rank read, in their order; behind those of the steps, those that token frequencies are counted on.
    """
    honest_step, calls, read = trainer.train_step, [], []

    def step(engine, *arguments):
        calls.append(None)
        if len(calls) in infinite_at:
            sum_shared = engine._sum_shared_gradients

            def spoiled():
                engine._sum_shared_gradients = sum_shared
                engine.entries[0][0].grad.flatten()[0] = math.inf

            engine._sum_shared_gradients = spoiled
        metrics = honest_step(engine, *arguments)
        return metrics | {"loss": 10 * metrics["loss"]} if len(calls) in spikes_at else metrics

    honest_open = trainer.open_token_files

    def opened(*arguments):
        data = honest_open(*arguments)
        honest_row = data.train.row
        object.__setattr__(data, "train", Reading(data.train, honest_row, read))
        return data

    trainer.train_step, trainer.open_token_files = step, opened
    trainer.fit(build_config(PretrainConfig, config, "test"))
    return read


class Reading:
    """Blended rows that note which positions are asked for."""

    def __init__(self, rows, row, read) -> None:
        self._rows, self._row, self._read = rows, row, read

    def __getattr__(self, name):
        return getattr(self._rows, name)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, seed, position):
        self._read.append(position)
        return self._row(seed, position)


def rows_of(folder: Path) -> list[dict]:
    rows = map(json.loads, (folder / "runs/r/pretrain/metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "loss" in row]


LAYOUTS = {"one-rank": (1, {}), "dp2": (2, {"zero_stage": 1}), "pp2": (2, {"pipeline_parallel_size": 2})}


class Spiked(NamedTuple):
    """What a run whose loss was a spike at its 8th step left behind."""

    read: list[list[int]]
    """Positions of the rows that each rank read."""
    rows: list[dict]
    """Metrics of every step."""
    state: dict[str, Any]
    weights: dict[str, Tensor]
    """The last checkpoint's."""


@pytest.fixture(scope="module")
def spiked(tmp_path_factory):
    """layout -> its run, made once."""

    @functools.cache
    def once(layout: str) -> Spiked:
        folder, (ranks, parallel) = prepare(tmp_path_factory.mktemp(layout)), LAYOUTS[layout]
        config = settings(folder, {"spike_factor": 3.0, "window": 4}) | {"parallel": parallel}
        read = run_ranks_fresh(ranks, train, config, [8], [])
        path = folder / f"runs/r/pretrain/checkpoints/step_{STEPS}"
        state = read_state(path)
        with Checkpoint(path, state).tensors("model") as stored:
            # Without key biases: their gradient is rounding only, which Adam makes into whole steps.
            names = [name for name in read_json(path, INDEX["model"]) if not name.endswith("attention.key.bias")]
            weights = {name: stored(name) for name in names}
        return Spiked(read, rows_of(folder), state, weights)

    return once


@pytest.mark.parametrize("layout", LAYOUTS)
def test_anomaly_spike_sends_the_run_back_past_the_bad_batch(layout, spiked):
    read, rows, state, _ = spiked(layout)
    # Step 8 goes wrong; the last checkpoint is of step 6. Steps 7 and 8 come again, on the rows behind those that were read.
    wanted = list(range((8 + STEPS - 6) * BATCH))
    assert read[0][: len(wanted)] == wanted
    assert read[1:] == [wanted] * (LAYOUTS[layout][0] - 1), "only the main rank counts token frequencies"
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)), "each step once"
    assert [row["rollbacks"] for row in rows] == [0] * 6 + [1] * 6
    assert rows[-1]["tokens"] == STEPS * BATCH * LENGTH, "batch size and learning rate follow what was trained on"
    assert state["progress"] == {"step": STEPS, "rows": STEPS * BATCH, "skipped_rows": 2 * BATCH}


@pytest.mark.parametrize("layout", ["dp2", "pp2"])
def test_anomaly_spike_has_the_same_consequences_on_two_ranks(layout, spiked):
    ours, theirs = spiked(layout), spiked("one-rank")
    for name in ("loss", "grad_norm", "lr"):
        assert [row[name] for row in ours.rows] == pytest.approx([row[name] for row in theirs.rows], rel=PARITY_RELATIVE), name
    assert_tensors_close(ours.weights, theirs.weights)
    losses = pytest.approx(theirs.state["anomaly"]["losses"], rel=PARITY_RELATIVE)
    assert ours.state["anomaly"] == theirs.state["anomaly"] | {"losses": losses}
    assert ours.state["optimizer"] == theirs.state["optimizer"]


def test_anomaly_infinite_gradient_skips_the_step_and_counts_it(folder):
    run_ranks_fresh(1, train, settings(folder, {}), [], [5])
    rows = rows_of(folder)
    assert [row["skipped"] for row in rows] == [0] * 4 + [1] * (STEPS - 4)
    assert rows[4]["grad_norm"] is None and all(math.isfinite(row["loss"]) for row in rows)
    state = read_state(folder / f"runs/r/pretrain/checkpoints/step_{STEPS}")
    assert state["optimizer"]["num_updates"] == STEPS - 1


def test_anomaly_that_never_ends_stops_the_run_with_its_numbers(folder):
    with pytest.raises(RankFailure, match="AnomalyError: step 6: .* skipped 3 steps in a row"):
        run_ranks_fresh(1, train, settings(folder, {"max_skipped": 3}), [], [4, 5, 6])
    assert [row["step"] for row in rows_of(folder)] == [1, 2, 3, 4, 5]
