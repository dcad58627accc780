#!/usr/bin/env bash
# From nothing to an aligned (tiny) model: set-up, then every stage on this machine's CPU, then runs/quickstart/report.html.
#   launch/quickstart.sh [--data DIR] [megagpt run options]
# --data DIR takes documents*, demonstrations*, rankings* and prompts* from a folder instead of the Python installation.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

options=()
while [[ $# -gt 0 ]]; do
  case $1 in
    -h | --help) sed -n '2,4s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --data) [[ $# -ge 2 ]] || { echo "launch/quickstart.sh: --data needs a folder" >&2; exit 2; }
            options+=(--stage-set "data.source=$2"); shift 2 ;;
    *) options+=("$1"); shift ;;
  esac
done

source launch/setup.sh
exec megagpt run --config configs/smoke/quickstart.yaml ${options[@]+"${options[@]}"}
