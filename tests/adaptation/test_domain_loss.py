"""Loss by domain: the same measure as adapt's, on the same masks; a model without a head has none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adaptation.domain_loss import domain_losses
from selection.errors import ModelError
from tests.conftest import Cli


def test_losses_of_domains(
    tiny_model: Callable[[str], str], corpus_file: Path, task_folder: Path, cli: Cli, tmp_path: Path
) -> None:
    tiny_bert = tiny_model("bert")
    named = [("docs", str(corpus_file)), ("task", str(task_folder))]
    losses = domain_losses(str(tiny_bert), named, documents=20, max_tokens=32)
    again = domain_losses(str(tiny_bert), named, documents=20, max_tokens=32, batch=8)
    assert losses == pytest.approx(again, rel=2e-3)  # other batches draw other masks
    assert len(set(losses)) == 2
    code, out, err = cli(
        "overlap", *[f"{name}={path}" for name, path in named], "--top", 100, "--model", tiny_bert,
        "--loss-documents", 20, "--out", tmp_path / "overlap.csv",
    )  # fmt: skip
    assert code == 0, err
    assert "loss" in out
    assert (tmp_path / "overlap.csv").read_text().count("\n") == 5


def test_a_model_without_head_has_no_loss(tiny_encoder: Path, corpus_file: Path) -> None:
    with pytest.raises(ModelError, match="no masked-LM head"):
        domain_losses(str(tiny_encoder), [("docs", str(corpus_file))])


def test_bad_domains_are_one_sentence(cli: Cli, corpus_file: Path) -> None:
    for wrong, sentence in {"docs": "write it as NAME=PATH", f"docs={corpus_file}": "name two or more"}.items():
        code, out, err = cli("overlap", wrong)
        assert (code, out) == (1, "")
        assert sentence in err
