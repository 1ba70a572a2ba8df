"""Dropout on CPUs against torch's own: shares, gradients, attention, and a model that is otherwise as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForMaskedLM

from adaptation.dropout import ATTENTION, FastDropout, attention, drop, use_fast_dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_share_is_dropped_and_the_rest_scaled_in_values_and_gradients(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.ones(300, 301, dtype=dtype, requires_grad=True)
    found = drop(values, 0.1)
    found.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, found)
    zeros = (found == 0).float()
    assert zeros.mean().item() == pytest.approx(0.1, abs=0.005)
    assert zeros.mean(0).std().item() == pytest.approx((0.09 / 300) ** 0.5, rel=0.2)  # of no column and row more
    assert zeros.mean(1).std().item() == pytest.approx((0.09 / 301) ** 0.5, rel=0.2)
    torch.testing.assert_close(found[found > 0], torch.full_like(found[found > 0], 1 / 0.9), rtol=1e-4, atol=0)


def test_torchs_seed_draws_the_mask_and_no_two_are_the_same() -> None:
    values = torch.ones(64, 64)
    torch.manual_seed(1)
    first, second = drop(values, 0.5), drop(values, 0.5)
    torch.manual_seed(1)
    assert torch.equal(drop(values, 0.5), first)
    assert not torch.equal(first, second)
    assert torch.equal(drop(values, 0.0), values)
    assert not drop(values, 1.0).any()


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


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_model_keeps_its_weights_its_answers_and_its_configuration(
    family: str, tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    model = AutoModelForMaskedLM.from_pretrained(tiny_model(family)).eval()
    ids = torch.randint(5, 50, (3, 12))
    inputs = {"input_ids": ids, "attention_mask": (torch.arange(12) < torch.tensor([[12], [7], [3]])).long()}
    names, before = list(model.state_dict()), model(**inputs).logits
    use_fast_dropout(model)
    assert list(model.state_dict()) == names
    assert torch.equal(model(**inputs).logits, before)
    assert any(isinstance(module, FastDropout) for module in model.modules())
    assert not any(type(module) is torch.nn.Dropout for module in model.modules())
    assert model.config._attn_implementation == ATTENTION
    model.train()
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)
    model.save_pretrained(tmp_path)
    assert ATTENTION not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
