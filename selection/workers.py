"""Several devices: a process each, shards handed out a few at a time.

Each process loads the encoder on its own device, encodes the shards it is given and writes their files; the parent
alone writes the manifest. Processes are spawned, since a forked one cannot use CUDA. A worker that dies or falls silent
ends the build with one sentence; what was finished is kept.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

from tqdm import tqdm

from selection.devices import devices_of, gpu_count
from selection.embedding import Finished, Job, Work, embed_here
from selection.encoders import Encoder
from selection.encoders.transformer import TransformerEncoder, on_gpu
from selection.errors import NearkinError, StoreError
from selection.manifest import FileEntry
from selection.store import Store
from selection.stored import stored_encoder

log = logging.getLogger(__name__)

SILENCE_SECONDS, LOOK_SECONDS, PULSE_SECONDS = 1800.0, 0.5, 60.0
MOST_JOBS = 64  # at once: reading, encoding and writing overlap within them

_mine: dict[str, Any] = {}


def work_of(device: str | None, encoder: Encoder) -> Work | None:
    """What embeds shards on several devices; None where one device, or the CPU, needs no processes of its own."""
    devices = devices_of(device)
    if not devices or (set(devices) != {"cpu"} and not on_gpu(encoder)):
        return None
    return partial(embed_elsewhere, devices=devices)


def embed_elsewhere(
    store: Store,
    encoder: Encoder,
    jobs: list[Job],
    bar: tqdm[None],
    finished: Finished,
    devices: list[str],
) -> None:
    """As `selection.embedding.embed_here`, in one process a device.

    Raises:
        NearkinError: a process died or could not begin, or none encoded anything for half an hour.
    """
    if len(jobs) < 2:  # done before a process has begun
        embed_here(store, encoder, jobs, bar, finished)
        return
    context = multiprocessing.get_context("spawn")
    names, made, failed = context.SimpleQueue(), context.SimpleQueue(), context.SimpleQueue()
    for name in devices:
        names.put(name)
    compiled = isinstance(encoder, TransformerEncoder) and encoder.compiled
    if isinstance(encoder, TransformerEncoder):
        encoder.give_up()  # a process on its device would lack the memory
    pool = ProcessPoolExecutor(len(devices), context, _open, (names, made, failed, store.path, encoder.slug, compiled))
    again = f"run `nearkin build {store.path}` to go on from what is finished"
    try:
        with _no_main():
            open_jobs = {pool.submit(_embed_some, encoder.fingerprint, part) for part in _parts(jobs, len(devices))}
        heard = time.monotonic()
        while open_jobs:
            done, open_jobs = wait(open_jobs, LOOK_SECONDS, FIRST_COMPLETED)
            while not made.empty():
                heard = time.monotonic()
                if (said := made.get()) is None:
                    continue
                text, file, checked = said
                store.adopt(file, checked)
                bar.update(file.rows)
                finished(text, file)
            for future in done:
                future.result()
            if time.monotonic() - heard > SILENCE_SECONDS:
                silent = f"no process on {', '.join(devices)} encoded anything in {SILENCE_SECONDS / 60:.0f} minutes"
                raise NearkinError(f"{silent}: {again}")
    except BrokenProcessPool:
        if not failed.empty():
            raise NearkinError(f"a process cannot begin: {failed.get()}") from None
        raise NearkinError(
            f"a process on one of {', '.join(devices)} died, perhaps for want of memory: {again}"
        ) from None
    finally:
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _parts(jobs: list[Job], devices: int) -> Iterator[list[Job]]:
    """Large parts first, then ever smaller ones, so that all devices end together."""
    start = 0
    while start < len(jobs):
        size = max(1, min(MOST_JOBS, (len(jobs) - start) // (2 * devices)))
        yield jobs[start : start + size]
        start += size


@contextmanager
def _no_main() -> Iterator[None]:
    """While processes begin: else each would run the user's script, of which it needs nothing, once more."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _open(names: Any, made: Any, failed: Any, path: Path, slug: str, compiled: bool) -> None:
    """Runs once in each process: the store and the encoder on the next device, compiled where the parent's is."""
    import torch

    Thread(target=_end_with_parent, daemon=True).start()
    device = names.get()
    try:
        if device == "cpu":
            torch.set_num_threads(1)
        elif device.startswith("cuda"):
            torch.cuda.set_device(device)  # a compiler's own tools take the current one
        store = Store(path)
        store.take_pending()  # positions of shards are those of the build
        encoder = stored_encoder(store, slug, device)
    except Exception as error:
        failed.put(f"{device}: {' '.join(str(error).split()) or type(error).__name__}")
        raise
    if compiled and isinstance(encoder, TransformerEncoder):
        import torch._inductor.config as inductor

        inductor.compile_threads = max(1, (os.cpu_count() or 1) // max(gpu_count(), 1))  # of each process
        if not encoder.compile():
            log.warning("%s goes on with a model that is not compiled", device)
    _mine.update(made=made, store=store, encoder=encoder)


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, by a signal say, since nobody takes what it makes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Pulse(tqdm):  # type: ignore[misc]
    """A bar that nobody sees; it tells the parent now and then that something was encoded."""

    def __init__(self, made: Any) -> None:
        super().__init__(disable=True)
        self._made, self._told = made, 0.0

    def update(self, n: float | None = 1) -> None:
        if time.monotonic() - self._told > PULSE_SECONDS:
            self._told = time.monotonic()
            self._made.put(None)


def _embed_some(fingerprint: str, jobs: list[Job]) -> None:
    """Embeds shards, and tells of each as soon as it is there."""
    store, encoder = _mine["store"], _mine["encoder"]
    if encoder.fingerprint != fingerprint:
        raise StoreError(f"{encoder.model} changed while its embeddings were made: run the same build again")

    def tell(text: str, file: FileEntry) -> None:
        _mine["made"].put((text, file, store.checked_as(file)))

    embed_here(store, encoder, jobs, _Pulse(_mine["made"]), tell)
