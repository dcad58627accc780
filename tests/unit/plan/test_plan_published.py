"""Parameters, arithmetic, memory and optimum against what papers print."""

from collections import Counter
from dataclasses import replace

import pytest

from megagpt.config.load import load_config
from megagpt.config.schema import ModelConfig, ParallelConfig, PretrainConfig
from megagpt.engine.schedule import run_steps
from megagpt.model.param_map import num_parameters
from megagpt.model.shape import ModelShape
from megagpt.parallel.grid import Grid
from megagpt.plan.activations import published_layer_bytes
from megagpt.plan.compute import compute_optimal, compute_optimal_by_loss, petaflop_s_days, predicted_loss
from megagpt.plan.hardware import load_hardware
from megagpt.plan.job import Job
from megagpt.plan.memory import paper_bytes, resident, training_phases
from megagpt.plan.stage import as_json, plan_stage
from tests.helpers.tiny_run import ROOT

FOLDER = ROOT / "configs/pretrain"
GPT3 = {  # Brown et al. 2020, table 2.1 and table D.1: parameters, petaflop/s-days of 300 B tokens
    "gpt3_125m_8gpu_dp8": (125e6, 2.60e00),
    "gpt3_350m_16gpu_dp16": (350e6, 7.42e00),
    "gpt3_760m_16gpu_dp16": (760e6, 1.58e01),
    "gpt3_1b3_32gpu_dp32": (1.3e9, 2.75e01),
    "gpt3_2b7_64gpu_tp2": (2.7e9, 5.52e01),
    "gpt3_6b7_128gpu_tp4": (6.7e9, 1.39e02),
    "gpt3_13b_128gpu_tp8": (13e9, 2.68e02),
    "gpt3_175b_1024gpu_tp8_pp16": (175e9, 3.64e03),
}


@pytest.mark.parametrize("name", GPT3)
def test_plan_gpt3_parameters_and_petaflop_s_days(name):
    parameters, days = GPT3[name]
    config = load_config(PretrainConfig, FOLDER / f"{name}.yaml")
    plan = as_json(plan_stage(config, FOLDER, load_hardware("a100-80gb")))
    assert plan["num_parameters"] == pytest.approx(parameters, rel=0.005 if "175b" in name else 0.02)
    assert plan["petaflop_s_days"] == pytest.approx(days, rel=0.01)
    # Attention's own products: 12 layers x width x context a token, beside 6 N.
    extra = 12 * config.model.num_layers * config.model.hidden_size * 2048 / (6 * plan["num_parameters"])
    assert plan["petaflop_s_days_with_attention"] / plan["petaflop_s_days"] == pytest.approx(1 + extra)


def test_plan_tokens_and_steps_are_those_of_the_run():
    """Counted by size they are as many as in the trainer's own list of steps."""
    for name in ("gpt3_125m_8gpu_dp8", "gpt3_175b_1024gpu_tp8_pp16"):
        config = load_config(PretrainConfig, FOLDER / f"{name}.yaml", ["train_tokens=5_000_000_000"])
        steps, plan = run_steps(config.batch, config.train_tokens, 2048), plan_stage(config, FOLDER, load_hardware("a100-80gb"))
        assert plan.steps == Counter(map(len, steps)) and (plan.steps.total(), plan.tokens) == (len(steps), steps[-1].stop * 2048)


