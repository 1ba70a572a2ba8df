"""What comes out of a store's corpora is what went in, whatever the format, and every dropped row is counted."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selection import chunking, convert, reading
from selection import corpus as module
from selection.columnar import open_columnar
from selection.errors import InputError
from selection.files import TextFingerprint
from selection.finding import find_files
from selection.ingest import CorpusSpec, ingest, new_files, parse_corpus
from selection.manifest import CorpusEntry
from selection.store import Store
from selection.tokens import count_tokens


def scan(folder: Path, location: object, **options: object) -> tuple[Store, CorpusEntry]:
    store = Store(folder / "store", create=True)
    with store.lock():
        entry = ingest(store, CorpusSpec("c", str(location), **options))  # type: ignore[arg-type]
        store.manifest.corpora = [entry]
        store.save()
    return store, entry


def all_rows(store: Store) -> pa.Table:
    return store.corpus.take(np.arange(len(store.corpus)))


@pytest.fixture(scope="module")
def small(passages: pa.Table) -> pa.Table:
    return passages.slice(0, 50).select(["id", "text", "package"])


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow"])
def test_every_format_gives_the_same_passages(kind: str, small: pa.Table, tmp_path: Path) -> None:
    path = tmp_path / f"file.{kind}"
    lines = "\n".join(json.dumps(row) for row in small.to_pylist()).encode()
    if kind == "txt":
        path.write_text("\n".join(small["text"].to_pylist()), encoding="utf-8")
    elif kind == "csv":
        pacsv.write_csv(small, path)
    elif kind == "parquet":
        pq.write_table(small, path)
    elif kind == "arrow":
        with pa.ipc.new_file(str(path), small.schema) as writer:
            writer.write_table(small, max_chunksize=7)
    else:
        compression = {"jsonl": None, "jsonl.gz": "gzip", "jsonl.zst": "zstd"}[kind]
        with pa.output_stream(str(path), compression=compression) as stream:
            stream.write(lines)
    store, entry = scan(tmp_path, path)
    rows = all_rows(store)
    assert rows["text"].to_pylist() == small["text"].to_pylist()
    assert entry.blank == 0
    assert rows["id"].to_pylist() == ([f"c:{i}" for i in range(50)] if kind == "txt" else small["id"].to_pylist())
    assert set(rows["source"].to_pylist()) == {"c"}
    in_place = kind in {"parquet", "arrow"}
    assert [f.path for f in entry.in_use] == ([str(path.resolve())] if in_place else ["corpus/c/part-00000.parquet"])


def test_converted_corpora_keep_other_columns(small: pa.Table, tmp_path: Path) -> None:
    pacsv.write_csv(small.append_column("source", small["package"]), tmp_path / "a.csv")
    store, _ = scan(tmp_path, tmp_path / "a.csv")
    part = pq.read_table(store.path / "corpus/c/part-00000.parquet")
    assert part["package"].to_pylist() == small["package"].to_pylist()
    assert part["source_"].to_pylist() == small["package"].to_pylist()


def test_blank_and_filtered_rows_are_counted_and_left_out(small: pa.Table, tmp_path: Path) -> None:
    texts = small["text"].to_pylist()
    texts[3], texts[10], texts[49] = None, "   ", "\n\t"
    pq.write_table(pa.table({"body": texts, "n": range(50)}), tmp_path / "a.parquet", row_group_size=8)
    store, entry = scan(tmp_path, tmp_path / "a.parquet", text_column="body", where="n >= 5 and source = 'c'")
    kept = [i for i in range(5, 50) if i not in {10, 49}]
    assert (entry.blank, entry.filtered, entry.passages) == (3, 4, len(kept))
    rows = all_rows(store)
    assert rows["text"].to_pylist() == [texts[i] for i in kept]
    assert rows["id"].to_pylist() == [f"c:{i}" for i in kept]
    assert [f.path for f in entry.files] == ["corpus/c/keep-00000.arrow"]


def test_rows_come_back_by_doc_id_across_shards(
    passages: pa.Table, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_ROWS", 64)
    monkeypatch.setattr("selection.columnar.BATCH_ROWS", 32)
    store, entry = scan(tmp_path, corpus_file)
    assert len(entry.shards) > 5
    assert sum(s.rows for s in entry.shards) == passages.num_rows == len(store.corpus)
    ids = np.array([5, 599, 0, 130, 5, 64, 63])
    assert store.corpus.take(ids)["id"].to_pylist() == passages["id"].take(pa.array(ids)).to_pylist()
    joined = pa.concat_arrays([c for i in range(len(entry.shards)) for c in store.corpus.texts(i).chunks])
    assert joined.to_pylist() == passages["text"].to_pylist()
    with pytest.raises(IndexError):
        store.corpus.take(np.array([600]))


@pytest.mark.parametrize("group", [1000, 70, 33])
def test_any_range_of_a_parquet_file(
    group: int, passages: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selection.columnar.BATCH_ROWS", 32)
    table = passages.select(["id", "text"])
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=group)
    file, rng = open_columnar(tmp_path / "a.parquet"), np.random.default_rng(0)
    edges = np.sort(rng.choice(600, 80, replace=False))
    in_order = list(pairwise(edges.tolist()))
    out_of_order = [sorted(rng.choice(601, 2, replace=False).tolist()) for _ in range(80)]
    for start, stop in [*in_order, *out_of_order]:
        for columns in (["text"], ["text"], ["id", "text"]):
            found = pa.Table.from_batches(file.batches(start, stop, columns))
            assert found.equals(table.select(columns).slice(start, stop - start))


def test_a_large_row_group_is_read_once(passages: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selection.columnar.BATCH_ROWS", 32)
    monkeypatch.setattr(module, "SHARD_ROWS", 64)
    read: list[int] = []
    real = pq.ParquetFile.iter_batches

    def counting(self: pq.ParquetFile, *args: Any, **kwargs: Any) -> Iterator[pa.RecordBatch]:
        for batch in real(self, *args, **kwargs):
            read.append(len(batch))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counting)
    pq.write_table(passages, tmp_path / "a.parquet", row_group_size=1 << 20)
    corpus = scan(tmp_path, tmp_path / "a.parquet")[0].corpus
    assert len(corpus.shards) == 10
    read.clear()
    texts = [text for number in range(10) for text in corpus.texts(number).to_pylist()]
    assert texts == passages["text"].to_pylist()
    assert sum(read) == 600
    read.clear()
    assert corpus.take(np.arange(5, 600, 50))["text"].to_pylist() == texts[5::50]
    assert sum(read) == 576  # up to the batch of the last one
    read.clear()
    corpus.texts(1)
    assert sum(read) == 128


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("group", [1000, 90, 7])
def test_long_rows_come_in_small_batches_and_shards_stay_what_they_were(
    kind: str, group: int, passages: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_ROWS", 64)
    monkeypatch.setattr(module, "SHARD_BYTES", 40_000)
    monkeypatch.setattr("selection.columnar.BATCH_ROWS", 32)
    draws = np.random.default_rng(0)
    repeats = np.repeat(draws.choice([1, 1, 1, 30], 30), 20)  # here and there a run of long ones
    texts = [" ".join([text] * n) for text, n in zip(passages["text"].to_pylist(), repeats.tolist(), strict=True)]
    texts[70:75] = [None, "", " ", None, ""]
    path = tmp_path / f"a.{kind}"
    table = pa.table({"text": texts, "n": range(600)})
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=group, use_dictionary=False, data_page_size=1000)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=group)
    before = scan(tmp_path / "before", path)[1]
    monkeypatch.setattr("selection.columnar.BATCH_BYTES", 12_000)
    file = open_columnar(path)
    sizes = [len(batch) for batch in file.batches(0, file.rows, None)]
    assert sum(sizes) == 600
    assert min(sizes) < min(32, group)
    after = scan(tmp_path / "after", path)[1]
    assert after.shards == [replace(a, keep=b.keep) for a, b in zip(before.shards, after.shards, strict=True)]
    assert (after.blank, len(after.shards) > 10) == (before.blank, True)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_few_long_rows_of_a_text_file_are_read_at_once_and_shards_stay_what_they_were(
    kind: str, passages: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts and shards end behind whole batches, and where a file ends."""
    monkeypatch.setattr(module, "SHARD_ROWS", 16)
    monkeypatch.setattr(module, "SHARD_BYTES", 30_000)
    for place in (convert, reading):
        monkeypatch.setattr(place, "BATCH_ROWS", 32)
    repeats = np.repeat(np.random.default_rng(0).choice([1, 1, 1, 30], 30), 20)
    texts = [" ".join([text] * n) for text, n in zip(passages["text"].to_pylist(), repeats.tolist(), strict=True)]
    texts[70:75] = [None, "", " ", None, ""]
    table = pa.table({"text": texts, "n": range(600)})
    for name, part in (("a", table.slice(0, 330)), ("b", table.slice(330))):
        path = tmp_path / "corpus" / f"{name}.{kind}"
        path.parent.mkdir(exist_ok=True)
        if kind == "csv":
            pacsv.write_csv(part, path)
        else:
            path.write_text("\n".join(json.dumps(row) for row in part.to_pylist()), encoding="utf-8")
    monkeypatch.setattr(reading, "ROWS_AT_ONCE", 32)
    assert {len(batch) for batch in reading.read_batches(path)} == {32, (600 - 330) % 32}
    before, old = scan(tmp_path / "before", tmp_path / "corpus")
    monkeypatch.setattr(reading, "ROWS_AT_ONCE", 5)
    monkeypatch.setattr(reading, "BATCH_BYTES", 12_000)
    assert len({len(batch) for batch in reading.read_batches(path)}) > 3
    after, new = scan(tmp_path / "after", tmp_path / "corpus")
    assert new.shards == old.shards
    assert len(new.sources) == 2
    assert len(new.in_use) > 3
    assert all_rows(after).equals(all_rows(before))


