#!/usr/bin/env bash
# One stage through the deepspeed launcher, on this machine or on the hosts of a hostfile.
#   launch/run.sh STAGE --config FILE [--ranks N] [--hostfile F] [--set a.b=c …]
# Without --hostfile: N ranks here (default: one for each GPU, or 1). With it: one rank for each slot of the hosts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[[ $# -ge 1 && $1 != -h && $1 != --help ]] || { sed -n '2,4s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2; }
stage=$1; shift
ranks="" hostfile="" rest=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --ranks) ranks=$2; shift 2 ;;
    --hostfile) hostfile=$2; shift 2 ;;
    *) rest+=("$1"); shift ;;
  esac
done

source launch/setup.sh
port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
launcher=(deepspeed --log_level warning --no_local_rank --master_port "$port")
if [[ -n $hostfile ]]; then
  [[ -r $hostfile ]] || { echo "launch/run.sh: --hostfile $hostfile: cannot read it" >&2; exit 2; }
  launcher+=(--hostfile "$hostfile")
else
  ranks=${ranks:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}
  launcher+=(--hostfile /dev/null --num_accelerators "$ranks")
fi
exec "${launcher[@]}" --module megagpt "$stage" ${rest[@]+"${rest[@]}"}
