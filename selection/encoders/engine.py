"""Engine: what runs a model on token ids. One protocol, so that the fastest at hand can be chosen by trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from selection.tokens import Ragged

Tick = Callable[[npt.NDArray[np.int64]], None]


def no_tick(rows: npt.NDArray[np.int64]) -> None:
    """Nobody watches."""


class Engine(Protocol):
    """A model in memory.

    Attributes:
        name: ``torch`` or ``openvino``.
        dim: length of a vector.
    """

    name: str
    dim: int

    def run(self, inputs: Ragged, tick: Tick) -> npt.NDArray[np.float32]:
        """Vectors float32 [rows, dim] as the model leaves them; `tick` is told which rows are done.

        Args:
            inputs: token ids with special tokens, cut to the model's limit.
        """
        ...
