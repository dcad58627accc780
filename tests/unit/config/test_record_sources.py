"""Files of records as configurations name them: plain paths, or paths with a slice and a weight."""

import re
from pathlib import Path

import pytest

from megagpt.config.check import check_parent
from megagpt.config.load import ConfigError, build_config, load_config
from megagpt.config.schema import DpoConfig, ModelConfig, RecordSource, RewardConfig, SftConfig

BATCH = {"micro_batch_size": 1, "global_batch_size": 1}
MODEL = ModelConfig(num_layers=1, hidden_size=8, num_attention_heads=1, max_sequence_length=16)


def config(config_class, train, **more):
    return build_config(config_class, {"run": {"name": "r"}, "batch": BATCH, "data": {"train": train, "max_length": 8}} | more, "x.yaml")


def test_record_sources_may_be_plain_paths():
    sources = config(RewardConfig, ["a.jsonl", {"path": "b.jsonl", "slice": "bias", "weight": 4}]).data.train
    assert sources == [RecordSource(path="a.jsonl", weight=1.0), RecordSource(path="b.jsonl", slice="bias", weight=4.0)]
    assert sources[0].slice is None


@pytest.mark.parametrize("config_class", [SftConfig, RewardConfig, DpoConfig])
def test_record_sources_of_which_nothing_is_held_out_need_held_out_files(config_class):
    train = [{"path": "a", "hold_out": False}, {"path": "b", "hold_out": False}]
    with pytest.raises(ConfigError, match="data.train: hold_out is false for every source, so that nothing can be held out; give data.valid"):
        check_parent(config(config_class, train), MODEL, 1)
    check_parent(config(config_class, train, data={"train": train, "valid": ["c"], "max_length": 8}), MODEL, 1)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([{"path": "a", "weight": 0}], "data.train.0.weight = 0: input should be greater than 0"),
        (["a", {"path": "b", "weight": -1}], "data.train.1.weight = -1: input should be greater than 0"),
        ([{"path": "a", "slice": ""}], "data.train.0.slice = ''"),
        ([{"slice": "s"}], "data.train.0.path is missing"),
        ([{"path": "a", "wieght": 2}], "unknown key 'data.train.0.wieght'; did you mean 'weight'?"),
        ([], "data.train = []: list should have at least 1 item"),
        ("a", "data.train = 'a'"),
    ],
)
def test_record_sources_errors_name_the_key(train, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        config(RewardConfig, train)


@pytest.mark.parametrize(("given", "message"), [({"slice": "s"}, "slice = 's' of b"), ({"weight": 2}, "weight = 2.0 of b")])
def test_record_sources_of_demonstrations_have_no_slice_and_no_weight(given, message):
    train = ["a", {"path": "b", **given}]
    check_parent(config(SftConfig, ["a"]), MODEL, 1)
    check_parent(config(RewardConfig, train), MODEL, 1)
    with pytest.raises(ConfigError, match=f"data: {message}: only rankings have a {next(iter(given))}; leave it out"):
        check_parent(config(SftConfig, train), MODEL, 1)


@pytest.mark.parametrize(
    ("term", "value"), [("margin", -1), ("label_smoothing", 0.5), ("label_smoothing", -0.1), ("centring", -0.01), ("centering", 0.01)]
)
def test_ranking_loss_terms_are_checked(term, value):
    with pytest.raises(ConfigError, match=rf"loss\.{term}"):
        config(RewardConfig, ["a"], loss={term: value})


def test_ranking_stages_do_not_cut_answers():
    data = {"train": ["a"], "max_length": 8, "overlong": "truncate"}
    check_parent(config(SftConfig, ["a"], data=data), MODEL, 1)
    for stage in (RewardConfig, DpoConfig):
        with pytest.raises(ConfigError, match="data.overlong = truncate: nobody ranked an answer that is cut short; take drop or refuse here"):
            check_parent(config(stage, ["a"], data=data), MODEL, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": {"beta": 0}}, "loss.beta = 0: input should be greater than 0"),
        ({"loss": {"label_smoothing": 0.5}}, "loss.label_smoothing = 0.5: input should be less than 0.5"),
        ({"loss": {"kind": "hinge"}}, "loss.kind = 'hinge'"),
        ({"loss": {"kind": "ipo", "label_smoothing": 0.1}}, "loss.label_smoothing = 0.1 with loss.kind = ipo: only sigmoid knows it; take 0"),
        (
            {"parallel": {"pipeline_parallel_size": 2, "virtual_pipeline_size": 2}},
            "parallel.virtual_pipeline_size = 2: not built for the dpo stage; take 1 here",
        ),
        ({"optimizer": {"warmup_tokens": 5}}, "optimizer.warmup_tokens = 5: only pre-training counts tokens"),
    ],
)
def test_dpo_settings_that_make_no_sense_are_named(settings, message):
    check_parent(config(DpoConfig, ["a"]), MODEL, 1)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_parent(config(DpoConfig, ["a"], **settings), MODEL, 1)


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"context_parallel_size": 2}, "parallel.context_parallel_size = 2: a reward is read at one token; take 1 here"),
        ({"tensor_parallel_size": 2, "sequence_parallel": True}, "parallel.sequence_parallel = true: not built for the reward stage; leave it out"),
    ],
)
def test_rows_are_shared_by_ranks_in_dpo_and_not_in_reward_training(parallel, message):
    parent = MODEL.model_copy(update={"num_attention_heads": 2})
    check_parent(config(DpoConfig, ["a"], parallel=parallel), parent, 1)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_parent(config(RewardConfig, ["a"], parallel=parallel), parent, 1)


