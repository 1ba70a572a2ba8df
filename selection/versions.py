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
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
