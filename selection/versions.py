"""Versions of what shapes a result, for the records that are written beside it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "nearkin",
    "torch",
    "transformers",
    "tokenizers",
    "sentence-transformers",
    "openvino",
    "nncf",
    "model2vec",
    "faiss-cpu",
    "faiss-gpu",
    "pyarrow",
    "duckdb",
    "datasets",
    "accelerate",
    "scikit-learn",
    "numpy",
)


def versions() -> dict[str, str]:
    """Python's version and those of `PACKAGES` that are installed."""
    found = {"python": platform.python_version()}
    installed = {name: version_of(name) for name in PACKAGES}
    return {**found, **{name: number for name, number in installed.items() if number is not None}}


def version_of(package: str) -> str | None:
    """The installed version of a package; None where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
