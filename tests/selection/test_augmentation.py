"""Sets hold what the neighbours say, nothing of the task's own, nothing twice, and stay within their budgets."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.harvest import Harvest
from selection import augmentation, filling, gate, guard, hashes
from selection.augmentation import AUGMENTATION, AugmentationSet, Budget, select
from selection.building import build, collect
from selection.errors import InputError, NearkinError, StoreError
from selection.guard import Guard, normalise
from selection.hashes import Seen, text_hashes
from selection.index.search import NEIGHBOURS
from selection.indexing import index as make_index
from selection.ingest import CorpusSpec
from selection.querying import query
from selection.reading import read_table
from selection.selectors.knn import union
from selection.task import Task, read_task
from selection.tokens import count_tokens
from tests.conftest import write_task


def run(
    store: Path, task: Path, out: Path, method: str = "knn", seed: int = 0, near: str = "ngrams", **budget: int
) -> AugmentationSet:
    return select(store, task, out, method, Budget(**budget), seed=seed, near=near)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(0, 9)), max_size=30, unique_by=lambda t: t[:2])
)
def test_union_keeps_each_passage_once_with_its_best_query(rows: list[tuple[int, int, int]]) -> None:
    scores = [np.float32(1 - rank / 10 - query / 100) for query, rank, _ in rows]
    columns = [[q for q, _, _ in rows], [r for _, r, _ in rows], [d for _, _, d in rows], scores]
    table = pa.table([pa.array(c, t) for c, t in zip(columns, NEIGHBOURS.types, strict=True)], schema=NEIGHBOURS)
    half = len(rows) // 2
    found = union([table.slice(0, half), table.slice(half)])
    seen: dict[int, list[tuple[int, float, int]]] = defaultdict(list)
    for (q, rank, doc), score in zip(rows, scores, strict=True):
        seen[doc].append((rank, -float(score), q))
    expected = sorted((*min(places), doc, len(places)) for doc, places in seen.items())
    got = [(r["rank"], -r["score"], r["query_id"], r["doc_id"], r["n_queries"]) for r in found.to_pylist()]
    assert sorted(got) == expected
    assert [g[:2] for g in got] == sorted(g[:2] for g in got)


def test_knn_set_is_the_union_of_the_neighbours(
    built: Path, task_folder: Path, passages: pa.Table, tmp_path: Path
) -> None:
    result = run(built, task_folder, tmp_path / "set", k=3, near="off")
    neighbours = query(built, task_folder, 3).neighbours.to_pylist()
    table = pq.read_table(tmp_path / "set" / "augmentation.parquet")
    assert table.schema.equals(AUGMENTATION)
    assert table.num_rows + result.removed.duplicates + sum(result.removed.leaks.values()) == len(
        {n["doc_id"] for n in neighbours}
    )
    by_place = {(n["query_id"], n["rank"]): n for n in neighbours}
    for row in table.to_pylist():
        brought = by_place[row["query_id"], row["rank"]]
        assert (brought["doc_id"], np.float32(brought["score"])) == (row["doc_id"], np.float32(row["score"]))
        assert row["n_queries"] == sum(n["doc_id"] == row["doc_id"] for n in neighbours)
        assert row["text"] == passages["text"][row["doc_id"]].as_py()
        assert row["id"] == passages["id"][row["doc_id"]].as_py()
        assert (row["method"], row["source"]) == ("knn", "docs")
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["passages"] == table.num_rows
    assert manifest["tokens"] == int(count_tokens(table["text"], manifest["tokenizer"]).sum())


def test_budgets_are_kept_and_nearly_used(built: Path, task_folder: Path, tmp_path: Path) -> None:
    for method in ("knn", "random"):
        assert run(built, task_folder, tmp_path / f"{method}-docs", method, docs=37).table.num_rows == 37
        by_tokens = run(built, task_folder, tmp_path / f"{method}-tokens", method, tokens=5000)
        assert 5000 - 200 < by_tokens.tokens <= 5000
        both = run(built, task_folder, tmp_path / f"{method}-both", method, docs=10, tokens=100_000)
        assert both.table.num_rows == 10
    with pytest.raises(NearkinError, match="how much"):
        Budget()
    with pytest.raises(NearkinError, match="at least 1"):
        Budget(docs=0)


def test_a_passage_too_long_for_what_is_left_is_told(
    built: Path, task_folder: Path, passages: pa.Table, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [*passages["text"].to_pylist()[:3], " ".join(passages["text"].to_pylist()[3:40]), "One more passage."]
    mine = tmp_path / "mine.jsonl"
    mine.write_text("\n".join(json.dumps({"text": line}) for line in lines), encoding="utf-8")
    first, long = (int(count_tokens(pa.array(part), "all-MiniLM-L6-v2").sum()) for part in (lines[:3], lines[3:4]))
    method = f"curated:file={mine}"
    result = run(built, task_folder, tmp_path / "a", method, near="off", tokens=first + long - 1)
    assert (result.passages, result.tokens) == (3, first)
    told = f"the set ends at {first:,} of {first + long - 1:,} tokens, since the next passage has {long:,} "
    assert [r.getMessage()[: len(told)] for r in caplog.records] == [told]
    for budget in ({"tokens": first + 1}, {"docs": 3, "tokens": first + long - 1}, {"tokens": first + long}):
        run(built, task_folder, tmp_path / f"b{len(list(tmp_path.iterdir()))}", method, near="off", **budget)
    assert len(caplog.records) == 1


def test_the_whole_corpus_can_be_asked_for(built: Path, task_folder: Path, tmp_path: Path) -> None:
    result = run(built, task_folder, tmp_path / "all", "random", near="off", docs=600)
    assert result.table.num_rows + result.removed.duplicates == 600
    assert run(built, task_folder, tmp_path / "near", near="off", docs=600).table.num_rows == result.table.num_rows
    everything = run(built, task_folder, tmp_path / "domain", "domain", near="off", everything=True).table
    assert everything["doc_id"].to_pylist() == sorted(everything["doc_id"].to_pylist())
    assert everything.num_rows == result.table.num_rows


@pytest.mark.parametrize("budget", [{"docs": 601}, {"k": 601}, {"tokens": 10_000_000}])
def test_a_budget_larger_than_the_corpus_is_refused(
    built: Path, task_folder: Path, tmp_path: Path, budget: dict[str, int]
) -> None:
    for method in ("random", "knn", "dsir"):
        with pytest.raises(InputError, match="is more than the"):
            run(built, task_folder, tmp_path / "set", method, **budget)
        assert not list(tmp_path.iterdir())


def test_random_is_reproducible_by_seed_and_nested(built: Path, task_folder: Path, tmp_path: Path) -> None:
    first = run(built, task_folder, tmp_path / "a", "random", seed=1, docs=50).table
    assert (tmp_path / "a" / "augmentation.parquet").read_bytes() == (
        run(built, task_folder, tmp_path / "b", "random", seed=1, docs=50)
        and (tmp_path / "b" / "augmentation.parquet").read_bytes()
    )
    assert run(built, task_folder, tmp_path / "c", "random", seed=2, docs=50).table["doc_id"] != first["doc_id"]
    larger = run(built, task_folder, tmp_path / "d", "random", seed=1, docs=80).table
    assert larger["doc_id"].to_pylist()[:50] == first["doc_id"].to_pylist()
    assert set(first["query_id"].to_pylist()) == {-1}
    assert first["score"].null_count == 50


@pytest.fixture
def leaky(tiny_encoder: Path, task_folder: Path, tmp_path: Path) -> tuple[Path, Task]:
    """A store whose corpus holds the task's own texts, dressed up, and copies of one passage."""
    task = read_task(task_folder)
    texts = [t for split in ("train", "dev", "test") for t in task.splits[split]["text"].to_pylist()]
    dressed = [f"  << {t.upper()} >>\t" for t in texts]
    honest = ["One honest passage about graphs.", "one honest PASSAGE, about graphs!", "Another passage about arrays."]
    pq.write_table(pa.table({"text": dressed + honest}), tmp_path / "leaky.parquet")
    build(tmp_path / "leaky", [CorpusSpec("c", str(tmp_path / "leaky.parquet"))], encoder=str(tiny_encoder))
    return tmp_path / "leaky", task


