"""The model in torch, on any device: batches copied ahead from pinned memory, results copied back behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selection.encoders.batches import batches
from selection.encoders.engine import Tick
from selection.errors import NearkinError
from selection.tokens import Ragged

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BUDGET = {"cpu": 4096, "cuda": 131_072}
OTHER_BUDGET = 16_384


class TorchEngine:
    """See `selection.encoders.engine.Engine`.

    Args:
        model: loaded in the precision and on the device that it is to run in.
        pad: the token behind short rows.
    """

    name = "torch"

    def __init__(self, model: SentenceTransformer, pad: int) -> None:
        self._model, self._pad, self._device = model.eval(), pad, model.device
        self.dim = int(model.get_embedding_dimension())

    def run(self, inputs: Ragged, tick: Tick) -> npt.NDArray[np.float32]:
        import torch

        out = np.empty((len(inputs), self.dim), dtype=np.float32)
        waiting: list[tuple[npt.NDArray[np.int64], Any]] = []
        try:
            with torch.inference_mode():
                for batch in batches(inputs, BUDGET.get(self._device.type, OTHER_BUDGET), self._pad):
                    features = {"input_ids": self._on_device(batch.ids), "attention_mask": self._on_device(batch.mask)}
                    vectors = self._model(features)["sentence_embedding"].float()
                    waiting.append((batch.rows, vectors))
                    # A GPU is given the next batch before the last one's vectors are waited for.
                    _collect(out, waiting, tick, keep=0 if self._device.type == "cpu" else 2)
            _collect(out, waiting, tick, keep=0)
        except torch.OutOfMemoryError as error:
            raise NearkinError(
                f"{self._device} has too little memory for a batch of this encoder: cut its input with --max-tokens, "
                "or use --device cpu"
            ) from error
        return out

    def _on_device(self, values: npt.NDArray[np.int64]) -> Any:
        import torch

        tensor = torch.from_numpy(values)
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)


def _collect(
    out: npt.NDArray[np.float32], waiting: list[tuple[npt.NDArray[np.int64], Any]], tick: Tick, keep: int
) -> None:
    while len(waiting) > keep:
        rows, vectors = waiting.pop(0)
        out[rows] = vectors.cpu().numpy()
        tick(rows)
