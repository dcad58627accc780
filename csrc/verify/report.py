"""csrc/verify.sh: what the machine code of the CUDA kernels says about them, held against csrc/ceilings.yaml."""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml

from csrc.verify.calls import CALLS
from tests.emulator.build import cuda_headers

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build/verify"
ARCHITECTURES = (80, 90)
FLAGS = ["-std=c++20", "-O3", "-lineinfo", "--expt-relaxed-constexpr", "--extended-lambda", f"-I{ROOT / 'csrc'}"]
"""As setup.py compiles them."""
DTYPES = {torch.float32: "float", torch.float16: "__half", torch.bfloat16: "__nv_bfloat16"}
EMULATED_SHAPE = (16, 4096)
"""Rows and width of the reference calls where the emulator runs them …"""
DEVICE_SHAPE = (16384, 4096)
"""… and on a GPU."""
NO_GPU = 77
"""Exit status of --device where there is none."""


@dataclass
class Kernel:
    op: str
    name: str  # without namespaces: norm_forward_kernel<float, 4, true>
    architecture: int
    registers: int
    spills: int  # bytes
    static_shared: int  # bytes
    threads: int | None = None  # of a block, from __launch_bounds__
    dynamic_shared: int | None = None  # bytes in the reference call; None where that does not launch it
    accesses: Counter = field(default_factory=Counter)  # LDG 128, LDG, STG 128, STG, LDL, STL in the machine code
    occupancy: int = 0  # percent

    @property
    def scalar(self) -> bool:
        """Whether it is the variant for rows that cannot be read 16 bytes at a time: its first number among the template's arguments is 1."""
        numbers = re.findall(r"[<,] ?(\d+)(?=[,>])", self.name)
        return bool(numbers) and numbers[0] == "1"

    @property
    def dtype(self) -> str:
        return next((dtype for dtype, name in (("bf16", "__nv_bfloat16"), ("f16", "__half"), ("f32", "float")) if name in self.name), "-")


# ---------------------------------------------------------------- tools


def tool(name: str) -> str:
    """A program of CUDA_HOME, else of the test pins, else of the path."""
    places = [Path(os.environ["CUDA_HOME"]) / "bin"] if os.environ.get("CUDA_HOME") else []
    found = next((place / name for place in [*places, cuda_headers().parent / "bin"] if (place / name).is_file()), None) or shutil.which(name)
    if not found:
        raise SystemExit(f"verify: no {name}; set CUDA_HOME, or bash launch/setup.sh installs it")
    return str(found)


def compile_kernels(ops: list[str]) -> None:
    """For each op and architecture: build/verify/OP.sm_NN.{cubin,ptxas,sass,elf}, where sources have changed."""
    CACHE.mkdir(parents=True, exist_ok=True)
    nvcc, cuobjdump = tool("nvcc"), tool("cuobjdump")
    lines = [
        f"builddir = {CACHE}",
        f"rule nvcc\n  command = {nvcc} {' '.join(FLAGS)} -arch=$arch -cubin -Xptxas -v -MD -MF $out.d $in -o $out > $log 2>&1 || (cat $log; false)"
        "\n  depfile = $out.d\n  deps = gcc",
        f"rule dump\n  command = {cuobjdump} $what $in > $out",
    ]
    for op in ops:
        for architecture in ARCHITECTURES:
            name = CACHE / f"{op}.sm_{architecture}"
            lines.append(f"build {name}.cubin: nvcc {ROOT / 'csrc/cuda' / op}.cu\n  arch = sm_{architecture}\n  log = {name}.ptxas")
            lines += [f"build {name}.{kind}: dump {name}.cubin\n  what = -{kind}" for kind in ("sass", "elf")]
    (CACHE / "build.ninja").write_text("\n".join(lines) + "\n")
    run = subprocess.run(["ninja", "-C", str(CACHE)], capture_output=True, text=True, env=os.environ | {"NINJA_STATUS": ""})
    if run.returncode:
        raise SystemExit(f"verify: the kernels do not compile\n{run.stdout}{run.stderr}")


def demangle(text: str) -> str:
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout


def short_name(demangled: str) -> str:
    """As tests/emulator/emulator.h names a kernel."""
    text = re.sub(r"megagpt::|cuda::|\(anonymous namespace\)::", "", demangled).removeprefix("void ")
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return text[:at]
    return text


# ---------------------------------------------------------------- reading


