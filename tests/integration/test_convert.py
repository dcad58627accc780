"""megagpt convert, from the command line: what transformers saved comes in, computes the same, is a start for other verbs, and goes out again."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megagpt.checkpoint.layout import verify
from megagpt.checkpoint.load import Checkpoint, load_model
from megagpt.checkpoint.write import write_files
from megagpt.cli.main import main
from megagpt.model.shape import ModelShape
from megagpt.parallel.collectives import gather_last_dim
from megagpt.parallel.grid import Grid
from megagpt.parallel.groups import build_groups
from megagpt.tokenizer.special import CHAT_TOKENS, PAD
from tests.helpers.huggingface import TEXTS, random_model, save_folder
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny_run import demonstrations, finished, megagpt, prompts, write_rows
from tests.helpers.tolerance import BF16_ROUNDING_RELATIVE, LOGITS_ABSOLUTE, PARITY_RELATIVE

TOKENS = torch.randint(320, (3, 16), generator=torch.Generator().manual_seed(1))


def logits_of(path, tp: int) -> torch.Tensor:
    """Of TOKENS by a checkpoint's model; runs on tp ranks."""
    groups = build_groups(Grid(tp=tp))
    model = load_model(Checkpoint.open(path), groups, torch.device("cpu"), scalar_head=False).eval()
    with torch.no_grad():
        return gather_last_dim(model(TOKENS), groups.collection.tp)[..., : ModelShape(model.shape.config).vocab_size]


def difference(path, model, tp: int = 1) -> float:
    """Largest, over the tokens that the foreign model has."""
    with torch.no_grad():
        theirs = model(TOKENS).logits
    ours = run_ranks(tp, logits_of, path, tp)[0]
    size = min(ours.size(-1), theirs.size(-1))
    return (ours[..., :size] - theirs[..., :size]).abs().max().item()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gpt2", {}),
        ("gpt2", {"tie_word_embeddings": False, "n_inner": 48, "layer_norm_epsilon": 1e-3}),
        ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
        ("llama", {"rope_theta": 500.0, "rms_norm_eps": 1e-3}),
    ],
    ids=["gpt2_tied", "gpt2_untied", "llama_tied", "llama_gqa_untied"],
)
def test_convert_there_and_back(tmp_path, kind, settings, capsys):
    model = random_model(kind, **settings)
    source, stage, back = save_folder(model, tmp_path / "hf", max_shard_size="20KB"), tmp_path / "stage", tmp_path / "back"
    assert (source / "model.safetensors.index.json").exists()
    assert main(["convert", "import", str(source), str(stage)]) == 0
    assert "grows from 320 to 325 for <|pad|>, <|system|>" in capsys.readouterr().out
    checkpoint = stage / "checkpoints" / "step_0"
    assert verify(checkpoint) == []
    assert difference(checkpoint, model, tp=2 if kind == "llama" else 1) < LOGITS_ABSOLUTE
    assert main(["convert", "verify", str(stage), str(source)]) == 0
    assert "0 of them different; largest difference 0 in" in capsys.readouterr().out

    assert main(["convert", "export", str(stage), str(back)]) == 0
    theirs, loading = AutoModelForCausalLM.from_pretrained(back, output_loading_info=True)
    assert not any(loading.values())
    assert type(theirs) is type(model)
    assert difference(checkpoint, theirs.eval()) < LOGITS_ABSOLUTE
    assert main(["convert", "verify", str(checkpoint), str(back)]) == 0
    tokenizer = Checkpoint.open(checkpoint).tokenizer()
    assert AutoTokenizer.from_pretrained(back)(TEXTS[0])["input_ids"] == tokenizer.encode(TEXTS[0])
    assert not list(tmp_path.glob("**/*.tmp"))


