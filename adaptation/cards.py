"""Data cards (``data/*.toml``): what is known of each task, corpus and published checkpoint.

The fields are described in ``data/README.md``. A file holds one card, or several under ``[[cards]]`` that share what
stands above them. A card with ``[derive]`` takes from its parent what it does not say itself.
"""

from __future__ import annotations

import os
import sys
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selection.errors import InputError, NearkinError
from selection.task import SPLITS
from selection.wording import join, mean_and_sd

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]

if TYPE_CHECKING:
    from importlib.abc import Traversable

Card = dict[str, Any]
CARDS = "nearkin_cards"
KINDS = ("task", "corpus", "checkpoint")
DATA_VARIABLE = "NEARKIN_DATA"
INHERITED = ("domain", "metric", "classes", "labels", "columns", "source", "licence", "slack")
# Names of the arms in a task's [paper] table, in the order in which a person compares them.
ARMS = {
    "none": "RoBERTa",
    "rand": "RAND-TAPT",
    "tapt": "TAPT",
    "knn50": "50NN-TAPT",
    "knn150": "150NN-TAPT",
    "knn500": "500NN-TAPT",
    "curated": "Curated-TAPT",
    "transfer": "Transfer-TAPT",
    "dapt": "DAPT",
    "dapt_tapt": "DAPT + TAPT",
    "dapt_curated": "DAPT + Curated-TAPT",
    "not_dapt": "not-DAPT",
}


@cache
def cards() -> dict[str, Card]:
    """Every card by name, in the order of their files; a card is its TOML as a dict.

    Raises:
        NearkinError: a card that is not TOML, or without name or kind; two of one name; a parent that is no card.
    """
    found: dict[str, Card] = {}
    for file in sorted(_card_folder().iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".toml"):
            continue
        try:
            shared = tomllib.loads(file.read_text(encoding="utf-8"))
            for own in shared.pop("cards", [{}]):
                card = {**shared, **own}
                card["name"], card["kind"] = str(card["name"]), str(card["kind"])
                if card["name"] in found:
                    raise NearkinError(f"data card {file.name}: the name {card['name']} is taken, choose another")
                found[card["name"]] = card
        except (tomllib.TOMLDecodeError, KeyError) as error:
            raise NearkinError(f"data card {file.name} cannot be read: {error}") from error
    return {name: _with_parent(card, found) for name, card in found.items()}


def _card_folder() -> Traversable:
    try:
        return files(CARDS)
    except (ModuleNotFoundError, NotADirectoryError):
        # A source checkout has the folder under another name; Python cannot list the one an editable install maps.
        return Path(__file__).resolve().parent.parent / "data"


def _with_parent(card: Card, found: dict[str, Card]) -> Card:
    if "derive" not in card:
        return card
    parent = found.get(card["derive"].get("from", ""))
    if parent is None or "derive" in parent:
        raise NearkinError(f"data card {card['name']}: [derive] must name, as from, a card that is not derived itself")
    whole = {split: parent[split] for split in ("dev", "test") if card["derive"][split] == "all"}
    drawn = {split: card["derive"][split] for split in ("dev", "test") if card["derive"][split] != "all"}
    return {**{key: parent[key] for key in INHERITED if key in parent}, **whole, **drawn, **card}


def card_of(name: str) -> Card:
    """The card called `name`; a checkpoint's owner may be left out.

    Raises:
        InputError: there is none; the message names the nearest.
    """
    known = cards()
    short = {full.rpartition("/")[2]: full for full in known}
    if (full := name if name in known else short.get(name)) is not None:
        return known[full]
    near = get_close_matches(name.lower(), [*known, *short], n=3, cutoff=0.6)
    near = list(dict.fromkeys(short.get(word, word) for word in near))
    advice = f"did you mean {' or '.join(near)}? " if near else ""
    raise InputError(f"there is no data card {name!r}: {advice}`nearkin data list` names them all")


def data_folder(given: Path | None = None) -> Path | None:
    """The folder under which data lie: `given`, else what ``NEARKIN_DATA`` names, else None."""
    if given is not None:
        return given.expanduser()
    named = os.environ.get(DATA_VARIABLE)
    return Path(named).expanduser() if named else None


def file_names(card: Card) -> list[str]:
    """The files a task or a corpus of one file consists of; empty where the card leaves them open."""
    if card["kind"] == "task":
        return [f"{split}.jsonl" for split in SPLITS]
    last = Path(card["path"]).name
    return [last] if card["kind"] == "corpus" and Path(last).suffix else []


def is_here(card: Card, data: Path) -> bool:
    """Whether the data set or model of a card stands under `data`; nothing is read of it."""
    path = data / card["path"]
    if card["kind"] == "checkpoint":
        return (path / "config.json").is_file() and any(path.glob("*.safetensors"))
    if card["kind"] == "task":
        return all((path / name).is_file() for name in file_names(card))
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def paper_rows(card: Card) -> list[tuple[str, str]]:
    """What the paper reports, as rows for a table: arm and F1, or loss before and after.

    A checkpoint's row comes from the card of the task it was adapted to.
    """
    paper = card.get("paper", {})
    if card["kind"] == "checkpoint" and "task" in card:
        paper = cards()[card["task"]].get("paper", {})
        return [(ARMS[card["phase"]], mean_and_sd(*paper[card["phase"]]))] if card["phase"] in paper else []
    if card["kind"] == "corpus":
        return [(key.replace("_", " "), f"{value:.2f}") for key, value in paper.items()]
    return [(ARMS[arm], mean_and_sd(*paper[arm])) for arm in ARMS if arm in paper]


def size_of(card: Card) -> str:
    """The size of a card's data set in a few words."""
    if card["kind"] == "task":
        return f"{' / '.join(f'{card[split]:,}' for split in SPLITS)}, {card['classes']} classes"
    if card["kind"] == "checkpoint":
        read = f"{card['texts']:,} texts of {card['task']}" if "task" in card else f"all of dsp_{card['domain']}"
        return f"{ARMS[card['phase']]}: {read}"
    count = f"{card['documents'] / 1e6:.2f} M documents" if "documents" in card else f"{card['passages']:,} passages"
    size = card["text_megabytes"]
    return f"{count}, {f'{size / 1000:.0f} GB' if size >= 1000 else f'{size} MB'}"


def how_to_obtain(card: Card) -> str:
    """One sentence part: where the data come from when no local copy is given."""
    if "derive" in card:
        return f"drawn from {card['derive']['from']}"
    if card["kind"] == "checkpoint":
        return f"https://huggingface.co/{card['name']}"
    if "urls" in card:
        return join(card["urls"])
    return str(card["obtain"])
