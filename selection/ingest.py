"""Ingest: what the user names as a corpus is read, where it is new or has changed.

Parquet and Arrow files stay where they are. Everything else (and everything, under ``chunk``) is written once to
Parquet in the store.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from selection.convert import convert
from selection.encoders import STATIC, full_name
from selection.errors import InputError
from selection.files import ASIDE
from selection.finding import HUB, find_files
from selection.manifest import CorpusEntry
from selection.reading import COLUMNAR_KINDS, kind_of
from selection.scan import scan
from selection.slugs import encoder_held
from selection.store import Store

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class CorpusSpec:
    """One ``--corpus NAME=PATH`` with the options that shape its passages.

    Attributes:
        name: the corpus's name, the value of column ``source``.
        location: a file, folder, glob, or ``hf://owner/dataset[/CONFIGURATION][:split]``.
        text_column: where the text is.
        where: DuckDB condition over the file's columns and ``id``, ``text``, ``source``; None keeps all.
        chunk: most tokens of a passage, or None for rows as they are.
        chunk_model: whose tokenizer counts them.
    """

    name: str
    location: str
    text_column: str = "text"
    where: str | None = None
    chunk: int | None = None
    chunk_model: str | None = None

    def as_dict(self) -> dict[str, object]:
        """For the manifest."""
        value = asdict(self)
        value.pop("name")
        return {**value, "column": self.text_column}

    def nothing_left(self, blank: int, filtered: int) -> InputError:
        """Of a corpus without a passage."""
        left = f"{blank} blank and {filtered} left out by --where" if blank or filtered else "no rows at all"
        return InputError(f"corpus {self.name} ({self.location}) has no passage with text: {left}")


def parse_corpus(argument: str, option: str = "--corpus ") -> tuple[str, str]:
    """``NAME=PATH`` as (name, path).

    Raises:
        InputError: no name, no path, or a name that cannot be a folder's.
    """
    name, equals, location = argument.partition("=")
    if not equals or not location:
        raise InputError(f"{option}{argument}: write it as NAME=PATH, for example papers=papers.parquet")
    if not NAME.fullmatch(name) or name.endswith(ASIDE):
        raise InputError(f"corpus name {name!r}: use letters, digits, dot, dash and underscore")
    return name, location


def new_files(entry: CorpusEntry, store: Store) -> list[Path]:
    """Files that a corpus's folder or glob has now and had not when it was read; none where it is gone altogether."""
    location = str(entry.spec["location"])
    if location.startswith(HUB):
        return []
    known = {file.path for file in entry.sources}
    try:
        found = _outside(store, find_files(location, quiet=True))
        names = [store.relative(file) for file in found]
        if not known <= set(names):  # what is gone lives on in the store alone
            return []
        return [file for file, name in zip(found, names, strict=True) if name not in known]
    except InputError:
        return []


def _outside(store: Store, files: list[Path]) -> list[Path]:
    """Those that are not the store's, where it lies within the corpus's folder."""
    own = Path(os.path.abspath(store.path))  # noqa: PTH100
    return [file for file in files if not Path(os.path.abspath(file)).is_relative_to(own)]  # noqa: PTH100


def ingest(store: Store, spec: CorpusSpec) -> CorpusEntry:
    """Scans (and where needed converts) one corpus; reuses the scan in the manifest when no file has changed.

    Raises:
        InputError: nothing to read, a damaged file, no text column, a bad condition, not one passage with text.
    """
    if not spec.location.startswith(HUB):
        absolute = os.path.abspath(Path(spec.location).expanduser())  # noqa: PTH100
        spec = replace(spec, location=absolute)
    known = next((c for c in store.manifest.corpora if c.name == spec.name), None)
    if spec.chunk is not None:
        held = encoder_held(store, spec.chunk_model)
        spec = spec if held is None else replace(spec, chunk_model=held.model.removeprefix(STATIC))
        spec = replace(spec, chunk_model=_counting_model(store, spec, known))
    if spec.location.startswith(HUB):
        if known and _same(known, spec) and all(store.is_whole(f) for f in known.files):
            return known
        return convert(store, spec, [])
    files = _outside(store, find_files(spec.location))
    if not files:
        raise InputError(f"{spec.location} holds no file but the store's own")
    unmoved = known and _same(known, spec) and [f.path for f in known.sources] == [store.relative(f) for f in files]
    if known and unmoved and all(store.is_whole(f) for f in [*known.sources, *known.files]):
        return known
    kinds = {kind_of(f) for f in files}
    known = known if known and _same(known, spec) else None
    if kinds <= COLUMNAR_KINDS and spec.chunk is None:
        return scan(store, spec, files, known)
    return convert(store, spec, files, known)


def _counting_model(store: Store, spec: CorpusSpec, known: CorpusEntry | None) -> str | None:
    """Whose tokenizer counts a chunk's tokens: as asked, else as before, else that of the store's encoder."""
    if spec.chunk_model is not None:
        return full_name(spec.chunk_model)
    if known is not None and known.spec.get("chunk") is not None:
        before: str | None = known.spec.get("chunk_model")
        return before
    models = [store.manifest.encoders[slug].model for slug in store.manifest.in_use]
    return models[0].removeprefix(STATIC) if models else None


def _same(known: CorpusEntry, spec: CorpusSpec) -> bool:
    asked = spec.as_dict()
    return all(known.spec.get(key) == value for key, value in asked.items() if key != "column")
