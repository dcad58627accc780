"""Every test with the argument `kernels` runs twice: on the kernels built for this CPU, and on the CUDA kernels in the emulator."""

import pytest

from tests.helpers.kernels import emulated


@pytest.fixture(params=["fused", "emulated"])
def kernels(request) -> str:
    if request.param == "fused":
        yield "fused"
    else:
        with emulated():
            yield "emulated"
