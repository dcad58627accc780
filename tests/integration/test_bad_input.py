"""Bad input: one line on stderr that names field, value and rule, exit code 2, before any process group; what is on disk stays as it is."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from pathlib import Path

import pytest
import yaml

from megagpt.checkpoint.layout import write_checksums
from megagpt.cli.main import RANK_0_FIRST_SECONDS, main
from megagpt.config.schema import ModelConfig, RunConfig, TokenizeConfig
from megagpt.data.token_files import tokenize_documents
from tests.helpers.tiny_checkpoint import make_checkpoint
from tests.helpers.tiny_run import demonstrations, documents, prompts, rankings, toy_tokenizer, write_rows, write_source
from tests.helpers.token_files import write_token_files

SIZES = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "max_sequence_length": 64}
STEPS = {"optimizer": {"lr": 1e-3}, "batch": {"micro_batch_size": 2, "global_batch_size": 4}}
ALL_ON_RANK_0 = {role: {"ranks": [0]} for role in ("policy", "reference", "reward", "value")}
CONFIGS = {
    "data": {"source": "source"},
    "tokenizer": {"documents": ["source/documents.jsonl"], "vocab_size": 320},
    "tokenize": {"inputs": {"train": ["source/documents.jsonl"]}},
    "pretrain": STEPS | {"model": SIZES, "data": {"train": "tokens/train", "valid": "tokens/valid"}, "sequence_length": 32, "train_tokens": 256},
    "sft": STEPS | {"parent": "sft", "data": {"train": ["source/demonstrations.jsonl"], "max_length": 64}},
    "reward": STEPS | {"data": {"train": ["source/rankings.jsonl"], "max_length": 64}},
    "dpo": STEPS | {"data": {"train": ["source/rankings.jsonl"], "max_length": 64}},
    "rlhf": {
        "placement": ALL_ON_RANK_0,
        "prompts": {"files": ["source/prompts.jsonl"], "max_prompt_length": 40, "max_response_length": 8, "eval_prompts": 4},
        "ppo": {"steps": 1, "rollout_batch_size": 4, "minibatch_size": 2, "micro_batch_size": 2},
    },
}
WORDS = {"data": ["data", "run"], "tokenizer": ["tokenizer", "train"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the cases start from: sources, tokenizer, token files, an SFT and a reward model, a configuration for each stage."""
    folder = tmp_path_factory.mktemp("bad")
    write_source(folder / "source")
    run = RunConfig(name="toy", root=str(folder / "runs"))
    tokenizer = toy_tokenizer(folder / "runs/toy/tokenizer")
    write_rows(folder / "few.jsonl", documents(8))
    inputs = {"train": [str(folder / "few.jsonl")], "valid": [str(folder / "few.jsonl")]}
    tokenize_documents(TokenizeConfig(run=run, inputs=inputs), tokenizer, folder / "runs/toy/tokens")
    model = ModelConfig(vocab_size=tokenizer.vocab_size, **SIZES)
    make_checkpoint(run, "sft", model, tokenizer, seed=1)
    make_checkpoint(run, "reward", model, tokenizer, seed=2, reward_mean=0.0, reward_std=1.0)
    for stage, config in CONFIGS.items():
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump({"run": {"name": "toy", "root": "runs"}} | config))
    steps = [{"stage": stage, "config": f"{stage}.yaml"} for stage in CONFIGS]
    (folder / "run.yaml").write_text(yaml.safe_dump({"run": {"name": "toy", "root": "runs"}, "steps": steps}))
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refused(folder, monkeypatch, capsys, no_process_group):
    """Runs `megagpt WORDS` in the folder and returns the one line that it prints."""

    def run(*words: str, **environment: object) -> str:
        monkeypatch.chdir(folder)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        before = contents(folder / "runs")
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert code == 2, out + err
        lines = err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("megagpt: ") and "Traceback" not in out, out + err
        assert contents(folder / "runs") == before, "something on disk has changed"
        return lines[0].removeprefix("megagpt: ")

    return run


def stage(name: str, *settings: str) -> list[str]:
    return [*WORDS.get(name, [name]), "--config", f"{name}.yaml", *(word for text in settings for word in ("--set", text))]


def place(**roles) -> str:
    return f"placement={json.dumps(ALL_ON_RANK_0 | roles)}"


