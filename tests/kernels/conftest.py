"""Every test with the argument `kernels` runs on the kernels built for this CPU, on the emulated CUDA kernels, and on a GPU where there is one."""

import pytest
import torch

from tests.helpers.kernels import emulated


@pytest.fixture(params=["fused", "emulated", pytest.param("device", marks=pytest.mark.gpu)])
def kernels(request) -> str:
    if request.param == "emulated":
        with emulated():
            yield "emulated"
    elif request.param == "device":
        with torch.device("cuda"):
            yield "device"
    else:
        yield "fused"
