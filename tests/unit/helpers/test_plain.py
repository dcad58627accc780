"""The plain trainer against torch's own optimizers, and the facts that other tests take from the helpers."""

import pytest
import torch

from tests.helpers.plain import PlainGPT, plain_init, plain_loss, plain_train
from tests.helpers.tiny import microbatches, tiny_batches, tiny_model
from tests.helpers.tolerance import KEY_BIAS_ABSOLUTE, assert_tensors_close


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_plain_training_equals_torch_optimizers(optimizer):
    config = tiny_model("gpt", tied=False)
    state, batches = plain_init(config, seed=2), tiny_batches(steps=3)
    run = plain_train(config, state, batches, optimizer=optimizer, lr=0.01, clip=0.3, weight_decay=0.1, dtype=torch.float64)

    model = PlainGPT(config).double()
    model.load_state_dict(state)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-5)
    theirs = adamw if optimizer == "adamw" else torch.optim.SGD(groups, lr=0.01)
    for step, batch in enumerate(batches):
        theirs.zero_grad()
        loss = plain_loss(model, *batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        theirs.step()
        assert run.losses[step] == pytest.approx(loss.item(), rel=1e-12)
        assert run.gradient_norms[step] == pytest.approx(norm.item(), rel=1e-12)
        assert norm > 0.3, "clipping must be active"

    assert_tensors_close(run.parameters, dict(model.named_parameters()), relative=1e-12)


def test_plain_key_bias_gradient_is_rounding_only():
    config = tiny_model("gpt", tied=True)
    gradients = plain_train(config, plain_init(config, seed=3), tiny_batches(steps=1)).gradients
    largest = {name: gradient.abs().max().item() for name, gradient in gradients.items()}
    assert all(value < KEY_BIAS_ABSOLUTE for name, value in largest.items() if name.endswith("key.bias"))
    assert all(value > 1e-4 for name, value in largest.items() if not name.endswith("key.bias"))


@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_plain_scalar_head_gives_one_value_a_token(family):
    config = tiny_model(family, tied=False)
    model = PlainGPT(config, scalar_head=True)
    model.load_state_dict(plain_init(config, seed=4, scalar_head=True))
    assert model(torch.zeros(2, 5, dtype=torch.long)).shape == (2, 5)
    assert "output.weight" not in model.state_dict()


@pytest.mark.parametrize("dp", [1, 2, 4])
def test_tiny_microbatches_cover_the_batch_and_some_are_empty(dp):
    for step, batch in enumerate(tiny_batches(steps=3)):
        parts = [microbatches(batch, dp_rank, dp) for dp_rank in range(dp)]
        assert torch.equal(torch.cat([part.tokens for of_rank in parts for part in of_rank]), batch.tokens)
        num_valid = [[part.loss_mask.sum().item() for part in of_rank] for of_rank in parts]
        assert any(0 in of_rank for of_rank in num_valid) == (step < 2)
        if dp > 1 and step == 1:
            assert sum(num_valid[-1]) == 0, "a replica without a valid token"