# ---------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("verb", "ranks", "settings", "message"),
    [
        ("pretrain", 3, ["parallel.tensor_parallel_size=3"], "model.num_attention_heads = 4: not divisible by the tensor-parallel size 3"),
        ("pretrain", 3, ["parallel.tensor_parallel_size=3", "model.num_attention_heads=3", "model.hidden_size=48", "model.family=llama"],
         "model.ffn_hidden_size = 128: not divisible by the tensor-parallel size 3"),
        ("pretrain", 4, ["parallel.pipeline_parallel_size=4"],
         "model.num_layers = 2: less than the pipeline-parallel size 4; a stage would be empty"),
        ("pretrain", 2, ["parallel.pipeline_parallel_size=2", "model.num_layers=3"], "model.num_layers = 3: num_layers 3 is not divisible by pipeline_parallel_size 2; stage_layers [2, 1] would do"),
        ("pretrain", 3, ["parallel.tensor_parallel_size=2"],
         "parallel: tensor_parallel_size 2 x pipeline_parallel_size 1 x data_parallel_size free does not fit 3 ranks: the product must be the number of ranks"),
        ("pretrain", 1, ["parallel.data_parallel_size=2"], "data_parallel_size 2 does not fit 1 ranks"),
        ("pretrain", 2, ["parallel.zero_stage=3", "parallel.pipeline_parallel_size=2"], "parallel.zero_stage = 3 with pipeline_parallel_size = 2"),
        ("pretrain", 3, [], "batch.global_batch_size = 4: not a multiple of micro_batch_size 2 x 3 replicas"),
        ("sft", 3, ["parallel.tensor_parallel_size=3"], "parent model.num_attention_heads = 4: not divisible by the tensor-parallel size 3"),
        ("sft", 4, ["parallel.pipeline_parallel_size=4"], "parent model.num_layers = 2: less than the pipeline-parallel size 4"),
        ("reward", 3, ["parallel.tensor_parallel_size=2"], "does not fit 3 ranks"),
        ("reward", 3, ["parallel.tensor_parallel_size=3"], "parent model.num_attention_heads = 4: not divisible"),
        ("rlhf", 3, [place(policy={"ranks": [0, 1, 2], "tp": 3}, value={"ranks": [0, 1, 2]})],
         "placement.reference.ranks = [0]: overlaps policy's ranks [0, 1, 2] in part"),
        ("rlhf", 3, [place(policy={"ranks": [1, 2]}, reference={"ranks": [1, 2]}, value={"ranks": [0, 1]}, reward={"ranks": [0, 1]})],
         "placement.reward.ranks = [0, 1]: overlaps policy's ranks [1, 2] in part; two models share all their ranks or none"),
        ("rlhf", 2, [], "placement: ranks [1] of the job hold no model; start 1 ranks or place a model there"),
        ("rlhf", 1, [place(value={"ranks": [1]})], "placement.value.ranks = [1]: the job has ranks 0 to 0 only"),
        ("rlhf", 4, [place(policy={"ranks": [1, 2, 3], "tp": 3})], "placement.policy.num_attention_heads = 4: not divisible by the tensor-parallel size 3"),
        ("rlhf", 1, ["ppo.minibatch_size=3"], "ppo.minibatch_size = 3: must divide rollout_batch_size 4"),
        ("rlhf", 1, ["ppo.micro_batch_size=4"], "ppo.minibatch_size = 2: not a multiple of micro_batch_size 4 x 1 replicas of the policy"),
        ("rlhf", 1, ["prompts.eval_prompts=3"], "prompts.eval_prompts = 3: not a multiple of 2"),
        ("generate", 2, ["--tensor-parallel-size=1"], "2 ranks for tensor 1 x pipeline 1: generation uses one replica"),
        ("generate", 3, ["--tensor-parallel-size=3"], "checkpoint.num_attention_heads = 4: not divisible by the tensor-parallel size 3"),
    ],
)
def test_bad_layout(refused, folder, verb, ranks, settings, message):
    words = ["generate", "--checkpoint", "runs/toy/sft", "--prompts", "source/prompts.jsonl", *settings] if verb == "generate" else stage(verb, *settings)
    assert message in refused(*words, WORLD_SIZE=ranks)


# ---------------------------------------------------------------- data


