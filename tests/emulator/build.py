"""Builds what runs the CUDA kernels on a CPU, with g++ and ninja; objects stay in build/emulator and are made again where their sources changed.

    build()              libemulated.so: the operators of csrc/ops over the kernels, for torch.ops.megagpt_emulated
    driver("thread")     a program that makes the calls of cases/*.cpp, under one of SANITIZERS: no torch, no Python
    planted("thread")    the same program for the kernels of planted/*.cu

Mutants of kernels (tests/kernels/mutation.py): `replace={"norm.cu": path}` compiles another file in a kernel's place, `overlay` is a folder
whose headers come before those of csrc, and `name` keeps the outcome apart.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build/emulator"
HERE = Path(__file__).resolve().parent
FLAGS = [
    "-std=c++20", "-fPIC", "-mfma", "-mf16c", "-ffp-contract=off", "-fno-strict-aliasing", "-Wno-attributes", "-Wno-psabi",
    "-DMEGAGPT_EMULATED", f"-ffile-prefix-map={ROOT}/=", "-DMEGAGPT_LIBRARY=megagpt_emulated", f"-I{ROOT / 'csrc'}", f"-I{HERE}",
]  # fmt: skip
SANITIZERS = {
    "plain": ["-O1", "-g"],
    "address": ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-g", "-fsanitize=thread"],
}
"""What a driver is compiled with. "address" finds undefined behaviour as well."""


def build(replace: dict[str, Path] | None = None, name: str = "libemulated", overlay: Path | None = None) -> Path:
    """The shared library of the operators.

    Args:
        replace: file of csrc/cuda -> what to compile instead.
        name: of the library; one that replaces something needs a name of its own.
        overlay: folder of header files for what is replaced.

    Raises:
        RuntimeError: with the compiler's output.
    """
    from torch.utils.cpp_extension import include_paths, library_paths

    flags = ["-O1" if replace else "-O2", *(f"-isystem{path}" for path in include_paths())]
    link = ["-shared", *(f"-L{path}" for path in library_paths()), "-lc10", "-ltorch_cpu"]
    sources = [*_sources("csrc/ops/*.cpp"), *_sources("csrc/cuda/*.cu"), HERE / "control.cpp"]
    return _make(CACHE / "library", f"{name}.so", sources, flags, link, replace, overlay)


def driver(sanitizer: str, replace: dict[str, Path] | None = None, name: str = "driver", overlay: Path | None = None) -> Path:
    """The program `driver OP [SCHEDULE ...]`; arguments as of build()."""
    sources = [HERE / "driver.cpp", *_sources("tests/emulator/cases/*.cpp"), *_sources("csrc/cuda/*.cu")]
    return _make(CACHE / sanitizer, name, sources, SANITIZERS[sanitizer], SANITIZERS[sanitizer], replace, overlay)


def planted(sanitizer: str) -> Path:
    """The program `planted NAME [SCHEDULE ...]`."""
    sources = [HERE / "driver.cpp", *_sources("tests/emulator/planted/*.cu")]
    return _make(CACHE / sanitizer, "planted", sources, SANITIZERS[sanitizer], SANITIZERS[sanitizer])


def cuda_headers() -> Path:
    """NVIDIA's header files, from the packages of the test pins; the 16-bit types among them round on a CPU as on the device."""
    found = sorted(Path(sys.prefix).glob("lib/python*/site-packages/nvidia/cu13/include/cuda_fp16.h"))
    if not found:
        raise FileNotFoundError("the headers of nvidia-cuda-runtime are not installed; bash launch/setup.sh installs them")
    return found[0].parent


def _sources(pattern: str) -> list[Path]:
    return sorted(ROOT.glob(pattern))


def _make(folder: Path, name: str, sources: list[Path], flags: list[str], link: list[str], replace=None, overlay=None) -> Path:
    """Compile and link. What is replaced, and its ninja log, go to a folder of their own, so that mutants can be built side by side."""
    objects = {source: folder / f"{source.parent.name}-{source.stem}.o" for source in sources}
    flags = [*FLAGS, f"-isystem{cuda_headers()}", *flags]
    if not replace:
        return _ninja(folder, folder / name, objects, [], flags, link)
    own = folder / f"{name}.d"
    kept = [object_file for source, object_file in objects.items() if source.name not in replace]
    changed = {path: own / f"{Path(source).stem}.o" for source, path in replace.items()}
    return _ninja(own, folder / name, changed, kept, [*([f"-I{overlay}"] if overlay else []), *flags], link)


def _ninja(folder: Path, target: Path, compiled: dict[Path, Path], kept: list[Path], flags: list[str], link: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"builddir = {folder}",
        f"rule compile\n  command = c++ {' '.join(flags)} -MMD -MF $out.d -x c++ -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = c++ $in {' '.join(link)} -o $out",
        *(f"build {object_file}: compile {source}" for source, object_file in compiled.items()),
        f"build {target}: link {' '.join(map(str, [*compiled.values(), *kept]))}",
    ]
    with (folder / "lock").open("w") as lock:  # two runs of the tests may build at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        plan = folder / f"{target.name}.ninja"
        plan.write_text("\n".join(lines) + "\n")
        run = subprocess.run(["ninja", "-f", str(plan), str(target)], capture_output=True, text=True, env=os.environ | {"NINJA_STATUS": ""})
    if run.returncode:
        raise RuntimeError(f"the emulated kernels do not compile:\n{run.stdout}{run.stderr}")
    return target


if __name__ == "__main__":
    print(build())
    print(*(make(sanitizer) for make in (driver, planted) for sanitizer in SANITIZERS), sep="\n")
