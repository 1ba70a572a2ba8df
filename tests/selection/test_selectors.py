"""Every method keeps the same promises; parameters, mixes, the user's own passages and other packages' methods."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selection.augmentation import AUGMENTATION, Budget, select
from selection.building import collect
from selection.errors import InputError, NearkinError
from selection.index.ranking import neighbour_table
from selection.ingest import CorpusSpec
from selection.selectors import CANDIDATES
from selection.selectors.bm25 import LexicalSearch
from selection.selectors.domain import PartOfCorpus
from selection.selectors.dsir import DsirSelector
from selection.selectors.knn import GrowingUnion, union
from selection.selectors.pool import Pool
from selection.selectors.random import RandomSelector
from selection.selectors.registry import find_selector, method_names
from selection.store import Store
from selection.task import read_task
from tests.conftest import Cli

EVERY = [
    "knn",
    "random",
    "domain",
    "dsir",
    "dsir:draw=top",
    "bm25",
    "tsds",
    "tsds:draw=top,neighbours=7",
    "ot",
    "ot:batch_size=100",
    "cluster",
    "classifier",
    "classifier:features=ngrams,draw=top",
    "mix:knn=0.5,random=0.3,dsir=0.2",
    "mix:tsds=0.4,ot=0.3,cluster=0.3",
]


@pytest.mark.parametrize("method", EVERY)
def test_every_method_keeps_its_budget_and_gives_the_same_bytes_again(
    built: Path, task_folder: Path, tmp_path: Path, method: str
) -> None:
    for name in ("first", "again"):
        select(built, task_folder, tmp_path / name, method, Budget(docs=40), seed=5)
    first, again = (tmp_path / name / "augmentation.parquet" for name in ("first", "again"))
    assert first.read_bytes() == again.read_bytes()
    table = pq.read_table(first)
    assert table.schema.equals(AUGMENTATION)
    assert table.num_rows == len(set(table["doc_id"].to_pylist())) == 40
    assert min(table["query_id"].to_pylist()) >= -1
    tokens = select(built, task_folder, tmp_path / "tokens", method, Budget(tokens=3000), seed=5).tokens
    assert 2500 < tokens <= 3000
    each = select(built, task_folder, tmp_path / "each", method, Budget(k=2), seed=5)
    assert 0 < each.passages <= 80


@pytest.mark.parametrize("method", ["random", "domain", "dsir", "ot", "cluster"])
@pytest.mark.parametrize("k", [1, 3])
def test_k_an_example_is_as_many_passages_before_the_guard(
    built: Path, task_folder: Path, tmp_path: Path, method: str, k: int
) -> None:
    chosen = select(built, task_folder, tmp_path / "set", method, Budget(k=k), near="off", seed=1)
    assert chosen.passages + chosen.removed.duplicates + sum(chosen.removed.leaks.values()) == k * 40


@pytest.mark.parametrize("method", [m for m in EVERY if not m.startswith(("knn", "mix", "bm25"))])
def test_candidates_asked_again_with_more_are_those_before_and_more(
    built: Path, task_folder: Path, method: str
) -> None:
    pool = Pool(Store(built), read_task(task_folder))
    selector = find_selector(method)
    few, more = selector.candidates(pool, None, 20), selector.candidates(pool, None, 300)
    assert more.schema.equals(CANDIDATES)
    assert more.num_rows >= 300
    assert few.slice(0, 20).equals(more.slice(0, 20))


def lists(seed: int, queries: int, size: int) -> Callable[[int], Iterator[pa.Table]]:
    """Neighbours of queries that share many of them: the first passages are near most."""
    rng = np.random.default_rng(seed)
    ids = np.argsort(rng.normal(size=(queries, size)) + np.arange(size) / rng.integers(1, size + 1), axis=1)
    scores = -np.sort(-rng.random((queries, size)).astype(np.float32), axis=1)
    return lambda k: iter([neighbour_table(scores[:, :k], ids[:, :k])])


@settings(max_examples=12)
@given(
    st.integers(0, 1000), st.integers(1, 6), st.integers(1, 40), st.lists(st.integers(1, 40), min_size=1, max_size=5)
)
def test_a_union_depends_on_what_is_asked_for_and_not_on_what_was_before(
    seed: int, queries: int, size: int, asked: list[int]
) -> None:
    neighbours, grown = lists(seed, queries, size), GrowingUnion()
    ladder = [union(neighbours(min(1 << step, size))) for step in range(7)]
    for wanted in [min(w, size) for w in asked]:
        found = grown.holding(wanted, queries, size, neighbours)
        assert found.equals(next(one for one in ladder if one.num_rows >= wanted))
        columns = ["doc_id", "score", "rank", "query_id"]  # whatever k suffices
        whole = ladder[-1].select(columns).slice(0, wanted)
        assert found.select(columns).slice(0, wanted).equals(whole)


@pytest.mark.parametrize("method", ["knn", "bm25"])
def test_neighbours_are_not_searched_twice(
    built: Path, task_folder: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    of = {"knn": Pool, "bm25": LexicalSearch}[method]
    plain = of.neighbours
    monkeypatch.setattr(of, "neighbours", lambda self, k: asked.append(k) or plain(self, k))  # type: ignore[func-returns-value]
    pool, selector = Pool(Store(built), read_task(task_folder)), find_selector(method)
    few = selector.candidates(pool, None, 50)
    searches = len(asked)
    assert selector.candidates(pool, None, 50).equals(few)
    assert len(asked) == searches
    more = selector.candidates(pool, None, 200)
    assert more.equals(find_selector(method).candidates(pool, None, 200))
    assert all(k & (k - 1) == 0 or k == 600 for k in asked)
    begun = asked.index(asked[-1])  # the first search of the k that sufficed
    assert min(asked[searches : begun + 1]) > max(asked[:searches])


def test_names_and_parameters() -> None:
    assert find_selector("dsir:draw=top,buckets=500,min_words=10") == DsirSelector("top", 500, 10)
    assert isinstance(find_selector("random"), RandomSelector)
    for wrong, sentence in {
        "knnn": "did you mean knn",
        "DSIR": "did you mean dsir",
        "bogus": "choose one of knn, random",
        "dsir:bucket=5": "no parameter 'bucket', did you mean buckets",
        "dsir:draw=worst": "draw is one of gumbel, top",
        "dsir:buckets=many": "buckets cannot be 'many'",
        "dsir:buckets": "write parameters as dsir:NAME=VALUE",
        "dsir:buckets=5,buckets=6": "given twice",
        "random:draw=top": "it has none",
        "curated": "needs curated:file=VALUE",
        "mix:knn=1": "at least two methods",
        "mix:knn=1,random=-1": "share of random must be a number above 0",
        "mix:knn=1,curated=1": "cannot mix in curated",
        "mix:knn=1,mix=1": "cannot mix in mix",
    }.items():
        with pytest.raises(NearkinError, match=sentence.replace("(", r"\(")):
            find_selector(wrong)


def test_text_may_hold_commas() -> None:
    curated: Any = find_selector("curated:file=a,b.jsonl,column=the text, all of it")
    assert (curated.file, curated.column) == ("a,b.jsonl", "the text, all of it")
    domain: Any = find_selector("domain:source=one,two")
    assert domain.source == "one,two"
    for wrong in ("dsir:draw=top,500", "tsds:alpha=0,5", "mix:knn=1,random"):
        with pytest.raises(NearkinError, match="write parameters as"):
            find_selector(wrong)


def test_an_unknown_method_is_one_sentence(cli: Cli, built: Path, task_folder: Path, tmp_path: Path) -> None:
    code, out, err = cli("select", built, task_folder, "--method", "knm", "--docs", 5, "--out", tmp_path / "set")
    assert (code, out) == (1, "")
    assert "did you mean knn?" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "set").exists()


def test_orders(built: Path, task_folder: Path, tmp_path: Path) -> None:
    tables = {
        order: select(built, task_folder, tmp_path / order, "knn", Budget(docs=50), order=order).table
        for order in ("rank", "random", "curriculum")
    }
    assert tables["curriculum"].to_pylist() == tables["rank"].to_pylist()[::-1]
    shuffled = tables["random"].to_pylist()
    assert shuffled != tables["rank"].to_pylist()
    assert sorted(r["doc_id"] for r in shuffled) == sorted(tables["rank"]["doc_id"].to_pylist())
    with pytest.raises(NearkinError, match="unknown order"):
        select(built, task_folder, tmp_path / "x", "knn", Budget(docs=5), order="upwards")


def test_a_mix_has_its_shares_whatever_the_budget(built: Path, task_folder: Path, tmp_path: Path) -> None:
    for docs in (20, 100):
        table = select(built, task_folder, tmp_path / str(docs), "mix:knn=3,random=1", Budget(docs=docs)).table
        counts = Counter(table["method"].to_pylist())
        assert abs(counts["knn"] - 0.75 * docs) <= 4
        by_method = {method: table.filter(pa.compute.equal(table["method"], method)) for method in counts}
        assert min(by_method["knn"]["query_id"].to_pylist()) >= 0
        assert set(by_method["random"]["query_id"].to_pylist()) == {-1}
    everything = select(built, task_folder, tmp_path / "all", "mix:knn=1,random=1", Budget(docs=600), near="off")
    assert everything.passages + everything.removed.duplicates == 600


def test_a_domain_is_everything_or_a_uniform_part(built: Path, task_folder: Path, tmp_path: Path) -> None:
    part = select(built, task_folder, tmp_path / "part", "domain:source=docs", Budget(docs=60)).table
    assert part["doc_id"].to_pylist() != sorted(part["doc_id"].to_pylist())
    assert 200 < sum(part["doc_id"].to_pylist()) / 60 < 400
    with pytest.raises(InputError, match="no corpus 'other': it has docs"):
        select(built, task_folder, tmp_path / "none", "domain:source=other")


@pytest.mark.parametrize("source", [None, "one", "two", "three", "two+three", "one+three", "one,three"])
def test_passages_of_some_corpora_are_numbered_without_gaps(source: str | None) -> None:
    names, sizes = ["one", "two", "two", "one", "three"], np.array([3, 1, 4, 1, 5])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    corpus: Any = SimpleNamespace(sources=names, shards=[None] * len(names), offsets=offsets)
    passages = PartOfCorpus(corpus, source)
    wanted = [
        row
        for row, name in enumerate(np.repeat(names, sizes))
        if source is None or name in source.replace(",", "+").split("+")
    ]
    assert len(passages) == len(wanted)
    assert passages.all().tolist() == passages.doc_ids(np.arange(len(wanted))).tolist() == wanted
    assert passages.doc_ids(np.arange(len(wanted))[::-1]).tolist() == wanted[::-1]


def test_curated_passages_come_from_the_file_and_are_guarded(built: Path, task_folder: Path, tmp_path: Path) -> None:
    test_text = read_task(task_folder).splits["test"]["text"][0].as_py()
    lines = ["A passage of my own.", test_text.upper(), "a passage OF my own", "Another one."]
    (tmp_path / "mine.txt").write_text("\n".join(line.replace("\n", " ") for line in lines) + "\n")
    result = select(built, task_folder, tmp_path / "set", f"curated:file={tmp_path / 'mine.txt'}")
    assert result.table["text"].to_pylist() == [lines[0], lines[3]]
    assert result.table["doc_id"].to_pylist() == [0, 3]
    assert result.shares == {"mine": 1.0}
    assert (result.removed.duplicates, result.removed.leaks["test"]) == (1, 1)
    with pytest.raises(InputError, match="does not exist"):
        select(built, task_folder, tmp_path / "none", "curated:file=nowhere.jsonl")


def test_a_method_of_another_package(
    built: Path, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "longest.py").write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "import numpy as np\n"
        "import pyarrow.compute as pc\n"
        "from selection.selectors.ranked import candidate_table\n"
        "@dataclass\n"
        "class Longest:\n"
        "    least: int = 0\n"
        "    name: ClassVar[str] = 'longest'\n"
        "    def candidates(self, pool, k, wanted):\n"
        "        texts = [pool.corpus.texts(shard) for shard in range(len(pool.corpus.shards))]\n"
        "        sizes = np.concatenate([pc.utf8_length(text) for text in texts])\n"
        "        order = np.argsort(-sizes, kind='stable')\n"
        "        order = order[sizes[order] >= self.least]\n"
        "        return candidate_table(order[: pool.count(k, wanted)], sizes[order][: pool.count(k, wanted)])\n"
    )
    about = tmp_path / "longest-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: longest\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[nearkin.selectors]\nlongest = longest:Longest\nbroken = longest:Gone\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert method_names()[-2:] == ["broken", "longest"]
    table = select(built, task_folder, tmp_path / "set", "longest:least=20", Budget(docs=10)).table
    lengths = [len(text) for text in table["text"].to_pylist()]
    assert lengths == sorted(lengths, reverse=True)
    assert table["score"].to_pylist() == lengths
    with pytest.raises(NearkinError, match="method broken of longest:Gone cannot be loaded"):
        find_selector("broken")
    sys.modules.pop("longest", None)


def test_a_store_without_embeddings_serves_methods_that_read_text(
    cli: Cli, corpus_file: Path, task_folder: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    code, out, _ = cli("build", store, "--corpus", f"docs={corpus_file}", "--encoder", "none")
    assert code == 0
    assert "600 passages, none embedded" in out
    for method in ("dsir", "random"):
        assert cli("select", store, task_folder, "--method", method, "--docs", 10, "--out", tmp_path / method)[0] == 0
    code, _, err = cli("select", store, task_folder, "--method", "knn", "--docs", 10, "--out", tmp_path / "knn")
    assert code == 1
    assert f"has no embeddings yet: run `nearkin build {store}`" in err
    assert cli("build", tmp_path / "empty", "--encoder", "none")[0] == 1
    assert not (tmp_path / "empty").exists()


def test_a_large_part_of_a_domain_is_drawn_from_all_of_it(built: Path, task_folder: Path, tmp_path: Path) -> None:
    table = select(built, task_folder, tmp_path / "part", "domain", Budget(docs=510), near="off").table
    assert max(table["doc_id"].to_pylist()) > 590
    assert table["doc_id"].to_pylist() != sorted(table["doc_id"].to_pylist())


@pytest.mark.parametrize("method", ["dsir:draw=top", "bm25", "tsds:draw=top", "ot", "mix:bm25=1,dsir=1"])
def test_a_selector_keeps_nothing_of_an_earlier_task(
    built: Path, task_folder: Path, tmp_path: Path, method: str
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "Return the eigenvalues of a sparse matrix."}\n')
    selector = find_selector(method)
    select(built, task_folder, tmp_path / "first", selector, Budget(docs=10))
    again = select(built, other, tmp_path / "again", selector, Budget(docs=10)).table
    assert again.equals(select(built, other, tmp_path / "fresh", method, Budget(docs=10)).table)


def test_a_method_that_can_give_no_more_is_not_asked_again(
    built: Path, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    plain = DsirSelector.candidates

    def watch(self: DsirSelector, pool: Pool, k: int | None, wanted: int) -> pa.Table:
        asked.append(wanted)
        return plain(self, pool, k, wanted)

    monkeypatch.setattr(DsirSelector, "candidates", watch)
    with pytest.raises(InputError, match="dsir finds no passage for this task"):
        select(built, task_folder, tmp_path / "none", "dsir:min_words=100000", Budget(docs=20))
    assert len(asked) == 1


def test_a_token_budget_met_exactly_is_met(built: Path, task_folder: Path, tmp_path: Path) -> None:
    everything = select(built, task_folder, tmp_path / "all", "domain", near="off")
    exact = select(built, task_folder, tmp_path / "exact", "random", Budget(tokens=everything.tokens), near="off")
    assert exact.passages == everything.passages


def test_counts_end_where_the_set_ends(
    passages: pa.Table, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = max(read_task(task_folder).splits["test"]["text"].to_pylist(), key=len)
    piece = " ".join(longest.split()[:30])
    texts = [f"{text} {piece}" if at % 10 == 0 else text for at, text in enumerate(passages["text"].to_pylist())]
    pq.write_table(pa.table({"text": texts}), tmp_path / "corpus.parquet")
    collect(tmp_path / "store", [CorpusSpec("c", str(tmp_path / "corpus.parquet"))])
    counts = []
    for block in (8192, 16, 1):
        monkeypatch.setattr("selection.filling.BLOCK", block)
        out, report = tmp_path / str(block), tmp_path / "r.csv"
        chosen = select(tmp_path / "store", task_folder, out, "random", Budget(docs=150), removed=report)
        counts.append((chosen.removed, report.read_text()))
    assert counts[0] == counts[1] == counts[2]
    assert counts[0][0].near_leaks["test"] > 0


def test_overwrite_replaces_a_set_and_nothing_else(built: Path, task_folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(NearkinError, match="is something else and is not replaced"):
        select(built, task_folder, mine, "random", Budget(docs=5), overwrite=True)
    assert (mine / "thesis.txt").read_text() == "years of work"
    with pytest.raises(InputError, match="is a folder"):
        select(built, task_folder, tmp_path / "set", "random", Budget(docs=5), removed=folder_named(tmp_path, "x.csv"))
    assert not (tmp_path / "set").exists()


def folder_named(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name
