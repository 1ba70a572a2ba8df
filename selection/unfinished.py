"""A folder that takes long to fill: what a killed run leaves of it is where the next goes on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selection.errors import InputError
from selection.files import explained, put_folder, write_json

PATTERN = ".*.unfinished"
STATE = "state.json"
SECONDS, TIMES = 10, 20


class Unfinished:
    """What is on its way to be a folder.

    Attributes:
        folder: where to write.
        state: what `save` was last given by a run that was to make the same; None where there is none.
    """

    def __init__(self, folder: Path, about: Any) -> None:
        self.folder, self._about = folder, json.loads(json.dumps(about, default=vars))
        self.state = self._read()
        self._saved, self._took = time.monotonic(), 0.0

    def _read(self) -> Any:
        try:
            left = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
            return left["state"] if left["about"] == self._about else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, state: Any) -> bool:
        """Notes how far it is, what is in the folder being as it should be then; seldom, since noting takes a moment.

        Returns:
            Whether it was noted.
        """
        begun = time.monotonic()
        if begun - self._saved < max(SECONDS, TIMES * self._took):
            return False
        write_json(self.folder / STATE, {"about": self._about, "state": state})
        self._saved = time.monotonic()
        self._took = self._saved - begun
        return True


@contextmanager
def unfinished(path: Path, about: Any) -> Iterator[Unfinished]:
    """Yields a folder to fill, or to go on filling; on success it becomes `path`, in place of what was there.

    It stays where this is stopped, but for bad input, which nothing need be kept of.

    Args:
        about: all that what is in the folder depends on, as JSON. What is left of something else is cleared away.
    """
    folder = path.with_name(PATTERN.replace("*", path.name))
    with explained(path):
        folder.mkdir(parents=True, exist_ok=True)
        under_way = Unfinished(folder, about)
        if under_way.state is None:
            shutil.rmtree(folder)
            folder.mkdir()
    try:
        with explained(path, folder):
            yield under_way
    except InputError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    (folder / STATE).unlink(missing_ok=True)
    put_folder(folder, path)
