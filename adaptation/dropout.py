"""Dropout on CPUs, where drawing the masks costs more than what they are put on.

torch draws one float after another from a Mersenne Twister: on all-MiniLM-L6-v2 a fifth of a masked-LM step. Here 16
bits a number come from SFC64, whose own seed torch draws, so that a seed or a restored state of torch's generator
brings the same masks again, whatever the number of threads. The attention is the plain one written out, since torch
has no other with dropout on CPUs either. Other devices draw fast enough and are left alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "sdpa_fast_dropout"
STEPS = 1 << 16


def use_fast_dropout(model: torch.nn.Module) -> None:
    """Puts this dropout in the place of torch's, in layers and in attention, where the model is on a CPU.

    Parameters, their names and what the model computes in evaluation mode stay as they are.
    """
    if next(model.parameters()).device.type != "cpu":
        return
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is torch.nn.Dropout:
                setattr(parent, name, FastDropout(child.p).train(child.training))
    config = getattr(model, "config", None)
    if getattr(config, "_attn_implementation", None) == "sdpa":
        AttentionInterface.register(ATTENTION, attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        model.set_attn_implementation(ATTENTION)  # type: ignore[operator]


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


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: as ``sdpa``, which it leaves everything to but dropout between equal heads.

    Args:
        module: the attention layer.
        query, key, value: float [batch, heads, tokens, head size].
        attention_mask: bool, True where to attend, or what is added to scores; broadcasts to [batch, heads, tokens,
            tokens].
        dropout: of the attention's weights.
        scaling: of the scores; None for one over the root of the head size.
        others: further arguments of the interface.

    Returns:
        Float [batch, tokens, heads, head size], and None in place of the weights.
    """
    causal = others.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if not dropout or query.shape[1] != key.shape[1] or others.get("position_bias") is not None or (
        causal and attention_mask is None
    ):  # fmt: skip
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return found
    with torch.autocast("cpu", enabled=False):  # which would make the weights float32, as sdpa does not
        scores = (query * (scaling or query.shape[-1] ** -0.5)) @ key.transpose(-1, -2)
        if attention_mask is not None:
            if attention_mask.dtype == torch.bool:
                # Half of the least number: all of it could become minus infinity, and a row of those no number.
                attention_mask = torch.where(attention_mask, 0.0, torch.finfo(scores.dtype).min / 2).to(scores.dtype)
            scores = scores + attention_mask
        weights = drop(scores.softmax(-1), dropout)
        return (weights @ value).transpose(1, 2).contiguous(), None
