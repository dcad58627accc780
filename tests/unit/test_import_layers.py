"""The law of the design: imports go down only, DeepSpeed has one door, process groups have one maker, packages import nothing."""

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "megagpt"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [
    {"config", "runtime"},
    {"kernels", "parallel"},
    {"tokenizer", "data", "prepare"},
    {"model"},
    {"engine", "checkpoint", "generation"},
    {"plan"},
    {"pretrain", "sft", "reward", "dpo", "rlhf"},
    {"report", "safety", "convert", "serve"},
    {"pipeline"},
    {"cli"},
]
"""From the bottom. A package may import from its own layer and from those before it."""
STAGES = {"pretrain", "sft", "reward", "dpo", "rlhf"}
DEPTH = {package: depth for depth, packages in enumerate(LAYERS) for package in packages}


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def imported_modules(file: Path) -> set[str]:
    """Full names of all imports, those inside functions too; `from a import b` gives a.b as well as a, since b may be a module."""
    return imports_of(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))


def imports_of(nodes: Iterable[ast.AST]) -> set[str]:
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def called_names(file: Path) -> set[str]:
    """The last part of everything that is called or mentioned: `dist.new_group` gives new_group."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def package_of(module: str) -> str | None:
    """`megagpt.rlhf.trainer` -> rlhf; None for what belongs to no package (`megagpt` itself, other projects)."""
    parts = module.split(".")
    return parts[1] if parts[0] == "megagpt" and len(parts) > 1 and parts[1] in DEPTH else None


def test_layers_name_every_package():
    assert {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()} <= set(DEPTH)


@pytest.mark.parametrize("package", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))
def test_layers_imports_go_down_only(package):
    upward = [
        f"{name_of(file)} imports {module}"
        for file in sorted((PACKAGE / package).rglob("*.py"))
        for module in sorted(imported_modules(file))
        if (target := package_of(module)) is not None
        and (DEPTH[target] > DEPTH[package] or (target != package and {target, package} <= STAGES))
    ]
    assert not upward


def test_layers_stages_are_imported_by_the_command_line_only():
    """A stage reads the one before it from disk: a checkpoint, never a module."""
    users = {name_of(file) for file in FILES for module in imported_modules(file) if package_of(module) in STAGES}
    assert {user.split("/")[0] for user in users} <= STAGES | {"cli"}


def test_layers_engine_is_the_only_door_to_deepspeed():
    """But for the launcher, and for one function without globals of its own: the all-to-all of Ulysses, which takes its group as an argument."""
    users = {(name_of(file), module) for file in FILES for module in imported_modules(file) if module.split(".")[0] == "deepspeed"}
    others = {(user, module) for user, module in users if not user.startswith("engine/")}
    assert len(others) < len(users)
    ulysses = {("model/attention.py", f"deepspeed.sequence.layer{name}") for name in ("", ".DistributedAttention")}
    assert others <= ulysses | {("pipeline/ranks.py", f"deepspeed.launcher{name}") for name in ("", ".launch")}


def test_layers_process_groups_are_made_in_one_place():
    makers = {"new_group", "new_subgroups", "new_subgroups_by_enumeration", "split_group", "create_pg", "initialize_model_parallel", "init_device_mesh"}
    assert {name_of(file) for file in FILES if called_names(file) & makers} == {"parallel/groups.py"}
    assert {name_of(file) for file in FILES if "init_process_group" in called_names(file)} == {"runtime/distributed.py"}


def test_layers_packages_are_empty():
    """So that one module can be imported without CUDA, DeepSpeed or Megatron; only `megagpt` itself says its version."""
    full = [name_of(file) for file in PACKAGE.glob("*/**/__init__.py") if file.read_text(encoding="utf-8").strip()]
    assert not full
    assert not imported_modules(PACKAGE / "__init__.py")


@pytest.mark.parametrize("module", ["megagpt.cli.stages", "megagpt.cli.run", "megagpt.cli.plan", "megagpt.parallel.placement", "megagpt.checkpoint.layout"])
def test_layers_light_modules_load_no_heavy_library(module):
    """Planning a layout, reading a configuration or looking into a checkpoint needs no torch."""
    loaded = loaded_with(module)
    assert {package_of(name) for name in loaded} > {None, "config"}
    assert not {name.split(".")[0] for name in loaded} & {"torch", "deepspeed", "megatron", "transformers"}


def loaded_with(module: str) -> set[str]:
    """Names that are imported when the module is: at the top of it, or of a module of ours that it imports there."""
    names, queue = set(), [module]
    while queue:
        name = queue.pop()
        file = PACKAGE.parent / f"{name.replace('.', '/')}.py"
        if name not in names and file.exists():
            queue += imports_of(ast.parse(file.read_text(encoding="utf-8")).body)
        names.add(name)
    return names
