"""token_logprob and token_statistics: the reference against float64, the fused kernels (those for the CPU and, emulated, those for CUDA) against the
reference, and both sharded against unsharded."""

import functools
import math
import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.profiler import ProfilerActivity, profile

from megagpt.kernels.operators import call
from megagpt.kernels.token_logprob import token_logprob, token_statistics
from tests.helpers.kernels import (
    DTYPES,
    VERY_WIDE,
    WIDTHS,
    assert_same_bits_for_any_number_of_threads,
    assert_same_bits_under_any_schedule,
    assert_within_budget,
    bytes_moved,
    emulated,
)

IMPLEMENTATIONS = ("reference", "fused")
STATISTICS = ("logprob", "log_sum_exp", "entropy")

# Two shards against one: the same float32 arithmetic, but the sum is split differently.
SHARDED_FLOOR = 8 * 2**-24
# Plain PyTorch in float32 against float64, at logits of the order 10 (spacing 1e-6) and up to 50,000 terms summed.
REFERENCE_ERROR = 2e-5
TP_TIMEOUT = 180  # seconds for two ranks to start and run every case: 3 on an idle machine, a minute on a busy one


@pytest.fixture(params=[*IMPLEMENTATIONS, "emulated", pytest.param("device", marks=pytest.mark.gpu)])
def implementation(request) -> str:
    """As `kernels`, and the reference as well."""
    if request.param == "emulated":
        with emulated():
            yield "fused"
    elif request.param == "device":
        with torch.device("cuda"):
            yield "fused"
    else:
        yield request.param


def example(dtype, width, rows=5, spread=3.0):
    logits = (torch.randn(rows, width) * spread).to(dtype)
    return logits, torch.randint(width, (rows,)), torch.randn(rows)


def run(logits, targets, grad_out, implementation, **options):
    """(log-probabilities, gradient of the logits)"""
    logits = logits.detach().requires_grad_()
    out = token_logprob(logits, targets, implementation=implementation, **options)
    (grad,) = torch.autograd.grad(out, logits, grad_out.to(out.dtype))
    return out.detach(), grad


def statistics(logits, targets, grads, implementation, **options):
    """Every statistic, the gradient of the logits of each alone, and of all at once."""
    logits = logits.detach().requires_grad_()
    outputs = token_statistics(logits, targets, entropy=True, implementation=implementation, **options)
    grads = [grad.to(outputs.logprob.dtype) for grad in grads]
    result = {name: output.detach() for name, output in zip(STATISTICS, outputs)}
    for name, output, grad in zip(STATISTICS, outputs, grads):
        (result[f"gradient of {name}"],) = torch.autograd.grad(output, logits, grad, retain_graph=True)
    (result["gradient of all"],) = torch.autograd.grad(outputs, logits, grads)
    return result


def exact_statistics(logits, targets, grads, vocab_size=None, temperature=1.0):
    """The same through torch's own log_softmax in float64, which has no code in common with either implementation."""
    logits = logits.detach().double().requires_grad_()
    y = logits[..., :vocab_size] / temperature
    log_p = y.log_softmax(-1)
    outputs = (log_p.gather(-1, targets[..., None])[..., 0], y.logsumexp(-1), -(log_p.exp() * log_p).sum(-1))
    result = {name: output.detach() for name, output in zip(STATISTICS, outputs)}
    grads = [grad.double() for grad in grads]
    for name, output, grad in zip(STATISTICS, outputs, grads):
        (result[f"gradient of {name}"],) = torch.autograd.grad(output, logits, grad, retain_graph=True)
    (result["gradient of all"],) = torch.autograd.grad(outputs, logits, grads)
    return result


def truth(logits, targets, grad_out, vocab_size=None, temperature=1.0):
    """(log-probabilities, gradient of the logits) in float64"""
    exact = exact_statistics(logits, targets, (grad_out,) * 3, vocab_size, temperature)
    return exact["logprob"], exact["gradient of logprob"]


def largest_error(actual, expected):
    assert actual.shape == expected.shape
    error = (actual.double() - expected).abs().max().item()
    assert not math.isnan(error)
    return error


@pytest.mark.parametrize("width", WIDTHS)
def test_reference_equals_float64(width):
    logits, targets, _ = example(torch.float32, width)
    grads = torch.randn(3, 5)
    for dtype, tolerance in ((torch.float32, REFERENCE_ERROR), (torch.float64, 1e-13)):
        ours = statistics(logits.to(dtype), targets, grads, "reference")
        for name, expected in exact_statistics(logits, targets, grads).items():
            assert ours[name].dtype == dtype
            assert largest_error(ours[name], expected) <= tolerance, name


