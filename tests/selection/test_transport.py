"""Transport: TSDS against the linear program and the heap of its authors, OT against POT, both on a store."""

from __future__ import annotations

import heapq
from pathlib import Path

import numpy as np
import numpy.typing as npt
import ot as pot
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import spearmanr

from selection.embedding import Embeddings
from selection.errors import NearkinError, StoreError
from selection.index.exact import exact_search
from selection.selectors import CANDIDATES
from selection.selectors.knn import KnnSelector
from selection.selectors.ot import OtSelector, passage_potentials, task_potentials
from selection.selectors.pool import Pool
from selection.selectors.tsds import TsdsSelector, densities, probabilities
from selection.store import Store
from selection.task import read_task
from tests.conftest import Cli

Floats = npt.NDArray[np.float64]


@pytest.fixture
def pool(built: Path, task_folder: Path) -> Pool:
    return Pool(Store(built), read_task(task_folder))


def vectors_of(pool: Pool) -> Floats:
    return np.concatenate(list(pool.embeddings)).astype(np.float64)


def problem(seed: int, rows: int, passages: int) -> tuple[Floats, Floats, npt.NDArray[np.intp]]:
    """Distances [rows, passages] and densities [passages] of random points; and each row's passages, nearest first."""
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(rows, 3)), rng.normal(size=(passages, 3))
    distances = np.linalg.norm(left[:, None] - right[None], axis=2)
    return distances, rng.uniform(1, 4, passages), np.argsort(distances, axis=1)


def solved(distances: Floats, rho: Floats, order: npt.NDArray[np.intp], alpha: float, c: float) -> Floats:
    """`probabilities`, by passage."""
    mass = probabilities(np.take_along_axis(distances, order, axis=1), rho[order], alpha, c)
    gamma = np.empty_like(mass)
    np.put_along_axis(gamma, order, mass, axis=1)
    return gamma


def objective(gamma: Floats, distances: Floats, rho: Floats, alpha: float, c: float) -> float:
    even = (1 / rho) / (len(gamma) * (1 / rho).sum())
    return float(alpha / c * (gamma * distances).sum() + (1 - alpha) * len(gamma) * (rho * np.abs(gamma - even)).max())


def linear_program(distances: Floats, rho: Floats, alpha: float, c: float) -> Floats:
    """The minimum of `objective`, with the largest deviation as a further variable."""
    rows, passages = distances.shape
    size = rows * passages
    cost = np.append(alpha / c * distances.ravel(), (1 - alpha) * rows)
    scale, even = np.tile(rho, rows), np.full(size, 1 / (rows * (1 / rho).sum()))
    over = np.column_stack([np.diag(scale), -np.ones(size)])
    under = np.column_stack([-np.diag(scale), -np.ones(size)])
    sums = np.column_stack([np.kron(np.eye(rows), np.ones(passages)), np.zeros(rows)])
    found = linprog(cost, np.vstack([over, under]), np.concatenate([even, -even]), sums, np.full(rows, 1 / rows))
    return np.asarray(found.x[:-1]).reshape(rows, passages)


def by_heap(distances: Floats, rho: Floats, alpha: float, c: float) -> Floats:
    """Event by event, as the authors do it; a row that has not filled its first passage gives it everything."""
    rows, width = distances.shape
    events = [(1 / rho[row, 0], 0, row) for row in range(rows)]
    heapq.heapify(events)
    costs, last, level = [0.0] * rows, [0] * rows, 1.0
    while events:
        level, at, row = heapq.heappop(events)
        weights = 1 / rho[row, : at + 1]
        costs[row] = distances[row, at + 1] * weights.sum() - (weights * distances[row, : at + 1]).sum()
        last[row] = at
        if alpha / c * sum(costs) >= (1 - alpha) * rows:
            break
        if at + 2 < width:
            heapq.heappush(events, (level + 1 / rho[row, at + 1], at + 1, row))
    gamma = np.zeros((rows, width))
    for row in range(rows):
        left = 1 / rows
        for at in range(last[row] + 1):
            gamma[row, at] = min(left, 1 / (rows * level * rho[row, at]))
            left -= gamma[row, at]
        gamma[row, last[row] + 1] += left
    return gamma


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(0.5, 0.9), st.floats(0.5, 1.5))
def test_probabilities_solve_the_linear_program(seed: int, rows: int, alpha: float, c: float) -> None:
    distances, rho, order = problem(seed, rows, 16)
    gamma = solved(distances, rho, order, alpha, c)
    s = 1 / (rows * (gamma * rho).max())
    assume(s < 0.5 * (1 / rho).sum())  # past that, passages without mass deviate most and the optimum is another
    best = linear_program(distances, rho, alpha, c)
    assert abs(objective(gamma, distances, rho, alpha, c) - objective(best, distances, rho, alpha, c)) < 1e-6
    np.testing.assert_allclose(gamma, best, atol=1e-6)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(2, 30), st.floats(0.1, 0.99), st.floats(0.2, 5))
