"""The harvest: real small packages, and packages written here whose every docstring can be recognised."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import harvest as module
from benchmarks.harvest import FEWEST_WORDS, MOST_WORDS, Harvest, harvest, normalised, passages_of, write_harvest
from selection.errors import NearkinError
from selection.task import read_task

SMALL = ("networkx", "jinja2", "fsspec")
SIZES = {"train": 30, "dev": 12, "test": 31}
MADE = ("madealpha", "madebeta", "madegamma")
MARKER = re.compile(r"\bmark[a-z]{3}\b")
MASK = module._mask_pattern(SMALL)


def letters(number: int) -> str:
    return "".join(chr(ord("a") + number // 26**i % 26) for i in range(3))


def sentences(words: list[str], rng: np.random.Generator, marker: str, count: int) -> str:
    return "\n".join(f"This {marker} " + " ".join(rng.choice(words, 9)) + "." for _ in range(count))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three packages of 40 docstrings, two passages each; each docstring has a marker of its own in every sentence."""
    rng = np.random.default_rng(0)
    words = ["tree", "column", "solver", "matrix", "stream", "returns", "the", "of", "when", "given", "value", "shape"]
    for position, package in enumerate(MADE):
        folder = tmp_path / package
        (folder / "tests").mkdir(parents=True)
        functions = [
            f'def f{i}():\n    """{sentences(words, rng, "mark" + letters(position * 100 + i), 10)}\n    """\n'
            for i in range(40)
        ]
        (folder / "__init__.py").write_text("raise RuntimeError('a harvest runs nothing of a package')\n")
        (folder / "code.py").write_text("\n".join(functions))
        (folder / "broken.py").write_text("def (:\n")
        (folder / "tests" / "hidden.py").write_text(f'"""{sentences(words, rng, "marktest", 10)}"""\n')
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def small() -> Harvest:
    return harvest(SMALL, passages=300, **SIZES)


def task_texts(harvested: Harvest) -> list[str]:
    return [text for table in harvested.task.values() for text in table["text"].to_pylist()]


def test_sizes_and_columns(small: Harvest) -> None:
    assert small.corpus.schema.names == ["id", "text", "package"]
    assert {split: table.num_rows for split, table in small.task.items()} == SIZES
    assert 100 < small.corpus.num_rows <= 300
    ids = small.corpus["id"].to_pylist()
    assert ids == sorted(set(ids))
    assert all(name.startswith(tuple(SMALL)) for name in ids)


def test_every_class_is_in_every_split_evenly(small: Harvest) -> None:
    for table in small.task.values():
        counts = {label: table["label"].to_pylist().count(label) for label in SMALL}
        assert max(counts.values()) - min(counts.values()) <= 1
        assert sum(counts.values()) == table.num_rows
    assert small.labels == sorted(SMALL)


def test_names_are_masked_in_task_and_corpus(small: Harvest) -> None:
    names = re.compile(r"networkx|\bnx\b|numpy|\bnp\b|scipy|pandas|\bjinja2\b|\bfsspec\b|torch|sklearn", re.IGNORECASE)
    texts = task_texts(small) + small.corpus["text"].to_pylist()
    assert [text for text in texts if names.search(text)] == []
    assert sum("library" in text for text in texts) > 5


def test_task_is_not_in_the_corpus(small: Harvest) -> None:
    def letters_only(text: str) -> str:
        return re.sub(r"\W+", " ", text.lower())

    examples, corpus = task_texts(small), small.corpus["text"].to_pylist()
    assert len({letters_only(text) for text in examples + corpus}) == len(examples) + len(corpus)
    assert not {normalised(text) for text in examples} & {normalised(text) for text in corpus}


def test_a_docstring_goes_to_one_place_and_nothing_is_run(made: Path) -> None:
    harvested = harvest(MADE, train=30, dev=15, test=30)
    places = {split: table["text"].to_pylist() for split, table in harvested.task.items()}
    places["corpus"] = harvested.corpus["text"].to_pylist()
    markers = {place: set(MARKER.findall(" ".join(texts))) for place, texts in places.items()}
    assert sum(len(found) for found in markers.values()) == len(set().union(*markers.values())) == 120
    assert "madealpha.code.f0#2" in (ids := harvested.corpus["id"].to_pylist()) or "madealpha.code.f0" not in ids
    assert not any("marktest" in text for texts in places.values() for text in texts)
    assert not set(MADE) & set(sys.modules)


def test_same_arguments_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    def files(folder: Path, seed: int) -> dict[str, bytes]:
        corpus, task = write_harvest(harvest(MADE, seed=seed, passages=60, train=9, dev=9, test=9), folder)
        return {path.name: path.read_bytes() for path in [corpus, *sorted(task.iterdir())]}

    first = files(tmp_path / "a", 0)
    assert list(first) == ["corpus.parquet", "dev.jsonl", "test.jsonl", "train.jsonl"]
    assert files(tmp_path / "b", 0) == first
    assert files(tmp_path / "a", 0) == first
    assert files(tmp_path / "c", 1) != first


def test_written_task_and_corpus_read_back(small: Harvest, tmp_path: Path) -> None:
    corpus, folder = write_harvest(small, tmp_path / "demo")
    assert pq.read_table(corpus).equals(small.corpus)
    task = read_task(folder)
    for split, table in small.task.items():
        assert task.labelled(split).to_pylist() == table.to_pylist()
    assert set(json.loads((folder / "dev.jsonl").read_text(encoding="utf-8").splitlines()[0])) == {"text", "label"}


@pytest.mark.parametrize("packages", [(), MADE[:2], (*MADE[:2], "no_such_package", "not.top.level")])
def test_too_few_packages(made: Path, packages: tuple[str, ...]) -> None:
    with pytest.raises(NearkinError, match=r"needs 3 installed packages .* install more"):
        harvest(packages, train=9, dev=9, test=9)


def test_too_many_examples_for_the_docstrings_there_are(made: Path) -> None:
    with pytest.raises(NearkinError, match="fewer examples"):
        harvest(MADE, train=100, dev=100, test=100)


DOCSTRING = """Multiply two arrays of numbers with :func:`numpy.multiply` and PyTorch's ``mul``.

    Parameters
    ----------
    first_argument : array_like of float
        The numbers that stand on the left side of the product, one for each row.
    second_argument : array_like
        The numbers that stand on the right, as `Scikit-Learn` and Hugging Face have it.

    .. code-block:: python

        secret = hidden()

    >>> np.multiply(3, 4)
    12

    ======  ======
    tabular content
    ======  ======
    left      right

    Args:
        third (`int`, *optional*): How often the product is taken before the result is returned.
    """


def test_prose_is_kept_and_the_rest_is_left_out() -> None:
    (text,) = passages_of(DOCSTRING, MASK)
    assert text == (
        "Multiply two arrays of numbers with library.multiply and library's mul. "
        "The numbers that stand on the left side of the product, one for each row. "
        "The numbers that stand on the right, as library and library have it. "
        "How often the product is taken before the result is returned."
    )


def test_the_same_docstring_with_another_class_name_counts_as_one() -> None:
    assert normalised("The bare BertModel, with 12 layers.") == normalised("The bare RobertaModel with 24 layers")
    assert normalised("The bare model") != normalised("The naked model")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["numpy", "Graph", ">>> x", "a.", "\n", "\n\n", "    ", "```", "::", "word ", "x : y"]))
)
def test_passages_keep_their_bounds(pieces: list[str]) -> None:
    for text in passages_of(" ".join(pieces * 8), MASK):
        assert FEWEST_WORDS <= len(text.split()) <= MOST_WORDS
        assert "numpy" not in text
