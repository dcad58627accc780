#!/usr/bin/env bash
# Makes this checkout runnable: .venv with the pinned packages and megagpt._C built from csrc/. DeepSpeed has nothing to compile at the start
# of CPU ranks: megagpt/engine/deepspeed_scope.py switches its shared-memory op off, which we never call.
# Needs Python 3.11 and a C++20 compiler. A first run takes a few minutes, a repeated one no time.
#
#   bash launch/setup.sh      set up and stop
#   source launch/setup.sh    set up and go on with .venv on PATH (what quickstart.sh and test.sh do)
#
# pip is used as configured on this machine; versions come from `python setup.py pins`.
set -euo pipefail

megagpt_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
megagpt_venv=$megagpt_root/.venv
megagpt_log=$megagpt_venv/setup.log
megagpt_stamp=$megagpt_venv/setup.stamp
# What DeepSpeed still compiles at first use (CPU Adam for offload, its CUDA ops) goes here, apart from the compiles of other projects.
export TORCH_EXTENSIONS_DIR=$megagpt_venv/torch_extensions

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 1; }

# Everything that the result depends on. The path is part of it, since a virtual environment cannot be moved.
fingerprint() {
    cd "$megagpt_root"
    { echo "$megagpt_root ${MEGAGPT_CUDA-} ${TORCH_CUDA_ARCH_LIST-}"; find setup.py launch/setup.sh csrc -type f | LC_ALL=C sort | xargs sha256sum; } | sha256sum
}

# Runs a command quietly, saying what goes on and for how long. Its output goes to the log, of which a failure shows the last line.
step() {
    local what=$1 start=$SECONDS
    shift
    say "$what ..."
    "$@" >>"$megagpt_log" 2>&1 || fail "$what failed: $(tail -n 1 "$megagpt_log") (all output: $megagpt_log)"
    say "$what: $((SECONDS - start)) s"
}

find_python() {
    local candidate
    for candidate in python3.11 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            "$candidate" -c 'import ensurepip, os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' 2>/dev/null ||
                fail "$candidate lacks venv or its headers; install them (Debian, Ubuntu: apt-get install python3.11-venv python3.11-dev)"
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11 not found; install it (Debian, Ubuntu: apt-get install python3.11 python3.11-venv python3.11-dev; or pyenv install 3.11)"
}

need_compiler() {
    local compiler
    for compiler in "${CXX:-c++}" g++; do
        echo 'int main() {}' | "$compiler" -std=c++20 -x c++ -fsyntax-only - 2>/dev/null ||
            fail "no C++20 compiler answers to '$compiler'; install one (Debian, Ubuntu: apt-get install g++, version 10 or newer)"
    done
}

make_venv() {
    "$megagpt_venv/bin/python" -c 'import pip, sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && return
    local python
    python=$(find_python)
    find "$megagpt_venv" -mindepth 1 ! -name setup.lock -delete
    step "creating .venv with $python" "$python" -m venv "$megagpt_venv"
}

# torch's compile lock is a file that its owner holds open: one that nobody holds was left by a killed compile, and every later start
# would wait for it without a word. Ranks that load a finished op hold it for a moment each, in turn, faster than the search for an owner:
# only a lock that has stayed for some seconds can be ownerless.
remove_ownerless_locks() {
    local lock
    for lock in "$TORCH_EXTENSIONS_DIR"/*/lock; do
        while [ -e "$lock" ] && [ -z "$(find /proc/[0-9]*/fd -lname "$lock" -print -quit 2>/dev/null)" ]; do
            if [ -n "$(find "$lock" ! -newermt '-10 seconds' 2>/dev/null)" ]; then
                rm -f "$lock"
                say "removed $lock, left by a compile that was killed"
            else
                sleep 1
            fi
        done
    done
}

install() {
    local pip=("$megagpt_venv/bin/python" -m pip install --disable-pip-version-check --use-pep517 --no-build-isolation) build
    rm -f "$megagpt_stamp"
    : >"$megagpt_log"
    need_compiler
    make_venv
    cd "$megagpt_root"
    PATH=$megagpt_venv/bin:$PATH  # for ninja
    mapfile -t build < <(python setup.py pins build)
    step "installing ${build[*]}" "${pip[@]}" "${build[@]}"
    step "installing megagpt, building megagpt._C" "${pip[@]}" --verbose --editable '.[test,mpi,ray,gguf]'
    grep 'built without fused kernels' "$megagpt_log" >&2 || true
    fingerprint >"$megagpt_stamp"
    say "done in $SECONDS s"
}

up_to_date() { [ "$(fingerprint)" = "$(cat "$megagpt_stamp" 2>/dev/null)" ]; }

remove_ownerless_locks
if ! up_to_date; then
    mkdir -p "$megagpt_venv"
    # One set-up at a time: a second one waits here and then finds the work done.
    (
        flock --nonblock 9 || { say "waiting for another set-up of this checkout"; flock 9; }
        up_to_date || install
    ) 9>"$megagpt_venv/setup.lock"
fi
export VIRTUAL_ENV=$megagpt_venv PATH=$megagpt_venv/bin:$PATH
