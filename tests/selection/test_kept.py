from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from selection.kept import read_kept, write_kept

ABOUT = {"encoder": "one", "shards": "3"}


@pytest.fixture
def batch() -> pa.RecordBatch:
    numbers = np.arange(12, dtype=np.float32)
    lists = pa.LargeListArray.from_arrays(pa.array([0, 2, 2, 5], pa.int64()), pa.array([7, 8, 9, 1, 2], pa.uint16()))
    columns = [pa.array([5, 6, 7]), pa.FixedSizeListArray.from_arrays(pa.array(numbers), 4), lists]
    return pa.RecordBatch.from_arrays(columns, ["doc_id", "vector", "ngrams"])


def test_what_was_written_is_read(batch: pa.RecordBatch, tmp_path: Path) -> None:
    write_kept(tmp_path / "kept.arrow", batch, ABOUT)
    found = read_kept(tmp_path / "kept.arrow")
    assert found is not None
    assert found[0].equals(batch)
    assert found[1] == ABOUT


def test_a_changed_byte_is_noticed(batch: pa.RecordBatch, tmp_path: Path) -> None:
    """Of a number, of a list's length or of what it was made of."""
    path = tmp_path / "kept.arrow"
    write_kept(path, batch, ABOUT)
    whole = path.read_bytes()
    for content in (np.float32(11).tobytes(), np.int64(5).tobytes() + np.int64(6).tobytes(), b"one"):
        at = whole.rindex(content)
        for bit in (1, 0x80):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            assert read_kept(path) is None
    path.write_bytes(whole)
    assert read_kept(path) is not None


@pytest.mark.parametrize("content", [b"", b"no Arrow file", None])
def test_what_is_no_such_file_is_none(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "kept.arrow").write_bytes(content)
    assert read_kept(tmp_path / "kept.arrow") is None


def test_one_that_may_not_be_read_is_not_taken_for_a_damaged_one(batch: pa.RecordBatch, tmp_path: Path) -> None:
    (tmp_path / "kept.arrow").mkdir()
    with pytest.raises(OSError, match="kept"):
        read_kept(tmp_path / "kept.arrow")


def test_one_cut_short_is_none(batch: pa.RecordBatch, tmp_path: Path) -> None:
    path = tmp_path / "kept.arrow"
    write_kept(path, batch, ABOUT)
    whole = path.read_bytes()
    for length in range(0, len(whole), 64):
        path.write_bytes(whole[:length])
        assert read_kept(path) is None
