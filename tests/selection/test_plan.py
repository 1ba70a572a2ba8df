"""What a plan reckons with: shares of a trial's seconds, and what codes ask for in a sample."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from selection.errors import NearkinError
from selection.index import trial
from selection.index.blocks import BLOCK_BYTES
from selection.index.kinds import BY_NAME
from selection.index.pilot import LENGTHS, Pilot, Reach, found_at
from selection.index.plan import IndexPlan, IndexWanted, _Planner, plan_index
from selection.index.trial import shares, unit_vectors


def test_shares_of_a_trial_are_those_that_made_it() -> None:
    runs = np.array([[32_768, 4096, 4_194_304], [32_768, 16_384, 16_777_216], [32_768, 65_536, 8_388_608]], np.float64)
    true = np.array([4e-6, 7e-7, 5e-9])
    assert shares(runs, runs @ true) == pytest.approx(true)
    assert shares(runs * [0, 1, 1], (runs * [0, 1, 1]) @ true) == pytest.approx([0, *true[1:]])


@pytest.mark.parametrize(("start", "pair"), [(0.0, 1.0), (0.8, 0.5), (0.6, 0.8), (1.5, 0.5)])
def test_a_disturbed_trial_of_exact_search_keeps_to_what_is_possible(
    start: float, pair: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = iter([1.0, start, 1.0, 1.5])  # a first run; one shard, both, both for more neighbours
    monkeypatch.setattr(trial, "_seconds", lambda run: next(taken))
    found, again = trial.pair_seconds.__wrapped__(8)
    assert found * trial.PASSAGES * trial.QUERIES == pytest.approx(pair)
    assert again > 0


def test_no_share_is_less_than_nothing() -> None:
    runs = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 4.0]])
    found = shares(runs, np.array([4.0, 3.0, 1.0]))  # the more of the second, the less it takes: noise
    assert min(found) == 0
    assert max(found) > 0


def test_places_among_candidates_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    found = np.stack([rng.permutation(50)[:20] for _ in range(30)])
    found[3, 5:] = -1
    exact = np.stack([rng.permutation(50)[:10] for _ in range(30)])
    for ids, wanted, places in zip(found.tolist(), exact.tolist(), found_at(found, exact), strict=True):
        assert [ids.index(one) + 1 if one in ids else 21 for one in wanted] == places.tolist()


@pytest.mark.parametrize("kind", ["ivf-sq8", "ivf-rabitq", "ivf-pq"])
def test_coarser_codes_and_larger_corpora_ask_for_more_candidates(kind: str) -> None:
    vectors = unit_vectors(2560, 32) + np.repeat(unit_vectors(40, 32, 1), 64, axis=0)  # topics
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pilot = Pilot(np.random.default_rng(0).permutation(vectors))
    some, many = (pilot.rerank(BY_NAME[kind], 0.97, passages) for passages in (2500, 25_000_000))
    assert some < many
    assert (pilot.rerank(BY_NAME["ivf-sq8"], 0.97, 2500) < some) == (kind != "ivf-sq8")


def test_a_limit_that_the_kind_asked_for_does_not_keep_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "pair_seconds", lambda *arguments: (1e-9, 1e-9))
    wanted = IndexWanted("stream", max_seconds=1.0)
    assert plan_index(10_000, 32, wanted).why == "as asked"
    assert plan_index(10_000_000, 32, wanted).why == "as asked, which does not fit into 1.0 s"


def lists_plan(monkeypatch: pytest.MonkeyPatch, memory: int) -> IndexPlan:
    """Of lists whose time, if nothing else, asks for very many of them."""
    reaches = [Reach(length, 10.0, 65_536, 0.5) for length in LENGTHS]
    pilot = SimpleNamespace(reaches=lambda target: reaches, rerank=lambda *arguments: 1)
    monkeypatch.setattr("selection.index.plan.drawn", lambda embeddings: None)
    monkeypatch.setattr("selection.index.plan.Pilot", lambda *arguments, **options: pilot)
    monkeypatch.setattr("selection.index.plan.current_memory", lambda: 0)
    some: Any = object()
    for name in ("_filling", "_measuring"):
        monkeypatch.setattr(_Planner, name, lambda *arguments: 0.0)
    monkeypatch.setattr(_Planner, "_searching", lambda self, kind, lists, *rest: 1e9 / lists)
    monkeypatch.setattr(trial, "pair_seconds", lambda *arguments: (1e-9, 1e-9))
    return plan_index(50_000_000, 32, IndexWanted("ivf", max_memory=memory), embeddings=some)


def test_lists_are_as_many_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [50_000_000 // length for length in LENGTHS]
    assert lists_plan(monkeypatch, 100 << 30).lists == wanted[0]
    some = lists_plan(monkeypatch, 1 << 30)
    assert some.lists in wanted[1:-1]
    assert (some.memory or 0) <= 1 << 30
    with pytest.raises(NearkinError, match="--max-memory") as raised:
        lists_plan(monkeypatch, 100 << 20)
    least = re.search(r"at least ([\d.]+) MB", str(raised.value))
    assert least
    assert lists_plan(monkeypatch, int(float(least[1]) * 1e6)).lists == wanted[-1]


def test_lists_are_charged_for_each_of_the_blocks_that_they_are_in(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = trial.Scan(opening=1e-4, decoding=0.0, visiting=1e-6, looking=0.0)
    monkeypatch.setattr(_Planner, "_trial", lambda self, kind: trial.Lists(0.0, 0.0, scan, scan))
    for name in ("order_seconds", "again_seconds"):
        monkeypatch.setattr(trial, name, lambda dim: 0.0)
    monkeypatch.setattr("selection.index.plan.current_memory", lambda: 0)
    planner = _Planner(100_000_000, 384, IndexWanted(max_memory=64 << 30), Path(), None, None, None)
    kind, lists, queries = BY_NAME["ivf-sq8"], 97_656, 4096
    blocks = planner._blocks(kind, lists)
    assert blocks == -(-100_000_000 // (BLOCK_BYTES // kind.bytes(384)))
    visits, opened = queries * 100 * blocks * 1e-6, lists * blocks * 1e-4
    assert planner._searching(kind, lists, 100.0, 1, queries) == pytest.approx(visits + opened)


@pytest.mark.parametrize(("kind", "dim", "lists"), [("ivf-sq8", 384, 97_656), ("ivf", 32, 24_414), ("ivf", 32, 200)])
def test_the_least_memory_is_what_the_smallest_blocks_leave_room_for(kind: str, dim: int, lists: int) -> None:
    def kept(limit: int) -> bool:
        planner = _Planner(50_000_000, dim, IndexWanted(max_memory=limit), Path(), None, None, None)
        planner.now = 0
        fixed, search, training = planner._parts(BY_NAME[kind], lists)
        opened = planner._blocks(BY_NAME[kind], lists) * lists * 24
        return fixed + max(search + opened, training + (16 << 20)) <= limit

    planner = _Planner(50_000_000, dim, IndexWanted(), Path(), None, None, None)
    planner.now = 0
    least = planner._least(BY_NAME[kind], lists)
    assert kept(least + (1 << 20))
    assert not kept(least - (1 << 20))


def test_an_opened_list_is_measured_apart_from_what_is_in_it() -> None:
    tried = trial.lists(BY_NAME["ivf"], 32, 50)
    assert tried.together is not None
    assert 1e-7 < tried.together.opening < 1e-2
    assert tried.alone.opening == 0
