"""The table of foreign names: complete, invertible, and GGUF's order of rows as its converter defines it."""

import pytest
import torch

from megagpt.convert.names import Stored, check_names, gguf_names, huggingface_names
from megagpt.convert.source import ConvertError
from megagpt.model.param_map import canonical_shapes
from megagpt.model.shape import ModelShape
from tests.helpers.plain import plain_init
from tests.helpers.tiny import tiny_model

TABLES = [("gpt", huggingface_names), ("llama", huggingface_names), ("llama", gguf_names)]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("family", "table"), TABLES, ids=["gpt2", "llama", "gguf"])
def test_convert_names_hold_every_tensor_once_and_give_it_back(family, table, tied):
    config = tiny_model(family, tied)
    shape, state = ModelShape(config), plain_init(config, seed=3)
    names, shapes = table(shape), canonical_shapes(ModelShape(config))
    assert sorted(piece for stored in names.values() for piece in stored.pieces) == sorted(shapes)
    for stored in names.values():
        theirs = stored.join([state[piece] for piece in stored.pieces])
        assert tuple(theirs.shape) == stored.shape(shapes)
        for name, piece in stored.split(theirs, shapes):
            assert piece.is_contiguous() and torch.equal(piece, state[name])


def test_convert_names_gguf_rows_alternate_between_the_halves_of_a_head():
    """Two heads of six rows: row i of a head's first half, then row i of its second half."""
    rows = torch.arange(12.0)[:, None]
    stored = Stored(("w",), interleaved_heads=2).join([rows])
    assert stored[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    queries = gguf_names(ModelShape(tiny_model("llama", True)))
    assert {name.split(".")[2]: stored.interleaved_heads for name, stored in queries.items() if stored.interleaved_heads} == {"attn_q": 8, "attn_k": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("model.norm.weight"), "x: holds no tensor 'model.norm.weight'"),
        (lambda found: found.update({"model.norm.weight": (31,)}), r"x: model.norm.weight has shape \[31\]; its settings ask for \[32\]"),
        (lambda found: found.update({"model.layers.0.mlp.up_proj.bias": (96,)}), "x: tensor 'model.layers.0.mlp.up_proj.bias': the llama family has no"),
    ],
)
def test_convert_names_refuse_other_tensors(change, message):
    shape = ModelShape(tiny_model("llama", True))
    names, shapes = huggingface_names(shape), canonical_shapes(shape)
    found = {name: stored.shape(shapes) for name, stored in names.items()}
    check_names("x", found, names, shape)
    change(found)
    with pytest.raises(ConvertError, match=message):
        check_names("x", found, names, shape)
