#!/usr/bin/env bash
# Sets up, then runs the tests; arguments go to pytest. Without -m, the marker slow is left out; gpu and root wherever they cannot run.
#
#   bash launch/test.sh
#   bash launch/test.sh tests/kernels -k padding
#   bash launch/test.sh -m slow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$megagpt_root"
exec python -m pytest -c tests/pytest.ini --rootdir . "$@"