@pytest.mark.parametrize("method", ["knn", "random"])
def test_nothing_of_the_task_is_selected(
    leaky: tuple[Path, Task], task_folder: Path, tmp_path: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    store, task = leaky
    result = run(store, task_folder, tmp_path / "set", method, docs=83)
    assert "the budget was not reached" in caplog.text
    assert sorted(result.table["doc_id"].to_pylist()) in ([80, 82], [81, 82])
    sizes = {split: table.num_rows for split, table in task.splits.items()}
    assert result.removed.leaks == sizes
    assert result.removed.duplicates == 1


def test_without_the_guard_leaks_are_let_in_and_copies_are_not(
    leaky: tuple[Path, Task], task_folder: Path, tmp_path: Path
) -> None:
    store, task = leaky
    result = select(store, task_folder, tmp_path / "set", "knn", Budget(docs=83), guarded=False)
    distinct = len(set(task.splits["test"]["text"].to_pylist()))
    found = {text.strip()[3:-3].lower() for text in result.table["text"].to_pylist() if text.startswith("  <<")}
    let_in = len(found & {text.lower() for text in task.splits["test"]["text"].to_pylist()})
    assert distinct - result.removed.near_duplicates <= let_in <= distinct  # a test text may be near another
    assert let_in > distinct / 2
    assert result.removed.leaks == result.removed.near_leaks == {}
    assert result.removed.duplicates >= 1
    (tmp_path / "other.txt").write_text("Another passage: about arrays\n", encoding="utf-8")
    excluding = select(
        store, task_folder, tmp_path / "less", "knn", Budget(docs=83), guarded=False, exclude=[tmp_path / "other.txt"]
    )
    assert excluding.removed.leaks == {"excluded": 1}  # what a user keeps out stays out
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["parameters"]["guarded"] is False


def test_neighbours_in_blocks_are_those_of_one_batch(
    built: Path, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(built, task_folder, tmp_path / "whole", docs=300).table
    monkeypatch.setattr("selection.selectors.pool.BLOCK_PAIRS", 50)
    assert run(built, task_folder, tmp_path / "blocks", docs=300).table.equals(whole)


def test_excluded_texts_are_not_selected(leaky: tuple[Path, Task], task_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("Another passage: about arrays\n\n", encoding="utf-8")
    result = select(leaky[0], task_folder, tmp_path / "set", "knn", Budget(docs=9), exclude=[tmp_path / "other.txt"])
    assert result.table.num_rows == 1
    assert result.removed.leaks["excluded"] == 1


def test_a_missing_text_column_is_said_without_options_there_are_not(
    built: Path, task_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.jsonl").write_text('{"body": "a text"}\n')
    for task, exclude in ((task_folder, [tmp_path / "other.jsonl"]), (tmp_path / "other.jsonl", [])):
        with pytest.raises(InputError, match='call the column of its texts "text"') as raised:
            select(built, task, tmp_path / "set", "random", Budget(docs=2), exclude=exclude)
        assert "--text-column" not in str(raised.value)


def test_excluded_texts_may_lie_in_arrow_files(built: Path, task_folder: Path, tmp_path: Path) -> None:
    run(built, task_folder, tmp_path / "all", docs=20)
    texts = pq.read_table(tmp_path / "all" / "augmentation.parquet")["text"].slice(0, 7).combine_chunks()
    table = pa.table({"text": texts.cast(pa.string_view())})
    with pa.ipc.new_file(str(tmp_path / "views.arrow"), table.schema) as writer:
        writer.write_table(table)
    result = select(built, task_folder, tmp_path / "set", "random", Budget(docs=20), exclude=[tmp_path / "views.arrow"])
    assert not set(texts.to_pylist()) & set(result.table["text"].to_pylist())
    pq.write_table(pa.table({"text": texts}), tmp_path / "cut.parquet", compression="none")
    whole = (tmp_path / "cut.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:4] + bytes(2000) + whole[2004:])
    with pytest.raises(InputError, match="cut short or damaged"):
        read_table(tmp_path / "cut.parquet")


def test_a_split_under_another_name_is_pointed_out(
    built: Path, harvested: Harvest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = write_task(tmp_path / "task", {**harvested.task, "validation": harvested.task["dev"]})
    run(built, task, tmp_path / "set", docs=5)
    assert "validation.jsonl is none of" in caplog.text


def test_a_split_that_is_absent_is_pointed_out(
    built: Path, task_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = Path(shutil.copytree(task_folder, tmp_path / "task"))
    (task / "dev.jsonl").unlink()
    select(built, task, tmp_path / "set", "random", Budget(docs=5))
    assert [r.getMessage() for r in caplog.records] == [f"{task} has no dev.jsonl: nothing guards its texts"]


def test_labels_may_be_lists_where_none_are_needed(built: Path, tmp_path: Path) -> None:
    (tmp_path / "task.jsonl").write_text('{"text": "Sparse matrices.", "label": ["a", "b"]}\n', encoding="utf-8")
    assert run(built, tmp_path / "task.jsonl", tmp_path / "set", docs=5).passages == 5
    assert query(built, tmp_path / "task.jsonl", 3).neighbours.num_rows == 3


def test_nothing_left_is_an_error_and_writes_nothing(
    leaky: tuple[Path, Task], task_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="nothing was selected"):
        run(leaky[0], task_folder, tmp_path / "set", "random", tokens=1)
    assert not (tmp_path / "set").exists()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("budget", [{"docs": 37}, {"tokens": 900}, {"k": 3}])
def test_a_set_is_the_same_however_its_passages_are_read(
    built: Path, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: dict[str, int]
) -> None:
    expected = run(built, task_folder, tmp_path / "one", **budget).table
    monkeypatch.setattr(filling, "BLOCK", 7)
    monkeypatch.setattr(filling, "READ_BYTES", 20_000)
    assert run(built, task_folder, tmp_path / "many", **budget).table.equals(expected)
    monkeypatch.setattr(filling, "READ_BYTES", 1)
    assert run(built, task_folder, tmp_path / "each", **budget).table.equals(expected)


def test_a_random_order_is_the_seeds_and_reads_many_blocks_at_once(
    built: Path, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranked = run(built, task_folder, tmp_path / "rank", docs=50).table
    expected = ranked.take(np.random.default_rng(3).permutation(50))
    gathered, plain = [], augmentation.gathered
    monkeypatch.setattr(augmentation, "gathered", lambda *given: gathered.append(len(given[2])) or plain(*given))
    monkeypatch.setattr(filling, "BLOCK", 7)
    monkeypatch.setattr(augmentation, "BLOCK", 7)
    for read_bytes, blocks in ((1 << 28, [50]), (1, [7] * 7 + [1])):
        monkeypatch.setattr(augmentation, "READ_BYTES", read_bytes)
        out = tmp_path / str(read_bytes)
        assert select(built, task_folder, out, "knn", Budget(docs=50), order="random", seed=3).table.equals(expected)
        assert gathered == blocks
        gathered.clear()


def test_a_store_that_changes_meanwhile_gives_no_set(
    store: Path, task_folder: Path, passages: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(*arguments: Any) -> Any:
        found = filling.assemble(*arguments)
        pq.write_table(passages.slice(0, 5), tmp_path / "more.parquet")
        collect(store, [CorpusSpec("more", str(tmp_path / "more.parquet"))])
        return found

    monkeypatch.setattr(augmentation, "assemble", changing)
    with pytest.raises(StoreError, match="built further while passages were selected"):
        run(store, task_folder, tmp_path / "set", "random", docs=5)
    assert not (tmp_path / "set").exists()


def test_an_existing_folder_is_kept_unless_told(built: Path, task_folder: Path, tmp_path: Path) -> None:
    run(built, task_folder, tmp_path / "set", docs=5)
    before = (tmp_path / "set" / "augmentation.parquet").read_bytes()
    with pytest.raises(NearkinError, match="exists already"):
        run(built, task_folder, tmp_path / "set", docs=6)
    assert (tmp_path / "set" / "augmentation.parquet").read_bytes() == before
    select(built, task_folder, tmp_path / "set", "random", Budget(docs=6), overwrite=True)
    assert pq.read_table(tmp_path / "set" / "augmentation.parquet").num_rows == 6


@pytest.mark.parametrize("again", [False, True])
def test_a_report_may_lie_beside_the_set(again: bool, built: Path, task_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    if again:
        run(built, task_folder, out, docs=5)
    select(built, task_folder, out, "random", Budget(docs=6), overwrite=again, removed=out / "removed.csv")
    assert sorted(path.name for path in out.iterdir()) == ["augmentation.parquet", "manifest.json", "removed.csv"]


def test_the_manifest_names_the_index_that_was_used(
    store: Path, task_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_index(store, "ivf")
    make_index(store, "stream")
    used = {}
    for method, named in [("knn", None), ("knn", "ivf"), ("cluster", None), ("cluster", "ivf"), ("classifier", None)]:
        out = tmp_path / f"{method}-{named}"
        select(store, task_folder, out, method, Budget(docs=5), index=named)
        parameters = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["parameters"]
        used[method, named] = parameters["index"], parameters.get("centroids")
    assert used == {
        ("knn", None): ("stream", None),
        ("knn", "ivf"): ("ivf", None),
        ("cluster", None): (None, "k-means"),
        ("cluster", "ivf"): ("ivf", "ivf"),
        ("classifier", None): (None, None),
    }
    assert not caplog.records
    select(store, task_folder, tmp_path / "r", "random", Budget(docs=5), index="ivf")
    assert [r.getMessage() for r in caplog.records] == ["--index ivf was not used: no index was searched"]
    caplog.clear()
    query(store, task_folder, min_recall=0.9)
    assert [r.getMessage() for r in caplog.records] == ["--min-recall 0.9 was not used: it is what a cascade promises"]


def test_a_store_of_another_encoder_says_so(built: Path, task_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="written by tiny-encoder, not by all-MiniLM-L6-v2"):
        select(built, task_folder, tmp_path / "set", "knn", Budget(k=1), encoder="all-MiniLM-L6-v2")


def test_normalised_texts() -> None:
    same = pa.array(["The <<cat>> sat.", "the cat  SAT", "ｔｈｅ cat, sat!"])
    assert len(set(normalise(same).to_pylist())) == 1
    distinct = pa.array(["♥♥", "♠", "naïve", "naive", "हिन्दी", "हन्द"])
    assert len(set(normalise(distinct).to_pylist())) == 6


@given(st.lists(st.sampled_from("abcdefg"), max_size=30), st.integers(0, 30))
def test_duplicates_are_found_within_and_across_blocks(texts: list[str], cut: int) -> None:
    seen, kept = Seen(), []
    for block in (texts[:cut], texts[cut:]):
        found = text_hashes(pa.array(block, pa.large_string()))
        fresh = np.flatnonzero(~seen.repeated(found))
        kept += [block[place] for place in fresh]
        seen.add(found[fresh])
    assert kept == list(dict.fromkeys(texts))


def test_a_text_is_counted_once_as_a_leak(task_folder: Path) -> None:
    task = read_task(task_folder)
    twice = Task(task.path, {**task.splits, "dev": task.splits["test"]})
    texts = normalise(task.splits["test"]["text"])
    reasons = Guard.of(twice).reasons(text_hashes(texts))
    assert reasons["test"].all()
    assert not reasons["dev"].any()


def test_forbidden_texts_are_prepared_once_however_often_candidates_are_asked_for(
    leaky: tuple[Path, Task], task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, list[Any]] = defaultdict(list)

    def watch(module: Any, name: str) -> None:
        plain = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: made[name].append(given[0]) or plain(*given))

    watch(gate, "Contained")
    watch(augmentation, "Gate")
    watch(guard, "text_hashes")
    monkeypatch.setattr(filling, "BLOCK", 7)
    run(leaky[0], task_folder, tmp_path / "set", "random", docs=3)
    assert len(made["Gate"]) > 1
    assert len(made["Contained"]) == 1
    sizes = [len(column) for column in Guard.of(leaky[1]).forbidden.values()]
    assert min(sizes) > 7
    assert sorted(len(texts) for texts in made["text_hashes"]) == sorted(sizes)


def test_a_candidate_is_hashed_once(passages: pa.Table, task_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    plain = hashes.hash_each
    monkeypatch.setattr(hashes, "hash_each", lambda texts, *given: hashed.append(len(texts)) or plain(texts, *given))
    entrance = gate.Gate(Guard.of(read_task(task_folder)))
    rows = passages.slice(0, 50).select(["id", "text"]).append_column("source", pa.array(["c"] * 50))
    entrance.admit(np.arange(50), rows)
    hashed.clear()  # those of the task, too
    entrance.admit(np.arange(50), rows)
    assert hashed == [50]
