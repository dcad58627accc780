"""token_logprob: the reference against float64, the fused kernel against the reference, and both sharded against unsharded."""

import math
import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.profiler import ProfilerActivity, profile

from megagpt.kernels.token_logprob import token_logprob

IMPLEMENTATIONS = ("reference", "fused")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# One column, around one vector load and around two, a ragged and an even many, the GPT-2 vocabulary.
WIDTHS = (1, 31, 33, 1000, 2048, 50257)

# The fused kernel may be this much worse than plain PyTorch on the same input, both measured against float64 ...
ERROR_FACTOR = 2
# ... or wrong by the 20 ulp that its fast exponential is specified for, relative to the largest value.
ERROR_FLOOR = 20 * 2**-24
# Two shards against one: the same float32 arithmetic, but the sum is split differently.
SHARDED_FLOOR = 8 * 2**-24
# Plain PyTorch in float32 against float64, at logits of the order 10 (spacing 1e-6) and up to 50,000 terms summed.
REFERENCE_ERROR = 2e-5
TP_TIMEOUT = 180  # seconds for two ranks to start and run every case: 3 on an idle machine, a minute on a busy one


def example(dtype, width, rows=5, spread=3.0):
    logits = (torch.randn(rows, width) * spread).to(dtype)
    return logits, torch.randint(width, (rows,)), torch.randn(rows)


def run(logits, targets, grad_out, implementation, **options):
    """(log-probabilities, gradient of the logits)"""
    logits = logits.detach().requires_grad_()
    out = token_logprob(logits, targets, implementation=implementation, **options)
    (grad,) = torch.autograd.grad(out, logits, grad_out.to(out.dtype))
    return out.detach(), grad


def truth(logits, targets, grad_out, vocab_size=None, temperature=1.0):
    """The same through torch's own log_softmax in float64, which has no code in common with either implementation."""
    logits = logits.detach().double().requires_grad_()
    out = (logits[..., :vocab_size] / temperature).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    (grad,) = torch.autograd.grad(out, logits, grad_out.double())
    return out.detach(), grad


def largest_error(actual, expected):
    assert actual.shape == expected.shape
    error = (actual.double() - expected).abs().max().item()
    assert not math.isnan(error)
    return error


@pytest.mark.parametrize("width", WIDTHS)
def test_reference_equals_float64(width):
    case = example(torch.float32, width)
    for actual, expected in zip(run(*case, "reference"), truth(*case)):
        assert largest_error(actual, expected) <= REFERENCE_ERROR
    double = (case[0].double(), *case[1:])
    for actual, expected in zip(run(*double, "reference"), truth(*double)):
        assert actual.dtype == torch.float64
        assert largest_error(actual, expected) <= 1e-13


