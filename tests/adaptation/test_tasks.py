from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import pytest

from adaptation.cards import cards
from adaptation.tasks import load_labelled, metric_of, some
from selection.errors import InputError
from selection.task import read_task


def test_cards_are_found_in_a_checkout_and_in_an_installation(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "nearkin_cards").mkdir()
    (tmp_path / "nearkin_cards" / "mine.toml").write_text('name = "mine"\nkind = "task"\nmetric = "micro"\n')
    # An editable install's own finders would mix this checkout's cards in.
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(p for p in sys.path if "__editable__" not in p)])
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if "Editable" not in getattr(f, "__name__", "")])
    monkeypatch.delitem(sys.modules, "nearkin_cards", raising=False)
    assert files("nearkin_cards").joinpath("mine.toml").is_file()
    cards.cache_clear()
    try:
        assert metric_of("mine") == "micro"
        assert metric_of("chemprot") == "macro"
    finally:
        cards.cache_clear()
        sys.modules.pop("nearkin_cards", None)


def test_metrics_are_the_papers() -> None:
    assert [metric_of(name) for name in ("chemprot", "rct", "sciie", "unheard-of", "biomed")] == [
        "micro", "micro", "macro", "macro", "macro",
    ]  # fmt: skip


def test_labels_are_numbered_by_sorted_name(tmp_path, jsonl) -> None:
    for split in ("train", "dev", "test"):
        jsonl(tmp_path / f"{split}.jsonl", ["one", "two", "three"], ["b", "c", "a"])
    labelled = load_labelled(tmp_path)
    assert labelled.labels == ["a", "b", "c"]
    assert labelled.splits["dev"]["label"].to_pylist() == [1, 2, 0]
    assert labelled.identity() == load_labelled(tmp_path).identity()
    jsonl(tmp_path / "dev.jsonl", ["one", "two", "three"], ["b", "c", "b"])
    assert labelled.identity() != load_labelled(tmp_path).identity()


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_label_that_train_lacks_is_named(tmp_path, jsonl, split) -> None:
    for name in ("train", "dev", "test"):
        jsonl(tmp_path / f"{name}.jsonl", ["one", "two"], ["a", "b"])
    jsonl(tmp_path / f"{split}.jsonl", ["one", "two"], ["a", "zebra"])
    with pytest.raises(InputError, match=f"{split}.jsonl has the label 'zebra'"):
        load_labelled(tmp_path)


def test_tasks_that_cannot_be_finetuned_on(tmp_path, jsonl) -> None:
    for name in ("train", "dev"):
        jsonl(tmp_path / f"{name}.jsonl", ["one", "two"], ["a", "a"])
    with pytest.raises(InputError, match=r"no test\.jsonl"):
        load_labelled(tmp_path)
    jsonl(tmp_path / "test.jsonl", ["one", "two"])
    with pytest.raises(InputError, match=r'test.jsonl has no "label"'):
        load_labelled(tmp_path)
    (tmp_path / "test.jsonl").write_text('{"text": "one", "label": "a"}\n\n{"text": "two"}\n')
    with pytest.raises(InputError, match=r'example 2 of test.jsonl has no "label"'):
        load_labelled(tmp_path)
    with pytest.raises(InputError, match=r"train.jsonl is a file: finetuning needs a folder"):
        load_labelled(tmp_path / "train.jsonl")
    jsonl(tmp_path / "test.jsonl", ["one", "two"], ["a", "a"])
    with pytest.raises(InputError, match="the one label 'a'"):
        load_labelled(tmp_path)


def test_whole_numbers_are_names_of_classes(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"text": "one", "label": 0}\n{"text": "two", "label": 1}\n')
    assert load_labelled(tmp_path).labels == ["0", "1"]


def test_many_labels_are_named_in_part(tmp_path: Path, jsonl) -> None:
    assert some(["b", "a"]) == "'b' and 'a'"
    for split in ("train", "dev", "test"):
        jsonl(tmp_path / f"{split}.jsonl", ["one", "two"], ["x", "y"])
    jsonl(tmp_path / "dev.jsonl", [f"text {i}" for i in range(9)], list("abcdefghi"))
    with pytest.raises(InputError, match="labels 'a', 'b', 'c', 'd', 'e' and 4 more that train"):
        load_labelled(tmp_path)


@pytest.mark.parametrize("labels", ['["a", "b"]', '{"a": 1}', "0.25"])
def test_labels_that_are_no_single_names_are_for_selection_alone(tmp_path: Path, labels: str) -> None:
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text(
            f'{{"text": "one", "label": {labels}}}\n{{"text": " ", "label": null}}\n'
        )
    assert read_task(tmp_path).train_texts.to_pylist() == ["one"]
    with pytest.raises(InputError, match=r'"label" of train.jsonl holds .*, and finetuning needs one name an example'):
        load_labelled(tmp_path)
