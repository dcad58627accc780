"""AdamW on many tensors: the kernels for the CPU and, emulated, those for CUDA against float64 and torch.optim.AdamW."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import Tensor

from megagpt.kernels.adamw import FusedAdamW, adamw
from tests.helpers.kernels import (
    DTYPES,
    VERY_WIDE,
    assert_same_bits_for_any_number_of_threads,
    assert_same_bits_under_any_schedule,
    assert_within_budget,
    bytes_moved,
    emulated,
    emulator,
    strided,
)

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
SIZES = ((1,), (31,), (0,), (33,), (25, 40), (2048,), (4, 2, 1024), (3, 2049), ())
COPIES = (None, torch.float16, torch.bfloat16)
MOMENTS = ("exp_avg", "exp_avg_sq")
Case = dict[str, list[Tensor]]


def example(sizes=SIZES, grad_dtype: torch.dtype = torch.float32, copy_dtype: torch.dtype | None = None) -> Case:
    case = {
        "params": [torch.randn(size) for size in sizes],
        "grads": [torch.randn(size).to(grad_dtype) for size in sizes],
        "exp_avgs": [torch.randn(size) for size in sizes],
        "exp_avg_sqs": [torch.rand(size) for size in sizes],
    }
    return case | {"copies": [torch.zeros(size, dtype=copy_dtype) for size in sizes]} if copy_dtype else case


def run(case: Case, implementation: str, *, steps=(3,), **settings) -> dict[str, Tensor]:
    """Everything that updates change, after updates with these numbers."""
    case = copy.deepcopy(case)
    for step in steps:
        adamw(**case, **SETTINGS | settings, step=step, implementation=implementation)
    return {f"{name}[{i}]": tensor for name, tensors in case.items() if name != "grads" for i, tensor in enumerate(tensors)}


def compare(case: Case, **settings) -> None:
    exact = {name: [tensor.double() for tensor in tensors] for name, tensors in case.items()}
    assert_within_budget(run(case, "fused", **settings), run(case, "reference", **settings), run(exact, "reference", **settings))


@pytest.mark.parametrize("copy_dtype", COPIES, ids=str)
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
def test_adamw_within_error_budget(kernels, grad_dtype, copy_dtype):
    compare(example(grad_dtype=grad_dtype, copy_dtype=copy_dtype))


@pytest.mark.parametrize("settings", [{"weight_decay": 0.0}, {"betas": (0.3, 0.0)}, {"betas": (0.0, 0.999)}, {"lr": 0.0}, {"eps": 0.1}], ids=str)
def test_adamw_settings(kernels, settings):
    compare(example(((40,), (33,))), **settings)


def test_adamw_first_updates(kernels):
    """Zero moments, where the bias correction matters most."""
    case = example(((1000,), (5, 7)))
    for name in ("exp_avgs", "exp_avg_sqs"):
        case[name] = [torch.zeros_like(tensor) for tensor in case[name]]
    compare(case, steps=(1, 2, 3))


def test_adamw_wide_tensor(kernels):
    compare(example(((VERY_WIDE,),), torch.bfloat16, torch.bfloat16))


def test_adamw_more_tensors_than_a_launch_takes(kernels):
    compare(example([(1 + 37 * i % 50,) for i in range(130)], torch.float16))


def test_adamw_launches():
    case = example([(5,), (0,)] * 130)
    emulator().simt_reset_counters()
    with emulated():
        run(case, "fused")
    assert emulator().simt_launches() == 3, "64 tensors a launch, none for those without elements"


def test_adamw_scales_gradients(kernels):
    case, scale = example(grad_dtype=torch.float16, copy_dtype=torch.bfloat16), torch.tensor([0.37])
    compare(case, grad_scale=scale)
    scaled = case | {"grads": [grad.float() * scale[0] for grad in case["grads"]]}
    ours, expected = run(case, "fused", grad_scale=scale), run(scaled, "fused")
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("implementation", ["fused", "reference"])
@pytest.mark.parametrize("overflow", [0.0, 1.0, torch.nan])
def test_adamw_changes_nothing_after_an_overflow(kernels, overflow, implementation):
    case = example(copy_dtype=torch.float16)
    result = run(case, implementation, overflow=torch.tensor(overflow), grad_scale=torch.tensor(2.0))
    same = [torch.equal(result[f"{name}[{i}]"], tensor) for name in case if name != "grads" for i, tensor in enumerate(case[name]) if tensor.numel()]
    assert not any(same) if overflow == 0 else all(same)


def test_adamw_takes_tensors_at_any_address(kernels):
    """Slices of one buffer, as ZeRO makes them: not 16 bytes apart."""
    case = {name: list(tensor.split([1, 100, 2051, 7, 4096])) for name, (tensor,) in example(((6255,),)).items()}
    aligned = {name: [tensor.clone() for tensor in tensors] for name, tensors in case.items()}
    expected = run(aligned, "fused")
    assert case["grads"][2].data_ptr() % 16 and case["params"][2].data_ptr() % 16
    adamw(**case, **SETTINGS, step=3, implementation="fused")
    for name, i in ((name, i) for name in case if name != "grads" for i in range(len(case[name]))):
        assert torch.equal(case[name][i], expected[f"{name}[{i}]"]), (name, i)


def test_adamw_takes_gradients_of_any_strides(kernels):
    case = example()
    expected = run(case, "fused")
    case["grads"] = [strided(grad) for grad in case["grads"]]
    ours = run(case, "fused")
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())


def test_adamw_passes_nan_and_infinity_on(kernels):
    case = example(((37,), (64,)), copy_dtype=torch.bfloat16)
    case["grads"][0][36], case["grads"][1][0], case["params"][1][63], case["exp_avg_sqs"][1][5] = torch.nan, torch.inf, torch.nan, -1.0
    ours, plain = run(case, "fused"), run(case, "reference")
    for name, tensor in plain.items():
        assert torch.equal(ours[name].isnan(), tensor.isnan()) and torch.equal(ours[name].isinf(), tensor.isinf()), name


def test_adamw_same_bits_for_any_number_of_threads():
    case = example(((3, 50000), (7,), (100001,)))
    assert_same_bits_for_any_number_of_threads(lambda: run(case, "fused"))


def test_adamw_same_bits_under_any_schedule():
    case = example()
    assert_same_bits_under_any_schedule(lambda: run(case, "fused"))


def test_adamw_more_than_2_31_elements():
    """Only the last chunk is there: memory that is never touched costs none."""
    size, chunk = 2**31 + 2048, 2048
    case = {name: [torch.empty(size)] for name in ("params", "exp_avgs", "exp_avg_sqs")} | {"grads": [torch.empty(size, dtype=torch.float16)]}
    small = example(((chunk,),), torch.float16)
    for name in case:
        case[name][0][-chunk:] = small[name][0]
    with emulated(only_block=size // chunk - 1):
        adamw(**case, **SETTINGS, step=3, implementation="fused")
    adamw(**small, **SETTINGS, step=3, implementation="reference")
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        torch.testing.assert_close(case[name][0][-chunk:], small[name][0])


def test_adamw_moves_each_byte_once():
    size = 3 * 2048 + 40
    for grad_dtype, copy_dtype, bytes_each in ((torch.float32, None, 28), (torch.bfloat16, None, 26), (torch.float32, torch.float16, 30)):
        case = example(((size,), (size,)), grad_dtype, copy_dtype)
        assert bytes_moved(functools.partial(adamw, **case, **SETTINGS, step=1, implementation="fused")) == 2 * size * bytes_each


def test_adamw_tells_autograd_what_it_changed(kernels):
    case = example(((8,),))
    leaf, param = torch.ones(8, requires_grad=True), case["params"][0]
    product = leaf * param
    adamw(**case, **SETTINGS, step=1, implementation="fused")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_adamw_opcheck():
    case = example(((33,), (4, 8)), copy_dtype=torch.bfloat16)
    operator = torch.ops.megagpt.adamw
    torch.library.opcheck(operator, (*case.values(), torch.tensor(0.5), torch.tensor(0.0), 1e-3, 0.9, 0.95, 1e-8, 0.1, 1))
    torch.library.opcheck(operator, (*list(case.values())[:4], [], None, None, 1e-3, 0.9, 0.95, 1e-8, 0.1, 1))


BASE = example(((8,), (4, 3)))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"params": [torch.zeros(8), torch.zeros(4, 3, dtype=torch.float64)]}, r"adamw: params\[1\] is Double; it must be Float"),
        ({"params": [torch.zeros(8), torch.zeros(3, 4).t()]}, r"adamw: params\[1\] has strides \[1, 4\]; it must be contiguous"),
        ({"grads": [torch.zeros(8)]}, "adamw: grads holds 1 tensors; it must hold 2, one for each parameter"),
        ({"grads": [torch.zeros(7), torch.zeros(4, 3)]}, r"adamw: grads\[0\] has shape \[7\]; it must be \[8\]"),
        ({"grads": [torch.zeros(8), torch.zeros(4, 3).half()]}, r"adamw: grads\[1\] is Half; it must be Float"),
        ({"grads": [torch.zeros(8).double(), torch.zeros(4, 3)]}, r"adamw: grads\[0\] is Double; it must be float32, float16 or bfloat16"),
        ({"exp_avgs": [torch.zeros(8), torch.zeros(4, 2)]}, r"adamw: exp_avgs\[1\] has shape \[4, 2\]; it must be \[4, 3\]"),
        ({"exp_avg_sqs": [torch.zeros(8).half(), torch.zeros(4, 3)]}, r"adamw: exp_avg_sqs\[0\] is Half; it must be Float"),
        ({"copies": [torch.zeros(8), torch.zeros(4, 3)]}, r"adamw: copies\[0\] is Float; it must be float16 or bfloat16"),
        ({"grad_scale": torch.zeros(2)}, r"adamw: grad_scale has shape \[2\]; it must have one element"),
        ({"overflow": torch.zeros(1, dtype=torch.int32)}, "adamw: overflow is Int; it must be Float"),
        ({"step": 0}, "adamw: step is 0; the first update is step 1"),
        ({"betas": (1.0, 0.9)}, r"adamw: beta1 is 1; it must be in \[0, 1\)"),
        ({"betas": (0.9, -0.1)}, r"adamw: beta2 is -0.1; it must be in \[0, 1\)"),
        ({"lr": -1.0}, "adamw: lr is -1; it must not be negative"),
        ({"eps": -1.0}, "adamw: eps is -1; it must not be negative"),
        ({"weight_decay": -1.0}, "adamw: weight_decay is -1; it must not be negative"),
    ],
)
def test_adamw_refuses(change, message):
    with pytest.raises(RuntimeError, match=message):
        adamw(**copy.deepcopy(BASE) | SETTINGS | {"step": 1} | change, implementation="fused")


# ---------------------------------------------------------------- the optimizer


def model() -> torch.nn.Module:
    """Parameters of one element, of several, and one that never gets a gradient."""
    layers = torch.nn.Sequential(torch.nn.Linear(48, 64), torch.nn.GELU(), torch.nn.LayerNorm(64), torch.nn.Linear(64, 1))
    layers.unused = torch.nn.Parameter(torch.ones(3))
    return layers


def groups(layers: torch.nn.Module) -> list[dict]:
    return [
        {"params": [p for p in layers.parameters() if p.dim() > 1], "weight_decay": 0.1, "lr": 3e-3},
        {"params": [p for p in layers.parameters() if p.dim() <= 1], "weight_decay": 0.0},
        {"params": [torch.nn.Parameter(torch.zeros(2))]},
    ]


def train(layers: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(16, 48, generator=generator, device="cpu").to(next(layers.parameters()).device)
        optimizer.zero_grad()
        layers(x).square().mean().backward()
        optimizer.step()


def assert_same(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    """Parameters and state to a few roundings."""
    for our_group, their_group in zip(ours.param_groups, theirs.param_groups, strict=True):
        for our, their in zip(our_group["params"], their_group["params"], strict=True):
            torch.testing.assert_close(our, their, rtol=2e-6, atol=1e-6)
            # On a GPU torch's fused one counts its steps there.
            torch.testing.assert_close(ours.state.get(our, {}), theirs.state.get(their, {}), rtol=2e-6, atol=1e-6, check_device=False)


@pytest.mark.parametrize("implementation", ["fused", "reference"])
def test_fused_adamw_trains_as_torch_does(kernels, implementation):
    ours, theirs = model(), model()
    theirs.load_state_dict(ours.state_dict())
    settings = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-6}
    ours_optimizer = FusedAdamW(groups(ours), **settings, implementation=implementation)
    theirs_optimizer = torch.optim.AdamW(groups(theirs), **settings, fused=True)
    train(ours, ours_optimizer, 5)
    train(theirs, theirs_optimizer, 5)
    assert_same(ours_optimizer, theirs_optimizer)
    assert isinstance(ours_optimizer, torch.optim.AdamW)
    steps = [state["step"] for state in ours_optimizer.state.values()]
    assert len(steps) == 6 and all(step.dtype == torch.float32 and step == 5 and step.device.type == "cpu" for step in steps)


@pytest.mark.parametrize("size", [64, 4096])
def test_fused_adamw_has_the_bits_of_torch(size):
    """Whole vectors on one thread: what torch does with the rest depends on its number of threads."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("torch multiplies and adds in two roundings there")
    (ours, theirs), threads = (torch.ones(size, requires_grad=True) for _ in range(2)), torch.get_num_threads()
    optimizers = FusedAdamW([ours], implementation="fused"), torch.optim.AdamW([theirs], fused=True)
    torch.set_num_threads(1)
    try:
        for _ in range(5):
            ours.grad = torch.randn(size)
            theirs.grad = ours.grad.clone()
            for optimizer in optimizers:
                optimizer.step()
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(ours, theirs)
    assert all(torch.equal(optimizers[0].state[ours][key], optimizers[1].state[theirs][key]) for key in MOMENTS)