@pytest.mark.slow
def test_a_jsonl_is_read_in_small_buffers_unless_a_row_is_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    typed = reading._typed
    monkeypatch.setattr(reading, "_typed", lambda *given: tried.append(given[-1]) or typed(*given))
    for name, rows in (("short", ["one", "two"]), ("long", ["one", "x" * (40 << 20), "two"])):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps({"text": text}) for text in rows), encoding="utf-8")
        assert [text for batch in reading.read_batches(path) for text in batch["text"].to_pylist()] == rows
    assert tried == [16 << 20, 16 << 20, 256 << 20]
    monkeypatch.setattr(reading, "LARGEST_ROW_BYTES", 17 << 20)
    with pytest.raises(InputError, match="maximum_object_size"):
        list(reading.read_batches(path))


def test_a_batch_of_books_is_some_megabytes(tmp_path: Path) -> None:
    books = pa.table({"text": ["word " * 80_000] * 120, "n": range(120)})
    pq.write_table(books, tmp_path / "a.parquet", use_dictionary=False)
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), books.schema) as writer:
        writer.write_table(books)
    for name in ("a.parquet", "a.arrow"):
        file = open_columnar(tmp_path / name)
        batches = list(file.batches(0, file.rows, ["text"]))
        assert max(batch.nbytes for batch in batches) <= 16 << 20
        assert pa.Table.from_batches(batches).equals(books.select(["text"]))
        assert [len(batch) for batch in file.batches(0, file.rows, ["n"])] == [120]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in books.to_pylist()), encoding="utf-8")
    pacsv.write_csv(books, tmp_path / "a.csv")
    for name in ("a.jsonl", "a.csv"):
        batches = list(reading.read_batches(tmp_path / name))
        assert max(batch.nbytes for batch in batches) <= 64 * 400_100
        assert [text for batch in batches for text in batch["text"].to_pylist()] == books["text"].to_pylist()


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_long_passages_make_shards_of_few(
    kind: str, passages: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 40_000)
    texts = [" ".join([text] * 20) for text in passages["text"].slice(0, 100).to_pylist()]
    texts[3:5] = [None, ""]
    if kind == "parquet":
        pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    else:
        (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    store, entry = scan(tmp_path, tmp_path / f"a.{kind}")
    longest = max(len(text.encode()) for text in texts if text)
    assert len(entry.shards) > 3
    assert max(shard.text_bytes for shard in entry.shards) <= 40_000 + 10_000 + longest
    rows = [(f"c:{number}", text) for number, text in enumerate(texts) if text]
    assert list(zip(*all_rows(store).select(["id", "text"]).to_pydict().values(), strict=True)) == rows


def test_chunks_are_short_and_lose_no_character(passages: pa.Table, tmp_path: Path) -> None:
    long = [" ".join(passages["text"].slice(i, 5).to_pylist()) for i in range(0, 50, 5)]
    pq.write_table(pa.table({"id": [f"d{i}" for i in range(10)], "text": long}), tmp_path / "long.parquet")
    store, _ = scan(tmp_path, tmp_path / "long.parquet", chunk=48)
    part = pq.read_table(store.path / "corpus/c/part-00000.parquet")
    counts = count_tokens(part["text"], "all-MiniLM-L6-v2")
    assert counts.max() <= 48
    assert part.num_rows > 20
    for i, text in enumerate(long):
        mine = part.filter(pc.equal(part["parent"], f"d{i}"))
        assert "".join("".join(mine["text"].to_pylist()).split()) == "".join(text.split())
        assert mine["id"].to_pylist() == [f"d{i}#{n}" for n in range(mine.num_rows)]


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that Arrow holds at once while `run` runs."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        run()
    finally:
        pa.set_memory_pool(before)
    return int(pool.max_memory())


def test_long_documents_are_not_copied_for_each_of_their_pieces(passages: pa.Table, tmp_path: Path) -> None:
    text = " ".join(passages["text"].to_pylist())[:200_000]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for _ in range(2)))
    peak = peak_bytes(lambda: scan(tmp_path, tmp_path / "a.jsonl", chunk=48))
    part = pq.read_table(tmp_path / "store/corpus/c/part-00000.parquet")
    assert part.num_rows > 1000
    assert peak < 50 * len(text) < part.num_rows * len(text)


