"""The command line without any work: help, --print-config, --dry-run, what launchers put in front."""

import re
import sys
from typing import get_origin

import pytest
import yaml
from pydantic import BaseModel

from megagpt.cli.main import VERBS, main
from megagpt.config import chain, prepare
from megagpt.config.load import load_config
from tests.helpers.tiny_run import ROOT

CLASSIFIERS = {"train-quality": prepare.TrainQualityConfig, "train-toxicity": prepare.TrainToxicityConfig}
CONFIGS = chain.STAGES | {"run": chain.PipelineConfig} | CLASSIFIERS
WORDS = {verb: [verb] for verb in CONFIGS} | {"data": ["data", "run"], "prepare": ["data", "run"], "tokenizer": ["tokenizer", "train"]}
WORDS |= {verb: ["data", verb] for verb in CLASSIFIERS}
"""What calls the stage."""
QUICKSTART = {verb: ROOT / f"configs/smoke/quickstart{'' if verb == 'run' else f'_{verb}'}.yaml" for verb in CONFIGS}
QUICKSTART["prepare"] = ROOT / "configs/data/prepare.yaml"
QUICKSTART |= {verb: ROOT / f"configs/data/{verb.replace('-', '_')}.yaml" for verb in CLASSIFIERS}


def output_of(capsys, *words: object) -> str:
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("verb", VERBS)
def test_cli_help_of_every_verb(verb, capsys):
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    out, err = capsys.readouterr()
    assert left.value.code == 0 and err == ""
    assert out.startswith(f"usage: megagpt {verb}") and VERBS[verb][1] in out


@pytest.mark.parametrize("verb", CONFIGS)
def test_cli_help_explains_every_key(verb, capsys):
    with pytest.raises(SystemExit):
        main([*WORDS[verb], "--help"])
    out = capsys.readouterr().out
    for name, description in leaves(CONFIGS[verb]):
        assert re.search(rf"^  {re.escape(name)}: ", out, re.MULTILINE), name
        assert description in out, f"{name} is explained"
    assert "--print-config" in out and "--set a.b=c" in out


