"""The plain reference computes the logits of transformers' GPT-2 and Llama, so that what equals the reference equals them too."""

import pytest
import torch

from tests.helpers.huggingface import huggingface_model
from tests.helpers.plain import PlainGPT, plain_init
from tests.helpers.tiny import tiny_model
from tests.helpers.tolerance import PLAIN_LOGITS_ABSOLUTE


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("gpt", {}),
        ("llama", {}),
        ("llama", {"num_query_groups": 8}),
        ("llama", {"num_query_groups": 2, "rotary_base": 500, "norm_epsilon": 1e-3}),
    ],
    ids=["gpt", "llama", "llama_no_groups", "llama_other_numbers"],
)
def test_plain_logits_equal_huggingface(family, overrides, tied):
    config = tiny_model(family, tied, **overrides)
    state = plain_init(config, seed=1)
    plain = PlainGPT(config)
    plain.load_state_dict(state)
    theirs = huggingface_model(config, state)
    tokens = torch.randint(config.vocab_size, (3, config.max_sequence_length))

    with torch.no_grad():
        difference = (plain(tokens) - theirs(tokens).logits).abs().max().item()

    assert difference < PLAIN_LOGITS_ABSOLUTE
