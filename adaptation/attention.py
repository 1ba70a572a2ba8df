"""Training on CPUs: attention with dropout at a tenth of the cost, and hardly any padding in the encoder.

`suit_cpu` registers an attention with transformers and, for the families in `STACKS`, hooks the stack of layers: before
it the real tokens of a batch are put one after the other, after it they are put back. So what is between sees real
tokens alone, but for attention, which cuts the row of tokens into its documents again and works on those of like length
together, padded to the longest of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from adaptation.dropout import drop, use_fast_dropout

ATTENTION = "sdpa_fast_dropout"
STACKS = {  # type of a model: where its base model keeps the layers
    "bert": "encoder",
    "camembert": "encoder",
    "distilbert": "transformer",
    "electra": "encoder",
    "roberta": "encoder",
    "xlm-roberta": "encoder",
}
WORTH = 1.1  # padded tokens over real ones from which it pays to take the padding out, measured
LIKE = 0.75  # documents are attended to together where the shortest has this share of the longest's tokens


def suit_cpu(model: Any) -> None:
    """Puts this attention and `FastDropout` in the place of transformers' and torch's, where the model is on a CPU.

    Parameters, their names and, but for rounding, what the model computes for real tokens in evaluation mode stay as
    they are. Other devices draw dropout fast enough and are left alone, as is an attention that is not ``sdpa``. Such a
    model must stay on the CPU.
    """
    if next(model.parameters()).device.type != "cpu":
        return
    use_fast_dropout(model)
    config: Any = getattr(model, "config", None)
    if getattr(config, "_attn_implementation", None) != "sdpa":
        return
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)
    stack = getattr(model.base_model, STACKS.get(config.model_type, ""), None)
    suited = config._attn_implementation == ATTENTION and not getattr(config, "is_decoder", False)
    if stack is not None and suited:
        Unpadded().hook(stack)


@dataclass(frozen=True)
class Documents:
    """Where the real tokens of a padded batch stand once they are put one after the other, longest document first.

    Attributes:
        tokens: place of each token in the padded batch, rows one after the other; int64 [tokens].
        groups: documents, longest one's tokens, and bool [documents, 1, 1, longest] of real tokens, or None where all
            are; for documents of like length, which are padded to the longest of them.
        spots: token at each place of the padded groups, a document's last one where there is none; int64 [places].
        places: place of each token in the padded groups; int64 [tokens].
        empty: places without a token, int64.
    """

    tokens: torch.Tensor
    groups: list[tuple[int, int, torch.Tensor | None]]
    spots: torch.Tensor
    places: torch.Tensor
    empty: torch.Tensor

    @classmethod
    def of(cls, real: torch.Tensor) -> Documents:
        """Of a batch's bool [documents, longest]; each document begins at the left and has a token."""
        lengths, order = real.sum(1).sort(descending=True, stable=True)
        row, column = real[order].nonzero(as_tuple=True)
        tokens = order[row] * real.shape[1] + column
        sizes = lengths.tolist()
        groups: list[tuple[int, int, torch.Tensor | None]] = []
        spots, taken, at = [], [], 0
        while at < len(sizes):
            end = at + 1
            while end < len(sizes) and sizes[end] >= LIKE * sizes[at]:
                end += 1
            size, mine = sizes[at], lengths[at:end]
            column = torch.arange(size)
            starts = (mine.cumsum(0) - mine + sum(sizes[:at]))[:, None]
            inside = column < mine[:, None]
            spots.append((starts + torch.minimum(column, mine[:, None] - 1)).flatten())
            taken.append(inside.flatten())
            groups.append((end - at, size, None if bool(inside.all()) else inside[:, None, None, :]))
            at = end
        filled = torch.cat(taken)
        return cls(tokens, groups, torch.cat(spots), filled.nonzero()[:, 0], (~filled).nonzero()[:, 0])


class Unpadded:
    """Takes the padding out of what a stack of layers is given, and puts it back into its last hidden state, as zeros.

    For masks of transformers' ``sdpa``, where each token of a document may see the whole of it.
    """

    def __init__(self) -> None:
        self._documents: Documents | None = None
        self._shape = torch.Size()

    def hook(self, stack: torch.nn.Module) -> None:
        stack.register_forward_pre_hook(self._before, with_kwargs=True)
        stack.register_forward_hook(self._after)

    def _before(self, stack: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        self._documents = None
        mask = kwargs.get("attention_mask")
        if mask is None or mask.dtype != torch.bool:
            return None
        real = mask[:, 0, 0]
        # A classifier reads a document's first place, which would be a zero where padding stands on the left.
        if not bool(real[:, 0].all()) or real.numel() < WORTH * int(real.sum()):
            return None
        hidden = args[0] if args else kwargs.pop("hidden_states")
        self._shape, self._documents = hidden.shape, Documents.of(real)
        rows = hidden.flatten(0, 1).index_select(0, self._documents.tokens)
        return (rows[None], *args[1:]), kwargs | {"attention_mask": self._documents}

    def _after(self, stack: Any, args: Any, output: Any) -> Any:
        if self._documents is None:
            return output
        rows = output.last_hidden_state[0]
        padded = rows.new_zeros(self._shape.numel() // rows.shape[1], rows.shape[1])
        output.last_hidden_state = padded.index_copy_(0, self._documents.tokens, rows).view(self._shape)
        self._documents = None
        return output


class _Move(torch.autograd.Function):
    """Rows [from, width] at the places `there` [to], and the gradient back by `back` [from], 0 where `unused` says."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, there: torch.Tensor, back: torch.Tensor, unused: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.back, ctx.unused = back, unused
        return rows.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        rows = gradients[0].index_select(0, ctx.back)
        return rows if ctx.unused is None else rows.index_fill_(0, ctx.unused, 0), None, None, None


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | Documents | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: as ``sdpa``, which it leaves everything to but dropout between equal heads.

    Args:
        module: the attention layer.
        query, key, value: float [batch, heads, tokens, head size].
        attention_mask: bool, True where to attend, or what is added to scores; broadcasts to [batch, heads, tokens,
            tokens]. Or the documents that stand one after the other in a batch of one, which do not see each other.
        dropout: of the attention's weights.
        scaling: of the scores; None for one over the root of the head size.
        others: further arguments of the interface.

    Returns:
        Float [batch, tokens, heads, head size], and None in place of the weights.
    """
    if isinstance(attention_mask, Documents):
        return _by_document(module, query, key, value, attention_mask, dropout, scaling, others)
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


def _by_document(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    dropout: float,
    scaling: float | None,
    others: dict[str, Any],
) -> tuple[torch.Tensor, None]:
    _, heads, tokens, size = query.shape
    spots, places = documents.spots, documents.places
    # What repeats a document's last token is masked, so no gradient comes from there.
    padded = [
        _Move.apply(part.transpose(1, 2).reshape(tokens, heads * size), spots, places, None)  # type: ignore[no-untyped-call]
        for part in (query, key, value)
    ]
    found, at = [], 0
    for count, longest, mask in documents.groups:
        end = at + count * longest
        q, k, v = (part[at:end].view(count, longest, heads, size).transpose(1, 2) for part in padded)
        seen, _ = attention(module, q, k, v, mask, dropout, scaling, **others)
        found.append(seen.reshape(count * longest, heads * size))
        at = end
    rows = _Move.apply(torch.cat(found), places, spots, documents.empty)  # type: ignore[no-untyped-call]
    return rows.view(1, tokens, heads, size), None