def test_reference_gradcheck():
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 4, 2])
    options = {"vocab_size": 5, "temperature": 0.7, "entropy": True, "implementation": "reference"}
    assert torch.autograd.gradcheck(lambda x: tuple(token_statistics(x, targets, **options)), logits)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fused_within_error_budget(kernels, dtype, width, temperature):
    rows = 5 if width < 10_000 else 2
    logits, targets, _ = example(dtype, width, rows)
    case = logits, targets, torch.randn(3, rows)
    compare(*case, temperature=temperature)


def compare(logits, targets, grads, **options):
    ours, plain = (statistics(logits, targets, grads, which, **options) for which in ("fused", "reference"))
    assert_within_budget(ours, plain, exact_statistics(logits, targets, grads, **options))


def test_very_wide_row(kernels):
    logits, targets, _ = example(torch.bfloat16, VERY_WIDE, rows=2)
    compare(logits, targets, torch.randn(3, 2))


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


def test_statistics_of_infinities_and_nan(implementation):
    """A logit of -inf counts for nothing, as if its column were not there."""
    logits, targets, _ = example(torch.float32, 37, rows=6)
    grads = torch.randn(3, 6)
    masked = torch.arange(37) % 3 == 1
    logits[:3, masked] = -math.inf
    targets[:3] = 3
    logits[3] = -math.inf
    logits[4, 36], logits[5, 0] = math.nan, math.inf
    ours = statistics(logits, targets, grads, implementation)
    exact = exact_statistics(logits[:3, ~masked], torch.full((3,), 2), grads[:, :3])
    for name, expected in exact.items():
        actual = ours[name][:3, ~masked] if "gradient" in name else ours[name][:3]
        assert largest_error(actual, expected) <= REFERENCE_ERROR, name
        assert ours[name][4:].isnan().all(), name
        assert "gradient" not in name or (ours[name][:3, masked] == 0).all(), name
        assert name == "log_sum_exp" or ours[name][3].isnan().all(), name
    assert ours["log_sum_exp"][3] in (-math.inf,) or ours["log_sum_exp"][3].isnan()


def test_gradient_of_a_near_certain_target(kernels):
    """1 - p is 1e-6 here, and as good as the sum in float32: a step or two of 2^-23."""
    logits = torch.zeros(1, 40)
    logits[0, 7] = 17.5
    _, grad = run(logits, torch.tensor([7]), torch.ones(1), "fused")
    _, expected = truth(logits, torch.tensor([7]), torch.ones(1))
    torch.testing.assert_close(grad.double(), expected, rtol=2e-6, atol=2**-22)


def test_largest_comes_last(implementation):
    """Every thread and every block of the row meets larger and larger logits, by hundreds."""
    logits = torch.linspace(-3000.0, 3000.0, 9000).repeat(2, 1)
    logits[1] = logits[1].flip(0)
    targets, grads = torch.tensor([8999, 0]), torch.randn(3, 2)
    ours, exact = statistics(logits, targets, grads, implementation), exact_statistics(logits, targets, grads)
    for name, expected in exact.items():
        assert largest_error(ours[name], expected) <= REFERENCE_ERROR * max(1, expected.abs().max()), name


def test_most_negative_logits(implementation):
    """The smallest number of float32 is a number like any other."""
    lowest = torch.finfo(torch.float32).min
    logits = torch.full((2, 40), lowest)
    logits[1, 7] = 0.0
    logprob, lse, entropy = token_statistics(logits, torch.tensor([3, 7]), entropy=True, implementation=implementation)
    torch.testing.assert_close(logprob, torch.tensor([-math.log(40), 0.0]))
    torch.testing.assert_close(lse, torch.tensor([lowest, 0.0]))
    torch.testing.assert_close(entropy, torch.tensor([math.log(40), 0.0]))


def test_statistics_unasked_for(implementation):
    logits, targets, _ = example(torch.float32, 10)
    statistics_only = token_statistics(logits, targets, implementation=implementation)
    assert statistics_only.entropy is None
    assert torch.equal(statistics_only.logprob, token_logprob(logits, targets, implementation=implementation))


def test_probability_never_exceeds_one(implementation):
    logits = torch.randn(200, 100) * torch.logspace(-3, 3, 200)[:, None]
    assert (token_logprob(logits, logits.argmax(-1), temperature=0.3, implementation=implementation) <= 0).all()


