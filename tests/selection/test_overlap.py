"""Words, ranks and shares are those of a plain count; a domain is the same however it is named; pictures are whole."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from selection import overlap as module
from selection import plotting
from selection.augmentation import Budget, select
from selection.errors import InputError, NearkinError
from selection.overlap import Overlap, overlap, save_heatmap

Texts = Sequence[str | None]


def plain_count(texts: Texts) -> Counter[str]:
    """The definition, word by word. A letter's lower case does not depend on its neighbours, as Python's Σ does."""
    words = [w for text in texts if text for w in re.findall(r"[^\W_]+", text)]
    lowered = ["".join(letter.lower()[0] for letter in word) for word in words]
    return Counter(word for word in lowered if len(word) > 1 and word not in ENGLISH_STOP_WORDS)


def plain_list(counts: Counter[str], top: int) -> set[str]:
    return set(sorted(counts, key=lambda word: (-counts[word], word.encode()))[:top])


def plain_share(first: Texts, second: Texts, top: int) -> float:
    lists = [plain_list(plain_count(texts), top) for texts in (first, second)]
    return len(lists[0] & lists[1]) / min(map(len, lists))


def write(path: Path, texts: Texts) -> str:
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path)
    return str(path)


@pytest.fixture
def halves(passages: pa.Table, tmp_path: Path) -> list[tuple[str, str]]:
    texts = passages["text"].to_pylist()
    return [
        ("first", write(tmp_path / "a.parquet", texts[:300])),
        ("second", write(tmp_path / "b.parquet", texts[300:])),
    ]


def make(names: Sequence[str], losses: list[float] | None = None) -> Overlap:
    count = len(names)
    matrix = np.eye(count) + 0.25 * (1 - np.eye(count))
    return Overlap(list(names), [1000] * count, [20_000] * count, [1500] * count, 1000, None, matrix, 1.0, losses)


@pytest.mark.parametrize("top", [50, 700])
def test_docstrings_are_counted_as_by_hand(passages: pa.Table, halves: list[tuple[str, str]], top: int) -> None:
    found = overlap(halves, top=top)
    texts = passages["text"].to_pylist()
    counts = [plain_count(texts[:300]), plain_count(texts[300:])]
    assert found.documents == [300, 300]
    assert found.words == [sum(c.values()) for c in counts]
    assert found.vocabulary == [len(c) for c in counts]
    share = plain_share(texts[:300], texts[300:], top)
    assert np.array_equal(found.matrix, [[1, share], [share, 1]])


TEXT = st.one_of(st.none(), st.text(st.sampled_from("aabB cC.,\n\t\rΣσς İIßéÉ\u00a0\u2003🎈_19東京"), max_size=30))


@given(st.lists(TEXT, min_size=1, max_size=6), st.lists(TEXT, min_size=1, max_size=6), st.integers(1, 5))
@settings(max_examples=40)
def test_any_text_is_counted_as_by_hand(
    tmp_path_factory: pytest.TempPathFactory, first: Texts, second: Texts, top: int
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    first, second = [*first, "ab ca"], [*second, "ca ab BC"]
    found = overlap([("a", write(folder / "a.parquet", first)), ("b", write(folder / "b.parquet", second))], top=top)
    assert found.documents == [sum(bool(text and text.strip()) for text in texts) for texts in (first, second)]
    assert found.words == [sum(plain_count(texts).values()) for texts in (first, second)]
    assert found.vocabulary == [len(plain_count(texts)) for texts in (first, second)]
    assert found.matrix[0, 1] == found.matrix[1, 0] == plain_share(first, second, top)


def test_marks_are_part_of_their_words(tmp_path: Path) -> None:
    texts = [["हिन्दी भाषा", "cafe\u0301 noir"], ["हिन्दी भाषा", "caf noir"]]
    found = overlap([(name, write(tmp_path / f"{name}.parquet", text)) for name, text in zip("ab", texts, strict=True)])
    assert found.words == found.vocabulary == [4, 4]
    assert found.matrix[0, 1] == 0.75


def test_equal_counts_stand_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    domains = [
        ("a", write(tmp_path / "a.parquet", ["zebra apple éclair pear"])),
        ("b", write(tmp_path / "b.parquet", ["apple pear"])),
    ]
    assert overlap(domains, top=2).matrix[0, 1] == 1
    domains[1] = ("b", write(tmp_path / "b.parquet", ["zebra éclair"]))
    assert overlap(domains, top=2).matrix[0, 1] == 0
    assert overlap(domains, top=3).matrix[0, 1] == 0.5


def test_threads_and_blocks_change_nothing(halves: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = overlap(halves, top=300, threads=1)
    monkeypatch.setattr(module, "BATCH_BYTES", 1000)
    cut = overlap(halves, top=300, threads=3)
    assert replace(cut, seconds=0).table().equals(replace(whole, seconds=0).table())


def test_formats_store_set_and_task_are_domains(
    passages: pa.Table, corpus_file: Path, built: Path, task_folder: Path, tmp_path: Path
) -> None:
    lines = [json.dumps({"text": text}) for text in passages["text"].to_pylist()]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    chosen = tmp_path / "set"
    select(built, task_folder, chosen, "random", Budget(docs=40))
    named = [
        ("parquet", corpus_file),
        ("jsonl", tmp_path / "docs.jsonl"),
        ("s", built),
        ("set", chosen),
        ("t", task_folder),
    ]
    found = overlap([(name, str(path)) for name, path in named], top=100)
    assert found.names == ["parquet", "jsonl", "s/docs", "set", "t"]
    assert found.documents == [600, 600, 600, 40, 40]
    assert len(set(found.words[:3])) == 1
    assert np.array_equal(found.matrix[:3, :3], np.ones((3, 3)))
    train = [json.loads(line)["text"] for line in (task_folder / "train.jsonl").read_text("utf-8").splitlines()]
    picked = pq.read_table(chosen / "augmentation.parquet")["text"].to_pylist()
    assert found.matrix[4, 3] == plain_share(train, picked, 100)
    assert found.matrix[4, 0] == plain_share(train, passages["text"].to_pylist(), 100)


@given(st.integers(0, 60), st.integers(1, 30), st.integers(1, 9), st.integers(0, 3))
def test_a_sample_is_that_of_the_smallest_keys(rows: int, count: int, batch: int, seed: int) -> None:
    texts = pa.array([f"text {row}" for row in range(rows)], pa.large_string())
    batches = (texts.slice(start, batch) for start in range(0, rows, batch))
    found = [text for piece in module.sampled(batches, count, seed) for text in piece.to_pylist()]
    keys = np.random.default_rng(seed).random(rows)
    assert found == [f"text {row}" for row in sorted(np.argsort(keys)[:count])]


def test_a_sample_is_what_is_counted(halves: list[tuple[str, str]]) -> None:
    found = [overlap(halves, top=100, sample=50, seed=seed) for seed in (0, 0, 1)]
    assert found[0].documents == [50, 50]
    assert found[0].words == found[1].words != found[2].words
    assert overlap(halves, top=100, sample=10_000).words == overlap(halves, top=100).words
    assert "at most 50 documents" in "\n".join(found[0].lines())


def test_a_small_vocabulary_is_named_and_divided_by(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small, large = ["red green blue"], ["red green yellow white black"] * 2
    domains = [("small", write(tmp_path / "a.parquet", small)), ("large", write(tmp_path / "b.parquet", large))]
    with caplog.at_level(logging.WARNING):
        found = overlap(domains, top=5)
    assert found.matrix[0, 1] == 2 / 3
    assert [record.getMessage().split()[0] for record in caplog.records] == ["small"]


def test_what_cannot_be_compared_is_said(halves: list[tuple[str, str]], tmp_path: Path) -> None:
    broken, stop, binary = tmp_path / "broken.jsonl", tmp_path / "stop.parquet", tmp_path / "binary.parquet"
    broken.write_text('{"text": "fine"}\n{"text": \n', encoding="utf-8")
    write(stop, ["the of and a", " "])
    bad = pa.array([b"caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": bad}), binary)
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(Path(halves[0][1]).read_bytes()[:2000])
    for path, message in [
        (str(broken), "broken.jsonl, line 2: broken JSON"),
        (str(stop), "domain it: 1 documents and no word"),
        (str(binary), "binary.parquet cannot be read to its end .*UTF-8"),
        (str(cut), "cut.parquet is not a whole Parquet file"),
        (str(tmp_path / "nowhere"), "nowhere does not exist"),
        ("hf://owner/data", "build a store"),
    ]:
        with pytest.raises(InputError, match=message):
            overlap([*halves, ("it", path)], top=10)
    for domains, options, message in [
        (halves[:1], {}, "two or more"),
        ([halves[0], halves[0]], {}, "two domains are called first"),
        (halves, {"text_column": "body"}, "has no column 'body'"),
        (halves, {"top": 0}, "1 or more"),
        (halves, {"sample": 0}, "1 or more"),
    ]:
        with pytest.raises(InputError, match=message):
            overlap(domains, **options)  # type: ignore[arg-type]


def test_the_working_folder_stays_clean(
    halves: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    before = sorted(tmp_path.rglob("*"))
    overlap(halves, top=10)
    assert sorted(tmp_path.rglob("*")) == before


def test_lines_fit_and_align() -> None:
    few = make(["news", "long_name"]).lines()
    assert few[-3:] == ["            news  long_name", "news       100.0       25.0", "long_name   25.0      100.0"]
    many = make([f"domain_number_{number}" for number in range(20)]).lines(width=110)
    square = many[-20:]
    assert len({len(line) for line in square}) == 1
    assert len(square[0]) <= 110
    assert square[9].split()[:3] == ["10", "domain_number_9", "25"]
    assert many[-21].split() == [str(number) for number in range(1, 21)]


def test_losses_are_shown_where_they_are_set() -> None:
    without = make(["news", "reviews"])
    assert "loss" not in "\n".join(without.lines())
    assert without.table()["loss"].null_count == 4
    measured = replace(without, losses=[1.5, 2.25])
    assert [line.split()[-1] for line in measured.lines()[:3]] == ["loss", "1.500", "2.250"]
    assert measured.table().select(["domain", "other", "overlap", "loss"]).to_pylist() == [
        {"domain": "news", "other": "news", "overlap": 1.0, "loss": 1.5},
        {"domain": "news", "other": "reviews", "overlap": 0.25, "loss": 1.5},
        {"domain": "reviews", "other": "news", "overlap": 0.25, "loss": 2.25},
        {"domain": "reviews", "other": "reviews", "overlap": 1.0, "loss": 2.25},
    ]


def test_a_heat_map_shows_names_values_and_losses(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import matplotlib

    found = make(["news", "reviews", "papers", "books"], [1.5, 2.25, 3.0, 3.5])
    found.matrix[0, 1] = found.matrix[1, 0] = 0.317
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        for name in ("one.svg", "two.svg"):
            save_heatmap(found, tmp_path / name)
    picture = (tmp_path / "one.svg").read_text("utf-8")
    assert picture == (tmp_path / "two.svg").read_text("utf-8")
    assert picture.count(">31.7<") == 2
    assert picture.count(">reviews<") == 2
    assert all(text in picture for text in ("loss 1.50", "loss 2.25", "loss 3.00", "1,000 most frequent"))
    save_heatmap(make(["a", "b"]), tmp_path / "picture.PNG")
    assert (tmp_path / "picture.PNG").read_bytes().startswith(b"\x89PNG")


def test_figures_that_cannot_be_written_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(NearkinError, match=r"as \.docx; use one of .*png"):
        save_heatmap(make(["a", "b"]), tmp_path / "picture.docx")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(plotting, "find_spec", lambda name: None)
    with pytest.raises(NearkinError, match=r"--plot needs matplotlib: pip install 'nearkin\[plots\]'"):
        save_heatmap(make(["a", "b"]), tmp_path / "picture.png")
