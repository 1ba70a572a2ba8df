"""What processes hold, in bytes whatever the system counts in."""

from __future__ import annotations

import subprocess
import sys

import pytest

from selection.memory import children_peak, current_memory, peak_memory


def test_peaks_are_in_bytes() -> None:
    pytest.importorskip("resource")
    subprocess.run([sys.executable, "-c", "held = bytearray(b'x' * 150_000_000)"], check=True)
    for peak in (children_peak(), peak_memory(), current_memory()):
        assert peak is not None
        assert 1e7 < peak < 1e12
    assert (children_peak() or 0) > 150_000_000
