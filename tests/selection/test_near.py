"""Near-duplicates and leaks, by runs of words and by cosine, against plain Python; hashes of words and n-grams."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from selection import hashes, near, near_cosine
from selection.errors import NearkinError
from selection.guard import PRIORITY, normalise
from selection.hashes import ngram_hashes, spaced, word_hashes
from selection.near import Contained, Copies, Leaks, NearDuplicates
from selection.near_cosine import CosineDuplicates, CosineLeaks

Vectors = npt.NDArray[np.floating]
Told = list[tuple[str, int] | None]

WORDS = st.lists(st.sampled_from("ab"), max_size=9) | st.lists(st.sampled_from(["a", "b", "ab", "é"]), max_size=14)
TEXTS = st.lists(WORDS.map(" ".join), max_size=12)
SLICES = st.sampled_from([1, 9, 25, 1 << 20])


def texts_of(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def grams(text: str, n: int) -> set[tuple[str, ...]]:
    words = text.split()
    return set(zip(*(words[place:] for place in range(n)), strict=False))


def blocks(total: int, cuts: list[int]) -> Iterator[slice]:
    bounds = sorted({0, total, *(cut % (total + 1) for cut in cuts)})
    return (slice(*pair) for pair in itertools.pairwise(bounds))


def told(leaks: Leaks) -> Told:
    return [None if r < 0 else (leaks.reasons[r], int(row)) for r, row in zip(leaks.reason, leaks.row, strict=True)]


def joined(parts: list[Copies]) -> Copies:
    return Copies(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("mask", "of", "likeness")))


def same_bytes(left: Copies, right: Copies) -> bool:
    return all(getattr(left, name).tobytes() == getattr(right, name).tobytes() for name in ("mask", "of", "likeness"))


# Hashes


@given(st.lists(st.lists(st.text(st.sampled_from("abé水\U0001f600"), min_size=1, max_size=30), max_size=6), max_size=6))
def test_a_word_has_one_hash_wherever_it_stands(texts: list[list[str]]) -> None:
    whole = word_hashes(texts_of([" ".join(words) for words in texts]))
    assert whole.lengths.tolist() == [len(words) for words in texts]
    words = [word for text in texts for word in text]
    alone = [int(word_hashes(texts_of([word])).values[0]) for word in words]
    assert whole.values.dtype == np.uint64
    assert whole.values.tolist() == alone
    assert len(set(alone)) == len(set(words))


def test_real_words_and_ngrams_do_not_collide(passages: pa.Table) -> None:
    texts = normalise(passages["text"])
    split = [text.split() for text in texts.to_pylist()]
    hashes = word_hashes(texts)
    for n in (1, 2, 13):
        found = ngram_hashes(hashes, n)
        plain = [list(zip(*(words[place:] for place in range(n)), strict=False)) for words in split]
        assert found.lengths.tolist() == [len(runs) for runs in plain]
        every = [run for runs in plain for run in runs]
        pairs = set(zip(every, found.values.tolist(), strict=True))
        assert len(pairs) == len(set(every)) == len(np.unique(found.values)) > 1000


# Runs of words


def plain_leaks(texts: list[str], forbidden: dict[str, list[str]], n: int, shortest: int) -> Told:
    def holds(text: str, other: str) -> bool:
        length = min(len(other.split()), n)
        return length >= min(shortest, n) and bool(grams(text, length) & grams(other, length))

    numbered = [(reason, row) for reason in PRIORITY for row in range(len(forbidden.get(reason, [])))]
    return [next((at for at in numbered if holds(text, forbidden[at[0]][at[1]])), None) for text in texts]


@given(
    TEXTS,
    st.dictionaries(st.sampled_from(PRIORITY), TEXTS),
    st.integers(1, 5),
    st.integers(1, 6),
    SLICES,
)
def test_pieces_of_forbidden_texts(
    texts: list[str], forbidden: dict[str, list[str]], n: int, shortest: int, slice_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "SHORTEST", shortest)
        patch.setattr(hashes, "SLICE_BYTES", slice_bytes)
        arrays = {reason: texts_of(held) for reason, held in forbidden.items()}
        leaks = Contained(arrays, n).find(texts_of(texts))
    assert leaks.reasons == tuple(reason for reason in PRIORITY if reason in forbidden)
    expected = plain_leaks(texts, forbidden, n, shortest)
    assert told(leaks) == expected
    for reason, mask in leaks.masks.items():
        assert mask.tolist() == [at is not None and at[0] == reason for at in expected]


def test_test_comes_before_dev_train_and_excluded_whatever_the_order_given() -> None:
    piece = " ".join(f"w{i}" for i in range(20))
    others = {"excluded": ["x " + piece], "train": ["other", piece], "dev": [piece], "test": ["short", "more", piece]}
    for reasons in itertools.permutations(others):
        left = list(reasons)
        while left:
            leaks = Contained({reason: texts_of(others[reason]) for reason in left}).find(texts_of([piece + " y"]))
            first = min(left, key=PRIORITY.index)
            assert told(leaks) == [(first, {"test": 2, "train": 1}.get(first, 0))]
            left.remove(first)


def test_short_forbidden_texts_count_from_eight_words() -> None:
    words = [f"w{i}" for i in range(30)]
    lengths = [7, 8, 12, 13, 14]
    for length in lengths:
        leaks = Contained({"test": texts_of([" ".join(words[:length])])})
        held = [" ".join(["x", *words[:many], "y"]) for many in (7, 8, 12, 13, 14)]
        needed = min(length, 13)
        assert [at is not None for at in told(leaks.find(texts_of(held)))] == [
            length >= 8 and many >= needed for many in (7, 8, 12, 13, 14)
        ]


def test_chunks_nulls_and_slices_of_arrays_are_texts_like_any() -> None:
    texts = pa.chunked_array([["a b c", None], [], ["b c d", "x"]], pa.string())
    assert told(Contained({"dev": texts_of(["q", "b c"]).slice(1)}, 2).find(texts)) == [("dev", 0), None] * 2
    assert NearDuplicates(2, 0.5).find(texts, np.ones(4, bool)).of.tolist() == [-1, -1, 0, -1]
    assert told(Contained({}).find(texts_of(["a"] * 3))) == [None] * 3
    assert len(Contained({"test": texts_of([])}).find(texts_of([])).reason) == 0


UNSPACED = {
    "chinese": (
        "研究表明,该药物能够显著抑制肿瘤细胞的生长和扩散。",
        "背景:我们进行了一项随机试验。",
        "结果在2019年发表于期刊。",
    ),
    "japanese": ("この データは、腫瘍細胞の増殖を抑制することを示した。", "背景として、", "以上の結果を報告する。"),
    "thai": ("ผลการศึกษาพบว่ายานี้สามารถยับยั้งการเติบโตของเซลล์มะเร็งได้", "บทนำ", "และตีพิมพ์ในปีนี้"),
}


@pytest.mark.parametrize("script", UNSPACED)
def test_scripts_without_spaces_are_compared_by_character(script: str) -> None:
    sentence, before, after = UNSPACED[script]
    held, cut = before + sentence + after, before + sentence[:9] + after
    texts = normalise(pa.array([held, cut, after * 3, "words of another script " + sentence]))
    leaks = Contained({"test": normalise(pa.array([sentence]))}).find(texts)
    assert told(leaks) == [("test", 0), None, None, ("test", 0)]
    copies = NearDuplicates().find(normalise(pa.array([sentence, sentence + after[:3], cut])), np.ones(3, bool))
    assert copies.of.tolist() == [-1, 0, -1]


def test_spaces_stand_around_characters_of_scripts_without_any_and_nowhere_else() -> None:
    texts = texts_of(["naïve ħ ω", "", "abc漢字def 水", "データ", "ที่นี่", "x"])
    expected = ["naïve ħ ω", "", "abc 漢 字 def 水", "デ ー タ", "ที่ นี่", "x"]
    assert [" ".join(text.split()) for text in spaced(texts).to_pylist()] == expected
    assert word_hashes(spaced(texts)).values.tolist() == word_hashes(texts_of(expected)).values.tolist()
    assert spaced(texts.slice(2, 2)).to_pylist() == spaced(texts).to_pylist()[2:4]
    assert len(spaced(texts.slice(0, 0))) == 0


def plain_copies(texts: list[str], allowed: list[bool], n: int, share: float) -> Copies:
    first: dict[tuple[str, ...], int] = {}
    found = Copies.none(len(texts))
    for row, text in enumerate(texts):
        if not allowed[row]:
            continue
        own = grams(text, n)
        owners = Counter(first[gram] for gram in own if gram in first)
        if owners and owners.total() / len(own) >= share:
            found.mask[row], found.likeness[row] = True, owners.total() / len(own)
            found.of[row] = min(owners, key=lambda owner: (-owners[owner], owner))
        for gram in own:
            first.setdefault(gram, row)
    return found


@given(
    st.lists(st.tuples(WORDS.map(" ".join), st.integers(0, 4).map(bool)), max_size=20),
    st.integers(1, 4),
    st.sampled_from([0.01, 1 / 3, 0.5, 0.7, 1.0]),
    SLICES,
    st.lists(st.integers(0, 100), max_size=4),
)
def test_near_copies_however_candidates_are_cut(
    candidates: list[tuple[str, bool]], n: int, share: float, slice_bytes: int, cuts: list[int]
) -> None:
    texts, allowed = [text for text, _ in candidates], [may for _, may in candidates]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashes, "SLICE_BYTES", slice_bytes)
        copies = NearDuplicates(n, share)
        parts = [copies.find(texts_of(texts[part]), np.array(allowed[part], bool)) for part in blocks(len(texts), cuts)]
    expected = plain_copies(texts, allowed, n, share)
    assert same_bytes(joined([Copies.none(0), *parts]), expected)


def test_real_passages_with_copies_among_them(passages: pa.Table) -> None:
    texts: list[str] = normalise(passages["text"]).to_pylist()
    rng = np.random.default_rng(0)
    for text in texts[:200:2]:  # a stretch of it, between words of another
        words, other = text.split(), texts[int(rng.integers(len(texts)))].split()
        start = int(rng.integers(len(words)))
        texts.append(" ".join([*other[:10], *words[start : start + 60], *other[10:30]]))
    allowed = rng.random(len(texts)) < 0.9
    copies, parts = NearDuplicates(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashes, "SLICE_BYTES", 20_000)
        for part in blocks(len(texts), [1, 130, 131, 500]):
            parts.append(copies.find(texts_of(texts[part]), allowed[part]))
    expected = plain_copies(texts, allowed.tolist(), near.WORDS, near.SHARE)
    assert same_bytes(joined(parts), expected)
    assert 20 < expected.mask.sum() < 150
    assert (expected.likeness[expected.mask] < 1).any()


def test_each_ngram_is_kept_once() -> None:
    copies = NearDuplicates(2)
    rng = np.random.default_rng(0)
    every: set[tuple[str, ...]] = set()
    for _ in range(60):
        texts = [" ".join(map(str, rng.integers(0, 12, size))) for size in rng.integers(0, 6, 3)]
        copies.find(texts_of(texts), np.ones(3, bool))
        every |= set().union(*(grams(text, 2) for text in texts))
        sizes = [len(run) for run in copies._runs]
        assert sum(sizes) == len(every)
        assert all(left >= 2 * right for left, right in itertools.pairwise(sizes))


# Cosines


@dataclass(frozen=True)
class Cloud:
    """Vectors in clusters, of any length, as they come; and their cosines in float64."""

    vectors: Vectors
    cosines: npt.NDArray[np.float64]


def cosines(left: Vectors, right: Vectors) -> npt.NDArray[np.float64]:
    def unit(vectors: Vectors) -> npt.NDArray[np.float64]:
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        return np.divide(vectors, lengths, out=np.zeros(vectors.shape), where=lengths > 0)

    return np.asarray(unit(left) @ unit(right).T)


def clusters(seed: int, size: int, dim: int, half: bool) -> Vectors:
    """About a third of the pairs of a cluster have cosines above 0.95, and some vectors are zero."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(size // 6, 1), dim))
    vectors = centres[rng.integers(len(centres), size=size)]
    vectors += rng.normal(size=vectors.shape) * rng.choice([0.02, 0.15, 0.25], size=(size, 1))
    vectors *= rng.choice([0.0, 0.3, 1.0, 1.0, 3.0], size=(size, 1), p=[0.02, 0.28, 0.3, 0.2, 0.2])
    return vectors.astype(np.float16 if half else np.float32)


