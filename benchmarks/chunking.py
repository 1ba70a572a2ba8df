"""Cutting documents into pieces beside semantic-text-splitter, which tokenizes text anew for every cut it considers."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.results import Row, alternate
from selection.chunking import Chunker
from selection.errors import InputError
from selection.ingest import CorpusSpec, ingest
from selection.models import DEFAULT_ENCODER
from selection.store import Store
from selection.tokens import count_tokens, load_tokenizer

PEER = "semantic-text-splitter"
ENDS = r"""[.!?…。！？]["'”’»)\]]*$"""


def chunking(
    corpus: Path | str,
    scratch: Path,
    *,
    tokens: int = 128,
    passages: int = 10_000,
    together: int = 1,
    rounds: int = 3,
    text_column: str = "text",
    encoder: str = DEFAULT_ENCODER,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Cuts the same documents by each way, in turns; the median of the rounds' seconds.

    Args:
        corpus: as ``--corpus`` takes it.
        scratch: an empty folder, for a store.
        tokens: the most that a piece may have, by `encoder`'s tokenizer.
        passages: how many of the corpus's are drawn.
        together: how many of these, one behind the other, make a document.

    Returns:
        One row a way: ``way``, ``seconds``, ``mb_s`` (of text), ``ratio`` (its speed over the peer's), ``pieces``,
        ``tokens`` (mean of a piece), ``longest`` (tokens), ``at_sentence`` (share of pieces that end where a sentence
        does).

    Raises:
        InputError: nothing to read.
    """
    store = Store(scratch / "store", create=True)
    store.manifest.corpora.append(ingest(store, CorpusSpec("corpus", str(corpus), text_column)))
    count = min(passages, len(store.corpus)) // together * together
    if count == 0:
        raise InputError(f"{corpus} has {len(store.corpus)} passages: fewer than --together {together}")
    drawn = np.sort(np.random.default_rng(0).choice(len(store.corpus), count, replace=False))
    texts = store.corpus.take(drawn, ["text"])["text"].combine_chunks()
    offsets = pa.array(np.arange(0, count + 1, together), pa.int32())
    documents = pc.binary_join(pa.ListArray.from_arrays(offsets, texts.cast(pa.string())), " ").cast(pa.large_string())

    def ours() -> pa.Array:
        return Chunker(tokens, encoder).pieces(documents)[0]

    def library() -> pa.Array:
        from semantic_text_splitter import TextSplitter

        splitter = TextSplitter.from_huggingface_tokenizer_str(load_tokenizer(encoder).to_str(), tokens)
        return pa.array(
            [piece for cut in splitter.chunk_all(documents.to_pylist()) for piece in cut], pa.large_string()
        )

    ways = {"nearkin": ours}
    if find_spec("semantic_text_splitter"):
        ways[PEER] = library
    else:
        say(f"{PEER} left out: not installed (pip install {PEER})")
    load_tokenizer(encoder)
    seconds, found = alternate(ways, rounds, say)
    size = pc.sum(pc.binary_length(documents)).as_py() / 1e6
    rows: list[Row] = []
    for way, pieces in found.items():
        lengths = count_tokens(pieces, encoder)
        ended = pc.sum(pc.match_substring_regex(pieces, ENDS)).as_py()
        rows.append(
            {
                "way": way, "seconds": seconds[way], "mb_s": size / seconds[way],
                "ratio": seconds[PEER] / seconds[way] if PEER in seconds else None,
                "pieces": len(pieces), "tokens": float(lengths.mean()), "longest": int(lengths.max()),
                "at_sentence": ended / len(pieces),
            }
        )  # fmt: skip
    return rows