@pytest.mark.parametrize("fused", [True, False])
def test_fused_adamw_exchanges_state_with_torch(fused):
    ours, theirs = model(), model()
    theirs.load_state_dict(ours.state_dict())
    ours_optimizer, theirs_optimizer = FusedAdamW(groups(ours)), torch.optim.AdamW(groups(theirs), fused=fused)
    train(ours, ours_optimizer, 2)
    theirs.load_state_dict(ours.state_dict())
    theirs_optimizer.load_state_dict(copy.deepcopy(ours_optimizer.state_dict()))
    train(ours, ours_optimizer, 2, seed=1)
    train(theirs, theirs_optimizer, 2, seed=1)
    assert_same(ours_optimizer, theirs_optimizer)
    ours_optimizer.load_state_dict(copy.deepcopy(theirs_optimizer.state_dict()))
    train(ours, ours_optimizer, 1, seed=2)
    train(theirs, theirs_optimizer, 1, seed=2)
    assert_same(ours_optimizer, theirs_optimizer)


def test_fused_adamw_parameters_may_be_updates_apart():
    first, second = torch.ones(5, requires_grad=True), torch.ones(5, requires_grad=True)
    ours, theirs = FusedAdamW([first, second]), torch.optim.AdamW([copy.deepcopy(first), copy.deepcopy(second)])
    for optimizer in (ours, theirs):
        one, two = optimizer.param_groups[0]["params"]
        one.grad = torch.arange(5.0)
        optimizer.step()
        two.grad = one.grad.clone()
        optimizer.step()
    assert_same(ours, theirs)