def test_plan_small_steps_of_a_ramp_are_filled_up_for_virtual_stages():
    """16 rows on 8 replicas are two microbatches; 16 stages with several blocks each work on 16."""
    config = load_config(PretrainConfig, FOLDER / "gpt3_175b_1024gpu_tp8_pp16.yaml")
    plan = plan_stage(config, FOLDER, load_hardware("a100-80gb"))
    plain, filled = (replace(plan, steps=Counter({rows: 1})).seconds for rows in (16, 8 * 16))
    assert plain == filled < replace(plan, steps=Counter({8 * 16 + 1: 1})).seconds


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(("zero", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_plan_zero_paper_table(zero, gigabytes):
    """Rajbhandari et al. 2020, figure 1: 7.5 B parameters on 64 GPUs."""
    assert paper_bytes(7.5e9, 64, zero) / 1e9 == pytest.approx(gigabytes, rel=0.02)


@pytest.mark.parametrize(("zero", "gigabytes"), [(1, 46.5), (2, 46.5), (3, 31.5)])
def test_plan_zero_paper_model_in_our_engine(zero, gigabytes):
    """The same model here: whole float32 gradients on every rank until the step make up most of it at every stage."""
    model = ModelConfig(num_layers=36, hidden_size=4096, num_attention_heads=32, max_sequence_length=2048, vocab_size=51200)
    assert num_parameters(ModelShape(model)) == pytest.approx(7.5e9, rel=0.01)
    job = Job(
        ModelShape(model), Grid(dp=64), ParallelConfig(zero_stage=zero), load_hardware("a100-80gb"),
        rows=1, length=2048, num_microbatches=1, dtype="bf16", fused=False,
    )  # fmt: skip
    parts = resident(job, 0) + training_phases(job, 0)["forward and backward"]
    assert (parts.weights + parts.gradients + parts.optimizer) / 1e9 == pytest.approx(gigabytes, rel=0.02)


GPT3_LAYER = dict(s=2048, b=1, h=12288, a=96)
MTNLG_LAYER = dict(s=2048, b=1, h=20480, a=128)


def test_plan_activation_formulas():
    """Korthikanti et al. 2022, table 2, for GPT-3: 5 a s / h is 80 there and 64 for MT-NLG (section 5)."""
    unit = 2048 * 12288
    cases = [
        (dict(), 34 + 80), (dict(t=8), 10 + 24 / 8 + 80 / 8), (dict(t=8, sequence_parallel=True), (34 + 80) / 8),
        (dict(t=8, recompute="selective"), 10 + 24 / 8),
        (dict(t=8, sequence_parallel=True, recompute="selective"), 34 / 8), (dict(t=8, recompute="full"), 2),
    ]  # fmt: skip
    for options, factor in cases:
        assert published_layer_bytes(**GPT3_LAYER, **options) == pytest.approx(factor * unit)
    assert published_layer_bytes(**MTNLG_LAYER) == pytest.approx((34 + 64) * 2048 * 20480)


@pytest.mark.parametrize(("layer", "saved"), [(GPT3_LAYER, 0.70), (MTNLG_LAYER, 0.65)])
def test_plan_activation_savings_of_selective_recomputation(layer, saved):
    """Section 5 of the same: 70 % for GPT-3 and 65 % for MT-NLG."""
    assert 1 - published_layer_bytes(**layer, recompute="selective") / published_layer_bytes(**layer) == pytest.approx(saved, abs=0.005)


def test_plan_activation_savings_with_sequence_parallelism():
    """Section 6.1 of the same: both techniques bring the tensor-parallel baseline below a fifth (5 x), full recomputation to about a tenth."""
    baseline = published_layer_bytes(**GPT3_LAYER, t=8)
    assert 0.15 < published_layer_bytes(**GPT3_LAYER, t=8, sequence_parallel=True, recompute="selective") / baseline < 0.20
    assert published_layer_bytes(**GPT3_LAYER, t=8, recompute="full") / baseline == pytest.approx(0.10, abs=0.02)


# ---------------------------------------------------------------- the best use of a budget


TABLE_3 = [
    (1.92e19, 0.4e9, 8.0e9), (1.21e20, 1e9, 20.2e9), (1.23e22, 10e9, 205.1e9), (5.76e23, 67e9, 1.5e12),
    (3.85e24, 175e9, 3.7e12), (1.27e26, 1e12, 21.2e12),
]  # fmt: skip


@pytest.mark.parametrize(("flops", "parameters", "tokens"), TABLE_3)
def test_plan_chinchilla_optimum(flops, parameters, tokens):
    """Hoffmann et al. 2022, table 3."""
    best = compute_optimal(flops)
    assert best.parameters == pytest.approx(parameters, rel=0.05) and best.tokens == pytest.approx(tokens, rel=0.10)


def test_plan_chinchilla_of_gophers_budget():
    """5.76e23 FLOPs, of which Chinchilla (70 B, 1.4 T tokens) was made; approach 3 asks for 40 B (section 3.3)."""
    best = compute_optimal(5.76e23)
    assert best.parameters == pytest.approx(70e9, rel=0.02) and best.tokens == pytest.approx(1.4e12, rel=0.02)
    assert petaflop_s_days(best.parameters, best.tokens) * 8.64e19 == pytest.approx(5.76e23)
    by_loss = compute_optimal_by_loss(5.76e23)
    assert by_loss.parameters == pytest.approx(40e9, rel=0.25)
    for factor in (0.98, 1.02):  # a minimum of the loss for this budget
        assert predicted_loss(by_loss.parameters * factor, by_loss.tokens / factor) > by_loss.loss
