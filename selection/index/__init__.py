"""FAISS indexes over a store's embeddings: which one (plan), how it is made (build), how it is asked (search)."""

from __future__ import annotations

from typing import Any

from selection.errors import MissingPackageError


def load_faiss() -> Any:
    """The faiss module.

    Raises:
        MissingPackageError: neither faiss-cpu nor faiss-gpu is installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingPackageError(
            "FAISS is not installed: `pip install 'nearkin[cpu]'` brings it, "
            "or `pip install 'nearkin[gpu]'` on a CUDA machine"
        ) from error
    return faiss