SHAPES = {
    "seed": st.integers(0, 10_000),
    "dim": st.sampled_from([2, 3, 8, 33]),
    "half": st.booleans(),
    "limit": st.sampled_from([0.8, 0.95]),
    "number": st.sampled_from(["float32", "bfloat16"]),
    "block": st.sampled_from([1, 3, 16, 1024]),
    "tile": st.sampled_from([1, 5, 40, 4096]),
}


def plain_greedy(cosine: npt.NDArray[np.float64], allowed: npt.NDArray[np.bool_], limit: float) -> Copies:
    found, kept = Copies.none(len(cosine)), []
    for row in np.flatnonzero(allowed):
        original = next((other for other in kept if cosine[row, other] >= limit), None)
        if original is None:
            kept.append(row)
        else:
            found.mask[row], found.of[row], found.likeness[row] = True, original, cosine[row, original]
    return found


@given(size=st.integers(0, 60), cuts=st.lists(st.integers(0, 100), max_size=4), **SHAPES)
def test_greedy_copies_by_cosine(
    size: int,
    cuts: list[int],
    seed: int,
    dim: int,
    half: bool,
    limit: float,
    number: str,
    block: int,
    tile: int,
) -> None:
    vectors = clusters(seed, size, dim, half)
    allowed = np.random.default_rng(seed).random(size) < 0.9
    cosine = cosines(vectors, vectors)
    assume(not (np.abs(cosine - limit) < 1e-5).any())
    with pytest.MonkeyPatch.context() as patch:
        at_once = CosineDuplicates(limit, "cpu").find(vectors, allowed)
        patch.setattr(near_cosine, "fastest_number", lambda device: number)
        patch.setattr(near_cosine, "BLOCK_ROWS", block)
        patch.setattr(near_cosine, "TILE_ROWS", tile)
        copies = CosineDuplicates(limit, "cpu")
        parts = [copies.find(vectors[part], allowed[part]) for part in blocks(size, cuts)]
    expected = plain_greedy(cosine, allowed, limit)
    found = joined([Copies.none(0), *parts])
    assert found.mask.tolist() == expected.mask.tolist()
    assert found.of.tolist() == expected.of.tolist()
    np.testing.assert_allclose(found.likeness, expected.likeness, atol=1e-5)
    assert same_bytes(found, at_once)