def test_reference_gradcheck():
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 4, 2])
    assert torch.autograd.gradcheck(
        lambda x: token_logprob(x, targets, vocab_size=5, temperature=0.7, implementation="reference"), logits
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fused_within_error_budget(dtype, width, temperature):
    case = example(dtype, width)
    fused, plain, exact = (
        run(*case, "fused", temperature=temperature),
        run(*case, "reference", temperature=temperature),
        truth(*case, temperature=temperature),
    )
    for which, ours, eager, expected in zip(("output", "gradient"), fused, plain, exact):
        assert ours.dtype == eager.dtype == (torch.float32 if which == "output" else dtype)
        floor = ERROR_FLOOR * max(1.0, expected.abs().max().item())
        assert largest_error(ours, expected) <= ERROR_FACTOR * largest_error(eager, expected) + floor, which


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("vocab_size", [1, 40, 63])
def test_padding_has_no_probability_and_no_gradient(implementation, vocab_size):
    logits, targets, grad_out = example(torch.float32, 64)
    targets = targets % vocab_size
    logits[:, vocab_size:] = math.nan  # is not even read
    out, grad = run(logits, targets, grad_out, implementation, vocab_size=vocab_size)
    expected_out, expected_grad = truth(logits[:, :vocab_size], targets, grad_out)
    assert largest_error(out, expected_out) <= REFERENCE_ERROR
    assert largest_error(grad[:, :vocab_size], expected_grad) <= REFERENCE_ERROR
    assert torch.equal(grad[:, vocab_size:], torch.zeros_like(grad[:, vocab_size:]))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_infinities_and_nan(implementation):
    logits, targets, grad_out = example(torch.float32, 37, rows=6)
    logits[0, 5:20] = -math.inf  # partly masked, target kept
    targets[0] = 3
    logits[1, 5:20] = -math.inf  # partly masked, target masked
    targets[1] = 7
    logits[2] = -math.inf
    logits[3, 11] = math.inf
    logits[4, 36] = math.nan  # in the ragged tail
    out, grad = run(logits, targets, grad_out, implementation)
    assert out[1] == -math.inf
    expected_out, expected_grad = truth(logits, targets, grad_out)
    torch.testing.assert_close(out.double(), expected_out, rtol=0, atol=REFERENCE_ERROR, equal_nan=True)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=0, atol=REFERENCE_ERROR, equal_nan=True)
    assert out.isnan().tolist() == [False, False, True, True, True, False]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_probability_never_exceeds_one(implementation):
    logits = torch.randn(200, 100) * torch.logspace(-3, 3, 200)[:, None]
    assert (token_logprob(logits, logits.argmax(-1), temperature=0.3, implementation=implementation) <= 0).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_logits_far_from_zero(implementation):
    logits, targets, grad_out = example(torch.float32, 100, spread=1.0)
    logits += 1000
    out, grad = run(logits, targets, grad_out, implementation)
    expected_out, expected_grad = truth(logits, targets, grad_out)
    assert largest_error(out, expected_out) <= ERROR_FLOOR * expected_out.abs().max()
    # lse near 1000 is rounded to half of 2**-14, and all probabilities with it
    assert largest_error(grad, expected_grad) <= 2**-15 * expected_grad.abs().max()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(0, 9), (2, 0, 9), (9,), (2, 3, 4, 9)])
def test_any_leading_shape(implementation, shape):
    logits, targets, grad_out = torch.randn(shape), torch.randint(9, shape[:-1]), torch.randn(shape[:-1])
    out, grad = run(logits, targets, grad_out, implementation)
    expected_out, expected_grad = truth(logits, targets, grad_out)
    assert out.shape == shape[:-1]
    torch.testing.assert_close(out.double(), expected_out, rtol=0, atol=REFERENCE_ERROR)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=0, atol=REFERENCE_ERROR)


