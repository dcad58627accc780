"""Configuration files: what is accepted, and the one line that says why something is not."""

import typing
from pathlib import Path

import pytest
from pydantic import BaseModel, TypeAdapter

from megagpt.config.chain import STAGES, PipelineConfig
from megagpt.config.check import check_pretrain
from megagpt.config.load import ConfigError, build_config, load_config, load_data
from megagpt.config.prepare import HeuristicsConfig, TrainQualityConfig, TrainToxicityConfig
from megagpt.config.reference import describe_keys
from megagpt.config.schema import PretrainConfig, RlhfConfig
from megagpt.config.show import to_yaml

ROOT = Path(__file__).parents[3]
PRETRAIN = """
run: {name: test}
model: {num_layers: 2, hidden_size: 32, num_attention_heads: 4, max_sequence_length: 16}
optimizer: {lr: 1e-3}
batch: {micro_batch_size: 1, global_batch_size: 2}
data: {train: a, valid: b}
sequence_length: 16
train_tokens: 64
"""


def load(tmp_path, text, overrides=(), config_class=PretrainConfig):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load_config(config_class, path, list(overrides))


def test_config_scientific_notation_is_a_number(tmp_path):
    assert load(tmp_path, PRETRAIN).optimizer.lr == 1e-3


def test_config_is_frozen(tmp_path):
    with pytest.raises(ValueError, match="frozen"):
        load(tmp_path, PRETRAIN).sequence_length = 3


@pytest.mark.parametrize(
    "change, message",
    [
        ("sequence_lenght: 3", "unknown key 'sequence_lenght'; did you mean 'sequence_length'?"),
        ("train_tokens: 5", "duplicate key 'train_tokens', first given in line 8"),
        ("train-tokens: 5", "duplicate key 'train-tokens', first given in line 8"),
        ("every: {log: '10'}", "every.log = '10'"),
        ("every: {log: 0}", "every.log = 0: input should be greater than 0"),
        ("every: [1", "malformed YAML"),
        ("parallel: {zero_stage: 4}", "parallel.zero_stage = 4"),
        ("parallel: {tensor_paralel_size: 2}", "did you mean 'tensor_parallel_size'?"),
        ("kernels: fast", "kernels = 'fast'"),
        ("data.train: []", "data.train = []: value error, a blend needs at least one source"),
        ("data.train: [{path: a, weight: 0}]", "data.train.0.weight = 0: input should be greater than 0"),
        ("data.train: [{path: a, weight: 1}, {path: b, weight: -2}]", "data.train.1.weight = -2: input should be greater than 0"),
        ("data.train: [{path: a, weight: .nan}]", "data.train.0.weight = nan: "),
        ("data.valid: [{path: a, weight: .inf}]", "data.valid.0.weight = inf: input should be a finite number"),
        ("data.train: [{path: a}]", "data.train.0.weight is missing"),
        ("data.train: [{path: a, weight: 1, paht: b}]", "unknown key 'data.train.0.paht'; did you mean 'path'?"),
        ("data.valid: [{path: a, weight: 1, wait: 1}]", "unknown key 'data.valid.0.wait'; "),
        ("data.split: [0.9, 0.1]", "data.split"),
    ],
)
def test_config_errors_name_the_key_and_the_rule(tmp_path, change, message):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, *((PRETRAIN, [change.replace(": ", "=", 1)]) if change.startswith("data.") else (PRETRAIN + change,)))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_config_missing_key_and_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="sequence_length is missing"):
        load(tmp_path, PRETRAIN.replace("sequence_length: 16\n", ""))
    with pytest.raises(ConfigError, match="did you mean 'config.yaml'"):
        load_config(PretrainConfig, tmp_path / "confg.yaml")


