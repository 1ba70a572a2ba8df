"""int8: post-training quantization by NNCF, calibrated on the user's own corpus and kept only where it is good enough.

Half of a sample of passages calibrates; the other half says what it cost: the share of each passage's exact neighbours
that the int8 vectors find again (recall). Candidates go from the fastest to the most exact, and the first that reaches
the recall asked for is kept:

1. every matrix product in int8, attention's too;
2. attention in float32;
3. weights in int8, activations quantized as they come, 128 numbers at a time.

Each ends in an affine map fitted on the calibrating half, from the int8 vectors to the exact ones. It mends what of the
error is systematic: about half a point of recall for no time (docs/log.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selection.encoders.batches import batches
from selection.encoders.engine import no_tick
from selection.encoders.openvino_engine import INSTALL, OpenVinoEngine, convert
from selection.encoders.recall import told, worth
from selection.errors import ModelError
from selection.tokens import Ragged

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)

CALIBRATION_TOKENS = 1024
CALIBRATION_BATCHES = 40
RIDGE = 1.0
ATTENTION = ".*scaled_dot_product.*"
CANDIDATES = ("all of it", "attention in float32", "activations as they come")


@dataclass(frozen=True)
class Quantized:
    """An int8 model and what it was found to be worth.

    Attributes:
        model: the openvino.Model.
        candidate: which of `CANDIDATES`.
        worth: see `selection.encoders.recall.worth`.
    """

    model: Any
    candidate: str
    worth: dict[str, float | int]

    def save(self, path: Path) -> None:
        """Writes `path` (.xml) and the weights beside it (.bin)."""
        import openvino

        openvino.save_model(self.model, str(path), compress_to_fp16=False)


def available() -> bool:
    """Whether what quantizes is installed."""
    return find_spec("nncf") is not None and find_spec("openvino") is not None


def quantize(
    pipeline: SentenceTransformer,
    inputs: Ragged,
    exact: npt.NDArray[np.float32],
    pad: int,
    min_recall: float,
    report: Callable[[str], None] = log.info,
) -> Quantized:
    """The fastest candidate whose recall is at least `min_recall`.

    Args:
        pipeline: the float32 model on the CPU.
        inputs: token ids of a sample of the corpus, with special tokens, in random order.
        exact: float32 [n, dim], the model's own unit vectors of them.
        pad: the padding token.

    Raises:
        ModelError: NNCF or OpenVINO is missing, or no candidate reaches `min_recall`.
    """
    if not available():
        raise ModelError(f"--precision int8 needs OpenVINO and NNCF: {INSTALL}")
    half = len(inputs) // 2
    fit, held = inputs.take(np.arange(half)), inputs.take(np.arange(half, len(inputs)))
    graph = convert(pipeline)
    tried = []
    for candidate in CANDIDATES:
        model = _quantize(graph.clone(), candidate, fit, pad)
        shift = _affine_map(OpenVinoEngine(model, "int8", pad).run(fit, no_tick), exact[:half])
        _append(model, *shift)
        vectors = OpenVinoEngine(model, "int8", pad).run(held, no_tick)
        found = worth(vectors, exact[half:])
        report(f"int8    {candidate}: {told(found)}")
        if found["recall"] >= min_recall:
            return Quantized(model, candidate, found)
        tried.append(found["recall"])
    raise ModelError(
        f"int8 finds {max(tried):.1%} of this corpus's exact neighbours again and {min_recall:.0%} are asked for: "
        "choose --precision exact, or allow less with --min-recall"
    )


def _quantize(graph: Any, candidate: str, fit: Ragged, pad: int) -> Any:
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)  # set_log_level would change handlers that others attached
    with _silence():
        if candidate == "activations as they come":
            table = nncf.IgnoredScope(types=["Gather"], validate=False)
            return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=table)
        order = np.random.default_rng(0).permutation
        rows = list(batches(fit, CALIBRATION_TOKENS, pad))
        chosen = [rows[i] for i in order(len(rows))[:CALIBRATION_BATCHES]]
        data = nncf.Dataset([{0: batch.ids, 1: batch.mask} for batch in chosen])
        scope = nncf.IgnoredScope(patterns=[ATTENTION], validate=False)
        return nncf.quantize(
            graph,
            data,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(chosen),
            ignored_scope=None if candidate == "all of it" else scope,
        )


def _affine_map(
    have: npt.NDArray[np.float32], want: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(matrix [dim, dim], bias [dim]) of the ridge regression from `have` to `want`, shrunk towards no change."""
    have = have / np.linalg.norm(have, axis=1, keepdims=True)
    rest = want - have
    mean = rest.mean(axis=0)
    inner = have.T @ have + RIDGE * np.eye(have.shape[1], dtype=np.float32)
    matrix = np.linalg.solve(inner, have.T @ (rest - mean))
    bias = mean - (have @ matrix).mean(axis=0)
    return (matrix + np.eye(len(matrix))).astype(np.float32), bias.astype(np.float32)


def _append(model: Any, matrix: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> None:
    """Puts unit length, the affine map and unit length again behind the model's output."""
    from openvino import opset13 as ops

    result = model.get_results()[0]
    axis, tiny = ops.constant(np.array([1])), 1e-12
    unit = ops.normalize_l2(result.input_value(0), axis, tiny, "max")
    mapped = ops.add(ops.matmul(unit, ops.constant(matrix), False, False), ops.constant(bias[None]))
    output = ops.normalize_l2(mapped, axis, tiny, "max")
    result.input(0).replace_source_output(output.output(0))
    model.validate_nodes_and_infer_types()


def _silence() -> Any:
    """NNCF draws its progress bars on standard output, which is for results."""
    import contextlib
    import io

    return contextlib.redirect_stdout(io.StringIO())