def test_fused_adamw_notices_state_that_others_put_in():
    """It remembers what it updates; torch's reads the state anew for every step."""
    xs = [torch.linspace(-1, 1, size) for size in (3, 40)]
    ours, theirs = (kind([x.clone().requires_grad_() for x in xs]) for kind in (FusedAdamW, torch.optim.AdamW))

    def step(missing: int | None = None) -> None:
        for optimizer in (ours, theirs):
            for number, x in enumerate(optimizer.param_groups[0]["params"]):
                x.grad = None if number == missing else x.detach().sin() + 0.5
            optimizer.step()
        assert_same(ours, theirs)

    def each_state():
        for optimizer in (ours, theirs):
            yield from (optimizer.state[x] for x in optimizer.param_groups[0]["params"])

    step(), step()
    step(missing=1)  # the two count apart from here
    step(), step()
    for state in each_state():
        state["exp_avg"] = torch.ones_like(state["exp_avg"])
    step()
    for state in each_state():
        state["step"].fill_(1.0)
    step()
    for state in each_state():
        state["step"] = torch.tensor(7.0)
    step(), step()
    assert [float(state["step"]) for state in each_state()] == [9.0] * 4
    ours.param_groups[0]["maximize"] = True
    with pytest.raises(NotImplementedError, match="maximize"):
        ours.step()


