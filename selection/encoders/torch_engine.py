"""The model in torch, on any device: batches copied ahead from pinned memory, results copied back behind.

A GPU must never wait for Python. So results are copied as soon as they are there and waited for two batches later, and
the transformer is given masks that need no look: transformers asks of one for each token whether it hides any, which
waits for all that the GPU was given before.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selection.devices import free_memory, out_of_memory
from selection.encoders.batches import batches
from selection.encoders.engine import Tick
from selection.errors import NearkinError
from selection.tokens import Ragged

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)

BUDGET = {"cpu": 4096, "cuda": 131_072}
OTHER_BUDGET = 16_384
LEAST_BUDGET = 2048
WINDOWED = ("sliding_window", "layer_types", "local_attention", "attention_window")


class TorchEngine:
    """See `selection.encoders.engine.Engine`.

    Where a batch does not fit the device's memory, those after it are half as large, and the last bits of vectors may
    differ from what larger ones give.

    Args:
        model: loaded in the precision and on the device that it is to run in.
        pad: the token behind short rows.
    """

    name = "torch"

    def __init__(self, model: SentenceTransformer, pad: int) -> None:
        self._model, self._pad, self._device = model.eval(), pad, model.device
        self._budget = BUDGET.get(self._device.type, OTHER_BUDGET)
        self._rows = 1  # the fewest of a batch
        self._whole = False  # whether the batch at hand has no padding
        self._before: Any = None  # the forward that a compiled one stands for, where it is none of the class's
        self.compiled = self.masked = False
        self.dim = int(model.get_embedding_dimension())

    def compile(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Has torch compile the transformer for batches of any shape: what lies between products is fused.

        It is done at the first batch, in about a minute. Attention is then always given its mask, so it takes the
        memory-efficient kernel, never flash attention, which a batch without padding gets else. `undo_compile` undoes
        it, and so does a batch that fails.
        """
        import torch

        self._plain_budget = self._budget
        # sentence-transformers calls forward itself, so what Module.compile changes would go unnoticed.
        transformer: Any = self._model[0].auto_model
        self._before = vars(transformer).pop("forward", None)
        transformer.forward = torch.compile(transformer.forward, dynamic=True, backend=backend)
        self._rows = 2  # for one row torch would compile it again
        self.compiled = True

    def undo_compile(self) -> None:
        """The engine as it was before `compile`."""
        if self.compiled:
            vars(self._model[0].auto_model).pop("forward")
            if self._before is not None:
                self._model[0].auto_model.forward = self._before
            self._rows, self._budget, self.compiled = 1, self._plain_budget, False

    def mask(self) -> None:
        """Gives the transformer no mask for a batch without padding, else one of every key, bool [b, 1, 1, width].

        Such a one transformers takes as it is, so a model with windows of attention, which would lose them, is left
        alone. Others must be compared; `undo_mask` undoes it.
        """
        config = self._model[0].auto_model.config
        if any(getattr(config, name, None) for name in WINDOWED):
            return
        transformer: Any = self._model[0].auto_model
        plain = transformer.forward

        def forward(**features: Any) -> Any:
            mask = features.pop("attention_mask")
            return plain(attention_mask=None if self._whole else mask[:, None, None, :].bool(), **features)

        transformer.forward, self.masked = forward, True

    def undo_mask(self) -> None:
        """The engine as it was before `mask`."""
        if self.masked:
            vars(self._model[0].auto_model).pop("forward")
            self.masked = False

    def run(self, inputs: Ragged, tick: Tick) -> npt.NDArray[np.float32]:
        out, todo = np.empty((len(inputs), self.dim), dtype=np.float32), np.ones(len(inputs), dtype=np.bool_)

        def collect(rows: npt.NDArray[np.int64], fetch: Callable[[], npt.NDArray[np.float32]]) -> None:
            out[rows], todo[rows] = fetch(), False
            tick(rows)

        while todo.any():
            try:
                self._run(inputs, np.flatnonzero(todo), collect)
            except Exception as error:
                if out_of_memory(error):
                    if self._budget <= LEAST_BUDGET:
                        raise NearkinError(
                            f"{self._device} has too little memory for a batch of this encoder: cut its input with "
                            "--max-tokens, or use --device cpu"
                        ) from error
                    self._budget //= 2
                    free_memory()
                    continue
                if not self.compiled:  # else it is whatever a compiler and its own tools fail with
                    raise
                log.warning("compiled, a batch fails (%s): the model goes on as it was", type(error).__name__)
                self.undo_compile()
        return out

    def _run(self, inputs: Ragged, rows: npt.NDArray[np.int64], collect: Callable[..., None]) -> None:
        """Batch after batch of these rows; a GPU is given the next ones before the vectors of one are waited for."""
        import torch

        ahead = 0 if self._device.type == "cpu" else 2
        waiting: deque[tuple[npt.NDArray[np.int64], Callable[[], npt.NDArray[np.float32]]]] = deque()
        try:
            with torch.inference_mode():
                for batch in batches(inputs.take(rows), self._budget, self._pad):
                    count, ids, mask = len(batch.rows), batch.ids, batch.mask
                    if count < self._rows:
                        ids, mask = np.repeat(ids, self._rows, axis=0), np.repeat(mask, self._rows, axis=0)
                    self._whole = bool(mask.all())
                    features = {"input_ids": self._on_device(ids), "attention_mask": self._on_device(mask)}
                    vectors = self._model(features)["sentence_embedding"][:count].float()
                    waiting.append((rows[batch.rows], self._fetched(vectors)))
                    while len(waiting) > ahead:
                        collect(*waiting.popleft())
                while waiting:
                    collect(*waiting.popleft())
        finally:
            self._whole = False  # the model's own encode takes the same transformer

    def _fetched(self, vectors: torch.Tensor) -> Callable[[], npt.NDArray[np.float32]]:
        """What waits for vectors, float32 [b, dim], and gives them; their copy from a GPU stands right behind them."""
        import torch

        if self._device.type != "cuda":
            return lambda: np.asarray(vectors.cpu().numpy())
        copy = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
        copy.copy_(vectors, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self._device))

        def fetch() -> npt.NDArray[np.float32]:
            done.synchronize()
            return np.asarray(copy.numpy())

        return fetch

    def _on_device(self, values: npt.NDArray[np.int64]) -> Any:
        import torch

        tensor = torch.from_numpy(values)
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)
