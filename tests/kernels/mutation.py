"""Do the tests notice? Breaks the CUDA kernels in small ways and runs each op's tests, and where they pass the sanitizers, on the broken kernel.

    python -m tests.kernels.mutation                 every mutant; ends with 0 if at least 95 % are caught
    python -m tests.kernels.mutation --quick         the ten of CI
    python -m tests.kernels.mutation --op norm       those of one op
    python -m tests.kernels.mutation --list          what would be tried

Mutants are made by RULES from the device code of csrc/cuda, a dozen for each file, always the same for the same source. Each is compiled into
a library of its own and tried in a fork of this process, which has imported torch once. Those that change nothing that anyone could notice
stand in EQUIVALENT, each with its reason.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch  # noqa: F401  imported here once, for every fork

from tests.emulator.build import CACHE, ROOT, build, driver
from tests.helpers import kernels

RULES = [
    ("barrier dropped", r"__sync(threads|warp)\([^)]*\);", r";"),
    ("bound one too far", r"(?<=\w) < (?=[\w.(])", r" <= "),
    ("plus to minus", r" \+ ", r" - "),
    ("minus to plus", r" - ", r" + "),
    ("times to plus", r"(?<=[\w)\]]) \* (?=[\w(])", r" + "),
    ("sum overwritten", r"^(?!\s*for\b)(.*) \+= ", r"\1 = "),
    ("operands swapped", r"\b([\w.]+(?:\[\w+\])?) ([-/]) ([\w.]+(?:\[\w+\])?)(?=[;)\s])", r"\3 \2 \1"),
    ("term removed", r"(?<=[\w)\]]) [+-] [\w.]+(\[\w+\])?(?=[;)])", r""),
    ("constant", r"\b0\.f\b", r"1.f"),
    ("constant", r"\b1\.f\b", r"2.f"),
    ("wrong index", r"\[(\w+) \+ i\]", r"[\1]"),
    ("wrong lane", r"threadIdx\.x % kWarp\b", r"threadIdx.x % (kWarp / 2)"),
    ("wrong lane", r"\bkWarp / 2\b", r"kWarp / 4"),
    ("wrong mask", r"\bkAllLanes\b", r"(kAllLanes >> 1)"),
    ("wrong thread", r"threadIdx\.x == 0", r"threadIdx.x == 1"),
    ("condition", r" == ", r" != "),
    ("condition", r" && ", r" || "),
    ("branches swapped", r"\? ([^?:]+) : ([^?:;,]+)(?=[;,])", r"? \2 : \1"),
    ("wrong block", r"\bblockIdx\.x\b", r"(blockIdx.x + 1)"),
]
"""name, what in a line, what instead. A line of a __global__ or __device__ function; one place at a time."""
EACH = 12
"""Mutants of one file."""
QUICK = 10
SHARED = {"reduce.cuh": ("norm",)}
"""Header of csrc/cuda -> whose tests try it. Others: every op that includes it, one after the other."""
SECONDS = 300
"""For the tests of one mutant on a machine that is busy; one that takes longer hangs, and is noticed."""
UNCHANGED = "unchanged"
"""The rule of what is no mutant: the kernels as they are must pass."""
WIDE = "50257 or very_wide"

# (file, what the line has become) -> why no test could see it.
EQUIVALENT: dict[tuple[str, str], str] = {
    ("norm.cu", "if (threadIdx.x == 1) {"): "every thread of the block has the row's statistics; any one may store them",
    ("gae.cu", "for (int distance = 1; distance <= kWarp; distance *= 2) {"): "no lane has another one 32 lanes behind it",
    (
        "masked_softmax.cu",
        "for (int i = 0; i <= N; ++i) total += seen >> i & 1 ? to_float(g.v[i]) * to_float(y.v[i]) : 0.f;",
    ): "bit N of what is seen is never set",
    (
        "columns.cuh",
        "return {part, part * part_rows + threadIdx.y, end <= rows ? end : rows, (blockIdx.x % tiles * kWarp + threadIdx.x) * N};",
    ): "end and rows are the same there",
    (
        "ppo_loss.cu",
        "if (threadIdx.x == 1) partial[blockIdx.x * L::kSums + s] = total;",
    ): "every thread of the block has the sum; any one may store it",
    ("ppo_loss.cu", "sums[2] += fabsf(1.f - ratio) * shown;"): "a magnitude has no sign",
    (
        "adamw.cu",
        "const int64_t whole = batch.wide[i] ? end - (end + begin) % M : begin;",
    ): "chunks begin at multiples of M",
}


@dataclass(frozen=True)
class Mutant:
    ops: tuple[str, ...]  # whose kernels it breaks
    file: str  # of csrc/cuda
    line: int
    rule: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.rule}: {self.before.strip()}  ->  {self.after.strip()}"

    @property
    def equivalent(self) -> str | None:
        return EQUIVALENT.get((self.file, self.after.strip()))


# ---------------------------------------------------------------- making them


def device_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines of functions for the device, without comments; numbers count from 1."""
    depth, inside = 0, False
    for number, line in enumerate(text.splitlines(), 1):
        code = re.sub(r"\s*//.*", "", line)
        if not inside and re.search(r"\b__(global|device)__\b", code):
            inside, depth = True, 0
        if not inside:
            continue
        depth += code.count("{") - code.count("}")
        head = code.rstrip().endswith("{") and not re.search(r"\b(for|if|else|while)\b", code)  # of a function: nothing to break
        if not head and code.strip() not in ("", "}"):
            yield number, code
        if depth == 0 and ("}" in code or ";" in code):
            inside = False


