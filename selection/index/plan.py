"""Which index: the one whose making and searching are predicted to take least, within the memory and recall asked for.

A task's examples are searched all at once, by matrix products, which look at a passage about thirty times faster than
a scan of inverted lists does. So exact search, which needs no index, is best until there are many more queries than
lists: giving a corpus its lists costs as much as searching it with as many queries as there are lists.
"""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from selection.corpus import SHARD_ROWS
from selection.embedding import Embeddings
from selection.encoders.recall import MIN_RECALL
from selection.errors import NearkinError
from selection.index import trial
from selection.index.blocks import AT, BLOCK_BYTES, CANDIDATES_HELD, in_batch
from selection.index.exact import TILE_PASSAGES, TILE_QUERIES
from selection.index.kinds import BY_NAME, CODE_POINTS, KINDS, Kind, Vectors
from selection.index.kmeans import ITERATIONS, rows_at_once
from selection.index.pilot import FEW_LISTS, LENGTHS, Pilot, Reach, drawn
from selection.index.tune import DEPTHS, PROBES, share_of_lists
from selection.memory import current_memory
from selection.wording import human_bytes, human_seconds

AFFORDABLE = 60.0
QUERIES = 10_000
POINTS_PER_LIST = 32
LEAST_BLOCK = 16 << 20
LIST_BYTES, OPEN_LIST_BYTES = 8, 24  # of a list in each file, however few its passages; and in memory, once opened
CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
AUTO = ("ivf", "ivf-sq8", "hnsw")


@dataclass(frozen=True)
class IndexWanted:
    """What was asked for.

    Attributes:
        kind: one of `KINDS`.
        min_recall: the least share of exact neighbours, in [0, 1].
        max_memory: bytes of this process, None for most of the machine's.
        max_seconds: for making it and searching it with `queries`.
        queries: how many task examples it will answer in all.
    """

    kind: str = "auto"
    min_recall: float = MIN_RECALL
    max_memory: int | None = None
    max_seconds: float | None = None
    queries: int = QUERIES


@dataclass(frozen=True)
class IndexPlan:
    """What will be built, and what that is expected to take.

    Attributes:
        kind: what it is.
        lists: inverted lists, 0 where there are none.
        bytes: of its files.
        block_bytes: of one of them, at most.
        memory: bytes of this process at most, now and while it is made; None where the system does not tell.
        build_seconds, search_seconds: predicted; the latter for the queries that were said.
        recall: what is promised, and measured when it is made; 1 for exact kinds.
        why: the reason, for the printed plan.
        guessed: whether the number of lists is a guess, since there are no embeddings yet.
    """

    kind: Kind
    lists: int
    bytes: int
    block_bytes: int
    memory: int | None
    build_seconds: float
    search_seconds: float
    recall: float
    why: str
    guessed: bool = False

    @property
    def seconds(self) -> float:
        return self.build_seconds + self.search_seconds

    def line(self, queries: int) -> str:
        """The plan for a person."""
        lists = f" of {self.lists:,} lists" if self.lists else ""
        recall = "exact" if self.kind.exact else f"recall@{AT} at least {self.recall:g}"
        memory = "" if self.memory is None else f", memory {human_bytes(self.memory)}"
        took = (
            f"{human_seconds(self.build_seconds)} to make, {human_seconds(self.search_seconds)} for {queries:,} queries"
        )
        return f"{self.kind.name}{lists} ({self.why}): {recall}, {human_bytes(self.bytes)}, {took}{memory}"


def training_points(rows: int, lists: int) -> int:
    """How many passages lists and codes are trained on."""
    return min(rows, max(lists * POINTS_PER_LIST, CODE_POINTS))


def memory_of_machine() -> int:
    """Bytes of physical memory, or what a container is given of it; 8 GB where the system does not say."""
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 8 << 30
    limits = [physical]
    for file in CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # absent, or "max"
            limits.append(int(file.read_text()))
    return min(limits)


