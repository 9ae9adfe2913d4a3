"""Arrows between packages, folders and files point one way: schemas ← trainer ← pipeline, and nothing goes round."""

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
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
