"""FAISS indexes over a store's embeddings: which one (plan), how it is made (build), how it is asked (search)."""

from __future__ import annotations

import importlib.util
from typing import Any

from selection.errors import MissingPackageError


def load_faiss() -> Any:
    """The faiss module.

    Raises:
        MissingPackageError: neither faiss-cpu nor faiss-gpu is installed, or what is cannot be imported.
    """
    if importlib.util.find_spec("faiss") is None:
        raise MissingPackageError(
            "FAISS is not installed: `pip install 'nearkin[cpu]'` brings it, "
            "or `pip install 'nearkin[gpu]'` on a CUDA machine"
        )
    try:
        import faiss
    except Exception as error:  # built for another NumPy, it fails in several ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MissingPackageError(
            f"FAISS is installed and cannot be imported ({reason}): install faiss-cpu or faiss-gpu again, in a version "
            "for this Python and NumPy"
        ) from error
    return faiss
