"""How far domains are apart: the share of their most frequent words that they have in common.

The measure of "Don't Stop Pretraining" (Gururangan et al. 2020, section 3.1): of two domains, the share of the 10,000
most frequent unigrams, stop words left out, that are in both lists. The further a domain is from what a model has seen,
the more adaptive pretraining had to give. The paper counts a held-out sample of each domain; here all rows are counted
unless a sample is asked for, since counting is cheap: DuckDB splits texts at spaces, counts the pieces, and takes words
out of distinct pieces only, which is two to three times faster than matching a pattern over all of the text.

Cost: one pass over each text, some 50 MB of it a second on one core. Memory: DuckDB's (at most `MEMORY`; what is more
goes to a temporary folder on disk), a batch of rows, and the sample where one is asked for; the size of the corpora
does not enter. Tasks are read whole.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from selection.domains import Batches, domains_of, sampled
from selection.errors import InputError, NearkinError
from selection.files import text_bytes
from selection.plotting import heat_map, require_plots, save
from selection.reading import is_blank
from selection.terminal import aligned
from selection.wording import human_seconds

log = logging.getLogger(__name__)

TOP = 10_000
MEMORY = "1GB"
BATCH_BYTES = 8 << 20
TEXTS = pa.schema([("text", pa.large_string())])

# Pieces between spaces repeat as words do, so the pattern and the lower-casing see each piece once.
COUNT = r"""
create or replace temp table counts as
with pieces as (
    select piece, count(*) as n
    from (select unnest(string_split(replace(replace(text, chr(10), ' '), chr(9), ' '), ' ')) as piece from texts)
    group by piece
),
words as (
    select lower(unnest(regexp_extract_all(piece, '[\pL\pM\pN]+'))) as word, n from pieces
)
select word, sum(n)::bigint as n
from words
where length(word) > 1 and word not in (select stop_word from stop_words)
group by word
"""


@dataclass(frozen=True, eq=False)
class Overlap:
    """Domains and what their most frequent words have in common.

    Attributes:
        names: the n domains.
        documents: of each, how many texts were counted (blank ones are not).
        words: of each, how many words they hold, stop words and single characters left out.
        vocabulary: of each, how many distinct words.
        top: how many most frequent words of each are compared.
        sample: most documents counted of each domain; None where all were.
        matrix: float64 [n, n] in 0..1, symmetric, 1 on the diagonal: words that are among the most frequent of both, as
            a share of `top`, or of the smaller vocabulary where that has fewer.
        seconds: what it took.
        losses: of each, a model's masked-LM loss in nats a masked token, where it was measured.
    """

    names: list[str]
    documents: list[int]
    words: list[int]
    vocabulary: list[int]
    top: int
    sample: int | None
    matrix: npt.NDArray[np.float64]
    seconds: float
    losses: list[float] | None = None

    def table(self) -> pa.Table:
        """One row an ordered pair of domains, n * n of them.

        Columns ``domain, other`` (string), ``overlap`` (float64, 0..1), then of `domain` ``documents, words,
        vocabulary`` (int64), ``loss`` (float64, null where it was not measured).
        """
        count = len(self.names)
        first, second = np.divmod(np.arange(count * count), max(count, 1))
        names = pa.array(self.names, pa.string())
        losses = pa.nulls(count, pa.float64()) if self.losses is None else pa.array(self.losses, pa.float64())
        columns = {"domain": names.take(first), "other": names.take(second), "overlap": pa.array(self.matrix.ravel())}
        for name in ("documents", "words", "vocabulary"):
            columns[name] = pa.array(getattr(self, name), pa.int64()).take(first)
        return pa.table({**columns, "loss": losses.take(first)})

    def lines(self, width: int = 100) -> list[str]:
        """For the terminal: what was counted of each domain, then the matrix in percent.

        Columns are headed by the domains' names; by their numbers, and without decimals, where a line would have more
        than `width` characters.
        """
        facts = zip(self.names, self.documents, self.words, self.vocabulary, strict=True)
        rows = [["domain", "documents", "words", "vocabulary"]]
        rows += [[name, f"{documents:,}", f"{words:,}", f"{size:,}"] for name, documents, words, size in facts]
        if self.losses is not None:
            rows = [[*row, cell] for row, cell in zip(rows, ["loss", *map("{:.3f}".format, self.losses)], strict=True)]
        return [*aligned(rows), "", f"{self._measure()}, %", *self._square(width)]

    def _square(self, width: int) -> list[str]:
        """The matrix under names if they fit, else under numbers, else without decimals too."""
        numbers = [f"{number:>{len(str(len(self.names)))}}" for number in range(1, len(self.names) + 1)]
        numbered = [f"{number} {name}" for number, name in zip(numbers, self.names, strict=True)]
        lines: list[str] = []
        for heads, labels, decimals in ((self.names, self.names, 1), (numbers, numbered, 1), (numbers, numbered, 0)):
            cells = [[f"{100 * share:.{decimals}f}" for share in row] for row in self.matrix]
            body = [[label, *row] for label, row in zip(labels, cells, strict=True)]
            lines = aligned([["", *heads], *body], gap=1 + decimals)
            if len(lines[0]) <= width:
                break
        return lines

    def _measure(self) -> str:
        of = "" if self.sample is None else f" in at most {self.sample:,} documents of each"
        return f"share of the {self.top:,} most frequent words{of} that two domains have in common"


def overlap(
    named: Sequence[tuple[str, str]],
    *,
    top: int = TOP,
    sample: int | None = None,
    text_column: str = "text",
    seed: int = 0,
    threads: int | None = None,
    report: Callable[[str], None] = log.info,
) -> Overlap:
    """Compares the most frequent words of domains ("Don't Stop Pretraining", section 3.1).

    Words are lower-cased runs of letters, marks and digits; scikit-learn's English stop words and single characters are
    left out. Words of one count stand in the order of their UTF-8 bytes, so the lists are the same every time.

    Args:
        named: (name, path) of each domain. A path is a file, folder or glob of texts; a task folder, which stands for
            its training texts; an augmentation set; or a store, each corpus of which becomes domain ``name/corpus``.
        top: how many most frequent words of each domain are compared.
        sample: most documents of each domain, drawn at random; None counts all. The paper takes 50,000.
        text_column: where files have their text; tasks, sets and stores know it themselves.
        seed: which documents are drawn.
        threads: for DuckDB; None for one a core.
        report: takes a line a domain.

    Raises:
        InputError: fewer than two domains, two of one name, nothing to read, a damaged file, no word in a domain.
        StoreError: a store whose texts have changed.
        NearkinError: the disk has no room for what memory does not hold.
    """
    start = time.perf_counter()
    if min(number for number in (top, sample, threads) if number is not None) < 1:
        raise InputError("--top, --sample and --threads must be 1 or more")
    domains = [domain for name, path in named for domain in domains_of(name, path, text_column)]
    names = [name for name, _ in domains]
    if len(names) < 2:
        raise InputError("overlap compares domains: name two or more, each as NAME=PATH")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two domains are called {twice[0]}: give each a name of its own")
    counts: list[tuple[int, int, int]] = []
    with _Counter(top, threads) as counter:
        for name, batches in domains:
            began = time.perf_counter()
            texts = batches if sample is None else sampled(batches, sample, seed)
            found = counter.count(name, texts)
            counts.append(found)
            took = human_seconds(time.perf_counter() - began)
            report(f"{name}: {found[0]:,} documents, {found[1]:,} words, {found[2]:,} of them distinct, {took}")
        shared = counter.shared()
    documents, words, vocabulary = (list(column) for column in zip(*counts, strict=True))
    lists = np.minimum(vocabulary, top)
    matrix = shared / np.minimum.outer(lists, lists)
    seconds = time.perf_counter() - start
    return Overlap(names, documents, words, vocabulary, top, sample, matrix, seconds)


class _Counter:
    """Counts words in DuckDB, a domain at a time, and keeps the most frequent of each."""

    def __init__(self, top: int, threads: int | None) -> None:
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        self._top, self._domains = top, 0
        self._scratch = tempfile.TemporaryDirectory(prefix="nearkin-")
        config: dict[str, Any] = {
            "memory_limit": MEMORY,
            "temp_directory": self._scratch.name,
            "preserve_insertion_order": "false",
        }
        if threads is not None:
            config["threads"] = str(threads)
        self._connection = duckdb.connect(config=config)
        self._connection.register("stop_words", pa.table({"stop_word": sorted(ENGLISH_STOP_WORDS)}))
        self._connection.execute("create temp table most_frequent (domain int, word varchar)")

    def __enter__(self) -> _Counter:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._scratch.cleanup()

    def count(self, name: str, texts: Batches) -> tuple[int, int, int]:
        """Documents, words and distinct words of one domain."""
        with closing(_Stream(name, texts)) as stream:
            try:
                self._connection.register("texts", stream.reader)
                self._connection.execute(COUNT)
            except duckdb.Error as error:
                reason = str(error).strip().splitlines()[0]
                raise stream.failure or NearkinError(f"the words of {name} cannot be counted: {reason}") from error
            finally:
                self._connection.unregister("texts")
        words, size = self._ask("select coalesce(sum(n), 0)::bigint, count(*) from counts")[0]
        if size == 0:
            raise InputError(
                f"domain {name}: {stream.documents:,} documents and no word in them but stop words; "
                "check the file and --text-column"
            )
        if size < self._top:
            log.warning(
                "%s has %s distinct words, fewer than the %s compared: its shares are of that many, and compare "
                "with the others' only under a smaller --top",
                *(name, f"{size:,}", f"{self._top:,}"),
            )
        ranked = f"select {self._domains}, word from counts order by n desc, word limit {self._top}"
        self._connection.execute(f"insert into most_frequent {ranked}")
        self._domains += 1
        return stream.documents, words, size

    def shared(self) -> npt.NDArray[np.float64]:
        """How many of the most frequent words two domains have in common, float64 [n, n]."""
        pairs = self._ask(
            "select a.domain, b.domain, count(*) from most_frequent a join most_frequent b using (word) group by all"
        )
        shared = np.zeros((self._domains, self._domains))
        first, second, common = np.array(pairs, np.int64).T
        shared[first, second] = common
        return shared

    def _ask(self, query: str) -> list[Any]:
        return self._connection.execute(query).fetchall()


class _Stream:
    """Texts as the Arrow reader that DuckDB pulls from; keeps the exception that DuckDB would turn into its own."""

    def __init__(self, name: str, texts: Batches) -> None:
        self.documents = 0
        self.failure: Exception | None = None
        self._bar = tqdm(desc=f"counting {name}", unit=" documents", unit_scale=True, disable=None, leave=False)
        self._texts = texts
        self.reader = pa.RecordBatchReader.from_batches(TEXTS, self._pull())

    def _pull(self) -> Iterator[pa.RecordBatch]:
        try:
            for texts in self._texts:
                texts = texts.filter(pc.invert(is_blank(texts)))
                self.documents += len(texts)
                # Few rows at a time where they are long: DuckDB makes a list of each row's pieces.
                rows = max(len(texts) * BATCH_BYTES // max(text_bytes(texts), BATCH_BYTES), 1)
                for start in range(0, len(texts), rows):
                    yield pa.record_batch([texts.slice(start, rows)], schema=TEXTS)
                self._bar.update(len(texts))
        except Exception as error:
            self.failure = error
            raise

    def close(self) -> None:
        self._bar.close()


def save_heatmap(overlap: Overlap, path: Path | str) -> None:
    """The matrix as a picture, percent in each cell; losses, where set, under the names of the rows.

    Args:
        overlap: of two or more domains.
        path: the file; the format is that of its name, PNG where it has no ending.

    Raises:
        NearkinError: matplotlib is missing, an ending that it does not write, or the file cannot be written.
    """
    require_plots("--plot")
    losses = overlap.losses or []
    rows = [f"{name}\nloss {loss:.2f}" for name, loss in zip(overlap.names, losses, strict=False)] or overlap.names
    many = len(overlap.names) > 3
    title = f"share of the {overlap.top:,} most frequent words in common" if many else "frequent words in common"
    save(heat_map(100 * overlap.matrix, rows, overlap.names, title), path)
