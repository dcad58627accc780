"""Files of records as configurations name them: plain paths, or paths with a slice and a weight."""

import re

import pytest

from megagpt.config.check import check_parent
from megagpt.config.load import ConfigError, build_config
from megagpt.config.schema import DpoConfig, ModelConfig, RecordSource, RewardConfig, SftConfig

BATCH = {"micro_batch_size": 1, "global_batch_size": 1}
MODEL = ModelConfig(num_layers=1, hidden_size=8, num_attention_heads=1, max_sequence_length=16)


def config(config_class, train, **more):
    return build_config(config_class, {"run": {"name": "r"}, "batch": BATCH, "data": {"train": train, "max_length": 8}} | more, "x.yaml")


def test_record_sources_may_be_plain_paths():
    sources = config(RewardConfig, ["a.jsonl", {"path": "b.jsonl", "slice": "bias", "weight": 4}]).data.train
    assert sources == [RecordSource(path="a.jsonl", weight=1.0), RecordSource(path="b.jsonl", slice="bias", weight=4.0)]
    assert sources[0].slice is None


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([{"path": "a", "weight": 0}], "data.train.0.weight = 0: input should be greater than 0"),
        (["a", {"path": "b", "weight": -1}], "data.train.1.weight = -1: input should be greater than 0"),
        ([{"path": "a", "slice": ""}], "data.train.0.slice = ''"),
        ([{"slice": "s"}], "data.train.0.path is missing"),
        ([{"path": "a", "wieght": 2}], "unknown key 'data.train.0.wieght'; did you mean 'weight'?"),
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
        ({"parallel": {"context_parallel_size": 2}}, "parallel.context_parallel_size = 2: an answer's log-probability is one sum; take 1 here"),
        ({"parallel": {"sequence_parallel": True}}, "parallel: sequence_parallel and virtual_pipeline_size are not built for the dpo stage; leave them out"),
        ({"optimizer": {"warmup_tokens": 5}}, "optimizer.warmup_tokens = 5: only pre-training counts tokens"),
    ],
)
def test_dpo_settings_that_make_no_sense_are_named(settings, message):
    check_parent(config(DpoConfig, ["a"]), MODEL, 1)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_parent(config(DpoConfig, ["a"], **settings), MODEL, 1)
