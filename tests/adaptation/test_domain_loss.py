"""Loss by domain: the same measure as adapt's, on the same masks; a model without a head has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptation.domain_loss import domain_losses
from adaptation.masking import IGNORED, Masker
from adaptation.mlm import adapt
from adaptation.training import MaskedRows, masked_loss
from selection.errors import ModelError
from tests.adaptation.conftest import SMALL
from tests.conftest import Cli


def test_losses_of_domains(
    tiny_model: Callable[[str], str], corpus_file: Path, task_folder: Path, cli: Cli, tmp_path: Path
) -> None:
    tiny_bert = tiny_model("bert")
    named = [("docs", str(corpus_file)), ("task", str(task_folder))]
    losses = domain_losses(str(tiny_bert), named, documents=20, max_tokens=32)
    assert len(set(losses)) == 2
    code, out, err = cli(
        "overlap", *[f"{name}={path}" for name, path in named], "--top", 100, "--model", tiny_bert,
        "--loss-documents", 20, "--out", tmp_path / "overlap.csv",
    )  # fmt: skip
    assert code == 0, err
    assert "loss" in out
    assert (tmp_path / "overlap.csv").read_text().count("\n") == 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_loss_is_transformers_own_and_one_measure_for_adapt_and_overlap(
    kind: str, tiny_model: Callable[[str], str], sentences: list[str], jsonl: Callable[..., Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from transformers import AutoModelForMaskedLM

    # The losses that a run writes down, those of `overlap`, and the gradient of a step.
    texts, held = jsonl(tmp_path / "texts.jsonl", sentences[:120]), jsonl(tmp_path / "held.jsonl", sentences[120:170])
    settings = replace(SMALL, max_steps=20, max_tokens=32, micro_batch=32)
    result = adapt(tiny_model(kind), [texts], tmp_path / "out", settings=settings, held_out=held)
    batches: list[dict[str, torch.Tensor]] = []
    mask = Masker.__call__

    def watched(self: Masker, batch: Any) -> dict[str, torch.Tensor]:
        batches.append(mask(self, batch))
        return dict(batches[-1])

    monkeypatch.setattr(Masker, "__call__", watched)
    (loss,) = domain_losses(str(tmp_path / "out"), [("held", str(held))], max_tokens=32)
    assert loss == pytest.approx(result.held_out_loss["after"], abs=1e-5)

    plain, ours = (AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval() for _ in range(2))
    rows, summed, counts = MaskedRows(ours), [], []
    for seen in batches:
        batch = {name: value.clone() for name, value in seen.items()}  # made where autograd is off
        labels = batch["labels"]
        counts.append(int((labels != IGNORED).sum()))
        theirs = plain(**batch).loss * counts[-1]  # transformers takes the mean of a batch
        theirs.backward()
        summed.append(theirs.item())
        with rows.of(labels):
            logits = ours(**{name: value for name, value in batch.items() if name != "labels"}).logits
        assert logits.shape == (counts[-1], plain.config.vocab_size)  # the head saw no other position
        masked_loss(logits, labels).backward()
    assert len(set(counts)) > 1
    assert loss == pytest.approx(sum(summed) / sum(counts), abs=1e-5)
    for (name, expected), found in zip(plain.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_a_model_without_head_has_no_loss(tiny_encoder: Path, corpus_file: Path) -> None:
    with pytest.raises(ModelError, match="no masked-LM head"):
        domain_losses(str(tiny_encoder), [("docs", str(corpus_file))])


def test_bad_domains_are_one_sentence(cli: Cli, corpus_file: Path) -> None:
    for wrong, sentence in {"docs": "write it as NAME=PATH", f"docs={corpus_file}": "name two or more"}.items():
        code, out, err = cli("overlap", wrong)
        assert (code, out) == (1, "")
        assert sentence in err