def read_kernels(op: str, architecture: int) -> list[Kernel]:
    name = CACHE / f"{op}.sm_{architecture}"
    kernels = {}
    blocks = demangle(Path(f"{name}.ptxas").read_text()).split("Compiling entry function '")[1:]
    for block in blocks:
        number = {key: int(match.group(1)) if (match := re.search(pattern, block)) else 0 for key, pattern in PTXAS.items()}
        short = short_name(block[: block.index("' for 'sm_")])
        kernels[short] = Kernel(op, short, architecture, number["registers"], number["stores"] + number["loads"], number["shared"])
    # Machine code.
    current = None
    for line in demangle(Path(f"{name}.sass").read_text()).splitlines():
        if match := re.match(r"\s*Function : (.+)", line):
            current = kernels[short_name(match.group(1))]
        elif match := re.search(r"\s(?:@!?\w+\s+)?(LDG|STG|LDL|STL)(\.[\w.]+)?\s", line):
            access = match.group(1) + (" 128" if ".128" in (match.group(2) or "") else "")
            current.accesses[access] += 1
    # Threads of a block.
    for section in re.split(r"^\.nv\.info\.", Path(f"{name}.elf").read_text(), flags=re.MULTILINE)[1:]:
        if match := re.search(r"EIATTR_MAX_THREADS\s+Format:\s+\w+\s+Value:\s+(0x\w+) (0x\w+) (0x\w+)", section):
            x, y, z = (int(value, 16) for value in match.groups())
            kernels[short_name(demangle(section.split()[0]).strip())].threads = x * y * z
    return list(kernels.values())


PTXAS = {
    "registers": r"Used (\d+) registers",
    "stores": r"(\d+) bytes spill stores",
    "loads": r"(\d+) bytes spill loads",
    "shared": r"(\d+) bytes smem",
}


def measure_calls(op: str) -> tuple[dict[str, tuple[int, int]], dict[str, float]]:
    """The reference call in the emulator.

    Returns:
        kernel -> threads of a block and bytes of dynamic shared memory, and storage type -> bytes moved over the minimum.
    """
    from tests.helpers.kernels import bytes_moved, emulator, geometry

    launches, traffic = {}, {}
    for each in filter(CALLS.__contains__, all_ops()):
        importlib.import_module(f"megagpt.kernels.{each}")  # before the emulated library is loaded, which then gets their gradients
    emulator()
    for dtype, name in DTYPES.items():
        work, minimum = CALLS[op](*EMULATED_SHAPE, dtype, "cpu")
        traffic[name] = bytes_moved(work) / minimum
        launches |= geometry()
    return launches, traffic


def add_occupancy(kernels: list[Kernel]) -> None:
    program = CACHE / "occupancy"
    source = Path(__file__).with_name("occupancy.cpp")
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["c++", "-O1", f"-isystem{cuda_headers()}", str(source), "-o", str(program)], check=True)
    lines = "".join(f"{k.architecture} {k.registers} {k.threads or 1024} {k.static_shared + (k.dynamic_shared or 0)}\n" for k in kernels)
    answers = subprocess.run([str(program)], input=lines, capture_output=True, text=True, check=True).stdout.split()
    for kernel, answer in zip(kernels, answers, strict=True):
        kernel.occupancy = int(answer)


# ---------------------------------------------------------------- ceilings


def read_ceilings(path: Path) -> dict:
    ceilings = yaml.safe_load(path.read_text())
    names = {"registers", "spills", "occupancy", "local", "wide_loads", "wide_stores", "narrow", "traffic"}
    if ceilings.keys() != {"every", "exceptions"} or ceilings["every"].keys() != names:
        raise SystemExit(f"{path}: it must hold 'every' with {', '.join(sorted(names))}, and 'exceptions'")
    for exception in ceilings["exceptions"]:
        if "reason" not in exception or not {"kernel", "op"} & exception.keys() or exception.keys() - names - {"kernel", "op", "reason"}:
            raise SystemExit(f"{path}: {exception} must name a kernel (or, for traffic, an op), ceilings and a reason")
    return ceilings


def ceilings_for(ceilings: dict, key: str, name: str) -> dict:
    result = dict(ceilings["every"])
    for exception in ceilings["exceptions"]:
        if key in exception and fnmatch.fnmatchcase(name, exception[key]):
            exception["matched"] = True
            result |= exception
    return result


def violations(kernels: list[Kernel], traffic: dict[tuple[str, str], float], ceilings: dict) -> list[str]:
    said = []
    for k in kernels:
        limit, who = ceilings_for(ceilings, "kernel", k.name), f"{k.name} on sm_{k.architecture}"
        most = {"registers": k.registers, "spills": k.spills, "local": k.accesses["LDL"] + k.accesses["STL"]}
        if not k.scalar:
            most["narrow"] = k.accesses["LDG"] + k.accesses["STG"]
            wide = {"wide_loads": k.accesses["LDG 128"], "wide_stores": k.accesses["STG 128"]}
            said += [f"{who}: {name} {value}, at least {limit[name]}" for name, value in wide.items() if value < limit[name]]
        said += [f"{who}: {name} {value}, at most {limit[name]}" for name, value in most.items() if value > limit[name]]
        if k.threads is None:
            said.append(f"{who}: no __launch_bounds__")
        if k.occupancy < limit["occupancy"]:
            said.append(f"{who}: occupancy {k.occupancy} %, at least {limit['occupancy']} %")
    for (op, dtype), ratio in traffic.items():
        limit = ceilings_for(ceilings, "op", op)["traffic"]
        if ratio > limit:
            said.append(f"{op} in {dtype}: moves {ratio:.3f} times the fewest bytes, at most {limit}")
    return said


