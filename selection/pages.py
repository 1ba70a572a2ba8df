"""Report pages: one HTML file that needs nothing else, and small charts, as functions from values to strings.

A page holds no script and asks for no font, picture or style from elsewhere (its own policy forbids it), follows the
reader's light or dark setting, fits a phone, and can be printed. Charts are inline SVG with a title on every mark,
drawn at the width of a phone, so that letters are never scaled below the text's. Whatever comes from a corpus passes
`escape`. Cost: the page's own size.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selection.files import atomic_write
from selection.histogram import Histogram, edge_names, round_edges
from selection.terminal import cut

WIDTH, HEIGHT = 360, 190
LEFT, TOP, BOTTOM = 44, 8, 40
ROW = 40
LABEL, TICKS = 38, 6
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]")

STYLE = """
:root { color-scheme: light dark; --page: #f7f7f5; --card: #fff; --ink: #1a1f24; --muted: #59636e; --line: #dcdfe2;
  --mark: #2a6f97; --pale: #e3edf3; --good: #1d6b45; --fair: #7a5200; --poor: #9b2f36; }
@media (prefers-color-scheme: dark) { :root { --page: #111418; --card: #1a1f25; --ink: #e7eaed; --muted: #9ea9b4;
  --line: #313941; --mark: #6cb2dc; --pale: #213240; --good: #7fd0a4; --fair: #e5b95c; --poor: #f0959b; } }
* { box-sizing: border-box; }
body { margin: 0; overflow-wrap: anywhere; background: var(--page); color: var(--ink); line-height: 1.5;
  -webkit-text-size-adjust: 100%;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", "DejaVu Sans", sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 2.5rem) 3rem; }
h1 { font-size: clamp(1.7rem, 5vw, 2.4rem); line-height: 1.15; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: .95rem; margin: 0; }
p { margin: .4rem 0; }
.lead { color: var(--muted); font-size: 1.05rem; max-width: 60rem; }
.small { color: var(--muted); font-size: .85rem; }
.tiles, .cards { display: grid; gap: .75rem; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); margin: 1.5rem 0 0; padding: 0; }
.cards { grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.tiles > div, figure, article, .box { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.tiles > div { padding: .8rem .9rem; display: flex; flex-direction: column; }
.tiles dt { font-size: .85rem; color: var(--muted); }
.tiles dd { margin: 0; }
.tiles .value { font-size: 1.55rem; font-weight: 650; line-height: 1.25; font-variant-numeric: tabular-nums; }
figure { margin: 0; padding: .9rem 1rem .8rem; }
figcaption { font-weight: 600; font-size: .95rem; margin-bottom: .5rem; }
svg { display: block; width: 100%; max-width: 34rem; height: auto; }
svg text { font-size: 12px; fill: var(--muted); font-variant-numeric: tabular-nums; }
svg .name { fill: var(--ink); font-size: 13px; }
svg .ink { fill: var(--ink); }
svg .mark { fill: var(--mark); } svg .track { fill: var(--pale); }
svg .grid { stroke: var(--line); stroke-width: 1; } svg .tie { stroke: var(--muted); stroke-width: .75; }
svg .rest { fill: var(--muted); } svg .front { fill: none; stroke: var(--mark); stroke-width: 1.5; opacity: .5; }
.box { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { padding: .5rem .8rem; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
th.text, td.text { text-align: left; }
thead th { color: var(--muted); font-weight: 600; font-size: .85rem; }
tbody th { font-weight: 600; white-space: normal; min-width: 8.5rem; position: sticky; left: 0;
  background: var(--card); }
td span { display: block; color: var(--muted); font-size: .85em; }
tbody tr { border-top: 1px solid var(--line); }
.passages { display: grid; gap: .75rem; align-items: start; margin-top: .6rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); }
article { padding: .9rem 1rem; }
.note { margin-top: .75rem; }
.tiles > *, .cards > *, .passages > * { min-width: 0; }
article header { display: flex; flex-wrap: wrap; gap: .25rem .8rem; align-items: baseline; font-size: .85rem;
  color: var(--muted); }
article header b { color: var(--ink); }
.passage { margin: .5rem 0 0; white-space: pre-line; max-width: 50rem; }
.brought { margin-top: .8rem; padding-top: .6rem; border-top: 1px solid var(--line); font-size: .92rem; }
.task { margin: 1.2rem 0 0; }
details summary { cursor: pointer; }
details[open] summary .cut { display: none; }
blockquote { margin: .7rem 0 0; padding: .1rem 0 .1rem .8rem; border-left: 3px solid var(--mark); font-size: .92rem;
  max-width: 50rem; }
.best { color: var(--good); } .middle { color: var(--fair); } .last { color: var(--poor); }
.facts { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .35rem 1.2rem; margin: 0;
  padding: 1rem; font-size: .92rem; }
.facts dt { color: var(--muted); } .facts dd { margin: 0; min-width: 0; }
pre { margin: 0; padding: .9rem 1rem; white-space: pre-wrap; }
pre { font-size: .88em; font-family: ui-monospace, "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
footer { margin-top: 2.5rem; color: var(--muted); font-size: .85rem; }
:focus-visible { outline: 2px solid var(--mark); outline-offset: 2px; }
@media (max-width: 30rem) { .facts { grid-template-columns: 1fr; gap: 0; } .facts dd { margin-bottom: .5rem; }
  .tiles { grid-template-columns: 1fr 1fr; } }
@media print { body { background: none; } article, figure { break-inside: avoid; } }
"""


def escape(text: object) -> str:
    """Text as HTML shows it, in content and in quoted attributes; control characters become U+FFFD."""
    return html.escape(UNPRINTABLE.sub("\ufffd", str(text)), quote=True)


def bars(rows: Sequence[tuple[str, float, str]], title: str) -> str:
    """Horizontal bars as SVG.

    Args:
        rows: (name, share 0 to 1, the share and more in words).
        title: what they show, for those who do not see them.
    """
    marks = []
    for number, (name, share, words) in enumerate(rows):
        top = number * ROW
        length = max(min(share, 1.0) * WIDTH, 2.0 if share > 0 else 0.0)
        marks.append(
            f"<g><title>{escape(name)}: {escape(words)}</title>"
            f'<text class="name" x="0" y="{top + 14}">{escape(cut(name, LABEL - len(words) // 2))}</text>'
            f'<text x="{WIDTH}" y="{top + 14}" text-anchor="end">{escape(words)}</text>'
            f'<rect class="track" x="0" y="{top + 21}" width="{WIDTH}" height="9" rx="2"/>'
            f'<rect class="mark" x="0" y="{top + 21}" width="{length:.1f}" height="9" rx="2"/></g>'
        )
    return svg(max(len(rows), 1) * ROW - 6, title, "".join(marks))


def histogram(shown: Histogram, title: str, unit: str) -> str:
    """A histogram as SVG.

    Args:
        title: what it shows, for those who do not see it.
        unit: of the values, under the axis.
    """
    most, bins = max(int(shown.counts.max()), 1), len(shown.counts)
    width, height = WIDTH - LEFT - 6, HEIGHT - TOP - BOTTOM
    base, step = TOP + height, width / bins
    marks = []
    ticks = round_edges(0, most, 4, True)
    for count in ticks[ticks <= most].tolist():
        y = base - height * count / most
        marks.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{count:,.0f}</text>'
        )
    for number, (label, count) in enumerate(zip(shown.labels(), shown.counts.tolist(), strict=True)):
        tall = max(height * count / most, 1.0) if count else 0.0
        marks.append(
            f'<rect class="mark" x="{LEFT + number * step + 0.5:.1f}" y="{base - tall:.1f}" '
            f'width="{max(step - 1, 0.5):.1f}" height="{tall:.1f}"><title>{label}: {count:,}</title></rect>'
        )
    single = shown.whole and bool((np.diff(shown.edges) == 1).all())  # a bin is a number, named under its middle
    names = edge_names(shown.edges)
    for at in range(0, bins + (not single), -(-(bins + 1) // TICKS)):
        x = LEFT + (at + single / 2) * step
        anchor = "end" if at == bins else "middle"
        marks.append(f'<text x="{x:.1f}" y="{base + 16}" text-anchor="{anchor}">{names[at]}</text>')
    marks.append(f'<text x="{LEFT + width / 2:.1f}" y="{HEIGHT - 5}" text-anchor="middle">{escape(unit)}</text>')
    return svg(HEIGHT, title, "".join(marks))


def svg(height: int, title: str, marks: str) -> str:
    """A chart `WIDTH` wide of marks that are SVG already."""
    title = escape(title)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}"><title>{title}</title>{marks}</svg>'


def figure(title: str, chart: str, note: str = "") -> str:
    """A chart under its title, with a line of explanation."""
    below = f'<p class="small">{escape(note)}</p>' if note else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{chart}{below}</figure>"


def tiles(rows: Iterable[tuple[str, str, str]]) -> str:
    """Key figures: (name, value, a few words on it) each."""
    cells = (
        f'<div><dt>{escape(name)}</dt><dd class="value">{escape(value)}</dd><dd class="small">{escape(note)}</dd></div>'
        for name, value, note in rows
    )
    return f'<dl class="tiles">{"".join(cells)}</dl>'


@dataclass(frozen=True)
class Cell:
    """A table's cell with more than text: bold where it is the best, a smaller line below."""

    text: str
    below: str = ""
    best: bool = False

    def html(self) -> str:
        text = f"<b>{escape(self.text)}</b>" if self.best else escape(self.text)
        return text + (f"<span>{escape(self.below)}</span>" if self.below else "")


def table(head: Sequence[str], rows: Iterable[Sequence[str | Cell]], caption: str, left: int = 1) -> str:
    """Rows under a head, their names first, `left` columns of words; it scrolls by itself where it is too wide."""
    sides = [' class="text"' if at < left else "" for at in range(len(head))]
    heads = "".join(f'<th scope="col"{side}>{escape(cell)}</th>' for side, cell in zip(sides, head, strict=True))
    body = []
    for first, *rest in rows:
        shown = [cell.html() if isinstance(cell, Cell) else escape(cell) for cell in rest]
        cells = "".join(f"<td{side}>{cell}</td>" for side, cell in zip(sides[1:], shown, strict=True))
        body.append(f'<tr><th scope="row" class="text">{escape(first)}</th>{cells}</tr>')
    return (
        f'<div class="box" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def folded(text: str, characters: int, brief: int) -> str:
    """A text that opens in full from its first `brief` characters.

    Args:
        characters: how many the whole text has, where `text` is cut already.
    """
    body = f'<p class="passage" dir="auto">{escape(text)}</p>'
    if characters > len(text):
        body += f'<p class="small">and {characters - len(text):,} more characters</p>'
    if len(text) <= brief:
        return body
    start = escape(cut(" ".join(text.split()), brief))
    return f'<details><summary class="passage" dir="auto"><span class="cut">{start}</span></summary>{body}</details>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values, one below the other."""
    pairs = (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    return f'<dl class="facts box">{"".join(pairs)}</dl>'


def page(title: str, body: str) -> str:
    """A whole page around `body`, which is HTML already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def write_page(content: str, path: Path | str) -> None:
    """Writes a page whole or not at all.

    Raises:
        NearkinError: the file cannot be written.
    """
    with atomic_write(Path(path)) as aside:
        aside.write_text(content, encoding="utf-8")
