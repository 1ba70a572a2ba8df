"""The commands `nearkin data list`, `show` and `get`."""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptation.cards import (
    DATA_VARIABLE,
    KINDS,
    Card,
    card_of,
    cards,
    data_folder,
    how_to_obtain,
    is_here,
    paper_rows,
    size_of,
)
from selection.commands import add_command, say
from selection.task import SPLITS
from selection.terminal import aligned

if TYPE_CHECKING:
    from selection.commands import Subparsers

WIDTH = 100
DATA = """\
Cards of tasks, corpora and published checkpoints: what they are, where they lie, how to get them.

A data set lies under a data folder, tasks as tasks/NAME and corpora as corpora/NAME.parquet. The folder is named with
--data (or --out), else in the environment variable NEARKIN_DATA.
"""
GET = """\
Put a data set under the data folder, after comparing it with its card: columns, counts, labels, checksums.

With --from it is copied from a local folder, and no network is used. Else it is downloaded from the card's addresses.
A low-resource task (rct_500_s0) is drawn from its parent, which is got first. A published checkpoint is turned into
safetensors. What is there already and fits its card is left alone.
"""
EXAMPLES = """
nearkin data list --kind task
nearkin data show citation_intent
nearkin data get citation_intent --out ~/nearkin-data
nearkin data get chemprot_500_s0 --from downloads/chemprot --out ~/nearkin-data
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``data`` with its three commands; each sets ``run``, from options to exit code."""
    data = add_command(subparsers, "data", None, "data sets and checkpoints: list, show, get", EXAMPLES, DATA)
    commands = data.add_subparsers(metavar="COMMAND", required=True)

    listed = add_command(commands, "list", run_list, "every card in a line", "nearkin data list --kind task")
    listed.add_argument("--kind", choices=KINDS, help="of this kind alone")
    _folder(listed, "--data", "where to look")
    listed.add_argument("--json", action="store_true", help="a JSON list of whole cards, with place and here")

    shown = add_command(commands, "show", run_show, "all of one card", "nearkin data show citation_intent")
    shown.add_argument("name", metavar="NAME", help="of a card, as `nearkin data list` has it")
    _folder(shown, "--data", "where to look")
    shown.add_argument("--json", action="store_true", help="as JSON")

    summary = "put a data set under the data folder"
    got = add_command(commands, "get", run_get, summary, EXAMPLES, GET)
    got.add_argument("name", metavar="NAME", help="of a card, as `nearkin data list` has it")
    got.add_argument(
        "--from", dest="source", type=Path, metavar="FOLDER",
        help="copy from here; for a low-resource task, a folder with its parent",
    )  # fmt: skip
    _folder(got, "--out", "where to put it")


def _folder(parser: argparse.ArgumentParser, option: str, purpose: str) -> None:
    parser.add_argument(
        option, dest="data", type=Path, metavar="DIR", help=f"data folder, {purpose} (default: {DATA_VARIABLE}'s)"
    )


def run_list(options: argparse.Namespace) -> int:
    """Runs ``nearkin data list``; returns the exit code."""
    chosen = [card for card in cards().values() if options.kind in (None, card["kind"])]
    chosen.sort(key=lambda card: KINDS.index(card["kind"]))
    folder = data_folder(options.data)
    if options.json:
        say(json.dumps([_with_place(card, folder) for card in chosen], indent=1))
        return 0
    rows = [["name", "kind", "domain", "metric", "size", "here"]]
    for card in chosen:
        here = "?" if folder is None else "yes" if is_here(card, folder) else "no"
        rows.append([card["name"], card["kind"], card["domain"], card.get("metric", "-"), size_of(card), here])
    for line in aligned(rows, left=len(rows[0])):
        say(line)
    say("")
    say(f"looked for under {folder}" if folder else f"name a data folder with --data or in {DATA_VARIABLE}")
    return 0


def run_show(options: argparse.Namespace) -> int:
    """Runs ``nearkin data show``; returns the exit code."""
    card, folder = card_of(options.name), data_folder(options.data)
    if options.json:
        say(json.dumps(_with_place(card, folder), indent=1))
        return 0
    say(f"{card['name']}: {card['title']}")
    for name, value in _fields(card):
        say(textwrap.fill(value, WIDTH, initial_indent=f"  {name:<10}", subsequent_indent=" " * 12,
                          break_long_words=False, break_on_hyphens=False))  # fmt: skip
    say(f"  {'place':<10}{_place(card, folder)}")
    if rows := paper_rows(card):
        what = "masked-LM loss" if card["kind"] == "corpus" else "test F1, mean and standard deviation of 5 seeds"
        say(f"in the paper ({what}):")
        for line in aligned(rows, left=len(rows[0])):
            say(f"  {line}")
    return 0


def _fields(card: Card) -> list[tuple[str, str]]:
    known = [("kind", card["kind"]), ("domain", card["domain"])]
    if card["kind"] == "task":
        known.append(("metric", f"{card['metric']}-F1"))
    known.append(("size", size_of(card)))
    if "tokens" in card:
        known.append(("tokens", f"{card['tokens'] / 1e9:.2f} billion"))
    if "unlabelled" in card:
        known.append(("unlabelled", f"{card['unlabelled']:,} more texts"))
    known += [(key, ", ".join(card[key])) for key in ("labels", "columns") if key in card]
    known += [(key, card[key]) for key in ("source", "licence", "note") if key in card]
    known.append(("from", how_to_obtain(card)))
    if "derive" in card:
        known.append(("drawn", _draw(card)))
    known.append(("sha256", ", ".join(f"{k} {v[:12]}…" for k, v in card.get("sha256", {}).items()) or "not known"))
    return known


def _place(card: Card, folder: Path | None) -> str:
    if folder is None:
        return f"{card['path']} under the data folder (--data, {DATA_VARIABLE})"
    return f"{folder / card['path']} ({'here' if is_here(card, folder) else 'not here'})"


def _draw(card: Card) -> str:
    rule = card["derive"]
    splits = ", ".join(f"{s}: {rule[s] if s != 'train' and rule[s] == 'all' else card[s]}" for s in SPLITS)
    return f"{splits}; seed {rule['seed']}, {'stratified by label' if rule['stratified'] else 'not stratified'}"


def run_get(options: argparse.Namespace) -> int:
    """Runs ``nearkin data get``; returns the exit code."""
    from adaptation.data import get_data

    got = get_data(options.name, options.source, options.data)
    for check in got.checks:
        say(f"{got.card['name']}: {check}")
    if not got.new:
        say(f"{got.card['name']} is at {got.path} already, nothing to do")
        return 0
    say(f"{got.card['name']} is at {got.path}, from {got.came_from}")
    return 0


def _with_place(card: Card, folder: Path | None) -> dict[str, Any]:
    if folder is None:
        return {**card, "place": None, "here": None}
    return {**card, "place": str(folder / card["path"]), "here": is_here(card, folder)}