def plan_index(
    rows: int,
    dim: int,
    wanted: IndexWanted,
    folder: Path = Path(),
    embeddings: Embeddings | None = None,
    examples: Vectors | None = None,
    device: str | None = None,
) -> IndexPlan:
    """Chooses the index for `rows` vectors of `dim` dimensions.

    Args:
        folder: where it will be written, whose disk is tried.
        embeddings: where they exist, a sample of them says how many lists there should be; else a guess does.
        examples: float32 [n, dim], a task's, who will be among those that ask.
        device: where exact search will run, and is tried; see `selection.index.exact.stream_search`.

    Raises:
        NearkinError: unknown kind, or one that cannot be had within the limits.
    """
    if wanted.kind not in KINDS:
        raise NearkinError(f"unknown index kind {wanted.kind!r}: choose one of {', '.join(KINDS)}")
    planner = _Planner(rows, dim, wanted, folder, embeddings, examples, device)
    if wanted.kind != "auto":
        asked = planner.plan(BY_NAME[wanted.kind], "as asked")
        if wanted.max_seconds is not None and asked.seconds > wanted.max_seconds:
            return replace(asked, why=f"as asked, which does not fit into {human_seconds(wanted.max_seconds)}")
        return asked
    exact = planner.plan(BY_NAME["stream"], "exact search is affordable")
    if exact.seconds <= min(AFFORDABLE, wanted.max_seconds or math.inf):
        return exact
    plans = [exact]
    for name in AUTO:
        with contextlib.suppress(NearkinError):  # it does not fit, or FAISS is missing: the exact one is there
            plans.append(planner.plan(BY_NAME[name], "least time in all"))
    # A graph is walked at random: where it does not fit into memory, the disk would be waited for at each step.
    plans = [plan for plan in plans if plan.kind.name != "hnsw" or plan.bytes <= planner.limit]
    best = min(plans, key=lambda plan: plan.seconds)
    if wanted.max_seconds is not None and best.seconds > wanted.max_seconds:
        return replace(best, why=f"nothing fits into {human_seconds(wanted.max_seconds)}, and this takes least")
    if best is exact:
        return replace(exact, why="least time in all")
    return best