GOOD = demonstrations()[0] | rankings()[0] | documents()[0]
"""A row that every stage takes."""
BAD_FILES = {
    "missing": (None, "no such file"),
    "empty": ("", "the file is empty"),
    "blank": ("\n\n", "the file holds no rows"),
    "malformed": (f'{json.dumps(GOOD)}\n\n{{"text": \n', ":3: malformed JSON: "),
    "other": ('[1, 2]\n', ":1: unknown shape of a"),
    "not_utf8": (b'{"text": "\xff"}\n', ":1: invalid UTF-8"),
}
TAKES = {  # stage -> the setting that names its file
    "tokenizer": "documents=[{file}]",
    "tokenize": "inputs={{train: [{file}]}}",
    "sft": "data.train=[{file}]",
    "reward": "data.train=[{file}]",
    "dpo": "data.train=[{file}]",
    "rlhf": "prompts.files=[{file}]",
    "generate": "{file}",
}


@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.parametrize("verb", TAKES)
def test_bad_file(refused, tmp_path, verb, kind):
    content, message = BAD_FILES[kind]
    file = tmp_path / "documents.jsonl"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    setting = TAKES[verb].format(file=file)
    words = ["generate", "--checkpoint", "runs/toy/sft", "--prompts", setting] if verb == "generate" else stage(verb, setting)
    line = refused(*words)
    assert str(file) in line and message in line


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("nothing", lambda prefix: None, "tokens.idx: no such file"),
        ("empty", lambda prefix: Path(f"{prefix}.idx").touch(), "tokens.idx: the file is empty"),
        ("no_index", lambda prefix: Path(f"{prefix}.idx").write_text("{}"), "tokens.bin: no such file"),
        ("text", lambda prefix: [Path(prefix + end).write_text("some text") for end in (".idx", ".bin")], "tokens.idx: damaged: this is no Megatron index"),
    ],
)
def test_bad_token_files(refused, tmp_path, name, make, message):
    make(str(tmp_path / "tokens"))
    assert message in refused(*stage("pretrain", f"data.train={tmp_path / 'tokens'}"))


def test_bad_token_files_cut_short(refused, folder, tmp_path):
    for end in (".bin", ".idx"):
        (tmp_path / f"tokens{end}").write_bytes((folder / f"runs/toy/tokens/train{end}").read_bytes()[: -100 if end == ".bin" else None])
    assert "tokens.bin: damaged: " in refused(*stage("pretrain", f"data.valid={tmp_path / 'tokens'}"))


def blend(*weights: object) -> str:
    return f"data.train=[{', '.join(f'{{path: tokens/train, weight: {weight}}}' for weight in weights)}]"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([blend(1, 0)], "data.train.1.weight = 0: input should be greater than 0"),
        ([blend(1, -0.5)], "data.train.1.weight = -0.5: input should be greater than 0"),
        ([blend(".nan")], "data.train.0.weight = nan: "),
        ([blend(".inf")], "data.train.0.weight = inf: input should be a finite number"),
        ([blend(1, 1e-9)], "tokens/train, tokens/train: weight 1e-09 is 1.0e-09 of all weights; the smallest share is 1 / 65,536"),
        (["data.split=[0.9, 0.1, 0]"], "data.valid and data.split: both are given"),
        (["data.valid=null"], "data.valid and data.split: neither is given"),
        (["data.valid=null", "data.split=[1, 0, 0]"], "data.split = [1.0, 0.0, 0.0]: training and validation need parts above 0"),
        (["data.valid=null", "data.split=[0.9, 0.01, 0.09]"], "tokens/train: 0 tokens in documents 7 to 7 of 8 are less than one row of 32 + 1"),
    ],
)
def test_bad_blend_or_split(refused, settings, message):
    assert message in refused(*stage("pretrain", *settings))


def test_bad_token_files_of_another_tokenizer(refused, folder, tmp_path):
    toy_tokenizer(tmp_path, vocab_size=291)
    line = refused(*stage("pretrain", f"tokenizer={tmp_path}"))
    assert "tokens/train.json: ids of tokenizer " in line and line.endswith("; tokenize the text again with it")


def test_bad_ids_in_token_files_without_sidecar(refused, folder, tmp_path):
    prefix = write_token_files(tmp_path / "foreign", [[7, 8, 9] * 20, [7, 300, 9] * 20])
    line = refused(*stage("pretrain", f"data.train={prefix}"))
    assert line == f"{prefix}.bin: token 61 has id 300, the tokenizer's vocabulary is 0 to 289"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["source=nowhere"], "nowhere: no such folder; source must be `python-docs` or a folder of files"),
        (["source=runs"], "runs: no file or folder here has a name that begins with 'demonstrations'"),
    ],
)
def test_bad_source(refused, settings, message):
    assert message in refused(*stage("data", *settings))


# ---------------------------------------------------------------- lengths