def test_convert_new_rows_are_the_mean_and_type_stays(tmp_path):
    model = random_model("llama").to(torch.bfloat16)
    main(["convert", "import", str(save_folder(model, tmp_path / "hf")), str(tmp_path / "stage")])
    checkpoint = Checkpoint.open(tmp_path / "stage/checkpoints/step_0")
    with checkpoint.tensors("model") as read:
        for name, theirs in [("embedding.tokens.weight", model.model.embed_tokens.weight), ("output.weight", model.lm_head.weight)]:
            ours = read(name)
            assert ours.dtype == torch.bfloat16 and ours.shape == (325, 32)
            assert torch.equal(ours[:320], theirs)
            mean = theirs.double().mean(dim=0).expand(5, -1)
            assert ((ours[320:].double() - mean).abs() <= BF16_ROUNDING_RELATIVE * mean.abs() + PARITY_RELATIVE).all()
    special = checkpoint.tokenizer().special_ids
    assert sorted(special[name] for name in (PAD, *CHAT_TOKENS)) == list(range(320, 325))


def test_convert_dtype_of_the_weights(tmp_path, capsys):
    source = save_folder(random_model("gpt2"), tmp_path / "hf")
    main(["convert", "import", str(source), str(tmp_path / "stage"), "--dtype", "bf16"])
    main(["convert", "export", str(tmp_path / "stage"), str(tmp_path / "out")])
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16
    capsys.readouterr()
    verify = ["convert", "verify", str(tmp_path / "stage"), str(source)]
    assert main(verify) == 1
    assert "NOT the same model" in capsys.readouterr().out
    assert main([*verify, "--tolerance", str(2 * BF16_ROUNDING_RELATIVE)]) == 0  # the largest numbers are norms, 1 and a little


def test_convert_verify_sees_one_number_and_one_setting(tmp_path, capsys):
    model = random_model("llama")
    source = save_folder(model, tmp_path / "hf")
    main(["convert", "import", str(source), str(tmp_path / "stage")])
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[3, 4] += 0.5
    model.config.rope_theta = 500.0
    changed = save_folder(model, tmp_path / "changed")
    capsys.readouterr()
    assert main(["convert", "verify", str(tmp_path / "stage"), str(changed)]) == 1
    out = capsys.readouterr().out
    assert "rotary_base: 10000 in the checkpoint, 500 in" in out
    assert "21 tensors, 1 of them different; largest difference 0.5 in layers.1.attention.key.weight; 5 vocabulary rows" in out
    assert main(["convert", "verify", str(tmp_path / "stage"), str(changed), "--tolerance", "1"]) == 1  # the setting remains
    other = save_folder(random_model("llama", num_hidden_layers=1), tmp_path / "other")
    assert main(["convert", "verify", str(tmp_path / "stage"), str(other)]) == 2
    assert "layers = 2, and 1 in" in capsys.readouterr().err


def test_convert_names_without_their_first_word_and_old_constants(tmp_path):
    """As OpenAI's GPT-2 lies on the hub: no `transformer.`, the causal masks among the weights, the vocabulary in two files."""
    model = random_model("gpt2")
    source = save_folder(model, tmp_path / "hf")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(source / "model.safetensors").items()}
    for layer in range(2):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
    (source / "model.safetensors").unlink()
    write_files(source, "old", tensors.items())
    vocabulary = json.loads((source / "tokenizer.json").read_text())["model"]
    (source / "vocab.json").write_text(json.dumps(vocabulary["vocab"]))
    (source / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in vocabulary["merges"]))
    expected = AutoTokenizer.from_pretrained(source)(TEXTS[1])["input_ids"]
    (source / "tokenizer.json").unlink()
    assert main(["convert", "import", str(source), str(tmp_path / "stage")]) == 0
    assert Checkpoint.open(tmp_path / "stage/checkpoints/step_0").tokenizer().encode(TEXTS[1]) == expected
    assert difference(tmp_path / "stage/checkpoints/step_0", model) < LOGITS_ABSOLUTE