@given(
    size=st.integers(0, 40),
    sizes=st.dictionaries(st.sampled_from(PRIORITY), st.integers(0, 12)),
    **SHAPES,
)
def test_leaks_by_cosine(
    size: int,
    sizes: dict[str, int],
    seed: int,
    dim: int,
    half: bool,
    limit: float,
    number: str,
    block: int,
    tile: int,
) -> None:
    every = clusters(seed, size + sum(sizes.values()), dim, half)
    vectors, rest = every[:size], iter(np.split(every[size:], np.cumsum(list(sizes.values()))))
    forbidden = {reason: next(rest).astype(np.float32) for reason in sizes}
    known = [(reason, row) for reason in PRIORITY for row in range(sizes.get(reason, 0))]
    stacked = np.concatenate([np.empty((0, dim), np.float32), *(forbidden[r] for r in PRIORITY if r in forbidden)])
    cosine = cosines(vectors, stacked)
    assume(not (np.abs(cosine - limit) < 1e-5).any())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_cosine, "fastest_number", lambda device: number)
        patch.setattr(near_cosine, "BLOCK_ROWS", block)
        patch.setattr(near_cosine, "TILE_ROWS", tile)
        leaks = CosineLeaks(forbidden, limit, "cpu").find(vectors)
    assert leaks.reasons == tuple(reason for reason in PRIORITY if reason in sizes)
    assert told(leaks) == [known[np.argmax(row >= limit)] if (row >= limit).any() else None for row in cosine]


