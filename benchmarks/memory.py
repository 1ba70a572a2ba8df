"""Peak memory of a build: what the encoder alone takes, the build of a corpus, and of that corpus several times over.

Each is a process of its own, measured by the operating system when it has ended.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.results import Row
from selection.columnar import open_columnar
from selection.errors import NearkinError
from selection.finding import find_files
from selection.memory import RSS_UNIT
from selection.models import DEFAULT_ENCODER, resolve_model

ALONE = 2048
"""Passages that the encoder alone is given, where there are so many."""

ENCODER_ALONE = """
import sys
import pyarrow.parquet as pq
from sentence_transformers import SentenceTransformer
texts = next(pq.ParquetFile(sys.argv[2]).iter_batches(int(sys.argv[5]), columns=[sys.argv[3]])).column(0).to_pylist()
model = SentenceTransformer(sys.argv[1])
model.max_seq_length = int(sys.argv[4]) or model.max_seq_length
model.encode(texts, batch_size=32, normalize_embeddings=True)
"""


def memory(
    corpus: Path | str,
    *,
    repeat: int = 4,
    text_column: str = "text",
    encoder: str = DEFAULT_ENCODER,
    max_tokens: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Measures peak resident memory, in bytes.

    Args:
        corpus: one Parquet file.
        repeat: how often it is repeated in the large build; rows are rotated, so that no shard occurs twice.
        max_tokens: cut the encoder's input, so that the large build takes minutes.

    Returns:
        One row a process: ``process``, ``passages``, ``seconds``, ``peak_mb``, ``over_encoder_mb``.
    """
    source = find_files(str(corpus))[0]
    if source.suffix != ".parquet":
        raise NearkinError(f"{source}: the memory benchmark takes one Parquet file")
    rows = open_columnar(source).rows
    measured: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        model = resolve_model(encoder)
        repeated = Path(scratch) / "repeated"
        _repeat(source, repeated, repeat)
        alone = [sys.executable, "-c", ENCODER_ALONE]
        build = [sys.executable, "-m", "nearkin", "build"]
        options = ["--encoder", encoder, "--text-column", text_column]
        options += ["--max-tokens", str(max_tokens)] if max_tokens else []
        commands = {
            "encoder alone (sentence-transformers)": (
                [*alone, str(model), str(source), text_column, str(max_tokens or 0), str(ALONE)],
                min(ALONE, rows),
            ),
            "build": ([*build, f"{scratch}/one", "--corpus", f"c={source}", *options], rows),
            f"build, corpus {repeat} times": (
                [*build, f"{scratch}/many", "--corpus", f"c={repeated}", *options],
                rows * repeat,
            ),
        }
        for name, (command, passages) in commands.items():
            peak, seconds = _peak(command)
            base = measured[0]["peak_mb"] if measured else peak / 1e6
            measured.append(
                {
                    "process": name,
                    "passages": passages,
                    "seconds": round(seconds, 1),
                    "peak_mb": peak / 1e6,
                    "over_encoder_mb": peak / 1e6 - base,
                }
            )
            say(f"{name}: {passages:,} passages, {seconds:.0f} s, peak {peak / 1e6:.0f} MB")
    return measured


def _repeat(source: Path, folder: Path, times: int) -> None:
    folder.mkdir()
    table = pq.read_table(source)
    for number in range(times):
        order = np.roll(np.arange(table.num_rows), 1000 * number + number)
        pq.write_table(table.take(order), folder / f"{number:02d}.parquet", compression="zstd", row_group_size=20_000)


def _peak(command: list[str]) -> tuple[int, float]:
    """Peak resident bytes and seconds of a process that must succeed."""
    if not hasattr(os, "wait4"):
        raise NearkinError("this system does not tell the peak memory of a process that has ended")
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise NearkinError(f"`{' '.join(command[:4])} ...` failed with exit code {process.returncode}")
    return usage.ru_maxrss * RSS_UNIT, time.perf_counter() - start
