"""What `inspect` says of a set are the numbers of plain definitions, and its page is safe and whole in a browser."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selection.augmentation import Budget, select
from selection.embedding import Embeddings
from selection.errors import InputError, StoreError
from selection.guard import normalise
from selection.histogram import Histogram
from selection.inspect import inspect
from selection.inspect_page import write_html
from selection.inspection import Inspection
from selection.pages import escape
from selection.store import Store
from selection.task import read_task
from selection.terminal import EIGHTHS, text_bar
from selection.tokens import count_tokens

METHODS = {"knn": "knn", "random": "random", "mix": "mix:knn=0.7,random=0.3"}
NASTY = "</p><script>alert('x')</script> & \"quotes\" <img src=x onerror=alert(1)>\x1b[31m\u202e" + "w" * 3000


@pytest.fixture(scope="module")
def sets(built: Path, task_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    for name, method in METHODS.items():
        select(built, task_folder, folder / name, method, Budget(docs=90), seed=3)
    return {name: folder / name for name in METHODS}


@pytest.fixture
def copied(sets: dict[str, Path], tmp_path: Path) -> Path:
    """A set that a test may change."""
    return Path(shutil.copytree(sets["knn"], tmp_path / "set"))


@pytest.fixture(scope="module")
def inspected(sets: dict[str, Path]) -> Inspection:
    return inspect(sets["knn"], others=[sets["random"], sets["mix"]])


def table_of(path: Path) -> pa.Table:
    return pq.read_table(path / "augmentation.parquet")


def rewrite(path: Path, table: pa.Table, **manifest: object) -> None:
    pq.write_table(table, path / "augmentation.parquet")
    recorded = json.loads((path / "manifest.json").read_text())
    recorded |= {"passages": table.num_rows, **manifest}
    (path / "manifest.json").write_text(json.dumps(recorded))


def column(table: pa.Table, name: str, values: list[object]) -> pa.Table:
    field = table.schema.field(name)
    return table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))


def plain_counts(texts: list[str]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for text in texts:
        tokens = re.findall(r"\w+|[^\w\s]+", text.lower())
        for gram in [*tokens, *(f"{a} {b}" for a, b in pairwise(tokens))]:
            counts[int(hashlib.sha256(gram.encode()).hexdigest(), 16) % 10_000] += 1
    return counts


def plain_kl(first: Counter[int], second: Counter[int]) -> float:
    return sum(
        n / first.total() * (math.log(n / first.total() + 1e-8) - math.log(second[b] / second.total() + 1e-8))
        for b, n in first.items()
    )


def test_counts_are_those_of_the_rows(inspected: Inspection, sets: dict[str, Path]) -> None:
    table = table_of(sets["knn"])
    texts = table["text"].to_pylist()
    words = [word for text in texts for word in re.findall(r"\w+", text.lower())]
    assert (inspected.words, inspected.unique_words) == (len(words), len(set(words)))
    assert (inspected.passages, inspected.text_bytes) == (90, sum(len(text.encode()) for text in texts))
    assert inspected.tokens == int(count_tokens(table["text"], inspected.manifest["tokenizer"]).sum())
    assert [(part.name, part.passages, part.text_bytes) for part in inspected.sources] == [
        ("docs", 90, inspected.text_bytes)
    ]
    assert inspected.lengths is not None
    assert int(inspected.lengths.counts.sum()) + inspected.lengths.beyond == 90
    assert int(inspected.scores["knn"].counts.sum()) == 90
    assert inspected.left_out == {}


def test_words_do_not_depend_on_what_the_hasher_forgets(
    inspected: Inspection, sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selection.ngrams.MOST_WORDS", 50)
    monkeypatch.setattr("selection.inspect.BLOCK", 7)
    again = inspect(sets["knn"])
    assert (again.words, again.unique_words, again.kl_set) == (
        inspected.words,
        inspected.unique_words,
        inspected.kl_set,
    )
    assert again.examples == inspected.examples


def test_mix_is_shared_out_by_method(inspected: Inspection, sets: dict[str, Path]) -> None:
    mix = inspected.others[1].other
    expected = Counter(table_of(sets["mix"])["method"].to_pylist())
    assert {part.name: part.passages for part in mix.methods} == dict(expected)
    assert list(mix.scores) == ["knn"]
    assert int(mix.scores["knn"].counts.sum()) == expected["knn"]


def test_coverage_counts_the_examples_that_brought_something(inspected: Inspection, sets: dict[str, Path]) -> None:
    brought = Counter(table_of(sets["knn"])["query_id"].to_pylist())
    assert inspected.coverage is not None
    assert (inspected.coverage.examples, inspected.coverage.covered) == (40, len(brought))
    counts = sorted(brought[number] for number in range(40))
    assert inspected.coverage.passages.tolist() == [brought[number] for number in range(40)]
    assert inspected.coverage.quantiles() == [counts[0], counts[3], counts[19], counts[35], counts[-1]]
    assert inspected.others[0].other.coverage is None  # random has no queries


def test_diversity_is_that_of_the_whole_cosine_matrix(
    inspected: Inspection, sets: dict[str, Path], built: Path
) -> None:
    vectors = Embeddings(Store(built), "tiny-encoder").take(table_of(sets["knn"])["doc_id"].to_numpy())
    vectors = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    eigenvalues = np.linalg.eigvalsh(cosines / len(cosines))
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    assert inspected.encoder == "tiny-encoder"
    assert inspected.cosine == pytest.approx(cosines[~np.eye(len(cosines), dtype=bool)].mean(), abs=1e-5)
    assert inspected.vendi == pytest.approx(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()), rel=1e-3)


def test_kl_reduction_is_that_of_the_definition(
    inspected: Inspection, sets: dict[str, Path], passages: pa.Table, task_folder: Path
) -> None:
    task = plain_counts(read_task(task_folder).train_texts.to_pylist())
    chosen = plain_counts(table_of(sets["knn"])["text"].to_pylist())
    corpus = plain_counts(passages["text"].to_pylist())
    assert inspected.kl_corpus == pytest.approx(plain_kl(task, corpus))
    assert inspected.kl_set == pytest.approx(plain_kl(task, chosen))
    assert inspected.kl_reduction == pytest.approx(plain_kl(task, corpus) - plain_kl(task, chosen))


def test_what_sets_share(inspected: Inspection, sets: dict[str, Path], tmp_path: Path) -> None:
    ids = {name: set(table_of(path)["doc_id"].to_pylist()) for name, path in sets.items()}
    for shared, name in zip(inspected.others, ("random", "mix"), strict=True):
        assert shared.by == "doc_id"
        assert shared.shared == len(ids["knn"] & ids[name])
        assert shared.jaccard == len(ids["knn"] & ids[name]) / len(ids["knn"] | ids[name])
    # The same passages under other numbers and other capitals are the same texts.
    moved = Path(shutil.copytree(sets["mix"], tmp_path / "moved"))
    table = table_of(moved)
    table = column(table, "doc_id", list(range(table.num_rows)))
    rewrite(moved, column(table, "text", [f" {text.upper()}" for text in table["text"].to_pylist()]))
    texts = {name: set(normalise(table_of(path)["text"]).to_pylist()) for name, path in sets.items()}
    by_text = inspect(sets["knn"], others=[moved]).others[0]
    assert by_text.by == "text"
    upper = set(normalise(table_of(moved)["text"]).to_pylist())
    assert by_text.shared == len(texts["knn"] & upper) > 50
    assert by_text.jaccard == len(texts["knn"] & upper) / len(texts["knn"] | upper)
    assert "diversity" in by_text.other.left_out  # its numbers are not this store's


def test_examples_come_from_best_middle_and_last_ranks(
    inspected: Inspection, sets: dict[str, Path], task_folder: Path
) -> None:
    rows = {row["id"]: row for row in table_of(sets["knn"]).to_pylist()}
    best_first = sorted(rows.values(), key=lambda row: (row["rank"], -row["score"], row["doc_id"]))
    place = {row["id"]: at for at, row in enumerate(best_first)}
    train = read_task(task_folder).train_texts.to_pylist()
    assert Counter(example.group for example in inspected.examples) == {"best": 7, "middle": 7, "last": 6}
    assert len({example.id for example in inspected.examples}) == 20
    for example in inspected.examples:
        row, (low, high) = rows[example.id], {"best": (0, 9), "middle": (40, 50), "last": (81, 90)}[example.group]
        assert low <= place[example.id] < high
        assert (example.text, example.score, example.rank) == (row["text"][:4000], row["score"], row["rank"])
        assert example.query == train[example.query_id]
    assert inspect(sets["knn"]).examples == inspected.examples
    assert inspect(sets["knn"], seed=1).examples != inspected.examples
    drawn = inspect(sets["random"], examples=500).examples
    assert Counter(example.group for example in drawn) == {"drawn": 90}
    assert {example.query for example in drawn} == {None}
    assert len({example.id for example in inspect(sets["knn"], examples=500).examples}) == 90


def test_what_is_gone_is_left_out_with_a_reason(
    copied: Path, built: Path, task_folder: Path, tmp_path: Path, inspected: Inspection
) -> None:
    table = table_of(copied)
    rewrite(copied, table, store=str(tmp_path / "no-store"), task=str(tmp_path / "no-task"), tokenizer="no-such-model")
    found = inspect(copied)
    assert set(found.left_out) == {"KL reduction", "diversity", "tokens a passage", "task examples"}
    assert "--store" in found.left_out["diversity"]
    assert "--task" in found.left_out["task examples"]
    assert (found.kl_reduction, found.vendi, found.lengths) == (None, None, None)
    assert found.words == inspected.words
    said = "".join("".join(found.lines()).split())
    assert all("".join(reason.split()) in said for reason in found.left_out.values())
    assert escape(found.left_out["diversity"]) in found.html()
    named = inspect(copied, store=built, task=task_folder)
    assert (named.kl_reduction, named.vendi) == (inspected.kl_reduction, inspected.vendi)
    with pytest.raises(StoreError):
        inspect(copied, store=tmp_path / "no-store")
    with pytest.raises(InputError):
        inspect(copied, task=tmp_path / "no-task")
    rewrite(copied, table, queries=41, task=str(task_folder), task_texts=None)
    assert "40 examples and had 41" in inspect(copied).left_out["task examples"]


def test_a_set_is_held_against_the_texts_it_was_selected_for_from_wherever_it_is_asked(
    built: Path, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Path(shutil.copytree(task_folder, tmp_path / "task"))
    monkeypatch.chdir(tmp_path)
    select(built, "task", "set", "knn", Budget(docs=9), exclude=["task/test.jsonl"])
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    found = inspect("../set")
    assert found.left_out == {}
    assert (found.manifest["task"], found.manifest["store"]) == (str(task), str(built))
    assert found.manifest["parameters"]["exclude"] == [str(task / "test.jsonl")]
    lines = (task / "train.jsonl").read_text(encoding="utf-8").splitlines()
    (task / "train.jsonl").write_text("\n".join(lines[1:] + lines[:1]) + "\n", encoding="utf-8")
    for named in (None, task):
        changed = inspect("../set", task=named)
        assert set(changed.left_out) == {"KL reduction", "task examples"}
        told = f"the training texts of {task} are not those that the set was selected for"
        assert all(told in reason for reason in changed.left_out.values())
    assert inspect("../set", task=task_folder).kl_reduction == found.kl_reduction


def test_curated_passages_are_not_taken_for_the_stores(
    built: Path, task_folder: Path, passages: pa.Table, sets: dict[str, Path], tmp_path: Path
) -> None:
    pq.write_table(passages.slice(100, 50).select(["id", "text"]), tmp_path / "mine.parquet")
    method = f"curated:file={tmp_path / 'mine.parquet'}"
    select(built, task_folder, tmp_path / "set", method, Budget(everything=True), near="off")
    found = inspect(tmp_path / "set", others=[sets["knn"]])
    assert "by doc_id" in found.left_out["diversity"]
    assert (found.of_store, found.vendi, found.others[0].by) == (False, None, "text")
    texts = [set(normalise(table_of(path)["text"]).to_pylist()) for path in (tmp_path / "set", sets["knn"])]
    assert found.others[0].shared == len(texts[0] & texts[1])


def damage(path: Path) -> None:
    content = bytearray((path / "augmentation.parquet").read_bytes())
    middle = len(content) // 3
    content[middle : middle + 200] = bytes(200)
    (path / "augmentation.parquet").write_bytes(content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: (path / "augmentation.parquet").unlink(), "is not an augmentation set"),
        (lambda path: (path / "manifest.json").unlink(), "is not an augmentation set"),
        (damage, "augmentation.parquet is damaged"),
        (lambda path: (path / "augmentation.parquet").write_bytes(b"PAR1"), "augmentation.parquet is damaged"),
        (lambda path: rewrite(path, table_of(path).slice(0, 0)), "holds no passages"),
        (lambda path: rewrite(path, table_of(path).drop_columns("id")), "has no column id"),
        (lambda path: pq.write_table(table_of(path).slice(1), path / "augmentation.parquet"), "89 passages where"),
        (lambda path: (path / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda path: (path / "manifest.json").write_text("[]"), "is not the manifest of an augmentation set"),
    ],
)
def test_bad_sets_get_one_sentence(copied: Path, change: Callable[[Path], object], said: str) -> None:
    change(copied)
    with pytest.raises(InputError, match=said) as caught:
        inspect(copied)
    assert "\n" not in str(caught.value)
    assert str(copied) in str(caught.value)


def test_one_passage_and_one_word_are_a_set(copied: Path) -> None:
    rewrite(copied, table_of(copied).slice(0, 1))
    found = inspect(copied)
    assert (found.passages, found.vendi, len(found.examples)) == (1, pytest.approx(1.0), 1)
    assert found.lines()
    assert found.html()


def nasty(path: Path) -> Inspection:
    """A set whose every text, id and name is hostile."""
    table = table_of(path)
    for name in ("text", "id", "source", "method"):
        table = column(table, name, [NASTY] * table.num_rows)
    rewrite(path, table, method=NASTY, task=NASTY, store=NASTY, versions={NASTY: NASTY})
    found = inspect(path)
    return replace(found, examples=[replace(example, query=NASTY) for example in found.examples])


def test_terminal_lines_fit_and_steer_nothing(inspected: Inspection, copied: Path) -> None:
    for found in (inspected, nasty(copied)):
        lines = found.lines()
        assert max(map(len, lines)) <= 100
        assert all(character.isprintable() for line in lines for character in line)
    text = "\n".join(inspected.lines())
    assert f"{inspected.tokens:,}" in text
    assert f"{inspected.kl_reduction:.3f} nats" in text
    assert f"Vendi score {inspected.vendi:.1f}" in text
    assert len(inspected.lines(examples=20)) > len(inspected.lines())


class Reader(HTMLParser):
    """The tags, attributes and text of a page; fails where a tag is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_escapes_everything_and_needs_nothing(inspected: Inspection, copied: Path, tmp_path: Path) -> None:
    for found in (inspected, nasty(copied)):
        reader = Reader()
        reader.feed(found.html())
        assert reader.open == []
        assert not {"script", "img", "link", "iframe", "object"} & set(reader.tags)
        assert not {"src", "href", "onerror", "onload"} & reader.attributes
        assert "url(" not in found.html()
        assert "\x1b" not in found.html()
    assert "</p><script>alert('x')</script> & \"quotes\"" in reader.text
    write_html(inspected, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == inspected.html()


def test_page_shows_the_command_that_made_the_set(inspected: Inspection, built: Path, task_folder: Path) -> None:
    command = re.search(r"<pre[^>]*>(.*?)</pre>", inspected.html(), re.DOTALL)
    assert command is not None
    assert command[1].startswith(f"nearkin select {built} {task_folder} --method knn --docs 90 ")
    assert "--seed 3" in command[1]


NUMBERS = st.lists(
    st.one_of(st.floats(-1e6, 1e6, allow_nan=False), st.sampled_from([0.0, 0.1, 1e-9, -3.0, 0.30000000000000004])),
    min_size=1,
    max_size=50,
)


@given(NUMBERS)
def test_histogram_holds_every_value_once(values: list[float]) -> None:
    shown = Histogram.of(np.array(values))
    assert shown.counts.sum() == len(values)
    assert (np.diff(shown.edges) > 0).all()
    assert len(shown.counts) <= 22
    slack = 1e-9 * max(1.0, *map(abs, values))
    assert shown.edges[0] <= min(values) + slack
    assert shown.edges[-1] >= max(values) - slack
    assert len(shown.labels()) == len(shown.counts)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=50), st.integers(0, 10_000))
