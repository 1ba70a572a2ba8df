"""A wheel holds what an installed nearkin needs; everywhere else the tests run on a source tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "nearkin.py")
FOLDERS = ("selection", "adaptation", "benchmarks", "data")


@pytest.mark.slow
def test_the_wheel_lists_its_own_cards(tmp_path: Path) -> None:
    tree, wheels, installed = tmp_path / "tree", tmp_path / "wheels", tmp_path / "installed"
    tree.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(tree)], check=True)
    (wheel,) = wheels.iterdir()
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(installed), str(wheel)], check=True)
    shutil.rmtree(tree)
    environment = {name: value for name, value in os.environ.items() if name != "NEARKIN_DATA"}
    environment["PYTHONPATH"] = str(installed)
    code = "import nearkin_cards as c, nearkin as n; print(n.__file__, *c.__path__); n.main(['data', 'list'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    places, listed = done.stdout.split("\n", 1)
    assert all(Path(place).is_relative_to(installed) for place in places.split())
    assert "chemprot" in listed
    assert "biomed" in listed
    assert (installed / "nearkin_cards" / "README.md").is_file()
