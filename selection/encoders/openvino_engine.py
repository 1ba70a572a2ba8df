"""The model in OpenVINO, on the CPU: the whole pipeline (transformer, pooling, normalisation) as one graph.

`convert` traces sentence-transformers' own modules, so the graph is theirs (tested); nothing is assumed of the
architecture. As many streams as cores, one thread each: a batch then stays in its core's cache, and no thread waits for
another. Optional: ``pip install 'nearkin[openvino]'``.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selection.encoders.batches import batches
from selection.encoders.engine import Tick
from selection.errors import ModelError
from selection.tokens import Ragged

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BUDGET = 2048
HINTS = {"exact": "f32", "bf16": "bf16", "int8": "f32"}
INSTALL = "pip install 'nearkin[openvino]'"


def available() -> bool:
    """Whether OpenVINO is installed."""
    return find_spec("openvino") is not None


def convert(model: SentenceTransformer) -> Any:
    """The openvino.Model of a float32 model on the CPU: ids and mask int64 [b, n] in, float32 [b, dim] out.

    Raises:
        ModelError: OpenVINO cannot express it.
    """
    import openvino
    import torch

    class Pipeline(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            features = {"input_ids": input_ids, "attention_mask": attention_mask}
            for step in self.steps:
                features = step(features)
            return features["sentence_embedding"]

    example = {"input_ids": torch.full((2, 9), 5), "attention_mask": torch.ones(2, 9, dtype=torch.int64)}
    with torch.no_grad(), _quiet():
        try:
            return openvino.convert_model(Pipeline().eval(), example_input=example)
        except Exception as error:  # it raises several kinds, RuntimeError and its own among them
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"OpenVINO cannot convert this encoder ({reason}): it runs in torch") from error


class OpenVinoEngine:
    """See `selection.encoders.engine.Engine`.

    Args:
        model: an openvino.Model, or the path of its .xml.
        precision: ``exact``, ``bf16``, or ``int8`` for a model that was quantized.
        pad: the token behind short rows.
    """

    name = "openvino"

    def __init__(self, model: Any, precision: str, pad: int) -> None:
        import openvino

        cores = os.cpu_count() or 1
        if hasattr(os, "sched_getaffinity"):
            cores = len(os.sched_getaffinity(0))
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "NUM_STREAMS": str(cores),
            "INFERENCE_NUM_THREADS": str(cores),
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128" if precision == "int8" else "0",
        }
        source = str(model) if isinstance(model, Path) else model
        try:
            self._compiled = openvino.Core().compile_model(source, "CPU", settings)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ModelError(f"OpenVINO cannot run this encoder ({reason}): build it anew without it") from error
        self._queue = openvino.AsyncInferQueue(self._compiled, cores)
        self._pad = pad
        self.dim = int(self._compiled.output(0).get_partial_shape()[1].get_length())

    def run(self, inputs: Ragged, tick: Tick) -> npt.NDArray[np.float32]:
        out = np.empty((len(inputs), self.dim), dtype=np.float32)

        def done(request: Any, rows: npt.NDArray[np.int64]) -> None:
            out[rows] = request.get_output_tensor(0).data
            tick(rows)

        self._queue.set_callback(done)
        try:
            for batch in batches(inputs, BUDGET, self._pad):
                self._queue.start_async({0: batch.ids, 1: batch.mask}, userdata=batch.rows)
        finally:
            self._queue.wait_all()
        return out


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the tracers' notices out of this program's output."""
    loggers = [logging.getLogger(name) for name in ("transformers", "sentence_transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