def test_probabilities_are_those_of_the_heap(seed: int, rows: int, width: int, alpha: float, c: float) -> None:
    distances, _, _ = problem(seed, rows, width)
    distances.sort(axis=1)
    rho = np.random.default_rng(seed).uniform(1, 5, (rows, width))
    gamma = probabilities(distances, rho, alpha, c)
    np.testing.assert_allclose(gamma.sum(axis=1), 1 / rows, rtol=1e-12)
    assert gamma.min() >= 0
    np.testing.assert_allclose(gamma, by_heap(distances, rho, alpha, c), atol=1e-12)


@given(st.integers(0, 10**6), st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted))
def test_a_larger_alpha_stays_nearer(seed: int, alphas: list[float]) -> None:
    distances, rho, order = problem(seed, 4, 20)
    less, more = (solved(distances, rho, order, alpha, 1.0) for alpha in alphas)
    assert (more * distances).sum() <= (less * distances).sum() + 1e-12
    assert (more * rho).max() >= (less * rho).max() - 1e-12


def test_extremes_and_near_copies() -> None:
    distances, rho, order = problem(0, 4, 20)
    nearest = solved(distances, rho, order, 1.0, 1.0)
    np.testing.assert_array_equal(nearest.argmax(axis=1), order[:, 0])
    np.testing.assert_allclose(nearest.max(axis=1), 0.25)
    assert (solved(distances, rho, order, 0.0, 1.0) > 0).sum() > 60
    assert probabilities(np.ones((3, 1)), np.ones((3, 1)), 0.5, 1).tolist() == [[1 / 3]] * 3
    spread = probabilities(np.linspace(0.5, 0.6, 40)[None], np.where(np.arange(40) < 2, 2.0, 1.0)[None], 0.5, 1.0)[0]
    assert spread[0] == pytest.approx(spread[1]) == pytest.approx(spread[2] / 2)  # two copies, as much as one passage
    for alpha, c in ((1.1, 1.0), (-0.1, 1.0), (0.5, 0.0), (float("nan"), 1.0)):
        with pytest.raises(NearkinError, match="alpha must be from 0 to 1"):
            probabilities(np.ones((1, 2)), np.ones((1, 2)), alpha, c)


