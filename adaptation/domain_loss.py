"""A masked LM's loss on each domain: the second measure of how far a domain is from what a model has seen.

"Don't Stop Pretraining" (Gururangan et al. 2020, table 1) takes 50,000 held-out documents of each; the same masks are
drawn at every call, so two models are compared on the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from adaptation.settings import AdaptSettings
from selection.domains import domains_of, sampled

BATCH = 32  # pieces a forward pass takes


def domain_losses(
    model: str,
    named: Sequence[tuple[str, str]],
    *,
    documents: int = 1000,
    text_column: str = "text",
    max_tokens: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda sentence: None,
) -> list[float]:
    """Mean masked-LM loss, nats a masked token, on a random sample of each domain.

    Args:
        model: with a masked-LM head: a folder, hub id or short name.
        named: domains as `selection.overlap.overlap` takes them; the losses are in the order of its ``names``.
        documents: at most so many of each domain.
        max_tokens: pieces that longer documents are cut into; None is the model's own limit.
        say: told each domain's loss.

    Raises:
        ModelError: the model has no masked-LM head.
        InputError: a domain that cannot be read.
    """
    from adaptation.loading import NoMaskedLMError, load_masked_lm, load_tokenizer, token_limit, transformer_folder
    from adaptation.masking import Epoch, Masker, passing_pieces
    from adaptation.training import MaskedRows, held_out_loss, processes

    folder = transformer_folder(model)
    tokenizer = load_tokenizer(folder, masks=True)
    network, new_head = load_masked_lm(folder)
    if new_head:
        raise NoMaskedLMError(f"model {model} has no masked-LM head, so it has no loss: adapt it first")
    network.to(processes().device)
    limit = token_limit(max_tokens, network.config, tokenizer)
    masker, rows, losses = Masker.of(tokenizer, AdaptSettings.mlm_probability, seed, Epoch()), MaskedRows(network), []
    for name, path in named:
        for domain, texts in domains_of(name, path, text_column):
            drawn = pa.chunked_array(list(sampled(texts, documents, seed)), pa.large_string())
            with passing_pieces(drawn, tokenizer, limit) as pieces:
                loss = held_out_loss(network, pieces, masker, rows, BATCH)
            say(f"{domain}: loss {loss:.3f} on {len(drawn):,} documents")
            losses.append(loss)
    return losses
