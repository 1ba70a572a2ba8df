"""The static encoder against the model it is fitted to, and the measure of how near it comes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from transformers import AutoModel

from selection.encoders.recall import neighbour_recall
from selection.encoders.static import ARRAYS, FACTS, StaticModel, distil, fit_static
from selection.errors import ModelError
from selection.models import resolve_model
from selection.tokens import ArrayTokenizer, Ragged

LIMIT, TRAIN = 24, 450


@dataclass(frozen=True)
class Sample:
    """Real passages, what MiniLM says of their first words, and, for vectors of single tokens, its input embeddings.

    A trained model, because one of random weights says little but the mean of its tokens.
    """

    tokens: Ragged
    vectors: npt.NDArray[np.float32]
    distilled: npt.NDArray[np.float32]

    def fit(self, seed: int = 0) -> StaticModel:
        train = self.tokens.take(np.arange(TRAIN))
        return fit_static(train, self.vectors[:TRAIN], self.distilled, limit=LIMIT, seed=seed)


@pytest.fixture(scope="module")
def sample(passages: pa.Table) -> Sample:
    tokenizer = ArrayTokenizer("all-MiniLM-L6-v2")
    model = AutoModel.from_pretrained(resolve_model("all-MiniLM-L6-v2")).eval()
    tokens = tokenizer(passages["text"])
    # Passages have 25 words at least, so their first tokens fill a rectangle.
    ids = torch.from_numpy(tokenizer.with_specials(tokens, LIMIT + 2).values.reshape(len(tokens), LIMIT + 2))
    with torch.inference_mode():
        states = torch.cat([model(batch).last_hidden_state for batch in ids.split(100)])
    vectors = torch.nn.functional.normalize(states.mean(dim=1)).numpy()
    embeddings = model.get_input_embeddings().weight.detach().numpy()
    return Sample(tokens, vectors, embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))


def rows_of(tokens: Ragged) -> list[npt.NDArray[np.int32]]:
    return np.split(tokens.values, tokens.offsets[1:-1])


@pytest.fixture(scope="module")
def fitted(sample: Sample) -> StaticModel:
    return sample.fit()


def plain_means(sample: Sample) -> npt.NDArray[np.float32]:
    """Static vectors without a fit: the mean of a passage's tokens."""
    means = np.stack([sample.distilled[row[:LIMIT]].mean(axis=0) for row in rows_of(sample.tokens)])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def test_a_fit_finds_more_of_unseen_passages_neighbours_than_plain_means(sample: Sample, fitted: StaticModel) -> None:
    unseen = np.arange(TRAIN, len(sample.tokens))
    wanted = sample.vectors[unseen]
    got = fitted.vectors(sample.tokens.take(unseen))
    assert neighbour_recall(got, wanted, 10) > neighbour_recall(plain_means(sample)[unseen], wanted, 10) + 0.05


def test_distilled_vectors_are_those_of_single_tokens() -> None:
    def encode(tokens: Ragged) -> npt.NDArray[np.float32]:
        assert (tokens.lengths == 1).all()
        return np.stack([tokens.values * 3, tokens.values * 4], axis=1).astype(np.float32)

    np.testing.assert_allclose(distil(encode, 5), [[0, 0]] + [[0.6, 0.8]] * 4, atol=1e-6)


def test_fits_are_equal_for_equal_seeds(sample: Sample, fitted: StaticModel) -> None:
    again, other = sample.fit(), sample.fit(seed=1)
    for name in ("rarity", "table", "shift", "centres", "head", "bias"):
        np.testing.assert_array_equal(getattr(again, name), getattr(fitted, name))
    assert not np.array_equal(other.centres, fitted.centres)


def test_a_saved_model_gives_the_same_vectors(sample: Sample, fitted: StaticModel, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    loaded = StaticModel.load(tmp_path)
    assert loaded.limit == LIMIT
    np.testing.assert_array_equal(loaded.vectors(sample.tokens), fitted.vectors(sample.tokens))


@pytest.mark.parametrize("damaged", [ARRAYS, FACTS])
def test_a_damaged_model_is_refused(fitted: StaticModel, tmp_path: Path, damaged: str) -> None:
    fitted.save(tmp_path)
    (tmp_path / damaged).write_bytes(b"{}")
    with pytest.raises(ModelError, match="fit it again"):
        StaticModel.load(tmp_path)


def test_a_passage_does_not_depend_on_the_others(
    sample: Sample, fitted: StaticModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = np.random.default_rng(0).permutation(len(sample.tokens))
    whole = fitted.vectors(sample.tokens)
    np.testing.assert_allclose(fitted.vectors(sample.tokens.take(order)), whole[order], atol=1e-5)
    monkeypatch.setattr("selection.encoders.static.CHUNK", 7)
    np.testing.assert_allclose(fitted.vectors(sample.tokens), whole, atol=1e-5)


def test_tokens_past_the_limit_are_not_read(sample: Sample, fitted: StaticModel) -> None:
    cut = sample.tokens.cut(sample.tokens.offsets[:-1], np.minimum(sample.tokens.lengths, LIMIT))
    assert len(cut.values) < len(sample.tokens.values)
    np.testing.assert_array_equal(fitted.vectors(cut), fitted.vectors(sample.tokens))


def test_empty_and_unseen_texts_have_unit_vectors(sample: Sample, fitted: StaticModel) -> None:
    never = np.setdiff1d(np.arange(len(sample.distilled)), sample.tokens.values)[:3].astype(np.int32)
    odd = Ragged(never, np.array([0, 0, 3, 3]))
    vectors = fitted.vectors(odd)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-6)
    assert fitted.vectors(Ragged(never[:0], np.zeros(1, np.int64))).shape == (0, fitted.dim)


def test_a_sample_may_hold_empty_and_equal_texts(sample: Sample) -> None:
    rows = np.repeat(np.arange(20), 2)
    tokens = sample.tokens.cut(sample.tokens.offsets[rows], sample.tokens.lengths[rows] * (rows > 0))
    model = fit_static(tokens, sample.vectors[rows], sample.distilled)
    assert np.isfinite(model.vectors(sample.tokens)).all()


def test_neighbour_recall_is_that_of_sorted_lists() -> None:
    rng = np.random.default_rng(0)
    teacher = rng.standard_normal((60, 8)).astype(np.float32)
    student = teacher + rng.standard_normal((60, 8)).astype(np.float32) / 2

    def lists(vectors: npt.NDArray[np.float32]) -> list[set[int]]:
        scores = vectors @ vectors.T
        return [set([j for j in np.argsort(-row) if j != i][:5]) for i, row in enumerate(scores)]

    expected = np.mean([len(a & b) / 5 for a, b in zip(lists(student), lists(teacher), strict=True)])
    assert neighbour_recall(student, teacher, 5) == pytest.approx(expected)


def test_neighbour_recall_at_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(1).standard_normal((30, 4)).astype(np.float32)
    monkeypatch.setattr("selection.encoders.recall.BLOCK", 7)
    assert neighbour_recall(vectors, vectors, 3) == 1
    assert neighbour_recall(vectors[::-1], vectors, 50) == 1
    assert neighbour_recall(vectors[::-1], vectors, 3) < 0.5
    assert np.isnan(neighbour_recall(vectors[:1], vectors[:1], 3))
