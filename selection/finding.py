"""What a location means: one file, all of a folder that nearkin reads, or those of a glob."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from selection.errors import InputError
from selection.reading import COLUMNAR_KINDS, TEXT_KINDS, kind_of

log = logging.getLogger(__name__)

HUB = "hf://"


def find_files(location: str, quiet: bool = False) -> list[Path]:
    """The files of a corpus, sorted by path: one file, all of a folder (recursively), or those of a glob.

    Args:
        quiet: whether nothing is said of files that are left out.

    Raises:
        InputError: nothing there that nearkin reads.
    """
    path = Path(location).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [p for p in _files_under(path) if not _hidden(p.relative_to(path))]
        found = [p for p in found if p.parent == path or not _is_set(p)]
        columnar = sorted(p for p in found if kind_of(p) in COLUMNAR_KINDS)
        # A folder of Parquet often holds a .json or .txt about it, which is no text of the corpus.
        files = columnar or sorted(p for p in found if kind_of(p) in TEXT_KINDS - {".json"})
        unread = [p for p in found if columnar and kind_of(p) in TEXT_KINDS - {".json", ".txt"}]
        if unread and not quiet:
            log.warning(
                "%s: only Parquet and Arrow files are read where there are any: %d others, such as %s, are left out",
                path, len(unread), min(unread).name,
            )  # fmt: skip
        if not files:
            raise InputError(f"{path} has no file that nearkin reads (.txt, .csv, .jsonl, .parquet, .arrow)")
        return files
    files = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())  # noqa: PTH207
    if not files:
        raise InputError(f"{path} does not exist" if not glob.has_magic(str(path)) else f"no file matches {path}")
    return files


def _is_set(file: Path) -> bool:
    """Whether it is an augmentation set's, which lies in a folder of texts by chance."""
    return file.name == "augmentation.parquet" and (file.parent / "manifest.json").is_file()


def _files_under(folder: Path) -> Iterator[Path]:
    """Every file, those behind symbolic links to other folders too; no folder twice."""
    seen = {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, followlinks=True):
        links = {name: os.path.islink(Path(place) / name) for name in folders}  # noqa: PTH114
        folders[:] = []
        for name in sorted(links, key=lambda name: (links[name], name)):  # what a link leads to may stand beside it
            real = os.path.realpath(Path(place) / name)
            if real not in seen:
                seen.add(real)
                folders.append(name)
        yield from (path for name in files if (path := Path(place) / name).is_file())


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)