def test_histogram_of_whole_numbers(values: list[int], highest: int) -> None:
    shown = Histogram.of(np.array(values), highest)
    assert shown.counts.sum() + shown.beyond == len(values)
    assert shown.beyond == sum(value > highest for value in values)
    for label, count in zip(shown.labels(), shown.counts.tolist(), strict=True):
        low, _, high = label.replace(",", "").partition(" to ")
        assert count == sum(int(low) <= value <= int(high or low) for value in values if value <= highest)


@given(st.floats(0, 1), st.integers(1, 60))
def test_text_bar_is_as_long_as_its_share(share: float, width: int) -> None:
    bar = text_bar(share, width)
    assert len(bar) == width
    eighths = sum(EIGHTHS.index(character) for character in bar)
    assert abs(eighths - share * width * 8) <= 1
    assert (eighths > 0) == (share > 0)


def browse(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    browser = shutil.which("chromium")
    assert browser is not None
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=2000",
        "--hide-scrollbars",
    ]
    command += ["--enable-logging=stderr", f"--user-data-dir={profile}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_page_in_a_browser(inspected: Inspection, copied: Path, tmp_path: Path) -> None:
    hostile = nasty(copied)
    hostile = replace(hostile, others=inspected.others, scores=inspected.scores, coverage=inspected.coverage)
    write_html(hostile, tmp_path / "page.html")
    shown = browse(tmp_path / "page.html", tmp_path / "profile", "--dump-dom")
    assert "CONSOLE" not in shown.stderr
    assert "<script" not in shown.stdout
    assert shown.stdout.count("<article") == len(hostile.examples) + 1
    # A page around it, of a phone's width, measures how wide the content is.
    probe = tmp_path / "probe.html"
    probe.write_text(
        '<iframe src="page.html" width="390" height="800"></iframe><script>onload = () => { const inner = '
        "document.querySelector('iframe').contentDocument.documentElement; "
        "document.title = inner.scrollWidth + ' ' + inner.clientWidth }</script>"
    )
    measured = browse(probe, tmp_path / "profile", "--dump-dom", "--allow-file-access-from-files").stdout
    title = re.search(r"<title>(\d+) (\d+)</title>", measured)
    assert title is not None
    assert int(title[1]) <= int(title[2]) == 390
