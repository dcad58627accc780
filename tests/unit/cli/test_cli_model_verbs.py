"""checkpoint, generate, chat and --dry-run on a tiny model."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from megagpt.checkpoint.layout import identity
from megagpt.cli.main import main
from megagpt.config.schema import ModelConfig, RunConfig
from megagpt.data.records import read_rankings
from tests.helpers.tiny_checkpoint import make_checkpoint
from tests.helpers.tiny_run import environment_of, finished, megagpt, prompts, toy_tokenizer, write_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run `toy` with an SFT model, and four prompts."""
    folder = tmp_path_factory.mktemp("verbs")
    tokenizer = toy_tokenizer(folder / "tokenizer")
    model = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, max_sequence_length=64, vocab_size=tokenizer.vocab_size)
    make_checkpoint(RunConfig(name="toy", root=str(folder / "runs")), "sft", model, tokenizer, seed=1)
    write_rows(folder / "prompts.jsonl", prompts()[:4])
    return folder


@pytest.fixture
def checkpoint(folder):
    return folder / "runs/toy/sft/checkpoints/step_1"


# ---------------------------------------------------------------- checkpoint


def test_cli_checkpoint_inspect(checkpoint, capsys):
    assert main(["checkpoint", "inspect", str(checkpoint)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"{checkpoint}  [{identity(checkpoint)}]"
    state, _ = json.JSONDecoder().raw_decode(out[out.index("{") :])
    assert state["stage"] == "sft" and state["step"] == 1 and state["model"]["hidden_size"] == 32 and state["head"] == "lm"
    tensors = dict(line.split() for line in out[out.rindex("}") :].splitlines() if line.startswith("  "))
    assert tensors["embedding.tokens.weight"] == "290x32" and tensors["final_norm.bias"] == "32" and len(tensors) == 36
    assert "\nmodel: 36 tensors, " in out and "\noptimizer: 0 tensors, 0 numbers" in out


def test_cli_checkpoint_verify(checkpoint, capsys, tmp_path):
    assert main(["checkpoint", "verify", str(checkpoint)]) == 0
    assert capsys.readouterr().out == f"{checkpoint}: whole\n"

    copy = shutil.copytree(checkpoint, tmp_path / "step_1")
    weights = next(copy.glob("model-*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # one bit; the size stays
    weights.write_bytes(content)
    assert main(["checkpoint", "verify", str(copy)]) == 1
    assert capsys.readouterr().out == f"{weights}: content changed\n"


# ---------------------------------------------------------------- --dry-run with a parent


@pytest.mark.parametrize(("verb", "extra"), [("sft", 0), ("reward", 33), ("dpo", 0)])
def test_cli_dry_run_knows_the_parents_size(folder, tmp_path, capsys, no_process_group, checkpoint, verb, extra):
    config = {
        "run": {"name": "toy", "root": str(folder / "runs")}, "parent": "sft", "optimizer": {"lr": 1e-3},
        "batch": {"micro_batch_size": 2, "global_batch_size": 8}, "data": {"train": ["none"], "max_length": 64},
    }
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(config))
    assert main([verb, "--config", str(tmp_path / "stage.yaml"), "--dry-run", "--ranks", "2"]) == 0
    parameters = 290 * 32 + 64 * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32
    assert capsys.readouterr().out.splitlines() == [
        "layout      tp 1 x dp 2 x pp 1 on ranks 0-1, ZeRO 1",
        f"parameters  {parameters + extra:,} (from {checkpoint})",
        "batch       8 = 2 x 2 microbatches x 2 replicas",
    ]


# ---------------------------------------------------------------- generate and chat, in processes of their own


def generate(folder, *words):
    model = ("--checkpoint", "sft", "--run", "toy", "--max-new-tokens", 12, "--seed", 5)
    return finished(megagpt("generate", *model, "--prompts", "prompts.jsonl", *words, cwd=folder))


def test_cli_generate_samples_for_annotators_and_single_answers(folder):
    generate(folder, "--num-samples", 2, "--batch-size", 3, "--temperature", 1, "--output", "samples.jsonl")
    records = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [record["prompt"] for record in records] == [prompt["prompt"] for prompt in prompts()[:4]]
    assert all(record["ranks"] == [None, None] and len(set(record["answers"])) == 2 for record in records)
    for record in records:
        record["ranks"] = [1, 0]  # what an annotator adds
    assert len(read_rankings(write_rows(folder / "ranked.jsonl", records))) == 4

    greedy = generate(folder, "--num-samples", 2, "--temperature", 0)
    assert greedy.stdout == "" and "4 prompts are left out: no two different answers" in greedy.stderr  # nothing that could be ranked

    single = [json.loads(line) for line in generate(folder, "--temperature", 1).stdout.splitlines()]
    assert [record["id"] for record in single] == [prompt["id"] for prompt in prompts()[:4]]
    for record, sampled, prompt in zip(single, records, prompts()):
        assert record["messages"][:-1] == prompt["prompt"] and record["messages"][-1]["role"] == "assistant"
        # A sample depends on its prompt and number only, not on how many there are or how they are batched.
        assert record["messages"][-1]["content"] == sampled["answers"][0]


def test_cli_generate_says_what_it_left_out(folder):
    write_rows(folder / "twice.jsonl", [*prompts()[:2], prompts()[0], {"prompt": " "}])
    done = finished(megagpt("generate", "--checkpoint", "sft", "--run", "toy", "--max-new-tokens", 2, "--prompts", "twice.jsonl", cwd=folder))
    assert len(done.stdout.splitlines()) == 2 and "2 prompts (left out: 1 empty message, 1 repeated id)" in done.stderr


@pytest.mark.parametrize("option", ["--num-samples", "--batch-size", "--max-new-tokens"])
def test_cli_generate_refuses_none_at_all(option, capsys):
    assert main(["generate", "--checkpoint", "sft", "--prompts", "prompts.jsonl", option, "0"]) == 2
    assert f"{option} 0: must be 1 or more\n" in capsys.readouterr().err


def test_cli_generate_says_at_once_that_answers_have_no_place(tmp_path, capsys):
    for output, message in ((tmp_path / "absent/answers.jsonl", f"{tmp_path}/absent is no folder"), (tmp_path, "is a folder; name a file in it")):
        assert main(["generate", "--checkpoint", "sft", "--prompts", "absent.jsonl", "--output", str(output)]) == 2
        assert f"--output {output}: " in (err := capsys.readouterr().err) and message in err


def test_cli_chat(folder):
    text = "hello\n" + "What does the cat see? " * 3 + "\n/new\nhello\n\n"
    result = subprocess.run(
        [sys.executable, "-m", "megagpt", "chat", "--checkpoint", "sft", "--run", "toy", "--max-new-tokens", "8"],
        cwd=folder, env=environment_of(), input=text, capture_output=True, text=True, timeout=120, check=False,
    )
    assert result.returncode == 0, result.stderr
    answers = [line.partition("assistant> ")[2] for line in result.stdout.splitlines() if "assistant> " in line]
    assert len(answers) == 2 and answers[0] == answers[1], "after /new the conversation is as it was at first"
    assert "The conversation is longer than the model's context; /new starts over." in result.stdout
