"""Hashes are what the plain formula gives, however the bytes are cut: what is kept of them must stay true."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selection import hashes as module
from selection.hashes import hash_each, text_hashes

MOST = 1 << 64


def mixed(number: int) -> int:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        number = (number ^ (number >> shift)) * factor % MOST
    return number ^ (number >> 31)


LETTERS = [mixed(letter * 0x9E3779B97F4A7C15 % MOST) for letter in range(1, 257)]


def plain(word: bytes, spaces: bool) -> int:
    counted = [(place, byte) for place, byte in enumerate(word, start=1) if spaces or byte > ord(" ")]
    return mixed(sum(LETTERS[byte] * pow(0x9E3779B97F4A7C15, place, MOST) for place, byte in counted) % MOST)


@pytest.mark.parametrize("window", [1, 3, 7, 1 << 20])
@given(words=st.lists(st.binary(max_size=12), max_size=8), spaces=st.booleans(), skipped=st.integers(0, 3))
def test_hashes_are_the_plain_formulas(window: int, words: list[bytes], spaces: bool, skipped: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW_BYTES", window)
        found = hash_each(pa.array(words, pa.large_binary()).slice(skipped), spaces)
    assert found.tolist() == [plain(word, spaces) for word in words[skipped:]]


def test_a_long_text_is_hashed_in_windows() -> None:
    draws = np.random.default_rng(0)
    long = "".join(draws.choice(list("abc "), 3_000_000))
    texts = ["short", long, "", long[:-1] + "x", long]
    found = text_hashes(pa.array(texts)).tolist()
    assert found[1] == found[4] != found[3]
    assert found[1] == plain(long.encode(), False)
