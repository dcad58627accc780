#!/usr/bin/env bash
# What can be said about the CUDA kernels without a GPU: compiles each for sm_80 and sm_90, prints registers, spills, occupancy, the width of memory
# accesses in the machine code and the bytes moved, and fails past a ceiling of csrc/ceilings.yaml.
#
#   csrc/verify.sh                     0: every kernel within its ceilings, 1: not
#   csrc/verify.sh --op norm           one op only
#   csrc/verify.sh --ceilings FILE     other ceilings
#   csrc/verify.sh --device            on a GPU: the tests of tests/kernels through the CUDA build, and achieved bandwidth; 77 where there is no GPU
#
# nvcc is that of CUDA_HOME, else the one of the test pins (setup.py).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=python
[[ -x .venv/bin/python ]] && python=.venv/bin/python
PATH="$(dirname "$(command -v "$python")"):$PATH"
exec "$python" -m csrc.verify.report "$@"
