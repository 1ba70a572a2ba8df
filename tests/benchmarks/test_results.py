from __future__ import annotations

from pathlib import Path

from benchmarks.results import ADDED, format_rows, read_rows, write_rows


def test_a_row_keeps_the_stamp_of_when_it_was_measured(tmp_path: Path) -> None:
    out = tmp_path / "rows.parquet"
    old = {"f1": 1.0, "time": "2026-11-24T00:00:00+00:00", "machine": "another", "versions": "torch 1.0"}
    write_rows([old, {"f1": 2.0}], out)
    first, second = read_rows(out)
    assert first == old
    assert second["machine"] != "another"
    assert set(second) == {"f1", *ADDED}
    assert format_rows([first]) == ["f1", "1.000"]
