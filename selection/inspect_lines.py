"""An inspection for the terminal: sections of aligned lines, with bars of block characters."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np

from selection.histogram import Histogram
from selection.inspection import (
    COMPARED,
    Example,
    Inspection,
    Part,
    about,
    brought_histogram,
    brought_of,
    command_of,
    comparison,
    removed_of,
    score_name,
    share_of,
)
from selection.terminal import aligned, plain, printable, text_bar
from selection.wording import human_bytes


def lines(found: Inspection, width: int, examples: int) -> list[str]:
    lines = [plain(str(found.path), width), *_summary(found, width)]
    for title, parts in (("corpus", found.sources), ("method", found.methods)):
        if title == "corpus" or len(parts) > 1:
            lines += ["", *_part_lines(found, title, parts)]
    plots = [(f"{score_name(method)} ({method})", shown) for method, shown in found.scores.items()]
    plots += [("tokens a passage", found.lengths)] if found.lengths is not None else []
    if found.coverage is not None:
        plots.append(("passages an example", brought_histogram(found.coverage)))
    for title, shown in plots:
        lines += ["", title, *_plot_lines(shown)]
    if found.others:
        head, rows = comparison(found)
        lines += ["", *aligned([head, *([plain(r[0], 16), plain(r[1], 14), *r[2:]] for r in rows)], 2)]
        lines += textwrap.wrap(COMPARED, width)
    if picked := _spread(found.examples, examples):
        lines += ["", *(line for example in picked for line in _example_lines(example, width))]
    return [printable(line[:width]) for line in lines]


def _summary(found: Inspection, width: int) -> list[str]:
    manifest, coverage = found.manifest, found.coverage
    a_passage = f"{found.tokens / found.passages:,.0f} a passage, by {manifest['tokenizer']}"
    rows = [
        ("method", f"{manifest['method']}, seed {manifest.get('seed', 0)}"),
        ("task", f"{manifest['task']}, {manifest['queries']:,} examples"),
        ("store", manifest["store"]),
        ("passages", f"{found.passages:,}, {human_bytes(found.text_bytes)} of text"),
        ("tokens", f"{found.tokens:,}, {a_passage}"),
        ("words", f"{found.words:,}, {found.unique_words:,} of them distinct"),
        ("removed", removed_of(manifest)),
    ]
    if coverage is not None:
        share = share_of(coverage.covered, coverage.examples)
        rows.append(("coverage", f"{share}: {coverage.covered:,} of {coverage.examples:,} examples brought a passage"))
        rows.append(("", f"passages an example: {brought_of(coverage)}; one that several ask for is the nearest one's"))
    if found.kl_reduction is not None:
        away = f"from the task the corpus is {found.kl_corpus:.3f} away, the set {found.kl_set:.3f}"
        rows.append(("KL reduction", f"{found.kl_reduction:.3f} nats: {away}"))
    if found.vendi is not None:
        rows.append(("diversity", f"Vendi score {found.vendi:.1f}, mean cosine {found.cosine:.3f}, by {found.encoder}"))
    rows += [("left out", f"{measure}: {reason}") for measure, reason in found.left_out.items()]
    rows.append(("made by", command_of(found)))
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(plain(text, 40 * width), width - 14, break_on_hyphens=False) or [""]
        lines += [f"{name:<14}{wrapped[0]}", *(" " * 14 + more for more in wrapped[1:])]
    return lines


def _part_lines(found: Inspection, title: str, parts: Sequence[Part]) -> list[str]:
    rows = [[title, "", "passages", "share", "text", "share"]]
    for part in parts:
        bar = text_bar(part.passages / found.passages, 40)
        counts = [f"{part.passages:,}", share_of(part.passages, found.passages)]
        rows.append(
            [
                plain(part.name, 20),
                bar,
                *counts,
                human_bytes(part.text_bytes),
                share_of(part.text_bytes, found.text_bytes),
            ]
        )
    return aligned(rows, 2)


def _plot_lines(shown: Histogram) -> list[str]:
    most = max(int(shown.counts.max()), 1)
    rows = [
        [f"  {label}", f"{count:,}", text_bar(count / most, 50)]
        for label, count in zip(shown.labels(), shown.counts.tolist(), strict=True)
    ]
    widths = [max(len(row[at]) for row in rows) for at in (0, 1)]
    lines = [f"{name:<{widths[0]}}  {count:>{widths[1]}}  {bar}".rstrip() for name, count, bar in rows]
    return lines + ([f"  {shown.beyond:,} above"] if shown.beyond else [])


def _spread(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` of the examples, evenly over their order."""
    if count >= len(examples):
        return list(examples)
    return [examples[at] for at in np.linspace(0, len(examples) - 1, count).astype(int).tolist()] if count else []


def _example_lines(example: Example, width: int) -> list[str]:
    head = f"{example.group}: {example.source} {example.id}, {about(example)}"
    lines = [plain(head, width), "  " + plain(example.text, width - 2)]
    return lines + ([f"  for [{example.query_id}] " + plain(example.query, width - 20)] if example.query else [])
