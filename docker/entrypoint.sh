#!/usr/bin/env bash
# Says what this container has, then becomes the command.
set -euo pipefail
python - <<'PYTHON' >&2
from importlib.metadata import version
from importlib.util import find_spec

import torch

from megagpt.kernels import select, token_logprob  # noqa: F401

packages = ("megagpt", "torch", "megatron-core", "deepspeed")
print("versions:", ", ".join(f"{name} {version(name)}" for name in packages), "with apex" if find_spec("amp_C") else "without apex")
gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
print(f"devices: {', '.join(gpus) if gpus else f'no GPU, {torch.get_num_threads()} CPU threads'}")
print("kernels:", "; ".join(select.describe("cuda" if gpus else "cpu")))
PYTHON
exec "$@"
