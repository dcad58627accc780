"""Builds libemulated.so: the operators of csrc/ops over the CUDA kernels of csrc/cuda, which the emulator runs on the CPU.

    library = build()                             # everything, for torch.ops.megagpt_emulated
    library = build(replace={"norm.cu": path})    # one kernel file taken from elsewhere: a mutant

Objects are kept in build/emulator and made again only where their sources changed (ninja).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build/emulator"
FLAGS = [
    "-std=c++20", "-O2", "-fPIC", "-mfma", "-mf16c", "-ffp-contract=off", "-fno-strict-aliasing", "-Wno-attributes", "-Wno-psabi",
    "-DMEGAGPT_EMULATED", "-DMEGAGPT_LIBRARY=megagpt_emulated",
]  # fmt: skip


def cuda_headers() -> Path:
    """NVIDIA's header files, from the packages of the test pins; the 16-bit types among them round on a CPU as on the device."""
    found = sorted(Path(sys.prefix).glob("lib/python*/site-packages/nvidia/cu13/include/cuda_fp16.h"))
    if not found:
        raise FileNotFoundError("the headers of nvidia-cuda-runtime are not installed; bash launch/setup.sh installs them")
    return found[0].parent


def build(replace: dict[str, Path] | None = None, name: str = "libemulated.so") -> Path:
    """Compile what has changed, and link.

    Args:
        replace: file of csrc/cuda -> what to compile instead.
        name: of the library; one that replaces something needs a name of its own.

    Raises:
        RuntimeError: with the compiler's output.
    """
    replace, folder = replace or {}, CACHE
    folder.mkdir(parents=True, exist_ok=True)
    kernels = {source: replace.get(source.name, source) for source in sorted((ROOT / "csrc/cuda").glob("*.cu"))}
    hosts = [*sorted((ROOT / "csrc/ops").glob("*.cpp")), ROOT / "tests/emulator/control.cpp"]
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/emulator'}", f"-isystem{cuda_headers()}"]
    includes += [f"-isystem{path}" for path in include_paths()]
    lines = [
        f"builddir = {folder}",
        f"cflags = {' '.join(FLAGS + includes)}",
        "rule compile\n  command = c++ $cflags -MMD -MF $out.d -x c++ -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = c++ -shared $in {' '.join(f'-L{path}' for path in library_paths())} -lc10 -ltorch_cpu -o $out",
    ]
    objects = []
    for source in [*hosts, *kernels.values()]:
        objects.append(folder / f"{source.parent.name}-{source.stem}.o")
        lines.append(f"build {objects[-1]}: compile {source}")
    library = folder / name
    lines.append(f"build {library}: link {' '.join(map(str, objects))}")
    plan = folder / f"{name}.ninja"
    plan.write_text("\n".join(lines) + "\n")
    run = subprocess.run(["ninja", "-f", str(plan), str(library)], capture_output=True, text=True, env=os.environ | {"NINJA_STATUS": ""})
    if run.returncode:
        raise RuntimeError(f"the emulated kernels do not compile:\n{run.stdout}{run.stderr}")
    return library


if __name__ == "__main__":
    print(build())
