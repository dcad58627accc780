#!/usr/bin/env bash
# One stage through the deepspeed launcher, on this machine or on the hosts of a hostfile.
#   launch/run.sh STAGE --config FILE [--ranks N] [--hostfile F] [--set a.b=c …]
# Without --hostfile: N ranks here (default: one for each GPU, or 1). With it: one rank for each slot of the hosts.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$megagpt_root"
exec python -m megagpt.pipeline.launch "$@"