def mutants_of(file: str, ops: tuple[str, ...]) -> list[Mutant]:
    found: dict[str, list[Mutant]] = {}
    for number, code in device_lines((ROOT / "csrc/cuda" / file).read_text()):
        if re.match(r"\s*(#|template|static|constexpr|if constexpr|SHARED|DYNAMIC_SHARED|using)", code):
            continue
        for rule, pattern, replacement in RULES:
            for match in re.finditer(pattern, code):
                after = code[: match.start()] + match.expand(replacement) + code[match.end() :]
                found.setdefault(rule, []).append(Mutant(ops, file, number, rule, code, after))
    for rule, mutants in found.items():
        random.Random(file + rule).shuffle(mutants)
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*found.values()))
    return list(itertools.islice(filter(None, in_turn), EACH))


def all_mutants() -> list[Mutant]:
    """The files take turns, so that the first ones are of every op."""
    folder = ROOT / "csrc/cuda"
    ops = sorted(path.stem for path in folder.glob("*.cu"))
    subjects = [(f"{op}.cu", (op,)) for op in ops]
    for header in sorted(path.name for path in folder.glob("*.cuh")):
        users = tuple(op for op in ops if f'"cuda/{header}"' in (folder / f"{op}.cu").read_text())
        if users and mutants_of(header, users):
            subjects.append((header, SHARED.get(header, users)))
    return [mutant for turn in itertools.zip_longest(*(mutants_of(*subject) for subject in subjects)) for mutant in turn if mutant]


# ---------------------------------------------------------------- trying them


def verdict(mutant: Mutant, number: int) -> str:
    """What noticed it, "" for nothing."""
    return next(filter(None, (verdict_of(op, mutant, number) for op in mutant.ops)), "")


def verdict_of(op: str, mutant: Mutant, number: int) -> str:
    """The same for the kernels of one op."""
    if mutant.rule == UNCHANGED:
        return "" if tests_pass(kernels.build(), op, f"not fused and not ({WIDE})") else "tests"
    name, overlay = f"mutant-{number}-{op}", CACHE / f"mutants/{number}"
    (overlay / "cuda").mkdir(parents=True, exist_ok=True)
    lines = (ROOT / "csrc/cuda" / mutant.file).read_text().splitlines()
    lines[mutant.line - 1] = mutant.after
    (overlay / "cuda" / mutant.file).write_text("\n".join(lines) + "\n")
    kernel = f"{op}.cu"
    source = (overlay if mutant.file == kernel else ROOT / "csrc") / "cuda" / kernel
    broken = {"replace": {kernel: source}, "name": name, "overlay": overlay}
    try:
        library = build(**broken)
    except RuntimeError:
        return "compiler"
    if not tests_pass(library, op, f"not fused and not ({WIDE})"):
        return "tests"
    if not tests_pass(library, op, f"not fused and ({WIDE})"):
        return "tests, wide"
    for sanitizer in ("thread", "address") if mutant.rule == "barrier dropped" else ("address", "thread"):
        if subprocess.run([driver(sanitizer, **broken), op], capture_output=True, timeout=SECONDS).returncode:
            return f"{sanitizer} sanitizer"
    return ""