def test_densities_are_sums_of_kernels(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.arange(5, 600, 2)
    vectors = vectors_of(pool)[ids]
    squares = 2 - 2 * vectors @ vectors.T
    sigma = float(np.quantile(squares, 0.2)) ** 0.5
    kernel = np.maximum(1 - np.maximum(squares, 0) / sigma**2, 0)
    found = densities(pool, ids, len(ids), sigma)
    np.testing.assert_allclose(found, np.maximum(kernel.sum(axis=1), 1), atol=1e-3)
    best = np.sort(kernel, axis=1)[:, -7:].sum(axis=1)
    np.testing.assert_allclose(densities(pool, ids, 7, sigma), np.maximum(best, 1), atol=1e-3)
    monkeypatch.setattr("selection.selectors.tsds.BLOCK", 37)
    monkeypatch.setattr("selection.selectors.tsds.KEY_BYTES", 8 * len(ids) * 60)
    gathered, parts, searched = [], Embeddings.parts, []
    monkeypatch.setattr(Embeddings, "parts", lambda self, rows: gathered.append(rows) or parts(self, rows))
    monkeypatch.setattr(
        "selection.selectors.tsds.exact_search",
        lambda blocks, queries, *rest, **more: (
            searched.append(len(queries)) or exact_search(blocks, queries, *rest, **more)
        ),
    )
    np.testing.assert_array_equal(densities(pool, ids, len(ids), sigma), found)
    assert len(gathered) == 1
    assert searched == [60, 60, 60, 60, 58]
    assert densities(pool, ids, 7, 0.0).tolist() == [1.0] * len(ids)


def test_tsds_ranks_by_the_mass_of_all_examples(pool: Pool) -> None:
    vectors, queries = vectors_of(pool), pool.queries.astype(np.float64)
    scores = queries @ vectors.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :30]
    distances = np.sqrt(np.maximum(2 - 2 * np.take_along_axis(scores, order, axis=1), 0))
    sigma, c = 0.1, float(np.median(distances))
    union = np.unique(order)
    square = 2 - 2 * vectors[union] @ vectors[union].T
    rho = np.maximum(np.maximum(1 - np.maximum(square, 0) / sigma**2, 0).sum(axis=1), 1)
    gamma = np.zeros((len(queries), 600))
    mass = by_heap(distances, rho[np.searchsorted(union, order)], 0.8, c)
    np.put_along_axis(gamma, order, mass, axis=1)
    table = TsdsSelector("top", 0.8, c, sigma, 30, 600).candidates(pool, None, 20)
    assert table.schema.equals(CANDIDATES)
    ids = table["doc_id"].to_numpy()
    total = gamma.sum(axis=0)
    np.testing.assert_allclose(table["score"].to_numpy(), np.sort(total)[::-1][:20], rtol=0.01)
    np.testing.assert_allclose(total[ids], table["score"].to_numpy(), rtol=0.01)
    sent = gamma[table["query_id"].to_numpy(), ids]
    np.testing.assert_allclose(sent, gamma[:, ids].max(axis=0), rtol=0.02)
    assert np.abs(table["n_queries"].to_numpy() - (gamma[:, ids] > 0).sum(axis=0)).max() <= 1


def test_tsds_draws_in_proportion() -> None:
    found, place = np.array([3, 5, 9, 11]), np.array([[0, 1, 2], [0, 2, 3]])
    mass = np.array([[0.3, 0.15, 0.05], [0.4, 0.09, 0.0]])
    firsts = [TsdsSelector()._ranked(found, place, mass, seed)["doc_id"][0].as_py() for seed in range(1500)]
    shares = [firsts.count(doc_id) / 1500 for doc_id in found.tolist()]
    np.testing.assert_allclose(shares, [0.71, 0.15, 0.14, 0.0], atol=0.04)
    table = TsdsSelector("top")._ranked(found, place, mass, 0)
    assert table["doc_id"].to_pylist() == [3, 5, 9]
    assert table["query_id"].to_pylist() == [1, 0, 1]
    assert table["n_queries"].to_pylist() == [2, 1, 2]


