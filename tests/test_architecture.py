"""The floors: imports point down only; nothing but the command line prints; no pickle, no remote code."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {"selection": 1, "adaptation": 2, "benchmarks": 3}
FILES = [p for floor in FLOORS for p in sorted((ROOT / floor).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    floor = FLOORS[path.relative_to(ROOT).parts[0]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for name in names:
            assert FLOORS.get(name.split(".")[0], 0) <= floor, f"{path} imports {name}, which lies above it"
            assert name != "nearkin", f"{path} imports the command line"
            assert name.split(".")[0] not in {"pickle", "cPickle", "dill", "joblib"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_commands_print(path: Path) -> None:
    calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    prints = any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls)
    assert path.name in {"commands.py"} or not prints
    trusting = [k for c in calls for k in c.keywords if k.arg == "trust_remote_code" and ast.unparse(k.value) == "True"]
    assert not trusting


def test_every_package_is_installed_and_typed() -> None:
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in FILES if p.name == "__init__.py"}
    assert found <= set(settings["packages"])
    assert all((ROOT / floor / "py.typed").exists() for floor in FLOORS)