def test_config_override_and_base(tmp_path):
    (tmp_path / "base.yaml").write_text(PRETRAIN)
    config = load(tmp_path, "base: base.yaml\nmodel: {num_layers: 8}\n", ["model.hidden_size=64", "optimizer.lr=2e-4"])
    assert (config.model.num_layers, config.model.hidden_size, config.optimizer.lr) == (8, 64, 2e-4)
    assert config.model.num_attention_heads == 4


def test_config_base_of_a_base_is_refused(tmp_path):
    (tmp_path / "base.yaml").write_text("base: other.yaml\n" + PRETRAIN)
    (tmp_path / "other.yaml").write_text(PRETRAIN)
    with pytest.raises(ConfigError, match="may not have a base"):
        load(tmp_path, "base: base.yaml\n")


def test_config_bad_override_is_named(tmp_path):
    with pytest.raises(ConfigError, match="--set model"):
        load(tmp_path, PRETRAIN, ["model"])


@pytest.mark.parametrize(
    "override", ["data.train=a", "data.train=[{path: a, weight: 3}, {path: b, weight: 0.5}]", "data={train: a, split: [0.9, 0.1, 0]}"]
)
def test_config_survives_printing(tmp_path, override):
    config = load(tmp_path, PRETRAIN, [override])
    assert load(tmp_path, to_yaml(config)) == config


def test_config_path_of_token_files_is_a_blend_of_one(tmp_path):
    data = load(tmp_path, PRETRAIN).data
    assert [(source.path, source.weight) for side in (data.train, data.valid) for source in side] == [("a", 1.0), ("b", 1.0)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{train: a}", "data.valid and data.split: neither is given; name held-out files or a split of the training ones, such as"),
        ("{train: a, valid: b, split: [1, 1, 0]}", "data.valid and data.split: both are given"),
        ("{train: a, split: [1, 0, 0.5]}", "data.split = [1.0, 0.0, 0.5]: training and validation need parts above 0, the test 0 or more"),
        ("{train: a, split: [0, 1, 0]}", "data.split = [0.0, 1.0, 0.0]: "),
        ("{train: a, split: [1, 1, -0.5]}", "data.split = [1.0, 1.0, -0.5]: "),
        ("{train: a, split: [.inf, 1, 0]}", "data.split = [inf, 1.0, 0.0]: "),
    ],
)
def test_config_held_out_tokens_come_from_one_place(tmp_path, data, message):
    config = load(tmp_path, PRETRAIN.replace("{train: a, valid: b}", data))
    with pytest.raises(ConfigError) as caught:
        check_pretrain(config, dp=1)
    assert message in str(caught.value)


