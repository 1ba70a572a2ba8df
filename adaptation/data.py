"""Data sets and published checkpoints to where commands find them: the function behind `data get`.

A local folder comes first and needs no network. Whatever is taken is compared with its card before it appears.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from adaptation.cards import DATA_VARIABLE, Card, card_of, data_folder, file_names, how_to_obtain, is_here
from adaptation.data_check import check_data
from adaptation.data_fetch import fetch_file
from adaptation.data_sample import derive_task
from selection.errors import InputError
from selection.files import atomic_folder, atomic_write, sweep
from selection.finding import find_files
from selection.wording import join


@dataclass(frozen=True)
class Got:
    """What `get_data` found or made.

    Attributes:
        card: of the data set.
        path: the task's folder, the corpus's file or folder, the model's folder.
        new: False where it was there already and nothing was done.
        came_from: a folder or address, of a derived card with the seed; None where nothing was done.
        checks: what was compared with the card, and what could not be.
    """

    card: Card
    path: Path
    new: bool
    came_from: str | None = None
    checks: list[str] = field(default_factory=list)


def get_data(name: str, source: Path | str | None = None, data: Path | str | None = None) -> Got:
    """Puts the data set or checkpoint of card `name` under the data folder, unless it is there and whole.

    Args:
        name: of a card.
        source: local folder (or a corpus's file) to copy from, laid out as one data set or as a data folder; for a
            derived card, that of its parent. None: the addresses of the card.
        data: the data folder; None: what ``NEARKIN_DATA`` names.

    Raises:
        InputError: no such card, no data folder, or a copy that is not as its card says.
        NearkinError: nothing could be downloaded.
    """
    card = card_of(name)
    folder = data_folder(Path(data) if data is not None else None)
    if folder is None:
        raise InputError(f"where shall {name} go? name a data folder with --out, or in {DATA_VARIABLE}")
    path = folder / card["path"]
    if path.exists() and (path.is_file() or any(path.iterdir())):
        return Got(card, path, False, checks=_recheck(card, folder))
    if path.parent.is_dir():
        sweep(path.parent)
    given = None if source is None else Path(source).expanduser()
    if given is not None and not given.exists():
        raise InputError(f"{given} does not exist")
    made = [place for place in (path.parent, *path.parent.parents) if not place.exists()]
    try:
        return _get(card, given, folder, path)
    finally:
        for place in made:
            with suppress(OSError):  # something is in it
                place.rmdir()


def _get(card: Card, given: Path | None, folder: Path, path: Path) -> Got:
    if card["kind"] == "checkpoint":
        from adaptation.data_checkpoint import convert_checkpoint

        return Got(card, path, True, convert_checkpoint(card, given, path))
    if "derive" in card:
        return _derive(card, given, folder, path)
    if given is not None:
        return _copy(card, given, path)
    return _download(card, path)


def _recheck(card: Card, folder: Path) -> list[str]:
    path = folder / card["path"]
    if card["kind"] == "checkpoint":
        if not is_here(card, folder):
            raise InputError(f"{path} has no config.json and safetensors: remove it and get {card['name']} again")
        return []
    try:
        return check_data(card, path)
    except InputError as error:
        raise InputError(f"{error}; remove {path} and get {card['name']} again") from error


def _find(card: Card, given: Path) -> Path:
    """Where in a given folder the data set lies: it is that, or holds it under its name or as a data folder does."""
    if card["kind"] == "corpus" and given.is_file():
        if given.suffix != Path(card["path"]).suffix:
            raise InputError(f"{given}: {card['name']} is a {Path(card['path']).suffix or 'folder'}, give that")
        return given
    names = file_names(card)
    places: list[Path] = [given, given / card["name"], given / card["path"]]
    if card["kind"] == "corpus" and names:
        places = [given / names[0], given / card["path"]]
        found = [place for place in places if place.is_file()]
    elif names:
        found = [place for place in places if (place / names[0]).is_file()]
    else:
        found = [place for place in reversed(places) if place.is_dir()]
    if not found:
        wanted = f"no {names[0]}" if names else "nothing of it"
        raise InputError(f"{given} has {wanted}, so {card['name']} is not in it; give the folder that holds it")
    return found[0]


def _copy(card: Card, given: Path, path: Path) -> Got:
    found = _find(card, given)
    checks = check_data(card, found)
    if found.is_file():
        with atomic_write(path) as aside:
            shutil.copyfile(found, aside)
    else:
        with atomic_folder(path) as aside:
            named = file_names(card)
            for file in [found / name for name in named] or find_files(str(found)):
                target = aside / file.relative_to(found)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    return Got(card, path, True, str(found), checks)


def _download(card: Card, path: Path) -> Got:
    if "urls" not in card:
        raise InputError(
            f"{card['name']} is not published as files that nearkin could download: {how_to_obtain(card)}; "
            "then give the folder with --from"
        )
    with atomic_folder(path) as aside:
        used = [
            fetch_file([url.format(split=Path(name).stem) for url in card["urls"]], aside / name)
            for name in file_names(card)
        ]
        origin = join(dict.fromkeys(url.rpartition("/")[0] for url in used))
        try:
            checks = check_data(card, aside)
        except InputError as error:
            raise InputError(f"downloaded from {origin}: {str(error).replace(str(aside), path.name)}") from error
    return Got(card, path, True, origin, checks)


def _derive(card: Card, given: Path | None, folder: Path, path: Path) -> Got:
    parent_card = card_of(card["derive"]["from"])
    if given is not None:
        parent = _find(parent_card, given)
        check_data(parent_card, parent)
    else:
        known = [place for place in (folder, data_folder()) if place is not None and is_here(parent_card, place)]
        parent = get_data(parent_card["name"], None, known[0] if known else folder).path
    with atomic_folder(path) as aside:
        derive_task(card, parent, aside)
        try:
            checks = check_data(card, aside)
        except InputError as error:
            raise InputError(str(error).replace(str(aside), str(path))) from error
    return Got(card, path, True, f"{parent} by seed {card['derive']['seed']}", checks)