def test_convert_imported_model_is_a_start_like_any_other(tmp_path):
    """SFT from it, an answer by the result, and the result as a Hugging Face folder."""
    main(["convert", "import", str(save_folder(random_model("llama", max_position_embeddings=128), tmp_path / "hf")), str(tmp_path / "stage")])
    write_rows(tmp_path / "demonstrations.jsonl", demonstrations())
    write_rows(tmp_path / "prompts.jsonl", prompts()[:2])
    (tmp_path / "sft.yaml").write_text(
        "run: {name: toy}\nparent: stage\nepochs: 1\noptimizer: {lr: 1e-3}\nbatch: {micro_batch_size: 8, global_batch_size: 16}\n"
        "data: {train: [demonstrations.jsonl], max_length: 64, valid_fraction: 0.2}\n"
    )
    finished(megagpt("sft", "--config", "sft.yaml", cwd=tmp_path))
    answers = finished(megagpt("generate", "--run", "toy", "--checkpoint", "sft", "--prompts", "prompts.jsonl", "--max-new-tokens", 8, cwd=tmp_path))
    assert [json.loads(line)["messages"][-1]["role"] for line in answers.stdout.splitlines()] == ["assistant"] * 2
    assert main(["convert", "export", str(tmp_path / "runs/toy/sft"), str(tmp_path / "out")]) == 0
    (checkpoint,) = (tmp_path / "runs/toy/sft/checkpoints").glob("step_*")
    assert difference(checkpoint, AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()) < LOGITS_ABSOLUTE


@pytest.fixture
def folder(tmp_path):
    return save_folder(random_model("llama"), tmp_path / "hf")


def edit(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def as_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: edit(f, rope_scaling={"rope_type": "linear", "factor": 2.0}), "config.json: rope_scaling = 'linear'"),
        (lambda f: edit(f, num_hidden_layers=1), "the llama family has no place for it"),
        (lambda f: edit(f, intermediate_size=63), "mlp.gate_proj.weight has shape [64, 32]; its settings ask for [63, 32]"),
        (as_pickle, "pytorch_model.bin: a pickle, which can run any code when it is read; where you trust it, save it as safetensors: python -c"),
        (lambda f: (f / "config.json").unlink(), "config.json: missing"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b"12345678"), "model.safetensors: damaged"),
        (lambda f: (f / "model.safetensors").unlink(), "no *.safetensors here"),
        (lambda f: [file.unlink() for file in f.glob("tokenizer*")], "no tokenizer here"),
    ],
    ids=["rope", "layers", "width", "pickle", "no_config", "bad_config", "damaged", "empty", "no_tokenizer"],
)
def test_convert_import_refuses_in_one_line(folder, tmp_path, spoil, message, capsys):
    spoil(folder)
    assert main(["convert", "import", str(folder), str(tmp_path / "stage")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert not (tmp_path / "stage").exists()


def test_convert_import_refuses_numbers_that_are_not_finite(tmp_path, capsys):
    model = random_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("inf")
    assert main(["convert", "import", str(save_folder(model, tmp_path / "hf")), str(tmp_path / "stage")]) == 2
    assert "layers.1.mlp.down.weight holds numbers that are not finite" in capsys.readouterr().err
    assert not list((tmp_path / "stage/checkpoints").iterdir())


def test_convert_refuses_to_overwrite_and_another_tokenizer(folder, tmp_path, capsys):
    command = ["convert", "import", str(folder), str(tmp_path / "stage")]
    assert main(command) == 0
    assert main(command) == 2
    assert main(["convert", "export", str(tmp_path / "stage"), str(folder)]) == 2
    assert capsys.readouterr().err.count("exists already; remove it or name another folder") == 2
    bigger = save_folder(random_model("llama", vocab_size=330), tmp_path / "bigger")
    assert main(["convert", "import", str(folder), str(tmp_path / "new"), "--tokenizer", str(bigger)]) == 2
    assert "the tokenizer has 330 ids, the embedding only 320 rows" in capsys.readouterr().err


def test_convert_files_are_cut_by_size(tmp_path):
    tensors = {name: torch.full((100,), float(number)) for number, name in enumerate("abcde")}
    index = write_files(tmp_path, "model", tensors.items(), file_bytes=900)
    assert [index[name]["file"][6:11] for name in "abcde"] == ["00001", "00001", "00002", "00002", "00003"]
    assert {path.name for path in tmp_path.iterdir()} == {f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)}
    for name, facts in index.items():
        assert facts["shape"] == [100] and torch.equal(load_file(tmp_path / facts["file"])[name], tensors[name])
