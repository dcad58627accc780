"""The eight GPT-3 configurations against table 2.1 of Brown et al. 2020, its two misprints corrected (heads of 1.3B, width of 13B)."""

from pathlib import Path

import pytest

from megagpt.config.check import check_pretrain
from megagpt.config.load import load_config
from megagpt.config.schema import PretrainConfig
from megagpt.engine.schedule import batch_size, learning_rate
from megagpt.model.param_map import num_parameters
from megagpt.model.shape import ModelShape
from megagpt.parallel.placement import stage_grid

FOLDER = Path(__file__).resolve().parents[3] / "configs/pretrain"
TABLE = {  # layers, width, heads, tokens in a batch (in millions), learning rate, parameters
    "gpt3_125m_8gpu_dp8": (12, 768, 12, 0.5, 6.0e-4, 125e6),
    "gpt3_350m_16gpu_dp16": (24, 1024, 16, 0.5, 3.0e-4, 350e6),
    "gpt3_760m_16gpu_dp16": (24, 1536, 16, 0.5, 2.5e-4, 760e6),
    "gpt3_1b3_32gpu_dp32": (24, 2048, 16, 1, 2.0e-4, 1.3e9),
    "gpt3_2b7_64gpu_tp2": (32, 2560, 32, 1, 1.6e-4, 2.7e9),
    "gpt3_6b7_128gpu_tp4": (32, 4096, 32, 2, 1.2e-4, 6.7e9),
    "gpt3_13b_128gpu_tp8": (40, 5120, 40, 2, 1.0e-4, 13e9),
    "gpt3_175b_1024gpu_tp8_pp16": (96, 12288, 96, 3.2, 0.6e-4, 175e9),
}


def test_gpt3_configs_are_the_eight_sizes():
    assert {path.stem for path in FOLDER.glob("gpt3_*.yaml")} == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_gpt3_config_follows_the_paper(name):
    config = load_config(PretrainConfig, FOLDER / f"{name}.yaml", [])
    layers, width, heads, million_tokens, lr, parameters = TABLE[name]
    model, optimizer, batch = config.model, config.optimizer, config.batch
    assert (model.num_layers, model.hidden_size, model.num_attention_heads, optimizer.lr) == (layers, width, heads, lr)
    assert (model.max_sequence_length, config.sequence_length, model.vocab_size) == (2048, 2048, 50304)
    assert batch.global_batch_size * 2048 == pytest.approx(million_tokens * 1e6, rel=0.05)  # the table rounds
    assert num_parameters(ModelShape(model)) == pytest.approx(parameters, rel=0.005 if name.startswith("gpt3_175b") else 0.02)

    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay, optimizer.clip_grad) == ((0.9, 0.95), 1e-8, 0.1, 1.0)
    total = config.train_tokens
    assert total == 300e9
    assert learning_rate(optimizer, 375e6, total) == pytest.approx(lr)
    assert learning_rate(optimizer, 260e9, total) == learning_rate(optimizer, total, total) == pytest.approx(lr / 10)
    assert batch_size(batch, 0) * 2048 == 32_768 and 4e9 <= batch.ramp.tokens <= 12e9
    assert batch_size(batch, batch.ramp.tokens) == batch.global_batch_size


@pytest.mark.parametrize("name", TABLE)
def test_gpt3_config_fits_its_ranks(name):
    config = load_config(PretrainConfig, FOLDER / f"{name}.yaml", [])
    grid = stage_grid(config.parallel, int(name.split("_")[2].removesuffix("gpu")))
    check_pretrain(config, grid.dp)
