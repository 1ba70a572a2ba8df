"""A new masked-LM head, for a base that has none: what it starts from.

The head's output matrix is the token embeddings (tied), its dense layer is drawn at random, and its output biases start
at the log frequency of each token in the training text. So its first loss is that of guessing by frequency and not
ln(vocabulary), and the steps that train it alone are spent on what depends on the context. Measured against other
starts (docs/log.md): a closed-form dense layer, and a fit on stored encoder outputs, buy no more for the same seconds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch


def token_counts(pieces: Any, vocabulary: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """How often each token occurs in a `datasets.Dataset` of pieces: int64 [vocabulary]."""
    counts = np.zeros(vocabulary, np.int64)
    for chunk in pieces.data.column("input_ids").chunks:
        counts += np.bincount(pc.list_flatten(chunk).to_numpy(), minlength=vocabulary)
    return counts


def bias_to_frequency(model: Any, counts: np.ndarray[Any, Any], never: torch.Tensor) -> bool:
    """Sets the output biases of a masked LM to log frequencies, add-one smoothed.

    Args:
        model: a masked LM whose head is new.
        counts: occurrences, int64 [vocabulary].
        never: ids that are never to be predicted (int64), which count as absent.

    Returns:
        Whether the head has output biases; without them nothing is changed.
    """
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is None:
        return False
    seen = torch.from_numpy(counts.astype(np.float64))
    seen[never] = 0
    seen = torch.cat([seen, torch.zeros(len(bias) - len(seen), dtype=seen.dtype)]) + 1
    with torch.no_grad():
        bias.copy_(torch.log(seen / seen.sum()))
    return True
