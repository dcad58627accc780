"""megagpt._C as built: safe on an older CPU than the one it was built on, right for every instruction set, and made from a source distribution."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulator.build import ROOT

SECONDS = 600
AVX = re.compile(r"\t(v(?!err|erw|mcall|mxoff)\w+)|%[yz]mm")
"""Instructions that an x86-64 without AVX does not know: their names begin with v, their vectors are ymm and zmm."""


def functions() -> dict[str, tuple[str, str]]:
    """Function of megagpt._C -> kind of symbol (as of nm), machine code."""
    library = importlib.util.find_spec("megagpt._C").origin

    def output(*command: str) -> str:
        return subprocess.run([*command, library], capture_output=True, text=True, check=True).stdout

    kinds = {name: kind for kind, name in re.findall(r"^\w+ (\w) (.+)$", output("nm", "--defined-only"), re.MULTILINE)}
    code = re.split(r"^\w+ <(.+)>:$", output("objdump", "-d", "--no-show-raw-insn"), flags=re.MULTILINE)[1:]
    return {name: (kinds.get(name, "?"), text) for name, text in zip(code[::2], code[1::2], strict=True)}


def test_functions_that_libraries_share_hold_no_vector_code():
    """The linker keeps one of several weak copies: were it that of the AVX-512 file, everybody would call it, on any CPU."""
    found = functions()
    assert any(kind in "tT" and AVX.search(code) for kind, code in found.values()), "objdump shows no vector code at all"
    weak = {name: code for name, (kind, code) in found.items() if kind in "WVuwv"}
    assert weak
    guilty = {name: match.group().strip() for name, code in weak.items() if (match := AVX.search(code))}
    assert not guilty


@pytest.mark.parametrize("capability, seen", [("default", "DEFAULT"), ("avx2", "AVX2")])
def test_kernels_are_right_for_every_instruction_set(capability, seen):
    """The tests of the error budget, once more; that of this CPU has had them already."""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    ask = [sys.executable, "-c", "import torch; print(torch.backends.cpu.get_cpu_capability())"]
    assert subprocess.run(ask, env=environment, capture_output=True, text=True, check=True).stdout.strip() == seen
    files = [f"tests/kernels/test_{path.stem}.py" for path in sorted((ROOT / "csrc/ops").glob("*.cpp"))]
    tests = ["-c", "tests/pytest.ini", "--rootdir", ".", *files, "-q", "-x", "-p", "no:cacheprovider", "-k", "fused and budget and not 50257"]
    result = subprocess.run([sys.executable, "-m", "pytest", *tests], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert result.returncode == 0 and re.search(r"\d+ passed", result.stdout), result.stdout[-3000:]


@pytest.mark.slow
def test_source_distribution_builds(tmp_path):
    """From the archive alone: the tracked files, packed, unpacked elsewhere by pip and compiled there."""
    tree, target = tmp_path / "tree", tmp_path / "target"
    tree.mkdir()
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "--null", "-T", "-", "-cf", tmp_path / "tree.tar"], cwd=ROOT, input=files, check=True)
    subprocess.run(["tar", "-xf", tmp_path / "tree.tar", "-C", tree], check=True)
    subprocess.run([sys.executable, "setup.py", "-q", "sdist"], cwd=tree, check=True, capture_output=True)
    (archive,) = Path(tree / "dist").glob("*.tar.gz")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", target, archive]
    subprocess.run(install, check=True, capture_output=True, cwd=tmp_path)
    ask = "import megagpt.kernels.select as s; print(s.__file__, s.extension_missing())"
    environment = os.environ | {"PYTHONPATH": str(target)}
    answer = subprocess.run([sys.executable, "-c", ask], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == [str(target / "megagpt/kernels/select.py"), "None"], answer.stdout + answer.stderr
