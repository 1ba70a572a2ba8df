"""Benchmark rows: one dict a measurement, with the machine and versions it was made on; a table and a Parquet file."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from selection.errors import InputError
from selection.files import atomic_write
from selection.terminal import aligned
from selection.versions import versions

Row = dict[str, Any]
T = TypeVar("T")
ADDED = ("time", "machine", "versions")


def machine() -> str:
    """The processor's name, the threads torch uses, and the GPUs that it sees."""
    import torch

    from selection.devices import gpu_count

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    gpus = gpu_count()
    cards = f", {gpus} x {torch.cuda.get_device_name(0)}" if gpus else ""
    return f"{name}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads{cards}"


def alternate(
    paths: dict[str, Callable[[], T]], rounds: int, say: Callable[[str], None]
) -> tuple[dict[str, float], dict[str, T]]:
    """Runs every path once a round, so that a machine that slows down slows all: (median seconds, last results)."""
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    results = {}
    for number in range(rounds):
        for name, run in paths.items():
            start = time.perf_counter()
            results[name] = run()
            seconds[name].append(time.perf_counter() - start)
            say(f"round {number + 1}: {name} {seconds[name][-1]:.2f} s")
    return {name: statistics.median(taken) for name, taken in seconds.items()}, results


def write_rows(rows: Sequence[Row], out: Path | None) -> None:
    """Writes rows to a Parquet file. Each is given time, machine and versions, where it has none of its own."""
    if out is None:
        return
    common = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": ", ".join(f"{k} {v}" for k, v in versions().items()),
    }
    for row in rows:
        row |= {name: value for name, value in common.items() if name not in row}
    columns = dict.fromkeys(name for row in rows for name in row)  # those that an older row lacks, too
    table = pa.table({name: pa.array([row.get(name) for row in rows]) for name in columns})
    with atomic_write(out) as aside:
        pq.write_table(table, aside)


def read_rows(out: Path | None) -> list[Row]:
    """Rows that `write_rows` wrote; none where there is no such file."""
    if out is None or not out.exists():
        return []
    rows: list[Row] = pq.read_table(out).to_pylist()
    return rows


def read_whole(path: Path, schema: pa.Schema, made_by: str) -> list[Row]:
    """Every row of a results file, checked.

    Args:
        schema: columns that must be there, with their types; those not nullable hold no nulls. Others are kept.
        made_by: the command that writes such files, for the message.

    Raises:
        InputError: no such file, no results file, or one without rows.
    """
    if not path.is_file():
        raise InputError(f"results file {path} does not exist: name what `{made_by}` wrote with --out")
    other = f"{path} is not a results file of `{made_by}`"
    try:
        table = pq.read_table(path)
        for field in (*schema, *(pa.field(name, pa.string()) for name in ADDED)):
            if field.name not in table.schema.names:
                raise InputError(f"{other}: it has no column {field.name}")
            column = table[field.name].cast(field.type)
            if not field.nullable and column.null_count:
                raise InputError(f"{other}: its column {field.name} has gaps")
            table = table.set_column(table.schema.get_field_index(field.name), field, column)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{other}, or it is damaged: name what that wrote with --out") from error
    if table.num_rows == 0:
        raise InputError(f"{path} holds no rows: run `{made_by}` first")
    rows: list[Row] = table.to_pylist()
    return rows


def format_rows(rows: Sequence[Row]) -> list[str]:
    """Rows as the lines of a table, columns in the first row's order, without `ADDED`."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
        return f"{value:,}" if isinstance(value, int) else "-" if value is None else str(value)

    names = [name for name in rows[0] if name not in ADDED]
    return aligned([names, *([cell(row[name]) for name in names] for row in rows)])