def test_config_warmup_ends_before_the_schedule(tmp_path):
    for settings, message in (
        (["optimizer.warmup_ratio=0.5", "optimizer.decay_tokens=30"], r"optimizer.warmup_ratio = 0.5 \(32 tokens\): must be less than the 30 tokens"),
        (["optimizer.warmup_tokens=64"], "optimizer.warmup_tokens = 64: must be less than the 64 tokens"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_pretrain(load(tmp_path, PRETRAIN, settings), dp=1)
    check_pretrain(load(tmp_path, PRETRAIN, ["optimizer.warmup_ratio=0.5", "optimizer.decay_tokens=33"]), dp=1)


def test_config_going_back_needs_checkpoints(tmp_path):
    with pytest.raises(ConfigError, match=r"anomaly.spike_factor = 3 with every.save = 0: .*; take every.save 7, .* \(anomaly.window\)"):
        check_pretrain(load(tmp_path, PRETRAIN, ["anomaly.spike_factor=3.0", "anomaly.window=7"]), dp=1)
    check_pretrain(load(tmp_path, PRETRAIN, ["anomaly.spike_factor=3.0", "every.save=7"]), dp=1)


def test_config_top_p_is_refused_in_rlhf():
    text = (ROOT / "configs/smoke/quickstart_rlhf.yaml").read_text()
    assert "top_p" not in text
    with pytest.raises(ConfigError, match="ppo.top_p"):
        load_config(RlhfConfig, ROOT / "configs/smoke/quickstart_rlhf.yaml", ["ppo.top_p=0.9"])


# Those in base/ are parts, which others complete; those in hardware/ describe devices (tests/unit/plan).
SHIPPED = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name not in ("base", "hardware"))


BESIDE_STAGES = {"train-quality": TrainQualityConfig, "train-toxicity": TrainToxicityConfig}
"""Of commands that are no stage of a pipeline."""


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_config_every_shipped_file_parses(path):
    data = load_data(path)
    if isinstance(data.get("steps"), list):
        config = build_config(PipelineConfig, data, str(path))
        assert all((path.parent / step.config).exists() for step in config.steps)
        return
    fitting = []
    for stage, config_class in (STAGES | BESIDE_STAGES).items():
        try:
            build_config(config_class, data, str(path))
            fitting.append(stage)
        except ConfigError:
            continue
    assert len(fitting) == 1


@pytest.mark.parametrize("config_class", [*STAGES.values(), *BESIDE_STAGES.values(), PipelineConfig], ids=lambda c: c.__name__)
def test_config_every_key_is_described(config_class):
    lines = describe_keys(config_class)
    keys = [line for line in lines if not line.startswith("      ")]
    assert keys and len(lines) == 2 * len(keys), "a key has no docstring"


def test_config_help_of_dictionaries_and_bounded_numbers():
    lines = describe_keys(HeuristicsConfig)
    assert "  by_language: dict[str, LanguageRules] (default {})" in lines and not any("by_language." in line for line in lines)
    assert "  gopher_quality.max_bullet_lines: float (default 0.9)" in lines
    assert any(line.startswith("  gopher_repetition.max_top_ngram: dict[int, float]") for line in lines)


def parts(annotation):
    """Configuration classes in an annotation, such as the one in `list[BlendSource] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [part for argument in typing.get_args(annotation) for part in parts(argument)]


def sections(config_class):
    """Every section that may be left out, at any depth: name and field."""
    for name, field in config_class.model_fields.items():
        for part in parts(field.annotation):
            yield from sections(part)
        if isinstance(field.default, BaseModel):
            yield name, field


@pytest.mark.parametrize("config_class", [*STAGES.values(), *BESIDE_STAGES.values()], ids=lambda c: c.__name__)
def test_config_key_of_a_section_leaves_the_others_at_the_stages_defaults(config_class):
    for name, field in sections(config_class):
        for key, value in field.default:
            section = TypeAdapter(field.annotation).validate_python({key: value})
            assert section == field.default, f"{name}: {{{key}: {value}}} changes other keys"


@pytest.mark.parametrize(("optimizer", "lr"), [("policy_optimizer", 1e-6), ("value_optimizer", 5e-6)])
def test_config_rlhf_recipe_holds_for_what_is_not_given(optimizer, lr):
    data = load_data(ROOT / "configs/smoke/quickstart_rlhf.yaml") | {optimizer: {"eps": 1e-6}}
    found = getattr(build_config(RlhfConfig, data, "rlhf.yaml"), optimizer)
    assert (found.lr, found.min_lr_ratio, found.weight_decay, found.eps) == (lr, 1.0, 0.0, 1e-6)


@pytest.mark.parametrize(("given", "lr"), [({}, 1e-5), ({"optimizer": {"lr": 2e-5}}, 2e-5)])
def test_config_sft_recipe_holds_for_what_is_not_given(given, lr):
    data = {"run": {"name": "r"}, "batch": {"micro_batch_size": 1, "global_batch_size": 32}, "data": {"train": ["d.jsonl"], "max_length": 64}}
    config = build_config(STAGES["sft"], data | given, "sft.yaml")
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.schedule, optimizer.min_lr_ratio, optimizer.betas, optimizer.weight_decay) == (lr, "cosine", 0.1, (0.9, 0.95), 0.0)
    assert (config.epochs, config.packing) == (2, False)
