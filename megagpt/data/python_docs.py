"""The corpus that is on every machine: the Python installation that runs this.

Standard-library sources (with the docstrings in them) and the language reference inside `pydoc_data` are documents;
documented public functions are what the questions are about (`synthetic.py`). Files are parsed, never imported.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import sysconfig
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from megagpt.data.errors import DataError
from megagpt.data.records import Document

SOURCE = "python-docs"
LICENCE = "PSF-2.0"

SKIPPED = frozenset(
    {
        "__phello__",
        "__pycache__",
        "dist-packages",
        "distutils",  # gone from later versions, and packaged apart by some distributions, as are lib2to3 and tkinter
        "encodings",  # tables of characters
        "ensurepip",
        "idlelib",
        "lib2to3",
        "pydoc_data",  # read as what it holds, the language reference
        "site-packages",
        "test",
        "tests",
        "tkinter",
        "turtledemo",
    }
)
"""Folders of the standard library that are left out."""


@dataclass(frozen=True, slots=True)
class Module:
    """A parsed source file."""

    name: str
    """Dotted name."""
    text: str
    tree: ast.Module


@dataclass(frozen=True, slots=True)
class Function:
    """A documented public function or method."""

    module: str
    """Dotted name."""
    name: str
    """Name inside the module: `copyfile`, `Popen.wait`."""
    signature: str
    """`(src, dst, *, follow_symlinks=True)`: no annotations, no `self`."""
    docstring: str
    """With its indentation removed."""


def read_modules(folder: Path | None = None, dropped: Counter[str] | None = None) -> list[Module]:
    """Parse the sources of a standard library, in order of their names.

    Args:
        folder: default: the library of the running Python.
        dropped: gets the number of files that could not be read or parsed.

    Raises:
        DataError: there are no sources (as in installations that keep only compiled files).
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    dropped = Counter() if dropped is None else dropped
    modules = []
    for path in sorted(_source_files(folder)):
        parts = list(path.relative_to(folder).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        try:
            text = importlib.util.decode_source(path.read_bytes())
            modules.append(Module(".".join(parts), text, ast.parse(text)))
        except (OSError, SyntaxError, UnicodeDecodeError):
            dropped["unreadable source"] += 1
    if not modules:
        raise DataError(folder, "holds no standard-library sources")
    return modules


def _source_files(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.is_dir():
            if entry.name not in SKIPPED and not entry.name.startswith("config-"):
                yield from _source_files(entry)
        elif entry.suffix == ".py":
            yield entry


def read_reference(folder: Path | None = None) -> dict[str, str]:
    """Topic -> text of the language reference; empty where the installation has none."""
    path = (folder or Path(sysconfig.get_path("stdlib"))) / "pydoc_data" / "topics.py"
    if not path.is_file():
        return {}
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return ast.literal_eval(node.value)
    return {}


def find_functions(module: Module) -> Iterator[Function]:
    """Documented public functions of a public module, and methods of its public classes, in order."""
    if any(part.startswith("_") for part in module.name.split(".")):
        return
    yield from _functions(module.tree.body, module.name, "")


def _functions(body: list[ast.stmt], module: str, prefix: str) -> Iterator[Function]:
    for node in body:
        if isinstance(node, ast.If | ast.Try):  # definitions that depend on the platform
            yield from _functions(node.body, module, prefix)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            yield from _functions(node.body, module, f"{prefix}{node.name}.")
            continue
        decorators = {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
        docstring = ast.get_docstring(node)
        if docstring and not decorators & {"property", "cached_property", "setter", "overload"}:
            bound = bool(prefix) and "staticmethod" not in decorators
            yield Function(module, prefix + node.name, _signature(node.args, bound), docstring)


def _signature(arguments: ast.arguments, bound: bool) -> str:
    def plain(argument: ast.arg | None) -> ast.arg | None:
        return argument and ast.arg(argument.arg)

    positional = [plain(argument) for argument in arguments.posonlyargs], [plain(a) for a in arguments.args]
    if bound:
        (positional[0] or positional[1] or [None]).pop(0)
    return (
        "("
        + ast.unparse(
            ast.arguments(
                posonlyargs=positional[0],
                args=positional[1],
                vararg=plain(arguments.vararg),
                kwonlyargs=[plain(argument) for argument in arguments.kwonlyargs],
                kw_defaults=arguments.kw_defaults,
                kwarg=plain(arguments.kwarg),
                defaults=arguments.defaults,
            )
        )
        + ")"
    )


def to_documents(modules: list[Module], held_out: Collection[str]) -> Iterator[Document]:
    """The language reference by topic, then the sources.

    Args:
        held_out: docstrings (with their indentation removed) that must not be in any document: each definition that
            carries one of them has `...` in its place.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for topic, text in sorted(read_reference().items()):
        yield Document(f"reference/{topic}", text, SOURCE, licence=LICENCE, meta={"python": version})
    for module in modules:
        text = _without_docstrings(module, held_out)
        yield Document(f"source/{module.name}", text, SOURCE, licence=LICENCE, meta={"python": version})


def _without_docstrings(module: Module, held_out: Collection[str]) -> str:
    lines = module.text.encode().splitlines(keepends=True)  # columns of the tree are in bytes
    spans = [
        node.body[0]
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module)
        and ast.get_docstring(node) in held_out
    ]
    for span in sorted(spans, key=lambda node: node.lineno, reverse=True):
        first, last = span.lineno - 1, span.end_lineno - 1
        lines[first : last + 1] = [lines[first][: span.col_offset] + b"..." + lines[last][span.end_col_offset :]]
    return b"".join(lines).decode()
