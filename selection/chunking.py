"""Chunk: documents longer than some tokens become pieces that end where paragraphs or sentences do.

Documents are cut at white space by array arithmetic, and each distinct word is counted and looked at once. From the
sums of their tokens follows where every piece ends, the same step for all documents at a time, with no Python object a
word. A library that tokenizes text anew for every cut it considers takes many times as long (docs/benchmarks.md).

Memory: twice the text of what is given, some forty bytes a word (a character, of scripts without spaces), some hundred
a piece.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from selection.models import DEFAULT_ENCODER
from selection.tokens import ArrayTokenizer, Words, distinct_words, find_words

REPEATED_BYTES = 1 << 30

_OPENING, _CLOSING = r"""["'“‘«(\[]*""", r"""["'”’»)\]」』）》]*"""
# Initials, and abbreviations that papers and news are full of.
_SHORT = r"\p{L}|\p{L}[.]\p{L}|Nos?|(?i:al|ca|cf|drs?|eqs?|figs?|jr|mrs?|ms|profs?|refs?|resp|sec|sr|st|tab|vs)"
_SENTENCE = rf"[.!?…。！？।؟۔]{_CLOSING}\s*$"
_NO_SENTENCE = rf"^{_OPENING}(?:{_SHORT})[.]{_CLOSING}\s*$"
_PARAGRAPH = r"\n\s*\n"
_GOES_ON = rf"^{_OPENING}\p{{Ll}}"

# Of scripts without spaces, in UTF-8: what ends a sentence or a part of one, and what may follow that.
_STOPS, _FOLLOW = (
    [int.from_bytes(c.encode(), "big") for c in characters] for characters in ("、。！，；？", "」』）》”’")
)


@dataclass(frozen=True)
class _Places:
    """Where documents can be cut: before each word, and behind the last; all documents one behind the other.

    Attributes:
        tokens: int64 [places], tokens before it.
        word, sentence, paragraph: int64 [places], the last place up to it where one ends; 0 where none does.
    """

    tokens: npt.NDArray[np.int64]
    word: npt.NDArray[np.int64]
    sentence: npt.NDArray[np.int64]
    paragraph: npt.NDArray[np.int64]


class Chunker:
    """Cuts documents into pieces of at most so many tokens; not for several threads at once.

    A piece ends behind the last paragraph of its second half, else behind the last sentence that leaves it a quarter of
    the tokens, else behind a word, and within one only where that has more. The last piece is a quarter of the others
    at least, where words allow. White space around pieces is dropped. A character that is more tokens by itself stays.

    Args:
        tokens: the most that a piece has, special tokens left out.
        model: whose tokenizer counts them; default all-MiniLM-L6-v2.

    Raises:
        ModelError: see `selection.tokens.load_tokenizer`.
    """

    def __init__(self, tokens: int, model: str | None = None) -> None:
        self._most = tokens
        self._tokenizer = ArrayTokenizer(model or DEFAULT_ENCODER)

    def pieces(self, texts: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, npt.NDArray[np.int64]]:
        """(pieces large_string [n], which of `texts` each is of int64 [n], ascending); blank texts have none."""
        pieces, parents, over = self._cut(texts, self._most)
        limit = self._most
        while limit > 1 and len(over):
            # What words have by themselves need not add up: such pieces are cut anew, to less.
            limit = limit * 7 // 8
            again, of, still = self._cut(pieces.take(pa.array(over)), limit)
            kept = np.setdiff1d(np.arange(len(pieces)), over)
            order = np.argsort(np.concatenate([kept, over[of]]), kind="stable")
            parents = np.concatenate([parents[kept], parents[over[of]]])[order]
            pieces = pa.concat_arrays([pieces.take(pa.array(kept)), again]).take(pa.array(order))
            over = np.flatnonzero(np.isin(order, len(kept) + still))
        return pieces, parents

    def split(self, table: pa.Table) -> pa.Table:
        """Rows of `table` cut into pieces: ``id`` becomes ``parent#piece``, ``parent`` keeps the row's own id.

        What a row has beside its text is repeated for each of its pieces, in chunks whose 32-bit offsets suffice.
        """
        pieces, parents = self.pieces(table.column("text"))
        number = np.arange(len(parents)) - np.searchsorted(parents, parents)
        others = table.drop_columns(["text"])
        rows = max(1, REPEATED_BYTES // max(1, others.nbytes))  # a row is no wider than all of them
        parts = [others.take(pa.array(parents[start : start + rows])) for start in range(0, len(parents), rows)]
        repeated = pa.concat_tables([others.slice(0, 0), *parts])
        ids = repeated.column("id")
        columns = {name: repeated.column(name) for name in repeated.schema.names}
        columns["id"] = pc.binary_join_element_wise(ids, pa.array(number).cast(pa.string()), "#")
        columns["text"] = pieces
        columns["parent"] = ids
        order = [*table.schema.names, *(name for name in columns if name not in table.schema.names)]
        return pa.table({name: columns[name] for name in order})

    def _cut(
        self, texts: pa.Array | pa.ChunkedArray, limit: int
    ) -> tuple[pa.Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Pieces of at most `limit` tokens as the sums of words' tokens tell, but for single words with more.

        Returns:
            As `pieces`, and which of them have more tokens than asked for, by the tokenizer itself.
        """
        raw, begins, bounds = find_words(texts)
        begins = _with(begins, _behind_unspaced(raw))
        inner = _within_long(raw, begins, limit)
        begins = _with(begins, inner)
        inner, first = np.searchsorted(begins, inner), np.searchsorted(begins, bounds)
        words = distinct_words(raw, begins, first)
        places = _places(words, self._tokenizer.count_words(words.dictionary), inner)
        starts = _starts(places, first, limit)
        ends = np.append(starts[1:], len(begins) - 1)
        offsets = pa.py_buffer(np.append(begins[starts], len(raw)))
        pieces = pc.utf8_trim_whitespace(pa.LargeStringArray.from_buffers(len(starts), offsets, pa.py_buffer(raw)))
        lengths = pc.binary_length(pieces).to_numpy()
        doubtful = np.ones(len(pieces), dtype=bool)
        if self._tokenizer.by_words:  # sums tell what pieces of whole words have
            doubtful = np.searchsorted(inner, starts) < np.searchsorted(inner, ends, "right")
            doubtful |= places.tokens[ends] - places.tokens[starts] > self._most
        long = np.flatnonzero(doubtful)
        over = np.zeros(len(pieces), dtype=bool)
        over[long] = self._tokenizer(pieces.take(pa.array(long))).lengths > self._most
        some = lengths > 0
        parents = np.searchsorted(first, starts, "right") - 1
        return pieces.filter(pa.array(some)), parents[some], np.flatnonzero(over[some])


def _behind_unspaced(raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Behind the punctuation of scripts without spaces, and the brackets and quotes that follow it, int64."""
    lead = np.flatnonzero(raw[:-2] >= 0xE3)
    at: npt.NDArray[np.int64] = lead[np.isin(_three_bytes(raw, lead), _STOPS)] + 3
    for _ in range(2):
        inside = np.minimum(at, len(raw) - 3)
        at += 3 * ((inside == at) & np.isin(_three_bytes(raw, inside), _FOLLOW))
    return np.unique(at)


def _three_bytes(raw: npt.NDArray[np.uint8], at: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """The bytes from each place on as a number."""
    first, second, third = (raw[at + step].astype(np.int32) for step in range(3))
    return first << 16 | second << 8 | third


def _within_long(raw: npt.NDArray[np.uint8], begins: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """Within words of more than `most` bytes a place about every so many, where a character begins."""
    lengths = np.diff(begins)
    long = np.flatnonzero(lengths > most)
    more = (lengths[long] - 1) // most
    step = np.arange(more.sum()) - np.repeat(np.cumsum(more) - more, more) + 1
    begin = np.repeat(begins[long], more)
    at: npt.NDArray[np.int64] = begin + step * most
    for _ in range(3):
        at -= (raw[at] & 0xC0) == 0x80
    return at[at > begin]


def _with(begins: npt.NDArray[np.int64], others: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Both, ascending, none twice."""
    if len(others) == 0:
        return begins
    both: npt.NDArray[np.int64] = np.sort(np.concatenate([begins, others]), kind="stable")
    return both[np.diff(both, prepend=-1) > 0]


def _places(words: Words, counts: npt.NDArray[np.int64], inner: npt.NDArray[np.int64]) -> _Places:
    """What can end where, of documents of these words.

    Args:
        counts: int64, tokens of each distinct word.
        inner: int64, the places within words.
    """
    which = words.words.values
    told = words.dictionary.cast(pa.large_string())

    def has(pattern: str) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = pc.match_substring_regex(told, pattern).to_numpy(zero_copy_only=False)
        return found

    def last(behind: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Of each place the last up to it that has such a word before it."""
        return np.maximum.accumulate(np.where(np.append(False, behind), np.arange(len(behind) + 1), 0))

    wrapped = np.append(has(_GOES_ON)[which[1:]], False)
    stops = (has(_SENTENCE) & ~has(_NO_SENTENCE))[which] | has("\\n")[which] & ~wrapped
    whole = np.ones(len(which), dtype=bool)
    whole[inner - 1] = False
    return _Places(np.append(0, np.cumsum(counts[which])), last(whole), last(stops), last(has(_PARAGRAPH)[which]))


def _starts(places: _Places, first: npt.NDArray[np.int64], limit: int) -> npt.NDArray[np.int64]:
    """The places where pieces begin, int64 ascending: the next end of a piece in all documents, until none is left.

    Args:
        first: int64 [documents + 1], the place where each document begins, and the last.
    """
    tokens, begin, end = places.tokens, first[:-1], first[1:]
    begin, end = begin[begin < end], end[begin < end]
    found = [begin]
    while len(begin):
        before = tokens[begin]
        left = tokens[end] - before
        begin, end, before, left = (values[left > limit] for values in (begin, end, before, left))
        furthest = np.searchsorted(tokens, before + np.minimum(limit, left - limit // 4), "right") - 1
        cut = np.maximum(furthest, begin + 1)
        for ends, least in ((places.word, 0), (places.sentence, limit / 4), (places.paragraph, limit / 2)):
            at = ends[furthest]
            cut = np.where((at > begin) & (tokens[at] - before >= least), at, cut)
        begin = cut
        found.append(begin)
    return np.sort(np.concatenate(found))
