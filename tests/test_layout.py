"""Arrows between packages, folders and files point one way: schemas ← trainer ← pipeline, and nothing goes round."""

import ast
import re
import sys
import tomllib
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {"schemas": {"schemas"}, "trainer": {"schemas", "trainer"}, "pipeline": {"schemas", "trainer", "pipeline"}}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ALLOWED
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imported(path: Path) -> set[str]:
    """Our own modules that a file imports, wherever in it."""
    targets = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            targets |= {
                full if (full := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names
            }
        elif isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
    return {target for target in targets if target in MODULES}


IMPORTS = {module: imported(path) - {module} for module, path in MODULES.items()}


def folder(module: str) -> str:
    """The folder of a module; a file at the top of a package is a room of its own."""
    if MODULES[module].name == "__init__.py":
        return module
    package, *inner = module.split(".")
    return ".".join([package, *inner[:-1]]) if len(inner) > 1 else module


@pytest.mark.parametrize("package", ALLOWED)
def test_no_package_imports_back(package):
    wrong = {
        (module, target)
        for module, targets in IMPORTS.items()
        for target in targets
        if module.split(".")[0] == package and target.split(".")[0] not in ALLOWED[package]
    }
    assert not wrong


def folders() -> dict[str, set[str]]:
    arrows = defaultdict(set)
    for module, targets in IMPORTS.items():
        arrows[folder(module)] |= {folder(target) for target in targets} - {folder(module)}
    return arrows


@pytest.mark.parametrize("arrows", [IMPORTS, folders()], ids=["files", "folders"])
def test_nothing_goes_round(arrows):
    try:
        list(TopologicalSorter(arrows).static_order())
    except CycleError as circle:
        pytest.fail(" -> ".join(circle.args[1]))


#: What a package brings along as a part of itself, imported by another name.
PARTS = {"pydantic_core": "pydantic"}
#: The standard library's from Python 3.14 on, trackers that a person chooses and installs, extras that are asked for.
UNDECLARED = {"compression", "wandb", "trackio", "ray", "vllm"}


def test_what_is_imported_is_declared():
    declared = {
        re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")
        for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "dependencies"
        ]
    }
    names = packages_distributions()
    wrong = {
        f"{module}: {package}"
        for module, path in MODULES.items()
        for package in roots(path) - sys.stdlib_module_names - ALLOWED.keys() - UNDECLARED
        if not {name.lower().replace("_", "-") for name in names.get(PARTS.get(package, package), [package])} & declared
    }
    assert not wrong


def roots(path: Path) -> set[str]:
    """Outermost packages of everything that a file imports."""
    packages = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            packages.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
    return packages
