"""Dropout on CPUs: shares, gradients and seeds."""

from __future__ import annotations

import pytest
import torch

from adaptation.dropout import drop


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
