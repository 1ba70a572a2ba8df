"""A folder that takes long to fill: what a killed run leaves of it is where the next goes on."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selection.files import check_replaceable, explained, put_folder, write_json
from selection.versions import version_of

STATE = "state.json"
FORMAT = 2  # of what folders hold and states say
LEFT = f".*.unfinished/{STATE}"
SECONDS, TIMES = 10, 20


def made_by() -> str:
    """What must be the same for one to go on where another stopped."""
    return f"format {FORMAT}, nearkin {version_of('nearkin')}"


def unfinished_folder(path: Path) -> Path:
    """Where what is to be `path` is filled."""
    return path.with_name(f".{path.name}.unfinished")


class Unfinished:
    """What is on its way to be a folder.

    Attributes:
        folder: where to write.
        state: what `save` was last given by a run that was to make the same; None where there is none.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self._about = {"by": made_by(), **about}
        self.state = self._read()
        self._saved, self._took = time.monotonic(), 0.0

    def _read(self) -> Any:
        try:
            left = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
            return left["state"] if left["about"] == self._about else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, state: Any, at_once: bool = False) -> bool:
        """Notes how far it is, what is in the folder being as it should be then; seldom, since noting takes a moment.

        Returns:
            Whether it was noted.
        """
        begun = time.monotonic()
        if not at_once and begun - self._saved < max(SECONDS, TIMES * self._took):
            return False
        write_json(self.folder / STATE, {"about": self._about, "state": state})
        self._saved = time.monotonic()
        self._took = self._saved - begun
        return True


@contextmanager
def unfinished(path: Path, about: Mapping[str, Any]) -> Iterator[Unfinished]:
    """Yields a folder to fill, or to go on filling; on success it becomes `path`, in place of what was there.

    Where this is stopped after something was noted, it stays.

    Args:
        about: all that what is in the folder depends on, as JSON. What is left of something else is cleared away.

    Raises:
        NearkinError: `path` cannot be replaced.
    """
    check_replaceable(path, overwrite=True)
    path = Path(os.path.realpath(path))
    folder = unfinished_folder(path)
    with explained(path):
        folder.mkdir(parents=True, exist_ok=True)
        under_way = Unfinished(folder, about)
        if under_way.state is None:
            shutil.rmtree(folder)
            folder.mkdir()
    try:
        with explained(path, folder):
            yield under_way
        put_folder(folder, path, without=STATE)
    finally:
        if not (folder / STATE).exists():
            shutil.rmtree(folder, ignore_errors=True)
