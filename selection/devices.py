"""Which devices there are, which are meant, and how torch's CUDA is set for batches that are each of another shape."""

from __future__ import annotations

from selection.errors import NearkinError


def gpu_count() -> int:
    """CUDA GPUs that torch can use; none where the driver is missing or too old for it."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def best_device() -> str:
    """The device that is used where none is named."""
    import torch

    if gpu_count():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_devices(device: str | None) -> None:
    """Raises NearkinError where a device is named that this machine does not have."""
    if device in (None, "auto"):
        return
    import torch

    for name in str(device).split(","):
        kind, _, number = name.partition(":")
        at = int(number) if number.isdecimal() else 0 if not number else -1
        there = {"cpu": not number, "mps": torch.backends.mps.is_available(), "cuda": 0 <= at < gpu_count()}
        if not there.get(kind, False):
            raise NearkinError(f"this machine has no device {name}: `nearkin doctor` lists what it has")


def first_device(device: str | None) -> str | None:
    """The first of the devices named with commas; None, torch's own choice, for ``auto``."""
    return None if device in (None, "auto") else str(device).split(",")[0]


def devices_of(device: str | None) -> list[str]:
    """The devices that take a process each: those named with commas; for ``cuda`` and ``auto`` every GPU of several."""
    if device in (None, "auto", "cuda"):
        gpus = gpu_count()
        return [f"cuda:{number}" for number in range(gpus)] if gpus > 1 else []
    named = str(device).split(",")
    return named if len(named) > 1 else []


def search_devices(device: str | None) -> list[str]:
    """The devices that exact search runs on: those named with commas; for ``auto`` every GPU, else the CPU."""
    if device in (None, "auto"):
        return [f"cuda:{number}" for number in range(gpu_count())] or ["cpu"]
    return str(device).split(",")


def suit_cuda() -> None:
    """Keeps torch from cuDNN's attention, which plans anew for every shape of a batch; here most have one of their own.

    On a B200 a new shape cost it half a second (FunASR issue 3704). Flash and memory-efficient attention remain. And
    float32 products are of float32: some containers have them rounded to TF32 unless a program says otherwise.
    """
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.set_float32_matmul_precision("highest")


def out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory was too small; only CUDA's own allocator has an exception of its own for that."""
    import torch

    told = ("out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in told)
    )


def free_memory() -> None:
    """Gives back what torch keeps of the devices' memory for its next tensors."""
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