def test_documents_are_chunked_some_bytes_at_a_time(
    passages: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what stands beside a text is repeated in pieces that Arrow's offsets can count."""
    texts = [" ".join(passages["text"].slice(i, 5).to_pylist()) for i in range(0, 100, 5)]
    table = pa.table({"text": texts, "note": [f"note {i}" * 40 for i in range(20)], "n": range(20)})
    pq.write_table(table, tmp_path / "long.parquet")
    scan(tmp_path / "one", tmp_path / "long.parquet", chunk=48)
    monkeypatch.setattr(module, "SHARD_BYTES", 4 * 8000)
    monkeypatch.setattr(chunking, "REPEATED_BYTES", 4000)
    given: list[int] = []
    split = chunking.Chunker.split

    def watched(self: chunking.Chunker, part: pa.Table) -> pa.Table:
        given.append(len("".join(part["text"].to_pylist()).encode()))
        cut = split(self, part)
        assert max(chunk.nbytes for chunk in cut["note"].chunks) <= 4000
        return cut

    monkeypatch.setattr(chunking.Chunker, "split", watched)
    scan(tmp_path / "many", tmp_path / "long.parquet", chunk=48)
    assert len(given) > 2
    assert max(given) < 8000 + max(len(text.encode()) for text in texts)
    whole, parts = (
        pa.concat_tables(pq.read_table(part) for part in sorted((tmp_path / name).rglob("part-*.parquet")))
        for name in ("one", "many")
    )
    assert whole.equals(parts)


def test_a_sentence_that_fits_is_not_cut(tmp_path: Path) -> None:
    sentences = ["The parser reads one sentence at a time.", "It then builds a tree of the words.", "Nothing is lost."]
    (tmp_path / "a.txt").write_text(" ".join(sentences), encoding="utf-8")
    store, _ = scan(tmp_path, tmp_path / "a.txt", chunk=12)
    assert all_rows(store)["text"].to_pylist() == sentences


def test_folders_globs_and_hub_folders(small: pa.Table, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    for i in range(3):
        pq.write_table(small.slice(i * 10, 10), folder / f"p{i}.parquet")
    (folder / "README.txt").write_text("not a passage", encoding="utf-8")
    assert [p.name for p in find_files(str(folder))] == ["p0.parquet", "p1.parquet", "p2.parquet"]
    assert [p.name for p in find_files(str(folder / "*[02].parquet"))] == ["p0.parquet", "p2.parquet"]
    store, _ = scan(tmp_path, folder)
    assert all_rows(store)["id"].to_pylist() == small["id"].to_pylist()[:30]
    (folder / "README.txt").unlink()
    hub, _ = scan(tmp_path / "hub", f"hf://{folder}:train")
    assert all_rows(hub)["text"].to_pylist() == small["text"].to_pylist()[:30]


def test_folders_behind_links_are_read_and_loops_end(small: pa.Table, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "corpus" / "a", tmp_path / "elsewhere"
    folder.mkdir(parents=True)
    elsewhere.mkdir()
    pq.write_table(small.slice(0, 10), folder / "one.parquet")
    pq.write_table(small.slice(10, 10), elsewhere / "two.parquet")
    (tmp_path / "corpus" / "b").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(tmp_path / "corpus")
    (folder / "itself").symlink_to(folder)
    (tmp_path / "corpus" / "0").symlink_to(folder)  # stands before it
    (folder / "gone.parquet").symlink_to(tmp_path / "nowhere.parquet")
    found = find_files(str(tmp_path / "corpus"))
    assert [p.name for p in found] == ["one.parquet", "two.parquet"]


def test_files_left_out_of_a_folder_are_named(
    small: pa.Table, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    pq.write_table(small, folder / "a.parquet")
    (folder / "about.txt").write_text("of this folder")
    assert len(find_files(str(folder))) == 1
    assert not caplog.messages
    (folder / "b.jsonl.gz").write_bytes(b"")
    assert len(find_files(str(folder))) == 1
    assert "b.jsonl.gz" in caplog.text


def test_a_scan_is_reused_until_a_file_changes(small: pa.Table, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(small, path)
    store, first = scan(tmp_path, path)
    with store.lock():
        assert ingest(store, CorpusSpec("c", str(path))) is store.manifest.corpora[0]
        pq.write_table(small.slice(1), path)
        assert ingest(store, CorpusSpec("c", str(path))).passages == first.passages - 1


@pytest.mark.parametrize("pattern", ["", "*.jsonl", "**/*.jsonl"])
def test_new_files_of_a_folder_are_seen(pattern: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.jsonl").write_text(json.dumps({"text": name}))
    store, entry = scan(tmp_path, folder / pattern)
    (folder / ".hidden.jsonl").write_text("{}")
    (folder / "a.jsonl").write_text(json.dumps({"text": "another"}))  # what has changed is no new file
    assert new_files(entry, store) == []
    (folder / "c.jsonl").write_text(json.dumps({"text": "c"}))
    assert new_files(entry, store) == [folder / "c.jsonl"]
    shutil.rmtree(folder)
    assert new_files(entry, store) == []


def test_a_single_file_and_a_hub_dataset_have_no_new_files(small: pa.Table, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    pq.write_table(small, tmp_path / "parts" / "a.parquet")
    one, hub = scan(tmp_path, tmp_path / "parts" / "a.parquet"), scan(tmp_path / "hub", f"hf://{tmp_path / 'parts'}")
    pq.write_table(small, tmp_path / "parts" / "b.parquet")
    for store, entry in (one, hub):
        assert new_files(entry, store) == []


def test_where_sees_rows_and_no_files(small: pa.Table, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(small, path)
    with pytest.raises(InputError, match="does not work on corpus c"):
        scan(tmp_path, path, where="nothing = 1")
    with pytest.raises(InputError, match="does not work"):
        scan(tmp_path, path, where=f"id in (select id from '{path}')")
    with pytest.raises(InputError, match="not a condition"):
        scan(tmp_path, path, where="length(text)")


def test_corpus_names() -> None:
    assert parse_corpus("a=b=c") == ("a", "b=c")
    for bad in ("a", "=x", "a=", "../a=x", "a/b=x"):
        with pytest.raises(InputError):
            parse_corpus(bad)


@given(st.lists(st.text(max_size=8), max_size=20), st.lists(st.integers(0, 20), max_size=4))
def test_text_fingerprint_depends_on_texts_alone(texts: list[str], cuts: list[int]) -> None:
    def value(parts: list[pa.Array]) -> str:
        fingerprint = TextFingerprint()
        for part in parts:
            fingerprint.update(part)
        return fingerprint.value()

    clean = [t.encode("utf-8", "ignore").decode() for t in texts]
    array = pa.array(clean, pa.string())
    edges = [0, *sorted(min(c, len(clean)) for c in cuts), len(clean)]
    pieces = [array.slice(a, b - a).cast(pa.large_string()) for a, b in pairwise(edges)]
    assert value(pieces) == value([array])
    assert value([pa.array([*clean, "x"])]) != value([array])
    assert value([pa.array(["ab", "c"])]) != value([pa.array(["a", "bc"])])


def test_strings_of_a_jsonl_stay_as_written(tmp_path: Path) -> None:
    rows = [
        {"id": "2020-01-02T00:00:00Z", "text": 'say "x"', "label": "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "n": 1},
        {"id": "2020-01-03T00:00:00Z", "text": 7, "label": "b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "n": 2},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    store, _ = scan(tmp_path, tmp_path / "a.jsonl")
    part = pq.read_table(store.path / "corpus/c/part-00000.parquet")
    assert part["id"].to_pylist() == [row["id"] for row in rows]
    assert part["text"].to_pylist() == ['say "x"', "7"]
    assert part["label"].to_pylist() == [row["label"] for row in rows]
    assert part["n"].to_pylist() == [1, 2]


def test_nothing_of_a_csv_is_guessed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\n1,#hash; tag\n#2,"a, ""b"""\n3,"two\nlines"\n', encoding="utf-8")
    store, _ = scan(tmp_path, tmp_path / "a.csv")
    assert all_rows(store)["text"].to_pylist() == ["#hash; tag", 'a, "b"', "two\nlines"]
    assert all_rows(store)["id"].to_pylist() == ["1", "#2", "3"]
    (tmp_path / "b.tsv").write_text("text\tn\nit's \t1\n5\" disk\t2\n", encoding="utf-8")
    store, _ = scan(tmp_path / "b", tmp_path / "b.tsv")
    assert all_rows(store)["text"].to_pylist() == ["it's ", '5" disk']


def test_line_breaks_and_quotes_in_texts_of_a_csv_wherever_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over many buffers of DuckDB's, which its threads would begin to read in the middle of texts."""
    monkeypatch.setattr(reading, "LARGEST_ROW_BYTES", 4096)
    draws = np.random.default_rng(0)
    parts = np.array(["a", "bb", '"', ",", "\n", "ccc ", '""', "\n\n"])
    texts = ["x" + "".join(draws.choice(parts, size)) + "x" for size in draws.integers(1, 60, 4000)]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    found = [text for batch in reading.read_batches(tmp_path / "a.csv") for text in batch["text"].to_pylist()]
    assert found == texts


@pytest.mark.parametrize("lines", [5, 120_000])
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"a,1,2", "3 columns, and the first line has 2; mend"),
        (b'"two\nlines"', "1 columns, and the first line has 2; mend"),
        (b'"x"y,1', "broken CSV .*; mend"),
        (b'"never closed,1', "broken CSV .*; mend"),
        (b"\xff,1", "not valid UTF-8"),
    ],
)
def test_a_broken_row_of_a_csv_is_named_wherever_it_lies(lines: int, row: bytes, reason: str, tmp_path: Path) -> None:
    """Past the first rows DuckDB's errors come as Arrow's."""
    rows = [b"text,n", b'"of two\nlines",0', *[b"some text,1"] * (lines - 4), row, b"some text,2", b""]
    (tmp_path / "a.csv").write_bytes(b"\n".join(rows))
    with pytest.raises(InputError, match=rf"a\.csv, line {lines}: {reason}"):
        list(reading.read_batches(tmp_path / "a.csv"))


def test_names_that_look_like_patterns_and_links(small: pa.Table, tmp_path: Path) -> None:
    (tmp_path / "data1.jsonl").write_text('{"text": "the other"}\n')
    (tmp_path / "data[1].jsonl").write_text('{"text": "this one"}\n')
    store, _ = scan(tmp_path, tmp_path / "data[1].jsonl")
    assert all_rows(store)["text"].to_pylist() == ["this one"]
    pq.write_table(small, tmp_path / "blob")
    (tmp_path / "link.parquet").symlink_to(tmp_path / "blob")
    linked, _ = scan(tmp_path / "l", tmp_path / "link.parquet")
    assert len(all_rows(linked)) == 50
    (tmp_path / "folder" / ".hidden").mkdir(parents=True)
    pq.write_table(small, tmp_path / "folder" / ".hidden" / "a.parquet")
    with pytest.raises(InputError, match="no file"):
        find_files(str(tmp_path / "folder"))


def test_views_null_ids_and_compressed_arrow(small: pa.Table, tmp_path: Path) -> None:
    texts = [None, *small["text"].to_pylist()[1:]]
    table = pa.table({"id": pa.array([None, *range(1, 50)]), "text": pa.array(texts).cast(pa.string_view())})
    for name, options in {"a.arrow": None, "b.arrow": pa.ipc.IpcWriteOptions(compression="zstd")}.items():
        with pa.ipc.new_file(str(tmp_path / name), table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=9)
    with pa.ipc.new_stream(str(tmp_path / "c.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=9)
    for name in ("a.arrow", "b.arrow", "c.arrow"):
        store, entry = scan(tmp_path / name.removesuffix(".arrow"), tmp_path / name)
        assert entry.blank == 1
        assert all_rows(store)["text"].to_pylist() == texts[1:]
        assert store.corpus.take(np.array([48, 0]))["id"].to_pylist() == ["49", "1"]
    pq.write_table(pa.table({"id": [None, "x"], "text": ["a", "b"]}), tmp_path / "d.parquet")
    assert all_rows(scan(tmp_path / "d", tmp_path / "d.parquet")[0])["id"].to_pylist() == ["c:0", "x"]
    pq.write_table(pa.table({"id": [[1]], "text": ["a"]}), tmp_path / "e.parquet")
    with pytest.raises(InputError, match="cannot be written as text"):
        all_rows(scan(tmp_path / "e", tmp_path / "e.parquet")[0])


def test_where_names_know_no_case_and_conditions_are_of_one_row(small: pa.Table, tmp_path: Path) -> None:
    pq.write_table(small.append_column("Source", small["package"]), tmp_path / "a.parquet")
    package = small["package"][0].as_py()
    _, entry = scan(tmp_path, tmp_path / "a.parquet", where=f"source = 'c' and source_ = '{package}'")
    assert entry.passages == pc.sum(pc.equal(small["package"], package)).as_py()
    pq.write_table(small.append_column("source", small["package"]), tmp_path / "c.parquet")
    _, entry = scan(tmp_path / "c", tmp_path / "c.parquet", where=f"source = 'c' and source_ = '{package}'")
    assert entry.passages == pc.sum(pc.equal(small["package"], package)).as_py()
    bodies = pa.table({"body": ["a", "b"], "text": ["x", "y"], "ID": [1, 2]})
    pq.write_table(bodies, tmp_path / "d.parquet")
    where = "text = 'a' and body = 'a' and text_ = 'x' and id_ = 1"
    _, entry = scan(tmp_path / "d", tmp_path / "d.parquet", where=where, text_column="body")
    assert entry.passages == 1
    with pytest.raises(InputError, match="condition on one row"):
        scan(tmp_path / "b", tmp_path / "a.parquet", where="count(*) > 0")


def test_chunks_are_counted_by_the_same_tokenizer_again(tiny_encoder: Path, passages: pa.Table, tmp_path: Path) -> None:
    pq.write_table(passages.slice(0, 30).select(["text"]), tmp_path / "long.parquet")
    _, first = scan(tmp_path, tmp_path / "long.parquet", chunk=48, chunk_model=str(tiny_encoder))
    assert first.spec["chunk_model"] == str(tiny_encoder)
    again, _ = scan(tmp_path, tmp_path / "long.parquet", chunk=48)
    assert again.manifest.corpora == [first]  # though the second call names none
    more, _ = scan(tmp_path, tmp_path / "long.parquet", chunk=32)
    assert more.manifest.corpora[0].spec["chunk_model"] == str(tiny_encoder)