def test_the_worst_rounding_of_bfloat16_loses_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers just below the middle of two of bfloat16, which all round down: products are 0.7 % too small."""
    monkeypatch.setattr(near_cosine, "fastest_number", lambda device: "bfloat16")
    number = 2**-5 * (1 + 2**-8 - 2**-12)
    for shared in range(850, 1000):
        pair = np.zeros((2, 1002), np.float32)
        pair[:, :shared] = number
        pair[0, -1] = pair[1, -2] = np.sqrt(1 - shared * number**2)
        cosine = float(cosines(pair, pair)[0, 1])
        for off in (1e-5, -1e-5):
            found = CosineDuplicates(cosine + off, "cpu").find(pair, np.ones(2, bool))
            assert found.mask.tolist() == [False, off < 0]


def test_vectors_that_are_not_finite_are_an_error() -> None:
    vectors = np.eye(3, dtype=np.float32)
    for wrong in (np.nan, np.inf):
        vectors[1, 1] = wrong
        with pytest.raises(NearkinError, match="not finite"):
            CosineDuplicates().find(vectors, np.ones(3, bool))
        with pytest.raises(NearkinError, match="not finite"):
            CosineLeaks({"test": vectors})
        with pytest.raises(NearkinError, match="not finite"):
            CosineLeaks({"test": np.eye(3, dtype=np.float32)}).find(vectors)
        assert not CosineDuplicates().find(vectors, np.array([True, False, True])).mask.any()