def test_logits_far_from_zero(kernels):
    logits, targets, _ = example(torch.float32, 100, spread=1.0)
    compare(logits + 1000, targets, torch.randn(3, 5))


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
def test_strides_do_not_matter(kernels, layout):
    logits = LAYOUTS[layout](torch.randn(3, 5, 70))
    assert not logits.is_contiguous()
    targets = torch.randint(logits.shape[-1], logits.shape[:-1])
    grads = torch.randn(3, 1, 1).expand(3, *targets.shape)  # as from a sum
    ours, theirs = (statistics(x, targets, grads, "fused") for x in (logits, logits.contiguous()))
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=SHARDED_FLOOR, atol=SHARDED_FLOOR, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_may_begin_at_any_address(kernels, dtype):
    """16 bytes are read at once from the middle of a row, whatever is before and behind: those must not count."""
    for width in (1, 2, 9, 40):
        for first in range(9):
            memory = torch.full((3, 64), 1e4, dtype=dtype)
            logits = memory[:, first : first + width]
            logits.copy_(torch.randn(3, width))
            compare(logits, torch.randint(width, (3,)), torch.randn(3, 3))
            assert (memory[:, :first] == 1e4).all() and (memory[:, first + width :] == 1e4).all()


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


def test_operators_check_their_tensors():
    logits, targets, grad_out = example(torch.float32, 10)
    for bad, message in [
        ((logits.double(), targets, 10, 1.0), "logits is Double; it must be float32, float16 or bfloat16"),
        ((logits[:, ::2], targets, 5, 1.0), "logits has stride 2 along its last dimension"),
        ((logits, targets[:4], 10, 1.0), r"ids has shape \[4\]; it must be \[5\]"),
        ((logits, targets.int(), 10, 1.0), "ids is Int; it must be Long"),
        ((logits, targets, 11, 1.0), r"num_valid is 11; it must be in \[0, 10\]"),
        ((logits, targets, 10, 0.0), "scale is 0; it must be positive"),
        ((logits, targets, 10, 1e39), "scale is 1e.39; it must be positive and finite in float32"),
    ]:
        with pytest.raises(RuntimeError, match="token_logprob_forward: " + message):
            call("token_logprob_forward", *bad, True)
    stats = grad_out, grad_out, grad_out
    for grads, (top, log_sum, entropy), message in [
        (stats, (grad_out, grad_out.double(), None), "log_sum is Double; it must be Float"),
        (stats, (grad_out[:4], grad_out, grad_out), r"top has shape \[4\]; it must be \[5\]"),
        ((None, grad_out.half(), None), stats, "grad_lse is Half; it must be Float"),
        (stats, (grad_out, grad_out, None), "entropy is missing; grad_entropy needs it"),
    ]:
        with pytest.raises(RuntimeError, match="token_logprob_backward: " + message):
            call("token_logprob_backward", *grads, logits, targets, top, log_sum, entropy, 10, 1.0)


def test_token_of_another_shard(kernels):
    logits, _, grad_out = example(torch.float32, 10)
    elsewhere = torch.tensor([-1, 10, 8, 2**40, -(2**40)])  # 8: among the padding of this shard
    top, sum_exp, target, _ = call("token_logprob_forward", logits, elsewhere, 8, 1.0, False)
    assert torch.equal(target, torch.zeros(5))
    grad = call("token_logprob_backward", grad_out, None, None, logits, elsewhere, top, sum_exp.log(), None, 8, 1.0)
    expected = -grad_out[:, None] * logits[:, :8].softmax(-1)
    torch.testing.assert_close(grad[:, :8], expected, rtol=0, atol=REFERENCE_ERROR)
    assert torch.equal(grad[:, 8:], torch.zeros(5, 2))
    top, sum_exp, _, weighted = call("token_logprob_forward", logits, elsewhere, 0, 1.0, True)
    assert torch.equal(top, torch.full((5,), -math.inf))
    assert torch.equal(sum_exp, torch.zeros(5)) and torch.equal(weighted, torch.zeros(5))


def test_sum_carries_nan_and_infinity(kernels):
    """A MAX over ranks may drop a NaN; the SUM that follows cannot."""
    logits, targets, _ = example(torch.float32, 10)
    logits[0, 9] = math.nan
    logits[1, 2] = math.inf
    logits[2] = -math.inf
    top, sum_exp, _, weighted = call("token_logprob_forward", logits, targets, 10, 1.0, True)
    assert sum_exp.isnan().tolist() == weighted.isnan().tolist() == [True, True, False, False, False]
    assert top[2] == -math.inf and sum_exp[2] == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    logits, targets, grad_out = example(dtype, 33)
    forward, backward = torch.ops.megagpt.token_logprob_forward, torch.ops.megagpt.token_logprob_backward
    torch.library.opcheck(forward, (logits, targets, 30, 0.5, False))
    torch.library.opcheck(forward, (logits, targets, 30, 0.5, True))
    stats = torch.randn(3, 5)
    torch.library.opcheck(backward, (grad_out, None, None, logits.T.contiguous().T[:, :1], targets, *stats, 1, 0.5))
    torch.library.opcheck(backward, (grad_out, grad_out, grad_out, logits, targets, *stats, 30, 0.5))


