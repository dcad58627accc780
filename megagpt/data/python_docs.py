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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from megagpt.data.errors import DataError
from megagpt.data.records import Document

SOURCE = "python-docs"
LICENCE = "PSF-2.0"

SKIPPED = frozenset(
    {
        "__phello__",
        "__pycache__",
        "dist-packages",
        "encodings",  # tables of characters
        "ensurepip",
        "idlelib",
        "lib2to3",
        "pydoc_data",  # read as what it holds, the language reference
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    }
)
"""Folders of the standard library that are left out."""
MAX_SOURCE_CHARACTERS = 40_000
"""Longer sources are no documents (their functions are still asked about): a few giants would be half the corpus."""


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


@dataclass(frozen=True, slots=True)
class Docstring:
    """Where a docstring stands in its source: lines from 0, columns in bytes."""

    text: str
    """With its indentation removed."""
    first_line: int
    first_column: int
    last_line: int
    end_column: int


@dataclass(frozen=True, slots=True)
class Module:
    """What is used of a source file. Its syntax tree is not kept: hundreds of them would be a million objects."""

    name: str
    """Dotted name."""
    text: str
    docstrings: tuple[Docstring, ...]
    """Of the module and all definitions in it, in order."""
    functions: tuple[Function, ...]
    """Documented public functions, if the module is public, and methods of its public classes, in order."""


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
    for path in tqdm(sorted(_source_files(folder)), desc="reading sources", unit="file", disable=None):
        parts = list(path.relative_to(folder).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        try:
            text = importlib.util.decode_source(path.read_bytes())
            tree = ast.parse(text)
        except (OSError, SyntaxError, UnicodeDecodeError):
            dropped["unreadable source"] += 1
            continue
        public = not any(part.startswith("_") for part in parts)
        functions = tuple(_functions(tree.body, ".".join(parts))) if public else ()
        modules.append(Module(".".join(parts), text, tuple(_docstrings(tree)), functions))
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


def _docstrings(node: ast.AST) -> Iterator[Docstring]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            first = node.body[0]
            yield Docstring(text, first.lineno - 1, first.col_offset, first.end_lineno - 1, first.end_col_offset)
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):  # definitions are statements inside statements
            yield from _docstrings(child)


def _functions(body: list[ast.stmt], module: str, prefix: str = "") -> Iterator[Function]:
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


def to_documents(modules: list[Module], is_held_out: Callable[[str], bool]) -> Iterator[Document]:
    """The language reference by topic, then the sources of at most MAX_SOURCE_CHARACTERS.

    Args:
        is_held_out: whether a docstring (with its indentation removed) must not be in any document; it is then
            replaced by `...`.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for topic, text in sorted(read_reference().items()):
        yield Document(f"reference/{topic}", text, SOURCE, licence=LICENCE, meta={"python": version})
    for module in modules:
        if len(module.text) > MAX_SOURCE_CHARACTERS:
            continue
        text = _without_docstrings(module, is_held_out)
        yield Document(f"source/{module.name}", text, SOURCE, licence=LICENCE, meta={"python": version})


def _without_docstrings(module: Module, is_held_out: Callable[[str], bool]) -> str:
    lines = module.text.encode().splitlines(keepends=True)
    for span in reversed(module.docstrings):
        if is_held_out(span.text):
            before = lines[span.first_line][: span.first_column]
            behind = lines[span.last_line][span.end_column :]
            lines[span.first_line : span.last_line + 1] = [before + b"..." + behind]
    return b"".join(lines).decode()
