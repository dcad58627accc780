"""A damaged checkpoint is refused with its path and the reason."""

import json
import re
import shutil
from pathlib import Path

import pytest

from megagpt.checkpoint.layout import CHECKSUMS, COMPLETE, INDEX, STATE, CheckpointError, verify, write_checksums
from megagpt.checkpoint.load import Checkpoint
from megagpt.config.schema import RunConfig
from tests.helpers.tiny import tiny_model
from tests.helpers.tiny_checkpoint import make_checkpoint
from tests.helpers.tiny_run import toy_tokenizer

SHARD = "model-00001-of-00001.safetensors"
MODEL = tiny_model("gpt", True, num_layers=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    return make_checkpoint(RunConfig(name="run", root=str(folder)), "sft", MODEL, toy_tokenizer(folder / "tokenizer"), seed=1)


@pytest.fixture
def checkpoint(whole, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "step_1"))


def change_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def edit_json(file: Path, change) -> None:
    """And make the checksums fit, as if it had been written so."""
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))
    write_checksums(file.parent)


DAMAGES = {
    "COMPLETE_missing": (lambda path: (path / COMPLETE).unlink(), "{path}: the checkpoint is incomplete"),
    "shard_missing": (lambda path: (path / SHARD).unlink(), f"{{path}}/{SHARD}: damaged"),
    "shard_cut": (lambda path: (path / SHARD).write_bytes((path / SHARD).read_bytes()[:-1]), f"{{path}}/{SHARD}: damaged"),
    "tokenizer_missing": (lambda path: shutil.rmtree(path / "tokenizer"), "{path}/tokenizer/"),
    "checksums_missing": (lambda path: (path / CHECKSUMS).unlink(), "{path}/checksums.json: damaged"),
    "checksums_cut": (lambda path: (path / CHECKSUMS).write_text("{"), "{path}/checksums.json: damaged"),
    "state_garbled": (lambda path: (path / STATE).write_text("x" * (path / STATE).stat().st_size), "{path}/state.json: damaged"),
    "index_garbled": (lambda path: (path / INDEX["model"]).write_text("x" * (path / INDEX["model"]).stat().st_size), "{path}/model.index.json: damaged"),
    "other_format": (lambda path: edit_json(path / STATE, lambda state: state.update(format=99)), "{path}: format 99; this version reads format 1"),
    "tensor_missing": (lambda path: edit_json(path / INDEX["model"], lambda index: index.pop("final_norm.bias")), "{path}: holds no tensor 'final_norm.bias'"),
    "other_shape": (
        lambda path: edit_json(path / STATE, lambda state: state["model"].update(hidden_size=64)),
        "{path}: embedding.tokens.weight has shape [101, 32]; the model needs [101, 64]",
    ),
}


def test_checkpoint_that_is_whole_opens(checkpoint):
    assert verify(checkpoint) == []
    assert Checkpoint.open(checkpoint).model_config == MODEL


@pytest.mark.parametrize("damage", DAMAGES)
def test_checkpoint_that_is_damaged_is_refused_with_its_path(checkpoint, damage):
    harm, message = DAMAGES[damage]
    harm(checkpoint)
    with pytest.raises(CheckpointError) as refused:
        Checkpoint.open(checkpoint)
    assert str(refused.value).startswith(message.format(path=checkpoint)) and "\n" not in str(refused.value)


def test_checkpoint_verification_finds_a_changed_bit(checkpoint):
    change_last_byte(checkpoint / SHARD)
    assert verify(checkpoint) == [f"{checkpoint / SHARD}: content changed"]


def test_checkpoint_tokenizer_is_the_one_of_training(checkpoint, tmp_path):
    opened = Checkpoint.open(checkpoint)
    assert opened.tokenizer().content_hash == opened.state["tokenizer_hash"]
    shutil.rmtree(checkpoint / "tokenizer")
    toy_tokenizer(tmp_path / "other", vocab_size=295).save(checkpoint / "tokenizer")
    with pytest.raises(CheckpointError, match=re.escape(f"{checkpoint / 'tokenizer'}: is not the tokenizer that the model was trained with")):
        opened.tokenizer()
