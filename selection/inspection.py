"""What is known of an augmentation set without training: `selection.inspect` finds it, two modules say it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selection.histogram import Histogram

SHOWN, BRIEF = 4000, 360
QUANTILES = (0, 10, 50, 90, 100)
COMPARED = (
    "KL reduction is towards this set's task and from its corpus; a small set leaves n-grams out, which lowers it, so "
    "compare sets of one size. Shared: the share of this set that the other holds too."
)
GROUPS = ("best", "middle", "last")
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """What one corpus or one method brought: passages, and bytes of UTF-8 text."""

    name: str
    passages: int
    text_bytes: int


@dataclass(frozen=True, eq=False)
class Coverage:
    """Which task examples brought passages; a passage counts for the one example that ranked it best.

    Attributes:
        examples: how many the task has.
        covered: how many of them brought any.
        passages: int64 [examples], how many each brought.
    """

    examples: int
    covered: int
    passages: Ints

    def quantiles(self) -> list[int]:
        """Passages an example at `QUANTILES` percent, those that brought none included."""
        found: list[int] = np.percentile(self.passages, QUANTILES, method="inverted_cdf").astype(int).tolist()
        return found


@dataclass(frozen=True)
class Example:
    """A passage of the set.

    Attributes:
        group: ``best``, ``middle`` or ``last`` by rank; ``drawn`` where the method gives no scores.
        text: at most `SHOWN` characters of `characters`.
        query: the task example that ranked it best; None where there is none, or the task is not there.
    """

    group: str
    id: str
    source: str
    method: str
    score: float | None
    rank: int
    query_id: int
    n_queries: int
    text: str
    characters: int
    query: str | None


@dataclass(frozen=True)
class Shared:
    """Another set, measured like this one, and what both hold.

    Attributes:
        other: the other set; its KL reduction is towards this set's task and corpus.
        shared: passages in both, equal as ``by`` says: ``doc_id``, or ``text`` as the guard compares texts.
        jaccard: of the passages in either, the share in both.
    """

    other: Inspection
    shared: int
    jaccard: float
    by: str


@dataclass(frozen=True, eq=False)
class Inspection:
    """What is in a set.

    Attributes:
        path: its folder; manifest: what `select` wrote beside it.
        passages, words, unique_words, text_bytes: counts; a word is a lower-cased run of letters, digits and ``_``.
        tokens: by the manifest's tokenizer; lengths: of the passages, in tokens.
        sources, methods: what each corpus and each method brought, most passages first.
        coverage: None where the method has no queries.
        scores: of each method that has any.
        kl_corpus, kl_set: KL(task || corpus) and KL(task || set) in nats.
        cosine, vendi: mean cosine of two passages; Vendi score, by the embeddings of `encoder`.
        of_store: whether its doc_ids are the store's, by what was checked on `PROBES` passages; not where curated.
        examples: some passages; others: the sets it was compared with.
        left_out: measure -> why it could not be taken.
        seconds: what it took.
    """

    path: Path
    manifest: dict[str, Any]
    passages: int
    tokens: int
    words: int
    unique_words: int
    text_bytes: int
    sources: list[Part]
    methods: list[Part]
    coverage: Coverage | None
    scores: dict[str, Histogram]
    lengths: Histogram | None
    kl_corpus: float | None
    kl_set: float | None
    cosine: float | None
    vendi: float | None
    encoder: str | None
    of_store: bool
    examples: list[Example]
    others: list[Shared] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def kl_reduction(self) -> float | None:
        """KL(task || corpus) - KL(task || set), nats; more is nearer to the task, below 0 farther than the corpus."""
        return None if self.kl_corpus is None or self.kl_set is None else self.kl_corpus - self.kl_set

    def lines(self, width: int = 100, examples: int = 6) -> list[str]:
        """For the terminal: at most `width` characters a line, and so many of the examples."""
        from selection.inspect_lines import lines

        return lines(self, width, examples)

    def html(self) -> str:
        """All of it as a page that needs nothing else; see `selection.pages`."""
        from selection.inspect_page import html

        return html(self)


def command_of(found: Inspection) -> str:
    """The command that makes this set again."""
    manifest, parameters = found.manifest, found.manifest["parameters"]
    words = ["nearkin", "select", manifest["store"], manifest["task"], "--method", manifest["method"]]
    options = {"k": "-k", "docs": "--docs", "tokens": "--tokens", "encoder": "--encoder", "index": "--index"}
    options |= {"min_recall": "--min-recall", "order": "--order", "near": "--near"}
    for name, option in options.items():
        if parameters.get(name) is not None:
            words += [option, str(parameters[name])]
    if parameters.get("exclude"):
        words += ["--exclude", *map(str, parameters["exclude"])]
    if parameters.get("guarded") is False:
        words.append("--no-guard")
    return shlex.join([*words, "--seed", str(manifest.get("seed", 0)), "--out", str(found.path)])


def share_of(part: int, whole: int) -> str:
    return f"{part / max(whole, 1):.1%}"


def figure_of(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def removed_of(manifest: dict[str, Any]) -> str:
    """What the gate kept out, in words."""
    removed, counts = manifest.get("removed") or {}, []
    for name, value in removed.items():
        for reason, count in value.items() if isinstance(value, dict) else [("", value)]:
            named = {"leaks": f"texts of {reason}", "near_leaks": f"near texts of {reason}"}.get(name, name)
            if count:
                counts.append(f"{count:,} {named.replace('_', '-')}")
    return ", ".join(counts) or "nothing"


def brought_of(coverage: Coverage) -> str:
    low, tenth, half, ninety, most = (f"{count:,}" for count in coverage.quantiles())
    return f"{low} to {most}; {tenth} at 10%, median {half}, {ninety} at 90%"


def score_name(method: str) -> str:
    return {"knn": "cosine", "bm25": "BM25 score", "dsir": "log importance weight"}.get(method, "score")


def comparison(found: Inspection) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of sets."""
    head = ["set", "method", "passages", "tokens", "coverage", "KL red.", "cosine", "Vendi", "Jaccard", "shared"]
    rows = []
    for one, shared in [(found, None), *((shared.other, shared) for shared in found.others)]:
        coverage = None if one.coverage is None else one.coverage.covered / one.coverage.examples
        both = (None, None) if shared is None else (shared.jaccard, shared.shared / found.passages)
        figures = [
            f"{one.passages:,}",
            f"{one.tokens:,}",
            figure_of(coverage, ".1%"),
            figure_of(one.kl_reduction, ".3f"),
        ]
        figures += [figure_of(one.cosine, ".3f"), figure_of(one.vendi, ".1f"), *(figure_of(b, ".1%") for b in both)]
        rows.append([one.name, str(one.manifest["method"]), *figures])
    return head, rows


def brought_histogram(coverage: Coverage) -> Histogram:
    return Histogram.of(coverage.passages, float(np.percentile(coverage.passages, 99.5, method="higher")))


def about(example: Example) -> str:
    score = "" if example.score is None else f", {score_name(example.method)} {example.score:.3g}"
    wanted = f", among the neighbours of {example.n_queries:,} examples" if example.n_queries > 1 else ""
    return f"{example.method} rank {example.rank:,}{score}{wanted}"