def leaves(config_class: type[BaseModel], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted name and docstring of every setting; a list of sections has both its own and those of its items."""
    found = []
    for name, field in config_class.model_fields.items():
        named = get_origin(field.annotation) is dict  # the user names the keys: a type beside the setting tells what they hold
        inside = [] if named else [part for part in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(part, type) and issubclass(part, BaseModel)]
        items = "[]" if get_origin(field.annotation) is list else ""
        if items or not inside:
            found.append((prefix + name, " ".join((field.description or "").split())))
        if inside:
            found += leaves(inside[0], f"{prefix}{name}{items}.")
    return found


def test_cli_help_names_all_verbs(capsys):
    out = output_of(capsys, "--help")
    assert all(re.search(rf"^  {verb} ", out, re.MULTILINE) for verb in VERBS)
    assert main([]) == 2
    assert capsys.readouterr().out == out


# ---------------------------------------------------------------- --print-config


@pytest.mark.parametrize("verb", CONFIGS)
def test_cli_print_config_round_trips(verb, capsys, tmp_path):
    words = WORDS[verb]
    printed = output_of(capsys, *words, "--config", QUICKSTART[verb], "--set", "run.seed=77", "--print-config")
    (tmp_path / "again.yaml").write_text(printed)
    assert output_of(capsys, *words, "--config", tmp_path / "again.yaml", "--print-config") == printed
    assert load_config(CONFIGS[verb], tmp_path / "again.yaml") == load_config(CONFIGS[verb], QUICKSTART[verb], ["run.seed=77"])
    data = yaml.safe_load(printed)
    assert data["run"]["seed"] == 77 and data["run"]["timeout_seconds"] == 600, "overrides and defaults are filled in"


def test_cli_tolerates_the_launchers_own_option(capsys):
    expected = output_of(capsys, "pretrain", "--config", QUICKSTART["pretrain"], "--print-config")
    for option in ("--local_rank=1", "--local-rank=0"):
        assert output_of(capsys, option, "pretrain", "--config", QUICKSTART["pretrain"], "--print-config") == expected


# ---------------------------------------------------------------- --dry-run


MODEL = "model={family: gpt, num_layers: 2, hidden_size: 32, num_attention_heads: 4, max_sequence_length: 64, tie_embeddings: true}"
STEPS = ("sequence_length=64", "train_tokens=10000", "batch={micro_batch_size: 2, global_batch_size: 8}")


def dry_run(verb: str, *settings: str, ranks: int | None = None) -> list[str]:
    """The shipped configuration with these settings."""
    words = [word for setting in settings for word in ("--set", setting)] + ([] if ranks is None else ["--ranks", str(ranks)])
    return [verb, "--config", str(QUICKSTART[verb]), *words, "--dry-run"]


def parallel(tp: int, dp: int | str) -> str:
    return f"parallel={{tensor_parallel_size: {tp}, pipeline_parallel_size: 1, data_parallel_size: {dp}, zero_stage: 1}}"


def test_cli_dry_run_of_pretraining(capsys, no_process_group, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = output_of(capsys, *dry_run("pretrain", MODEL, "model.vocab_size=101", parallel(2, "null"), *STEPS, ranks=4))
    layer = 12 * 32 * 32 + 13 * 32
    assert out.splitlines() == [
        "layout      tp 2 x dp 2 x pp 1 on ranks 0-3, ZeRO 1",
        f"parameters  {101 * 32 + 64 * 32 + 2 * layer + 2 * 32:,}",
        "run         19 steps x 512 tokens = 9,728 tokens",
        "batch       8 = 2 x 2 microbatches x 2 replicas",
    ]
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_cli_dry_run_takes_the_number_of_ranks_from_the_launcher(capsys, no_process_group, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    out = output_of(capsys, *dry_run("pretrain", MODEL, "model.vocab_size=null", parallel(1, "null"), *STEPS))
    assert "tp 1 x dp 4 x pp 1 on ranks 0-3" in out and "parameters  known once the tokenizer gives model.vocab_size" in out


def test_cli_dry_run_before_the_parent_exists(capsys, no_process_group, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = output_of(capsys, *dry_run("sft", "parent=pretrain", parallel(1, 2), STEPS[2], ranks=2))
    assert "parameters  known once there is a checkpoint in runs/quickstart/pretrain" in out
    settings = ["placement.policy={ranks: [0, 1], tp: 2}", "prompts.max_response_length=48", "prompts.eval_prompts=64"]
    settings += ["ppo={steps: 7, rollout_batch_size: 64, minibatch_size: 32, micro_batch_size: 16, epochs: 2}"]
    lines = output_of(capsys, *dry_run("rlhf", *settings)).splitlines()
    assert lines[0] == "policy      tp 2 x dp 1 x pp 1 on ranks 0-1, parameters: known once there is a checkpoint in runs/quickstart/sft"
    assert [line.split()[0] for line in lines] == ["policy", "reference", "reward", "value", "rollout", "update"]
    assert lines[4] == "rollout     64 responses of at most 48 tokens, 7 rounds" and lines[5] == "update      2 epochs x 2 minibatches of 32"


def test_cli_dry_run_refuses_what_the_stage_would(capsys, no_process_group):
    assert main(dry_run("pretrain", parallel(1, 2), ranks=3)) == 2
    assert "data_parallel_size 2 does not fit 3 ranks" in capsys.readouterr().err
    assert main(dry_run("sft", "parallel={tensor_parallel_size: 1, pipeline_parallel_size: 2, zero_stage: 3}", ranks=2)) == 2
    assert "zero_stage = 3 with pipeline_parallel_size = 2" in capsys.readouterr().err


def test_cli_dry_run_of_a_batch_ramp(capsys, no_process_group):
    ramp = "batch={micro_batch_size: 2, global_batch_size: 8, ramp: {initial_batch_size: 4, increment: 4, tokens: 1024}}"
    out = output_of(capsys, *dry_run("pretrain", MODEL, parallel(1, 2), *STEPS[:2], ramp, ranks=2))
    # 4 rows of 64 tokens until 1,024 tokens are seen, then 8.
    assert "run         21 steps, 9,728 tokens; from 4 rows a step to 8 over 1,024 tokens" in out


def test_wrong_usage_is_one_line_from_one_rank(capsys, monkeypatch):
    assert main(["sft", "--confg", "a.yaml"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("megagpt: sft: ") and "--config" in error
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("time.sleep", lambda _: sys.exit("ended by the launcher"))
    with pytest.raises(SystemExit, match="ended by the launcher"):
        main(["sft", "--confg", "a.yaml"])
    assert capsys.readouterr().err == ""


def test_ctrl_c_is_one_line_and_its_own_exit_code(monkeypatch, capsys):
    def interrupt(options, verb):
        raise KeyboardInterrupt

    monkeypatch.setattr("megagpt.cli.tokenize.run", interrupt)
    assert main(["tokenize", "--config", "any.yaml"]) == 130
    assert capsys.readouterr().err == "megagpt: stopped by Ctrl-C\n"