@pytest.mark.parametrize(
    ("verb", "settings", "message"),
    [
        ("pretrain", ["sequence_length=65"], "sequence_length = 65: longer than model.max_sequence_length 64"),
        ("pretrain", ["train_tokens=100"], "train_tokens = 100: less than one step (4 x 32 tokens)"),
        ("pretrain", ["sequence_length=64", "data.valid=short"], "63 tokens are less than one row of 64 + 1"),
        ("sft", ["data.max_length=65"], "data.max_length = 65: longer than the model's context of 64"),
        ("reward", ["data.max_length=65"], "data.max_length = 65: longer than the model's context of 64"),
        ("sft", ["data.max_length=20"], "source/demonstrations.jsonl:1: "),
        ("reward", ["data.max_length=20"], "source/rankings.jsonl:1: "),
        ("dpo", ["data.max_length=20"], "source/rankings.jsonl:1: "),
        ("sft", ["data.max_length=20", "data.overlong=drop"], "no record is left for train (max_length 20)"),
        ("sft", ["data.max_length=4", "data.overlong=truncate"], "no record is left for train (max_length 4)"),
        ("rlhf", ["prompts.max_prompt_length=60"], "prompts: max_prompt_length + max_response_length = 68: longer than the policy's context of 64"),
        ("rlhf", ["prompts.max_prompt_length=4"], "0 prompts, training needs more than eval_prompts 4, 48 dropped: longer than max_prompt_length"),
        ("rlhf", ["prompts.eval_prompts=48"], "48 prompts, training needs more than eval_prompts 48"),
    ],
)
def test_too_long_or_too_short(refused, folder, verb, settings, message):
    if "data.valid=short" in settings and not (folder / "short.idx").exists():
        tokenizer = toy_tokenizer(folder / "again")
        text = tokenizer.decode(tokenizer.encode(documents(1)[0]["text"])[:62])
        write_rows(folder / "short.jsonl", [{"text": text}])
        tokenize_documents(TokenizeConfig(run=RunConfig(name="x"), inputs={"short": [str(folder / "short.jsonl")]}), tokenizer, folder)
    assert message in refused(*stage(verb, *settings))


def test_too_long_prompt_for_generation(refused, tmp_path):
    long = write_rows(tmp_path / "long.jsonl", [*prompts()[:1], {"id": "long", "prompt": [{"role": "user", "content": "why? " * 20}]}])
    words = ["generate", "--checkpoint", "runs/toy/sft", "--prompts", long, "--max-new-tokens", 8]
    line = refused(*words)
    assert f"{long}:2: " in line and "+ max_new_tokens 8 is longer than the context of 64" in line


# ---------------------------------------------------------------- checkpoints and tokenizers