@pytest.mark.parametrize(("stage", "fits"), [(SftConfig, 9), (DpoConfig, 8)])
def test_rows_that_ranks_share_stay_within_the_context_when_filled_up(stage, fits):
    """Four ranks share a row, so its width is a multiple of four; the last token of a demonstration is a label alone."""
    parent, parallel = MODEL.model_copy(update={"num_attention_heads": 4, "max_sequence_length": 10}), {"context_parallel_size": 4}
    check_parent(config(stage, ["a"], parallel=parallel, data={"train": ["a"], "max_length": fits}), parent, 1)
    with pytest.raises(ConfigError, match=rf"data.max_length = {fits + 1}: filled up to 12 .* 4 ranks .* context of 10; {fits} is the most"):
        check_parent(config(stage, ["a"], parallel=parallel, data={"train": ["a"], "max_length": fits + 1}), parent, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trainable_layers": -1}, "trainable_layers = -1: input should be greater than or equal to 0"),
        ({"trainable_layers": 2}, "trainable_layers = 2: the model has 1 layers; 1 is the most"),
        ({"keep_layers": 2}, "keep_layers = 2: the parent model has 1 layers; 1 is the most"),
        ({"activations": "a"}, "activations = a: without trainable_layers no layer is frozen; give it, or leave activations out"),
        ({"trainable_layers": 1, "dropout": 0.1}, "dropout = 0.1 with trainable_layers = 1: activations that are kept cannot change"),
        ({"trainable_layers": 1, "parallel": {"pipeline_parallel_size": 2}}, "trainable_layers = 1 with parallel.pipeline_parallel_size = 2: not supported together; take 1"),
        ({"trainable_layers": 1, "lora": {"rank": 2}}, "trainable_layers = 1 with lora: adapters belong to a model whose layers are all computed"),
        ({"trainable_layers": 1, "parallel": {"zero_stage": 3}}, "trainable_layers = 1 with parallel.zero_stage = 3: not supported together; take zero_stage 2"),
    ],
)  # fmt: skip
def test_frozen_layers_are_refused_where_their_activations_cannot_be_kept(given, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_parent(config(RewardConfig, ["a"], **given), MODEL, 1)


def test_frozen_layers_ask_for_no_dropout_in_the_parent_either():
    check_parent(config(RewardConfig, ["a"], trainable_layers=1), MODEL, 1)
    parent = MODEL.model_copy(update={"dropout": 0.2})
    check_parent(config(RewardConfig, ["a"], trainable_layers=1, dropout=0.0), parent, 1)
    with pytest.raises(ConfigError, match="dropout = 0.2 with trainable_layers = 1"):
        check_parent(config(RewardConfig, ["a"], trainable_layers=1), parent, 1)


def test_a_pipeline_cuts_the_layers_that_are_kept():
    parent, parallel = MODEL.model_copy(update={"num_layers": 4}), {"pipeline_parallel_size": 4}
    check_parent(config(RewardConfig, ["a"], parallel=parallel), parent, 1)
    with pytest.raises(ConfigError, match="num_layers|pipeline_parallel_size"):
        check_parent(config(RewardConfig, ["a"], keep_layers=2, parallel=parallel), parent, 1)


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[3] / "configs/reward").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_reward_configs_fit_the_model_that_they_start_from(file):
    smollm2 = ModelConfig(
        family="llama", num_layers=30, hidden_size=576, num_attention_heads=9, num_query_groups=3, ffn_hidden_size=1536, max_sequence_length=8192
    )
    check_parent(load_config(RewardConfig, file), smollm2, 2)