LAYOUTS = {
    "rows of a transpose": lambda x: x.transpose(0, 1),
    "all but the last position": lambda x: x[:, :-1],
    "padded rows": lambda x: x[..., :33],
    "every second column": lambda x: x[..., ::2],
    "columns first": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "one row repeated": lambda x: x[:1, :1].expand(3, 4, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(layout):
    logits = LAYOUTS[layout](torch.randn(3, 5, 70))
    assert not logits.is_contiguous()
    targets = torch.randint(logits.shape[-1], logits.shape[:-1])
    grad_out = torch.randn(1).expand(targets.shape)  # as from a sum
    for ours, theirs in zip(run(logits, targets, grad_out, "fused"), run(logits.contiguous(), targets, grad_out, "fused")):
        assert torch.equal(ours, theirs)


def test_refused_by_name():
    logits, targets, _ = example(torch.float32, 10)
    for bad in (-1, 10):
        with pytest.raises(ValueError, match=r"each must be in \[0, vocab_size = 10\)"):
            token_logprob(logits, torch.where(torch.arange(5) == 2, bad, targets))
    with pytest.raises(ValueError, match="vocab_size = 8"):
        token_logprob(logits, torch.full((5,), 8), vocab_size=8)
    with pytest.raises(ValueError, match=r"vocab_size is 11; it must be in \[1, 10\]"):
        token_logprob(logits, targets, vocab_size=11)
    with pytest.raises(ValueError, match="temperature is 0; it must be positive"):
        token_logprob(logits, targets, temperature=0)
    with pytest.raises(ValueError, match=r"logits \[5, 10\] and targets \[4\]"):
        token_logprob(logits, targets[:4])
    with pytest.raises(ValueError, match="targets are torch.int32"):
        token_logprob(logits, targets.int())


def operators():
    import megagpt._C  # noqa: F401

    return torch.ops.megagpt.token_logprob_forward, torch.ops.megagpt.token_logprob_backward


def test_operators_check_their_tensors():
    forward, backward = operators()
    logits, targets, grad_out = example(torch.float32, 10)
    for bad, message in [
        ((logits.double(), targets, 10, 1.0), "logits is Double; it must be float32, float16 or bfloat16"),
        ((logits[:, ::2], targets, 5, 1.0), "logits has stride 2 along its last dimension"),
        ((logits, targets[:4], 10, 1.0), r"ids has shape \[4\]; it must be \[5\]"),
        ((logits, targets.int(), 10, 1.0), "ids is Int; it must be Long"),
        ((logits, targets, 11, 1.0), r"num_valid is 11; it must be in \[0, 10\]"),
        ((logits, targets, 10, 0.0), "scale is 0; it must be positive"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            forward(*bad)
    with pytest.raises(RuntimeError, match="lse is Double; it must be Float"):
        backward(grad_out, logits, targets, grad_out.double(), 10, 1.0)


def test_token_of_another_shard():
    forward, backward = operators()
    logits, _, grad_out = example(torch.float32, 10)
    elsewhere = torch.tensor([-1, 10, 8, 2**40, -(2**40)])  # 8: among the padding of this shard
    top, sum_exp, target = forward(logits, elsewhere, 8, 1.0)
    assert torch.equal(target, torch.zeros(5))
    grad = backward(grad_out, logits, elsewhere, top + sum_exp.log(), 8, 1.0)
    expected = -grad_out[:, None] * logits[:, :8].softmax(-1)
    torch.testing.assert_close(grad[:, :8], expected, rtol=0, atol=REFERENCE_ERROR)
    assert torch.equal(forward(logits, elsewhere, 0, 1.0)[0], torch.full((5,), -math.inf))
    assert torch.equal(forward(logits, elsewhere, 0, 1.0)[1], torch.zeros(5))


def test_sum_carries_nan_and_infinity():
    """A MAX over ranks may drop a NaN; the SUM that follows cannot."""
    forward, _ = operators()
    logits, targets, _ = example(torch.float32, 10)
    logits[0, 9] = math.nan
    logits[1, 2] = math.inf
    logits[2] = -math.inf
    top, sum_exp, _ = forward(logits, targets, 10, 1.0)
    assert sum_exp.isnan().tolist() == [True, True, False, False, False]
    assert top[2] == -math.inf and sum_exp[2] == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    forward, backward = operators()
    logits, targets, grad_out = example(dtype, 33)
    torch.library.opcheck(forward, (logits, targets, 30, 0.5))
    torch.library.opcheck(backward, (grad_out, logits.T.contiguous().T[:, :1], targets, torch.randn(5), 1, 0.5))
    torch.library.opcheck(backward, (grad_out, logits, targets, torch.randn(5), 30, 0.5))


def test_bitwise_determinism():
    case = example(torch.float32, 5003, rows=40)
    threads = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 2, 3):
            torch.set_num_threads(num_threads)
            results.append(run(*case, "fused"))
    finally:
        torch.set_num_threads(threads)
    for out, grad in results[1:]:
        assert torch.equal(out, results[0][0]) and torch.equal(grad, results[0][1])


def peak_bytes(work):
    """Most bytes held at once on top of what was there before, from the profiler's record of every allocation."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = work()
    records = sorted((event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"), key=lambda event: event.start_ns())
    held = peak = 0
    for record in records:
        held += record.nbytes()
        peak = max(peak, held)
    return peak, result


def test_memory():
    logits, targets, grad_out = example(torch.bfloat16, 20000, rows=64)
    logits.requires_grad_()
    per_row = 64 * 8 * 10  # ten 8-byte numbers for each row: less than a thousandth of the logits
    forward, out = peak_bytes(lambda: token_logprob(logits, targets, implementation="fused"))
    assert forward <= per_row
    backward, _ = peak_bytes(lambda: torch.autograd.grad(out, logits, grad_out))
    assert backward <= logits.nbytes + per_row
    plain, _ = peak_bytes(lambda: token_logprob(logits, targets, implementation="reference"))
    assert plain >= logits.nbytes  # the measure does see a temporary of that size


def test_tensor_parallel(tmp_path):
    """Each check_* below on two ranks over gloo."""
    context = mp.spawn(run_checks, (2, f"file://{tmp_path}/store"), nprocs=2, join=False)
    deadline = time.monotonic() + TP_TIMEOUT
    try:
        while not context.join(timeout=1):  # raises as soon as one rank does
            assert time.monotonic() < deadline, f"two ranks did not finish within {TP_TIMEOUT} s"
    finally:
        for process in context.processes:
            process.kill()


def run_checks(rank, world_size, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    for check in (check_sharded_equals_unsharded, check_infinities, check_collectives, check_target_range):
        torch.manual_seed(0)
        check(rank, world_size)
    dist.destroy_process_group()


def shard_of(logits, rank, world_size):
    return logits.chunk(world_size, dim=-1)[rank]


def check_sharded_equals_unsharded(rank, world_size):
    # V_local 20: no padding, padding in the last shard, a last shard without any valid column, one valid column in all
    for vocab_size in (40, 33, 20, 7, 1):
        for dtype in DTYPES:
            for implementation in IMPLEMENTATIONS:
                for temperature in (1.0, 1.7):
                    logits, targets, grad_out = example(dtype, 40, rows=6)
                    options = {"vocab_size": vocab_size, "temperature": temperature}
                    case = targets % vocab_size, grad_out, implementation
                    out, grad = run(logits, *case, **options)
                    sharded_out, sharded_grad = run(shard_of(logits, rank, world_size), *case, **options, tp_group=dist.group.WORLD)
                    torch.testing.assert_close(sharded_out, out, rtol=SHARDED_FLOOR, atol=SHARDED_FLOOR)
                    # A gradient may round to the other side in its own dtype.
                    step = max(torch.finfo(dtype).eps, SHARDED_FLOOR)
                    torch.testing.assert_close(sharded_grad, shard_of(grad, rank, world_size), rtol=step, atol=SHARDED_FLOOR)


def check_infinities(rank, world_size):
    for implementation in IMPLEMENTATIONS:
        logits, targets, grad_out = example(torch.float32, 40, rows=5)
        logits[0, :20] = -math.inf  # nothing left on the first shard
        targets[0] = 30
        logits[1] = -math.inf
        logits[2, 3] = math.nan
        logits[3, 25] = math.inf
        expected_out, expected_grad = truth(logits, targets, grad_out)
        out, grad = run(shard_of(logits, rank, world_size), targets, grad_out, implementation, tp_group=dist.group.WORLD)
        torch.testing.assert_close(out.double(), expected_out, rtol=0, atol=REFERENCE_ERROR, equal_nan=True)
        torch.testing.assert_close(grad.double(), shard_of(expected_grad, rank, world_size), rtol=0, atol=REFERENCE_ERROR, equal_nan=True)


def check_collectives(rank, world_size):
    calls = []
    all_reduce = dist.all_reduce

    def counted(tensor, op=dist.ReduceOp.SUM, group=None):
        calls.append((op, group))
        return all_reduce(tensor, op, group=group)

    dist.all_reduce = counted
    try:
        for implementation in IMPLEMENTATIONS:
            logits = torch.randn(4, 20, requires_grad=True)
            out = token_logprob(logits, torch.tensor([0, 19, 20, 39]), tp_group=dist.group.WORLD, implementation=implementation)
            assert calls == [(dist.ReduceOp.MAX, dist.group.WORLD), (dist.ReduceOp.SUM, dist.group.WORLD)], calls
            calls.clear()
            out.sum().backward()
            assert calls == []
    finally:
        dist.all_reduce = all_reduce


def check_target_range(rank, world_size):
    with pytest.raises(ValueError, match="vocab_size = 33"):
        token_logprob(torch.randn(1, 20), torch.tensor([33]), vocab_size=33, tp_group=dist.group.WORLD)