class _Planner:
    def __init__(
        self,
        rows: int,
        dim: int,
        wanted: IndexWanted,
        folder: Path,
        embeddings: Embeddings | None,
        examples: Vectors | None,
        device: str | None,
    ) -> None:
        self.rows, self.dim, self.wanted, self.folder = rows, dim, wanted, folder
        self.embeddings, self.examples, self.device = embeddings, examples, device
        self.limit = wanted.max_memory or int(0.9 * memory_of_machine())
        self.now = current_memory() or 0  # before the trials take some for themselves
        self._pilot: Pilot | None = None
        self._reaches: dict[float, list[Reach]] = {}

    def plan(self, kind: Kind, why: str) -> IndexPlan:
        if self.rows < kind.least:
            raise NearkinError(
                f"{kind.name} is trained on {kind.least} passages at least and there are {self.rows:,}: "
                "choose another kind of index"
            )
        size = self.rows * kind.bytes(self.dim)
        pair, again = trial.pair_seconds(self.dim, self.device)
        queries = self.wanted.queries
        exactly = self.rows * pair + trial.candidates(self.rows, AT) * again
        if kind.name == "stream":
            return IndexPlan(kind, 0, 0, 0, self._memory(kind, 0)[0], 0.0, queries * exactly, 1.0, why)
        lists, visited, rerank = self._lists(kind, queries) if kind.has_lists else (0, 0.0, 1)
        memory, block = self._memory(kind, lists)
        blocks = self._blocks(kind, lists)
        size += lists * self.dim * 4 + blocks * (lists * LIST_BYTES + kind.training_bytes(self.dim))
        build = size * trial.write_seconds(self.folder)
        if kind.has_lists:
            build += self._filling(kind, lists)
            search = self._searching(kind, lists, visited, rerank, queries)
        elif kind.name == "hnsw":
            one = trial.graph_seconds(kind, self.dim, max(self.rows // blocks, 2))
            build, search = build + self.rows * one, queries * blocks * one  # each is searched
        else:
            search = queries * exactly
        if kind.has_lists:
            build += self._measuring(kind, lists, visited, rerank)
        elif kind.name != "flat":
            build += min(PROBES, self.rows) * (exactly + search / queries)
        return IndexPlan(
            kind,
            lists,
            size,
            block,
            memory,
            build,
            search,
            1.0 if kind.exact else self.wanted.min_recall,
            why,
            kind.has_lists and self.embeddings is None,
        )

    def _filling(self, kind: Kind, lists: int) -> float:
        """Seconds to train lists and codes and to give every passage to its list."""
        centroid = trial.centroid_seconds(self.dim)
        trial_of = self._trial(kind)
        points = training_points(self.rows, lists)
        clustering = points * ITERATIONS * (lists * centroid + trial.point_seconds(self.dim))
        return clustering + self.rows * (lists * centroid + trial_of.adding) + trial_of.training

    def _searching(self, kind: Kind, lists: int, visited: float, rerank: int, queries: int) -> float:
        together = in_batch(kind, queries, visited, lists)
        tried = self._trial(kind)
        scan = tried.together if together and tried.together else tried.alone
        passages = min(visited * self.rows / lists, self.rows)
        blocks = self._blocks(kind, lists)
        one = lists * trial.order_seconds(self.dim) + visited * blocks * scan.visiting + passages * scan.looking
        held = max(1, CANDIDATES_HELD // max(AT * rerank, int(visited)))
        rounds = -(-queries // held) if together else 0
        each = self.rows * scan.decoding + lists * blocks * scan.opening
        return queries * (one + AT * rerank * trial.again_seconds(self.dim)) + rounds * each

    def _measuring(self, kind: Kind, lists: int, visited: float, rerank: int) -> float:
        """Seconds to find the settings that are promised (`selection.index.tune`)."""
        groups = [min(PROBES, self.rows)] + ([] if self.examples is None else [min(PROBES, len(self.examples))])
        depth = max(DEPTHS) + 1
        pair, again = trial.pair_seconds(self.dim, self.device)
        exactly = sum(groups) * (self.rows * pair + trial.candidates(self.rows, depth) * again)
        ranking = sum(groups) / 2 * depth * (lists * trial.centroid_seconds(self.dim) + trial.again_seconds(self.dim))
        tried = [step for step in kind.rerank if step <= rerank]
        searches = [(group // 2, step) for group in groups for step in (*tried, rerank)]
        return exactly + ranking + sum(self._searching(kind, lists, visited, step, half) for half, step in searches)

    def _trial(self, kind: Kind) -> trial.Lists:
        return trial.lists(kind, self.dim, AT * kind.rerank[len(kind.rerank) // 2])

    def _lists(self, kind: Kind, queries: int) -> tuple[int, float, int]:
        """(lists, how many of them are visited, times k that are scored again): what takes least time in all.

        Of what fits into memory; where nothing does, what takes least of it.
        """
        lists = max(1, min(int(4 * math.sqrt(self.rows)), self.rows // POINTS_PER_LIST))
        guess = lists, max(1.0, lists / 30), kind.rerank[len(kind.rerank) // 2]
        if self.embeddings is None or self.rows < FEW_LISTS * min(LENGTHS) * 4:
            return guess
        self._pilot = self._pilot or Pilot(drawn(self.embeddings), self.examples, device=self.device)
        target = share_of_lists(kind, self.wanted.min_recall)
        if target not in self._reaches:
            self._reaches[target] = self._pilot.reaches(target)
        options = [(max(1, self.rows // reach.length), reach.at(self.rows)) for reach in self._reaches[target]]
        if not options:
            return guess
        rerank = self._pilot.rerank(kind, self.wanted.min_recall / target if target else 0.0, self.rows)
        options = [(lists, min(visited, float(lists))) for lists, visited in options]
        needs = [self._least(kind, lists) for lists, _ in options]
        least = max(self.limit, min(needs))
        options = [option for option, need in zip(options, needs, strict=True) if need <= least]
        taken = [self._filling(kind, n) + self._searching(kind, n, seen, rerank, queries) for n, seen in options]
        lists, visited = options[int(np.argmin(taken))]
        return lists, visited, rerank

    def _memory(self, kind: Kind, lists: int) -> tuple[int | None, int]:
        """(peak bytes of this process, bytes of a block)."""
        least = self._least(kind, lists)
        if least > self.limit:
            raise NearkinError(
                f"{kind.name} search of {self.rows:,} passages takes at least {human_bytes(limit_up(least))} of "
                f"memory and {human_bytes(self.limit)} are allowed: give it that with --max-memory"
            )
        fixed, search, training = self._parts(kind, lists)
        block = self._block(kind, fixed + training)
        opened = self._blocks(kind, lists) * lists * OPEN_LIST_BYTES if lists else 0
        peak = fixed + max(search + opened, training + int(1.5 * block))
        return (peak if self.now else None), block

    def _least(self, kind: Kind, lists: int) -> int:
        """Bytes of this process without which nothing of the kind can be had."""
        fixed, search, training = self._parts(kind, lists)
        if kind.name == "stream":
            return fixed + max(search, training)
        # The smaller the blocks, the more there are, and each has a table of all lists once opened: room r for one and
        # a half of them must hold what searching takes beyond training, and tables / r.
        more = search + lists * OPEN_LIST_BYTES - training
        tables = 1.5 * self.rows * kind.bytes(self.dim) * lists * OPEN_LIST_BYTES
        room = (more + math.sqrt(more**2 + 4 * tables)) / 2
        largest = 1.5 * self._most(kind)
        if room > largest:
            room = more + tables / largest
        return fixed + training + max(int(room), LEAST_BLOCK)

    def _most(self, kind: Kind) -> int:
        """Bytes of a block where memory is no matter."""
        size = self.rows * kind.bytes(self.dim)
        return size if kind.name == "hnsw" else min(size, BLOCK_BYTES)  # one graph is searched faster than two

    def _block(self, kind: Kind, taken: int) -> int:
        """Bytes of a block beside so many that are taken otherwise; 0 for a kind without files."""
        return min(self._most(kind), int(max(self.limit - taken, LEAST_BLOCK) / 1.5))

    def _blocks(self, kind: Kind, lists: int) -> int:
        """How many files there will be of a kind that has some."""
        fixed, _, training = self._parts(kind, lists)
        passages = max(1, self._block(kind, fixed + training) // kind.bytes(self.dim))
        return -(-self.rows // passages)

    def _parts(self, kind: Kind, lists: int) -> tuple[int, int, int]:
        """Bytes at all times, of searching, and of making an index that is written, all without its blocks."""
        written = kind.name != "stream"
        fixed = self.now + SHARD_ROWS * self.dim * (4 + 4 + 2) + 2 * lists * self.dim * 4  # ours and FAISS's centroids
        search = 3 * TILE_PASSAGES * TILE_QUERIES * 4 + min(self.wanted.queries, QUERIES) * (self.dim * 6 + AT * 24)
        scores = rows_at_once(lists) * lists * 4
        points = training_points(self.rows, lists) * self.dim * 4 * 2 if written else 0
        return fixed, search + 4 * scores, points + scores


def limit_up(size: int) -> int:
    """Rounded up to the next 10 MB, so that the figure in a message is enough."""
    return int(np.ceil(size / 1e7) * 1e7)