def test_cannot_be_differentiated_twice():
    logits = torch.randn(2, 9, requires_grad=True)
    out = token_logprob(logits, torch.tensor([0, 3]), implementation="fused")
    (grad,) = torch.autograd.grad(out.square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
    with pytest.raises(NotImplementedError, match="token_logprob_forward has no gradient"):
        call("token_logprob_forward", logits, torch.tensor([0, 3]), 9, 1.0, False)[1].sum().backward()


def test_same_bits_for_any_number_of_threads():
    logits, targets, _ = example(torch.float32, 5003, rows=40)
    grads = torch.randn(3, 40)
    assert_same_bits_for_any_number_of_threads(lambda: statistics(logits, targets, grads, "fused"))


def test_same_bits_under_any_schedule():
    logits, targets, _ = example(torch.float32, 1003, rows=4)
    grads = torch.randn(3, 4)
    assert_same_bits_under_any_schedule(lambda: statistics(logits, targets, grads, "fused"))


def test_more_than_2_31_elements():
    """Only the last row is there: memory that is never touched costs none."""
    rows, width = 2**21 + 1, 1024
    logits, ids, grad_out = torch.empty(rows, width, dtype=torch.float16), torch.zeros(rows, dtype=torch.int64), torch.empty(rows)
    logits[-1], ids[-1], grad_out[-1] = torch.randn(width), 1000, 2.0
    with emulated(only_block=rows - 1):
        top, sum_exp, target, _ = call("token_logprob_forward", logits, ids, width, 1.0, False)
        grad = call("token_logprob_backward", grad_out, None, None, logits, ids, top, sum_exp.log(), None, width, 1.0)
    expected_out, expected_grad = truth(logits[-1], ids[-1], grad_out[-1])
    assert largest_error(target[-1] - top[-1] - sum_exp[-1].log(), expected_out) <= REFERENCE_ERROR
    assert largest_error(grad[-1], expected_grad) <= 2**-10


@pytest.mark.parametrize("dtype, width", [(torch.float32, 1024), (torch.bfloat16, 1023)], ids=str)
def test_moves_each_byte_once(dtype, width):
    logits, targets, grad_out = example(dtype, width, rows=8)
    forward = functools.partial(call, "token_logprob_forward", logits, targets, width, 1.0, True)
    assert bytes_moved(forward) == logits.nbytes
    with emulated():
        top, sum_exp, *_ = forward()
    backward = functools.partial(call, "token_logprob_backward", grad_out, grad_out, grad_out, logits, targets, top, sum_exp.log(), top, width, 1.0)
    assert bytes_moved(backward) == 2 * logits.nbytes


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
                    logits, targets, _ = example(dtype, 40, rows=6)
                    options = {"vocab_size": vocab_size, "temperature": temperature}
                    case = targets % vocab_size, torch.randn(3, 6), implementation
                    whole = statistics(logits, *case, **options)
                    sharded = statistics(shard_of(logits, rank, world_size), *case, **options, tp_group=dist.group.WORLD)
                    for name, expected in whole.items():
                        if "gradient" not in name:
                            torch.testing.assert_close(sharded[name], expected, rtol=SHARDED_FLOOR, atol=SHARDED_FLOOR)
                            continue
                        # A gradient may round to the other side in its own dtype.
                        step = max(torch.finfo(dtype).eps, SHARDED_FLOOR)
                        torch.testing.assert_close(sharded[name], shard_of(expected, rank, world_size), rtol=step, atol=SHARDED_FLOOR)


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
        shard, options = shard_of(logits, rank, world_size), {"implementation": implementation, "tp_group": dist.group.WORLD}
        entropy = token_statistics(shard, targets, entropy=True, **options).entropy
        one_shard = exact_statistics(logits[:1, 20:], targets[:1] - 20, torch.ones(3, 1))
        assert largest_error(entropy[:1], one_shard["entropy"]) <= REFERENCE_ERROR
        assert entropy[1:4].isnan().all()
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