# ---------------------------------------------------------------- the two commands


def report(ops: list[str], path: Path) -> int:
    ceilings, said, traffic, kernels = read_ceilings(path), [], {}, []
    compile_kernels(ops)
    for op in ops:
        launches = {}
        if op in CALLS:
            launches, ratios = measure_calls(op)
            traffic |= {(op, dtype): ratio for dtype, ratio in ratios.items()}
        else:
            said.append(f"{op}: no reference call in csrc/verify/calls.py")
        found = [kernel for architecture in ARCHITECTURES for kernel in read_kernels(op, architecture)]
        for kernel in found:
            threads, kernel.dynamic_shared = launches.get(kernel.name, (None, None))
            if threads is not None and kernel.threads is not None and threads > kernel.threads:
                said.append(f"{kernel.name}: launched with {threads} threads, __launch_bounds__ says {kernel.threads}")
        if missing := launches.keys() - {kernel.name for kernel in found}:
            said.append(f"{op}: launches {', '.join(sorted(missing))}, not found in the machine code")
        kernels += found
    add_occupancy(kernels)
    width = max(len(kernel.name) for kernel in kernels)
    print(f"{'kernel':{width}} dtype   sm  registers spills threads   shared occupancy  128-bit loads/stores  narrower  local")
    for k in kernels:
        shared = f"{k.static_shared}+{'?' if k.dynamic_shared is None else k.dynamic_shared}"
        print(
            f"{k.name:{width}} {k.dtype:>5} {k.architecture:5} {k.registers:10} {k.spills:6} {k.threads or '-':7} {shared:>9} {k.occupancy:7} %"
            f" {k.accesses['LDG 128']:14}/{k.accesses['STG 128']:<8}{k.accesses['LDG']:4}/{k.accesses['STG']:<4}"
            f" {k.accesses['LDL'] + k.accesses['STL']:5}"
        )
    print("\nshared: bytes, static + dynamic in the reference call (?: it takes another kernel). Bytes moved over the fewest:")
    for op in ops:
        if op in CALLS:
            print(f"  {op:20}" + "  ".join(f"{dtype} {traffic[op, dtype]:.3f}" for dtype in DTYPES.values()))
    said += violations(kernels, traffic, ceilings)
    if ops == all_ops():
        said += [f"{path.name}: the exception for {e.get('kernel') or e['op']} matches nothing" for e in ceilings["exceptions"] if "matched" not in e]
    print("\n" + ("\n".join(f"CEILING {line}" for line in said) or f"{len(kernels)} kernels within their ceilings"))
    return 1 if said else 0


def on_device(ops: list[str]) -> int:
    """The tests through the CUDA build, then bytes a second against those of a copy."""
    if not torch.cuda.is_available():
        print(f"verify --device: no GPU here (torch {torch.__version__}); nothing was run")
        return NO_GPU
    subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ROOT, env=os.environ | {"MEGAGPT_CUDA": "1"}, check=True)
    tests = [sys.executable, "-m", "pytest", "-c", "tests/pytest.ini", "--rootdir", ".", "tests/kernels", "-m", "gpu", "-q"]
    status = subprocess.run(tests, cwd=ROOT).returncode
    copied = torch.empty(2**28, device="cuda")
    target = torch.empty_like(copied)
    copy = 2 * copied.nbytes / seconds(lambda: target.copy_(copied)) / 1e9
    print(f"{torch.cuda.get_device_name()}: a copy moves {copy:.0f} GB/s")
    for op in filter(CALLS.__contains__, ops):
        for dtype, name in DTYPES.items():
            work, minimum = CALLS[op](*DEVICE_SHAPE, dtype, "cuda")
            achieved = minimum / seconds(work) / 1e9
            print(f"  {op:20} {name:14} {achieved:6.0f} GB/s, {achieved / copy:.0%} of the copy")
    return status


def seconds(work) -> float:
    """Of one call: median of nine timings of ten calls in a row, by the GPU's clock, so that it does not wait for Python."""
    begin, end, taken = *(torch.cuda.Event(enable_timing=True) for _ in range(2)), []
    for _ in range(10):
        begin.record()
        for _ in range(10):
            work()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) / 1e4)
    return sorted(taken[1:])[4]


def all_ops() -> list[str]:
    return sorted(path.stem for path in (ROOT / "csrc/cuda").glob("*.cu"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="csrc/verify.sh", description=__doc__)
    parser.add_argument("--op", action="append", choices=all_ops(), help="only this one; may be given again")
    parser.add_argument("--ceilings", type=Path, default=ROOT / "csrc/ceilings.yaml")
    parser.add_argument("--device", action="store_true", help="run on a GPU")
    arguments = parser.parse_args()
    ops = arguments.op or all_ops()
    return on_device(ops) if arguments.device else report(ops, arguments.ceilings)


if __name__ == "__main__":
    sys.exit(main())