def test_fused_adamw_takes_one_group_at_a_time():
    """As DeepSpeed's ZeRO asks it to, with the gradients of the other groups in place."""
    xs = [torch.linspace(-1, 1, size) for size in (40, 40)]
    ours, theirs = (
        kind([{"params": [x.clone().requires_grad_()], "weight_decay": decay} for x, decay in zip(xs, (0.0, 0.1))])
        for kind in (FusedAdamW, torch.optim.AdamW)
    )
    for _ in range(3):
        for optimizer in (ours, theirs):
            groups_ = optimizer.param_groups
            for group in groups_:
                group["params"][0].grad = group["params"][0].detach().sin() + group["weight_decay"]
            for group in groups_:
                optimizer.param_groups = [group]
                optimizer.step()
            optimizer.param_groups = groups_
        assert_same(ours, theirs)


def test_fused_adamw_calls_the_closure():
    x = torch.ones(2, requires_grad=True)

    def closure() -> Tensor:
        loss = x.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert FusedAdamW([x]).step(closure) == 2
    assert not torch.equal(x, torch.ones(2))


def test_fused_adamw_leaves_other_types_to_the_reference():
    x = torch.ones(4, dtype=torch.float64, requires_grad=True)
    x.grad = torch.ones_like(x)
    FusedAdamW([x], lr=0.5, weight_decay=0.0).step()
    torch.testing.assert_close(x.detach(), torch.full((4,), 0.5, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="adamw: the fused kernel was asked for, but it does not take torch.float64"):
        FusedAdamW([x], implementation="fused").step()


def test_fused_adamw_refuses_what_it_does_not_offer():
    x = torch.ones(4, requires_grad=True)
    optimizer = FusedAdamW([x])
    optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(NotImplementedError, match="FusedAdamW: a group asks for amsgrad"):
        optimizer.step()