def test_checkpoint_that_is_not_there(refused):
    line = refused(*stage("sft", "parent=pretrain"))
    assert line.startswith("pretrain: no complete checkpoint there or in runs/toy/pretrain") and "reward, sft" in line
    assert "; did you mean 'sft'?" in refused(*stage("rlhf", "policy=sft1"))
    assert "no complete checkpoint" in refused("generate", "--checkpoint", "nothing", "--prompts", "source/prompts.jsonl")
    assert "nothing" in refused("checkpoint", "inspect", "nothing")


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the SFT model to damage."""
    return Path(shutil.copytree(folder / "runs/toy/sft/checkpoints/step_1", tmp_path / "step_1"))


def rewrite(file: Path, change) -> None:
    """Change a JSON file of a checkpoint and keep its checksums true."""
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))
    write_checksums(file.parent)


def test_checkpoint_of_another_shape(refused, copy):
    rewrite(copy / "state.json", lambda state: state["model"].update(hidden_size=48))
    message = f"{copy}: embedding.tokens.weight has shape [290, 32]; the model needs [290, 48]"
    assert refused(*stage("sft", f"parent={copy}")) == message
    assert refused(*stage("reward", f"parent={copy}")) == message
    assert refused(*stage("rlhf", f"policy={copy}")) == message
    assert refused("generate", "--checkpoint", copy, "--prompts", "source/prompts.jsonl") == message


def test_checkpoint_without_a_tensor(refused, copy):
    rewrite(copy / "model.index.json", lambda index: index.pop("layers.1.mlp.up.bias"))
    assert refused(*stage("sft", f"parent={copy}")) == f"{copy}: holds no tensor 'layers.1.mlp.up.bias'"


def test_checkpoint_of_another_tokenizer(refused, copy, tmp_path):
    toy_tokenizer(copy / "tokenizer", vocab_size=291)
    write_checksums(copy)
    assert refused(*stage("sft", f"parent={copy}")) == f"{copy}/tokenizer: is not the tokenizer that the model was trained with"


def test_checkpoint_cut_short(refused, copy):
    weights = next(copy.glob("model-*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    assert refused(*stage("sft", f"parent={copy}")).startswith(f"{weights}: damaged; ")
    (copy / "COMPLETE").unlink()
    assert refused(*stage("sft", f"parent={copy}")) == f"{copy}: the checkpoint is incomplete (COMPLETE is missing)"


def test_checkpoint_with_the_wrong_head(refused):
    for verb in ("sft", "dpo"):
        assert "holds a reward model; a language model is needed here" in refused(*stage(verb, "parent=reward"))
    assert "holds a language model; a reward model is needed here" in refused(*stage("rlhf", "reward=sft"))
    assert "holds a reward model" in refused("generate", "--checkpoint", "runs/toy/reward", "--prompts", "source/prompts.jsonl")


def test_tokenizer_that_does_not_fit(refused, tmp_path):
    assert "nothing: no such tokenizer folder or file" in refused(*stage("pretrain", "tokenizer=nothing"))
    assert "model.vocab_size = 100: less than the tokenizer's 290" in refused(*stage("pretrain", "model.vocab_size=100"))
    assert "vocab_size 5000: sentencepiece cannot train it on this text" in refused(*stage("tokenizer", "vocab_size=5000"))


# ---------------------------------------------------------------- the machine


def test_port_in_use(refused):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        world = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        line = refused(*stage("pretrain"), **world)
    assert f"MASTER_PORT {port}: cannot listen there (Address already in use); choose another" in line


def test_rank_0_speaks_first(folder, monkeypatch, capsys, no_process_group):
    """Another rank speaks where rank 0 has not ended it meanwhile."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    waits = []
    monkeypatch.setattr("time.sleep", lambda seconds: waits.append((seconds, capsys.readouterr().err)))
    assert main(stage("pretrain", "parallel.tensor_parallel_size=3")) == 2
    assert waits == [(RANK_0_FIRST_SECONDS, "")]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"megagpt: rank 1 ({socket.gethostname()}): ") and "tensor-parallel size 3" in line


def test_no_cuda_here(refused, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "run.device cuda: torch finds no CUDA device here; use auto or cpu" in refused(*stage("pretrain", "run.device=cuda"))


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrian"], "unknown verb 'pretrian'; did you mean 'pretrain'?"),
        (["sing"], "unknown verb 'sing'"),
        (["pretrain", "--config", "pretrian.yaml"], "pretrian.yaml: cannot read the configuration (No such file or directory); did you mean 'pretrain.yaml'?"),
        (["sft", "--config", "pretrain.yaml"], "pretrain.yaml: data.train = 'tokens/train': input should be a valid array"),
        (stage("pretrain", "model.num_layer=3"), "pretrain.yaml: unknown key 'model.num_layer'; did you mean 'num_layers'?"),
        (stage("pretrain", "model.num_layers=two"), "pretrain.yaml: model.num_layers = 'two': "),
        (stage("pretrain", "model.num_layers"), "--set model.num_layers: expected section.key=value"),
        (stage("rlhf", "ppo.top_k=50"), "rlhf.yaml: ppo.top_k = 50"),
        (stage("pretrain", "run.name=a/b"), "run.name = 'a/b'"),
        (["report", "runs/nothing"], "runs/nothing: no such run folder"),
        (["run", "--config", "run.yaml", "--set", "steps=[{stage: sft, config: stf.yaml}]"], "stf.yaml: cannot read the configuration"),
        (["run", "--config", "run.yaml", "--stage-set", "stf.epochs=1"], "--stage-set stf.epochs=1: expected STAGE.key=value with STAGE one of "),
        (["run", "--config", "run.yaml", "--stage-set", "sft.epoch=1"], "unknown key 'epoch'; did you mean 'epochs'?"),
        (["run", "--config", "run.yaml", "--hostfile", "hosts"], "hosts: cannot read the hostfile (No such file or directory)"),
        (["generate", "--checkpoint", "runs/toy/sft", "--prompts", "source/prompts.jsonl", "--top-p=0"], "top_p = 0.0: must be in (0, 1]"),
    ],
)
def test_bad_words(refused, words, message):
    assert message in refused(*words)
