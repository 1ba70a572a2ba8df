"""Attention on CPUs against torch's and transformers' own: dropout, documents in a row, models with and without."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification, set_seed

from adaptation.attention import ATTENTION, LIKE, STACKS, Documents, attention, suit_cpu
from adaptation.classifier import Finetuning
from adaptation.dropout import FastDropout
from adaptation.finetune import FinetuneSettings
from adaptation.loading import transformer_folder
from adaptation.tasks import load_labelled


@pytest.mark.parametrize("kind", ["none", "bool", "added"])
def test_attention_is_torchs_but_for_what_is_dropped(kind: str) -> None:
    torch.manual_seed(2)
    query, key, value = (torch.randn(3, 4, 9, 8, requires_grad=True) for _ in range(3))
    real = (torch.arange(9) < torch.tensor([[9], [4], [1]]))[:, None, None, :]
    mask = {"none": None, "bool": real, "added": torch.where(real, 0.0, -1e9)}[kind]
    layer = torch.nn.Module()
    layer.is_causal = False  # type: ignore[assignment]
    plain = scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
    none_dropped, _ = attention(layer, query, key, value, mask, dropout=1 / 65536)
    torch.testing.assert_close(none_dropped, plain, rtol=1e-4, atol=1e-4)
    gradients = [torch.autograd.grad(out.square().sum(), (query, key, value)) for out in (none_dropped, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        draws = torch.stack([attention(layer, query, key, value, mask, dropout=0.2)[0] for _ in range(3000)])
    assert draws.std(0).max() > 0.05
    torch.testing.assert_close(draws.mean(0), plain.detach(), rtol=0, atol=0.05)
    assert torch.equal(attention(layer, query, key, value, mask)[0], plain)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_documents_hold_each_token_once_beside_those_of_like_length(lengths: list[int]) -> None:
    longest = max(lengths)
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]
    found = Documents.of(real)
    assert sorted(found.tokens.tolist()) == real.flatten().nonzero()[:, 0].tolist()
    assert found.spots[found.places].tolist() == list(range(sum(lengths)))
    places = torch.zeros(len(found.spots), dtype=torch.bool)
    places[found.places] = True
    assert places.logical_not().nonzero()[:, 0].tolist() == found.empty.tolist()
    rows, at = found.tokens[found.spots] // longest, 0
    for count, size, mask in found.groups:
        block = slice(at, at + count * size)
        if mask is None:
            assert places[block].all()
        else:
            assert torch.equal(mask.flatten(), places[block])
            assert mask.sum(-1).min() >= LIKE * size
        # A place of a document holds that document's tokens, in their order.
        assert all(len(set(row)) == 1 for row in rows[block].view(count, size).tolist())
        assert (found.tokens[found.spots][block].view(count, size).diff() >= 0).all()
        at += count * size
    assert at == len(found.spots)


def tiny(family: str, kind: Any = AutoModelForSequenceClassification, **others: float) -> Any:
    if family == "distilbert":
        shape = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
        none: dict[str, float] = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    else:
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    set_seed(0)
    return kind.from_config(AutoConfig.for_model(family, vocab_size=60, num_labels=3, **shape, **(none | others)))


def seen_shapes(model: Any) -> list[torch.Size]:
    """Of what the first layer within each feed-forward network is given, as it is called."""
    shapes: list[torch.Size] = []
    for name, module in model.base_model.named_modules():
        if name.endswith(("intermediate.dense", "ffn.lin1")):
            module.register_forward_hook(lambda module, args, output: shapes.append(args[0].shape))
    return shapes


@pytest.mark.parametrize("family", STACKS)
def test_a_batch_without_its_padding_gives_the_same_classes_and_gradients(family: str) -> None:
    model = tiny(family).train()
    lengths = torch.tensor([3, 17, 16, 1, 9, 17])
    real = torch.arange(17) < lengths[:, None]
    ids = torch.randint(3, 60, real.shape).where(real, torch.tensor(model.config.pad_token_id))
    inputs = {"input_ids": ids, "attention_mask": real.long(), "labels": torch.tensor([0, 1, 2, 0, 1, 2])}

    def step() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        found = model(**inputs)
        found.loss.backward()
        return found.logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain, gradients = step()
    shapes = seen_shapes(model)
    suit_cpu(model)
    logits, found = step()
    assert shapes == [torch.Size([1, int(lengths.sum()), 32])] * 2
    torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-6)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def test_what_cannot_go_without_padding_is_left_as_it_is() -> None:
    model = tiny("bert").eval()
    ids = torch.randint(3, 60, (2, 6))
    right = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    shapes = seen_shapes(model)
    nearly_full = torch.tensor([[1] * 6, [1] * 5 + [0]])
    masks = [None, torch.ones(2, 6, dtype=torch.long), right, nearly_full]
    before = [model(input_ids=ids, attention_mask=mask).logits for mask in masks]
    suit_cpu(model)
    for mask, logits in zip(masks, before, strict=True):
        assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, logits)
    assert set(shapes) == {torch.Size([2, 6, 32])}


def test_weights_of_documents_in_a_row_are_dropped_one_by_one() -> None:
    model = tiny("bert", AutoModelForMaskedLM, attention_probs_dropout_prob=0.1).train()
    suit_cpu(model)
    real = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    inputs = {"input_ids": torch.randint(3, 60, (2, 6)), "attention_mask": real}
    plain = model.eval().base_model(**inputs).last_hidden_state[real.bool()]
    with torch.no_grad():
        draws = torch.stack([model.train().base_model(**inputs).last_hidden_state[real.bool()] for _ in range(300)])
    assert draws.std(0).min() > 0
    assert (draws.mean(0) - plain).abs().mean() < 0.3 * draws.std(0).mean()


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_model_keeps_its_weights_its_answers_and_its_configuration(
    family: str, tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    model = AutoModelForMaskedLM.from_pretrained(tiny_model(family)).eval()
    ids = torch.randint(5, 50, (3, 12))
    inputs = {"input_ids": ids, "attention_mask": (torch.arange(12) < torch.tensor([[12], [7], [3]])).long()}
    names, before = list(model.state_dict()), model(**inputs).logits
    suit_cpu(model)
    assert list(model.state_dict()) == names
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(model(**inputs).logits[real], before[real], rtol=1e-5, atol=1e-6)
    assert any(isinstance(module, FastDropout) for module in model.modules())
    assert not any(type(module) is torch.nn.Dropout for module in model.modules())
    assert model.config._attn_implementation == ATTENTION
    model.train()
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)
    model.save_pretrained(tmp_path)
    assert ATTENTION not in json.dumps(json.loads((tmp_path / "config.json").read_text()))


def test_finetuning_without_padding_ends_with_the_same_weights(tiny_model, marked_task, monkeypatch) -> None:
    """After two epochs of which the last step is not full."""
    weights = []
    for stacks in (STACKS, {}):
        monkeypatch.setattr("adaptation.attention.STACKS", stacks)
        settings = FinetuneSettings(epochs=2, learning_rate=1e-3, batch_size=24, max_tokens=24, dropout=0.0)
        task = load_labelled(marked_task)
        run = Finetuning(transformer_folder(tiny_model("bert")), task, settings, "macro", False, lambda line: None)
        assert len(task.splits["train"]) % 24 == 16
        assert len(np.unique(run.splits["train"].lengths)) > 1
        weights.append(run.train(0)[0].state_dict())
    for name, whole in weights[0].items():
        torch.testing.assert_close(weights[1][name], whole, rtol=1e-3, atol=2e-4)
