"""Dropout on CPUs, where drawing the masks costs more than what they are put on.

torch draws one float after another from a Mersenne Twister: on all-MiniLM-L6-v2 a fifth of a masked-LM step. Here 16
bits a number come from SFC64, whose own seed torch draws, so that a seed or a restored state of torch's generator
brings the same masks again, whatever the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

STEPS = 1 << 16


def use_fast_dropout(model: torch.nn.Module) -> None:
    """Puts this dropout in the place of torch's layers; the model must be on a CPU.

    Parameters, their names and what the model computes in evaluation mode stay as they are.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is torch.nn.Dropout:
                setattr(parent, name, FastDropout(child.p).train(child.training))


class FastDropout(torch.nn.Dropout):
    """torch.nn.Dropout by `drop`."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return drop(values, self.p) if self.training else values


def drop(values: torch.Tensor, probability: float) -> torch.Tensor:
    """Values with a share of `probability`, to the nearest 1/65536, set to 0 and the others scaled to the same mean.

    Args:
        values: float tensor on a CPU, any shape.
        probability: from 0 to 1.
    """
    dropped = round(probability * STEPS)
    if dropped == 0:
        return values
    if dropped == STEPS:
        return values * 0
    mask, scale = kept(values.shape, dropped), STEPS / (STEPS - dropped)
    return _Dropout.apply(values, mask, scale)  # type: ignore[no-untyped-call,no-any-return]


def kept(shape: torch.Size, dropped: int) -> torch.Tensor:
    """uint8 tensor of 0 and 1; each is 0 in `dropped` of `STEPS` cases."""
    seed, count = int(torch.randint(2**62, (1,))), shape.numel()
    draws = np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.uint16)[:count]
    return torch.from_numpy((draws >= dropped).view(np.uint8)).view(shape)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return mask.to(values.dtype).mul_(values).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return mask.to(gradients[0].dtype).mul_(gradients[0]).mul_(ctx.scale), None, None
