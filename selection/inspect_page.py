"""An inspection as one self-contained page, which reads on a phone and in the dark and asks nothing of anyone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from selection import pages
from selection.inspection import (
    BRIEF,
    COMPARED,
    Example,
    Inspection,
    about,
    brought_histogram,
    brought_of,
    command_of,
    comparison,
    removed_of,
    score_name,
    share_of,
)
from selection.wording import human_bytes, human_seconds


def html(found: Inspection) -> str:
    manifest = found.manifest
    task, store = Path(manifest["task"]).name, Path(manifest["store"]).name
    title = f"{found.name}: {found.passages:,} passages for {task}"
    lead = f"Passages for the task {task}, selected from {store} by {manifest['method']}; judged without training."
    parts = [
        f'<header><p class="small">nearkin inspect</p><h1>{pages.escape(found.name)}</h1>',
        f'<p class="lead">{pages.escape(lead)}</p></header>',
        pages.tiles(_tiles(found)),
        _left_out(found),
        f'<section><h2>What is in it</h2><div class="cards">{"".join(_charts(found))}</div></section>',
    ]
    if found.others:
        table = pages.table(*comparison(found), "comparison of sets", 2)
        parts.append(
            f'<section><h2>Beside other sets</h2>{table}<p class="small">{pages.escape(COMPARED)}</p></section>'
        )
    if found.examples:
        cards = f'<div class="passages">{"".join(map(_card, found.examples))}</div>'
        parts.append(f"<section><h2>Passages</h2>{_examples_note(found)}{cards}</section>")
    command = f'<pre class="box">{pages.escape(command_of(found))}</pre>'
    parts.append(f"<section><h2>How it was made</h2>{command}</section>")
    parts.append(f"<section><h2>Settings</h2>{pages.facts(_settings(found))}</section>")
    parts.append(f"<footer>{pages.escape(found.path)}, inspected in {human_seconds(found.seconds)}</footer>")
    return pages.page(title, "\n".join(part for part in parts if part))


def _tiles(found: Inspection) -> Iterator[tuple[str, str, str]]:
    yield "Passages", f"{found.passages:,}", f"{human_bytes(found.text_bytes)} of text"
    yield "Tokens", f"{found.tokens:,}", f"{found.tokens / found.passages:,.0f} a passage"
    yield "Distinct words", f"{found.unique_words:,}", f"of {found.words:,}"
    if found.coverage is not None:
        of = f"{found.coverage.covered:,} of {found.coverage.examples:,} task examples brought a passage"
        yield "Coverage", share_of(found.coverage.covered, found.coverage.examples), of
    if found.kl_reduction is not None:
        yield (
            "KL reduction",
            f"{found.kl_reduction:.3f}",
            f"nats nearer the task: {found.kl_corpus:.2f} to {found.kl_set:.2f}",
        )
    if found.vendi is not None:
        words = f"as diverse as so many unlike passages; mean cosine {found.cosine:.3f}"
        yield "Vendi score", f"{found.vendi:.1f}", words


def _left_out(found: Inspection) -> str:
    if not found.left_out:
        return ""
    reasons = "".join(
        f"<p><b>{pages.escape(m)}</b> left out: {pages.escape(why)}</p>" for m, why in found.left_out.items()
    )
    return f'<article class="small note">{reasons}</article>'


def _charts(found: Inspection) -> Iterator[str]:
    for title, parts in (("corpus", found.sources), ("method", found.methods)):
        if title == "method" and len(parts) == 1:
            continue
        rows = [
            (p.name, p.passages / found.passages, f"{share_of(p.passages, found.passages)}, {p.passages:,}")
            for p in parts
        ]
        yield pages.figure(f"Passages by {title}", pages.bars(rows, f"share of passages by {title}"))
        if title == "corpus" and len(parts) > 1:
            rows = [
                (
                    p.name,
                    p.text_bytes / max(found.text_bytes, 1),
                    f"{share_of(p.text_bytes, found.text_bytes)}, {human_bytes(p.text_bytes)}",
                )
                for p in parts
            ]
            yield pages.figure("Text by corpus", pages.bars(rows, "share of text by corpus"))
    for method, shown in found.scores.items():
        name = score_name(method)
        yield pages.figure(f"Scores by {method}", pages.histogram(shown, f"passages by {name}", name))
    if found.lengths is not None:
        note = f"{found.lengths.beyond:,} longer ones are not shown." if found.lengths.beyond else ""
        yield pages.figure("Tokens a passage", pages.histogram(found.lengths, "passages by tokens", "tokens"), note)
    if found.coverage is not None:
        shown = brought_histogram(found.coverage)
        chart = pages.histogram(shown, "task examples by passages they brought", "passages")
        more = f"; {shown.beyond:,} that brought more are not shown" if shown.beyond else ""
        yield pages.figure("Passages a task example brought", chart, f"{brought_of(found.coverage)}{more}")


def _examples_note(found: Inspection) -> str:
    drawn = found.examples[0].group == "drawn"
    said = (
        "drawn from the whole set, which has no scores" if drawn else "some of the best, the middle and the last ranks"
    )
    return f'<p class="small">{len(found.examples):,} of {found.passages:,}: {said}.</p>'


def _card(example: Example) -> str:
    head = f'<b class="{example.group}">{example.group}</b><b>{pages.escape(example.source)}</b>'
    head += f"<span>{pages.escape(example.id)}</span><span>{pages.escape(about(example))}</span>"
    body = pages.folded(example.text, example.characters, BRIEF)
    if example.query is not None:
        asked = f"task example {example.query_id:,}"
        body += (
            f'<blockquote dir="auto"><span class="small">{asked}</span><br>{pages.escape(example.query)}</blockquote>'
        )
    return f"<article><header>{head}</header>{body}</article>"


def _settings(found: Inspection) -> Iterator[tuple[str, str]]:
    manifest = found.manifest
    yield from ((name, str(manifest[name])) for name in ("store", "task", "method"))
    for name, value in manifest["parameters"].items():
        if value not in (None, [], False):
            yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    yield "seed", str(manifest.get("seed", 0))
    yield "tokenizer", manifest["tokenizer"]
    if found.encoder is not None:
        yield "diversity by", found.encoder
    yield "kept out", removed_of(manifest)
    if isinstance(manifest.get("seconds"), (int, float)):
        yield "took", human_seconds(manifest["seconds"])
    if isinstance(manifest.get("versions"), dict):
        yield "versions", ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())


def write_html(inspection: Inspection, path: Path | str) -> None:
    """Writes `Inspection.html` to a file, whole or not at all.

    Raises:
        NearkinError: it cannot be written.
    """
    pages.write_page(inspection.html(), path)