def tests_pass(library: Path, op: str, expression: str) -> bool:
    """Run in a fork, since a library cannot be taken back and a mutant may crash."""
    child = os.fork()
    if child == 0:
        kernels.build = lambda: library
        arguments = ["-c", str(ROOT / "tests/pytest.ini"), "--rootdir", str(ROOT), str(ROOT / f"tests/kernels/test_{op}.py")]
        arguments += ["-k", f"({expression}) and not opcheck and not gradcheck"]
        status = pytest.main([*arguments, "-x", "-q", "-p", "no:cacheprovider", "-p", "no:faulthandler"])
        os._exit(0 if status in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) else 1)
    return os.waitpid(child, 0)[1] == 0


def run(mutants: list[Mutant], at_once: int) -> dict[Mutant, str]:
    """Mutant -> what noticed it, "" for nothing."""
    folder = CACHE / "mutants"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    build()
    driver("address"), driver("thread")
    context, running, results = multiprocessing.get_context("fork"), {}, {}
    waiting = list(enumerate(mutants))
    while waiting or running:
        while waiting and len(running) < at_once:
            number, mutant = waiting.pop(0)
            process = context.Process(target=in_a_group, args=(mutant, number, folder / f"{number}.answer"))
            process.start()
            running[process] = mutant, number, time.monotonic()
        time.sleep(0.05)
        for process, (mutant, number, began) in list(running.items()):
            late = time.monotonic() - began > SECONDS
            if process.is_alive() and not late:
                continue
            if late:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)
            process.join()
            answer = folder / f"{number}.answer"
            results[mutant] = answer.read_text() if answer.exists() else "time" if late else "crash"
            del running[process]
            noticed = results[mutant] or ("passes" if mutant.rule == UNCHANGED else "equivalent" if mutant.equivalent else "SURVIVED")
            print(f"{noticed:18} {mutant}", flush=True)
            for name in [f"mutant-{number}-{op}" for op in mutant.ops]:
                for left in [CACHE / "library" / f"{name}.so", *(CACHE / kind / name for kind in ("address", "thread"))]:
                    left.unlink(missing_ok=True)
                    shutil.rmtree(left.with_name(left.name + ".d"), ignore_errors=True)
                    shutil.rmtree(left.with_name(f"{left.stem}.d"), ignore_errors=True)
    return results


def in_a_group(mutant: Mutant, number: int, answer: Path) -> None:
    os.setpgrp()  # what hangs is ended with all that it has started
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    answer.write_text(verdict(mutant, number))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"only the first {QUICK}")
    parser.add_argument("--op", help="only of this op")
    parser.add_argument("--list", action="store_true", help="say what would be tried")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at once")
    arguments = parser.parse_args()
    mutants = [mutant for mutant in all_mutants() if arguments.op in (None, *mutant.ops)]
    if arguments.quick:
        mutants = [mutant for mutant in mutants if not mutant.equivalent][:QUICK]
    if arguments.list:
        print(*(f"{mutant}{'   (equivalent)' if mutant.equivalent else ''}" for mutant in mutants), sep="\n")
        return 0
    as_they_are = [Mutant((op,), f"{op}.cu", 0, UNCHANGED, "", "") for op in dict.fromkeys(op for mutant in mutants for op in mutant.ops)]
    results = run([*as_they_are, *mutants], arguments.jobs)
    if failed := [mutant.ops[0] for mutant in as_they_are if results.pop(mutant)]:
        print(f"the tests of {', '.join(failed)} fail on the kernels as they are")
        return 1
    valid = [mutant for mutant, noticed in results.items() if noticed != "compiler" and (noticed or not mutant.equivalent)]
    caught = [mutant for mutant in valid if results[mutant]]
    print(f"{len(caught)} of {len(valid)} caught; {len(results) - len(valid)} equivalent or not compiled")
    return 0 if len(caught) >= 0.95 * len(valid) and not (arguments.quick and len(caught) < len(valid)) else 1


if __name__ == "__main__":
    sys.exit(main())