def test_tsds_fills_any_budget_and_repeats_itself(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    selector = TsdsSelector(neighbours=10)
    few, every = selector.candidates(pool, None, 20), selector.candidates(pool, None, 600)
    assert few.equals(every.slice(0, 20))
    assert sorted(every["doc_id"].to_pylist()) == list(range(600))
    assert every["rank"].to_pylist() == list(range(1, 601))
    scores = every["score"].to_numpy()
    massive = int((scores > 0).sum())
    assert 20 < massive < 400
    assert (scores[:massive] > 0).all()
    assert scores.sum() == pytest.approx(1)
    nearest = {row["doc_id"]: row for row in KnnSelector().candidates(pool, None, 600).to_pylist()}
    for row in every.slice(massive).to_pylist():
        assert all(row[name] == nearest[row["doc_id"]][name] for name in ("query_id", "n_queries"))
    assert TsdsSelector(neighbours=10).candidates(pool, None, 600).equals(every)
    assert len(selector.candidates(pool, 2, 1)) == 80
    monkeypatch.setattr("selection.selectors.tsds.MOST_PAIRS", 400)
    assert TsdsSelector(neighbours=500).candidates(pool, None, 600).equals(every)
    assert "tsds takes 10 neighbours" in caplog.text
    with pytest.raises(NearkinError, match="neighbours and kde_neighbours must be at least 1"):
        TsdsSelector(neighbours=0).candidates(pool, None, 5)


def by_pot(passages: Floats, queries: Floats, blur: float, mass: Floats | None = None) -> tuple[Floats, Floats]:
    """f, g of the converged transport in float64, g of mean 0."""
    even = np.full(len(queries), 1 / len(queries))
    mass = np.full(len(passages), 1 / len(passages)) if mass is None else mass
    _, found = pot.bregman.sinkhorn_log(
        mass, even, 1 - passages @ queries.T, blur, numItermax=20_000, stopThr=1e-11, log=True
    )
    f, g = blur * (found["log_u"] - np.log(mass)), blur * (found["log_v"] - np.log(even))
    return f + g.mean(), g - g.mean()


def units(seed: int, rows: int, dim: int = 8) -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(rows, dim))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@pytest.mark.parametrize("blur", [0.02, 0.05, 0.2])
def test_potentials_are_those_of_pot(blur: float) -> None:
    passages, queries = units(0, 400), units(1, 90)
    f, g = by_pot(passages.astype(np.float64), queries.astype(np.float64), blur)
    found = task_potentials(passages, queries, blur)
    np.testing.assert_allclose(found, g, atol=1e-4)
    np.testing.assert_allclose(passage_potentials(passages, queries, found, blur), f, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Sinkhorn did not converge")
def test_potentials_stay_finite_where_kernels_vanish() -> None:
    """Opposite points are at cost 2, whose kernel at this blur is far below float32's range."""
    north = np.array([[1, 0], [0.999, 0.0447], [0.98, 0.199]], np.float32)
    passages, queries = np.concatenate([north, -north[:1]]), np.concatenate([-north[:2], north[:1]])
    f, g = by_pot(passages.astype(np.float64), queries.astype(np.float64), 0.01)
    found = task_potentials(passages, queries, 0.01)
    np.testing.assert_allclose(found, g, atol=2e-3)
    np.testing.assert_allclose(passage_potentials(passages, queries, found, 0.01), f, atol=2e-3)


@pytest.mark.parametrize("seed", [12, 25])
def test_numbers_out_of_range_are_no_solution(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """POT's plain form stops here and gives the last numbers within range, which are finite and off by 0.04 to 0.2."""
    passages, queries = units(seed, 20, 2), units(seed + 1000, 20, 2)
    _, g = by_pot(passages.astype(np.float64), queries.astype(np.float64), 0.01)
    np.testing.assert_allclose(task_potentials(passages, queries, 0.01), g, atol=1e-4)
    assert not caplog.records


def test_a_transport_far_from_solved_is_told(caplog: pytest.LogCaptureFixture) -> None:
    task_potentials(units(4, 20, 2), units(1004, 20, 2), 0.01)
    assert "after 500 steps, 1e-05 was aimed at: a larger blur than 0.01 is solved sooner" in caplog.text


def test_the_score_is_what_a_little_mass_does_to_the_distance() -> None:
    passages, queries, blur, little = (*(units(n, 30).astype(np.float64) for n in (2, 3)), 0.05, 1e-4)

    def distance(mass: Floats) -> float:
        f, g = by_pot(passages, queries, blur, mass)
        return float(f @ mass + g.mean())

    even = np.full(30, 1 / 30)
    potentials = task_potentials(passages.astype(np.float32), queries.astype(np.float32), blur)
    f = passage_potentials(passages.astype(np.float32), queries.astype(np.float32), potentials, blur)
    for passage in range(0, 30, 5):
        others = np.delete(np.arange(30), passage)
        moved = even.copy()
        moved[passage] += little
        moved[others] -= little / 29
        gradient = (distance(moved) - distance(even)) / little
        assert gradient == pytest.approx(f[passage] - f[others].mean(), abs=2e-3)


def test_ot_with_one_batch_is_the_whole_solution(pool: Pool) -> None:
    f, _ = by_pot(vectors_of(pool), pool.queries.astype(np.float64), 0.02)
    gradient = f - (f.sum() - f) / 599
    table = OtSelector().candidates(pool, None, 600)
    assert table.schema.equals(CANDIDATES)
    ids, scores = table["doc_id"].to_numpy(), table["score"].to_numpy()
    np.testing.assert_allclose(scores, -gradient[ids], atol=1e-4)
    vectors = vectors_of(pool).astype(np.float32)
    own = passage_potentials(vectors, pool.queries, task_potentials(vectors, pool.queries, 0.02), 0.02)
    np.testing.assert_allclose(scores, ((own.sum() - own) / 599 - own)[ids], atol=2e-6)
    assert (np.diff(scores) <= 0).all()
    assert sorted(ids.tolist()) == list(range(600))
    assert set(table["query_id"].to_pylist()) == {-1}
    assert OtSelector().candidates(pool, None, 600).equals(table)
    assert OtSelector().candidates(pool, None, 50).equals(table.slice(0, 50))


def test_ot_by_batches_ranks_nearly_alike(pool: Pool) -> None:
    whole = OtSelector().candidates(pool, None, 600)
    parts = OtSelector(batch_size=150).candidates(pool, None, 600)
    some = OtSelector(examples=20).candidates(pool, None, 600)

    def scores(table: object) -> Floats:
        return np.asarray(table.sort_by("doc_id")["score"])  # type: ignore[attr-defined]

    assert not np.array_equal(scores(parts), scores(whole))
    assert spearmanr(scores(parts), scores(whole))[0] > 0.95
    assert spearmanr(scores(some), scores(whole))[0] > 0.8


def test_ot_prefers_the_domain_of_the_task() -> None:
    rng = np.random.default_rng(0)
    centres = units(4, 3, 32)
    near = rng.normal(size=(3, 200, 32)) * 0.1 + centres[:, None]
    passages = (near / np.linalg.norm(near, axis=2, keepdims=True)).reshape(600, 32).astype(np.float32)
    queries = passages[:400:40]  # of the first two domains
    potentials = task_potentials(passages, queries, 0.02)
    best = np.argsort(passage_potentials(passages, queries, potentials, 0.02))[:400]
    assert (best < 400).mean() > 0.99
    assert 100 < (best < 200).sum() < 300


def test_tiles_and_threads_change_nothing(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    table = OtSelector().candidates(pool, None, 600)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert OtSelector().candidates(pool, None, 600).equals(table)
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr("selection.selectors.ot.TILE", 64)
    smaller = OtSelector().candidates(pool, None, 600).sort_by("doc_id")
    np.testing.assert_allclose(smaller["score"].to_numpy(), table.sort_by("doc_id")["score"].to_numpy(), atol=1e-6)


def test_ot_wants_sense_and_full_embeddings(pool: Pool) -> None:
    for wrong in (OtSelector(blur=0), OtSelector(batches=0), OtSelector(blur=float("nan"))):
        with pytest.raises(NearkinError, match="blur must be above 0"):
            wrong.candidates(pool, None, 5)
    pool.__dict__["_resolved"] = (pool.slug, True)
    with pytest.raises(StoreError, match="compares every passage, and a cascade has no full embeddings"):
        OtSelector().candidates(pool, None, 5)


def test_with_a_cascade_tsds_works_and_ot_says_what_to_do(
    cli: Cli, corpus_file: Path, tiny_encoder: Path, task_folder: Path, tmp_path: Path
) -> None:
    store, name = tmp_path / "store", f"cascade:{tiny_encoder}"
    assert cli("build", store, "--corpus", f"docs={corpus_file}", "--encoder", name)[0] == 0
    asked = ("select", store, task_folder, "--docs", 50)
    code, _, errors = cli(*asked, "--method", "tsds", "--encoder", name, "--out", tmp_path / "tsds")
    assert code == 0, errors
    for method in ("ot", "cluster"):
        code, _, errors = cli(*asked, "--method", method, "--encoder", name, "--out", tmp_path / method)
        assert code == 1
        assert f"method {method} compares every passage" in errors
        static = errors.strip().rpartition("or use --encoder ")[2]
        code, _, errors = cli(*asked, "--method", method, "--encoder", static, "--out", tmp_path / method)
        assert code == 0, errors
