"""Classification on a task: `nearkin finetune` (Don't Stop Pretraining, appendix table 14).

A feed-forward layer over the final [CLS] vector, trained with the encoder. Where an architecture has a pooler (BERT),
the pooler is that layer's first half, and it is drawn anew for every seed: a masked-LM checkpoint has no pooler and
the model it came from has one, so with a kept pooler two arms of a comparison would start from different places.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adaptation.settings import FinetuneSettings as FinetuneSettings
from adaptation.tasks import LabelledTask, Metric, load_labelled, metric_of, some
from selection.errors import NearkinError
from selection.files import atomic_folder, atomic_write, fingerprint, write_json
from selection.models import model_fingerprint, quiet_libraries
from selection.versions import versions

logger = logging.getLogger(__name__)

RESULT_FILE, PREDICTIONS = "results.json", "predictions.parquet"


@dataclass(frozen=True)
class SeedResult:
    """One seed's F1 (percent) at its best dev epoch (counted from 1), and its wall time."""

    dev: float
    test: float
    best_epoch: int
    epochs: int
    seconds: float


@dataclass(frozen=True)
class FinetuneResult:
    """F1 in percent over seeds.

    Attributes:
        out: folder with ``results.json``.
        metric: ``macro-F1`` or ``micro-F1``.
        by_seed: what each seed reached.
    """

    out: Path
    metric: str
    by_seed: dict[int, SeedResult]

    def mean(self, split: str) -> float:
        """Mean F1 on ``dev`` or ``test``."""
        return float(np.mean([getattr(result, split) for result in self.by_seed.values()]))

    def std(self, split: str) -> float | None:
        """Sample standard deviation (n - 1); None for one seed."""
        values = [getattr(result, split) for result in self.by_seed.values()]
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


def f1(labels: np.ndarray[Any, Any], predictions: np.ndarray[Any, Any], metric: Metric) -> float:
    """F1 in percent over int arrays [examples]; a class that is neither present nor predicted does not count."""
    from sklearn.metrics import f1_score

    return float(100 * f1_score(labels, predictions, average=metric, zero_division=0))


def finetune(
    model: str,
    task: Path | str,
    out: Path,
    *,
    settings: FinetuneSettings | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = logger.info,
) -> FinetuneResult:
    """Finetunes `model` on a task once a seed and writes ``results.json`` and ``predictions.parquet`` after each.

    The latter holds the test examples: ``seed``, ``example`` (row of the file, from 0), ``label``, ``predicted``.
    A stopped run continues with the seeds that are left; one with more seeds adds them.

    Args:
        model: see `selection.models.resolve_model`.
        task: folder with labelled train, dev and test .jsonl.
        out: folder for what is written and, with `FinetuneSettings.keep_model`, ``model``.
        settings: None for the defaults.
        overwrite: start anew where `out` holds results of something else.
        say: is told the plan and each epoch's dev F1.

    Raises:
        InputError: see `load_labelled`.
        ModelError: a model that cannot be loaded.
        NearkinError: `out` holds results of another model, task or settings, or another process is at work there; a
            loss that is not a number.
    """
    settings, out = settings or FinetuneSettings(), Path(out)
    quiet_libraries()
    from adaptation.loading import transformer_folder
    from adaptation.training import alone_at, repeatable

    labelled, folder = load_labelled(task), transformer_folder(model)
    try:
        with alone_at(out, out / ".lock"), repeatable():
            return _finetune(model, folder, labelled, out, settings, overwrite, say)
    finally:
        with suppress(OSError):  # made for the lock alone
            out.rmdir()


def _finetune(
    model: str,
    folder: Path,
    task: LabelledTask,
    out: Path,
    settings: FinetuneSettings,
    overwrite: bool,
    say: Callable[[str], None],
) -> FinetuneResult:
    from adaptation.classifier import Finetuning
    from adaptation.precision import use_bf16
    from adaptation.training import full_disk_told, of_first, processes

    metric = settings.metric or metric_of(task.task.name)
    identity = _identity(folder, task, settings, metric, processes().num_processes)
    done, bf16 = _done(out, identity, overwrite)
    stale = not done and _kept_model(out) and not folder.resolve().is_relative_to((out / "model").resolve())
    bf16 = bool(of_first(use_bf16(settings.bf16))) if bf16 is None else bf16
    run = Finetuning(folder, task, settings, metric, bf16, say)
    left = [seed for seed in range(settings.seeds) if seed not in done]
    examples = {split: len(table) for split, table in task.splits.items()}
    say(
        f"{task.task.name}: {examples['train']} / {examples['dev']} / {examples['test']} examples, "
        f"{len(task.labels)} classes, {metric}-F1; at most {run.epochs} epochs of {run.steps} steps for "
        f"{len(left)} seeds{f' ({len(done)} done before)' if done else ''}"
    )
    if run.cut:
        say(f"{run.cut} of {sum(examples.values())} examples are longer than {run.max_tokens} tokens and cut")
    if rare := task.rare():
        say(f"one training example only of {some(rare)}: its F1 is luck, and weighs as much as any class's in macro-F1")
    result = FinetuneResult(out, f"{metric}-F1", done)
    header = {
        "model": model, "task": str(task.task.path), "task_name": task.task.name, "labels": task.labels,
        "examples": examples, "identity": identity,
        "settings": asdict(settings)
        | {"epochs": run.epochs, "metric": metric, "bf16": run.bf16, "max_tokens": run.max_tokens},
        "batch": {"processes": processes().num_processes, "each": run.per_device},
    }  # fmt: skip
    for seed in left:
        classifier, done[seed], predicted = run.train(seed)
        if not run.is_main_process:
            continue
        if settings.keep_model and done[seed].dev >= max(r.dev for r in done.values()):
            with atomic_folder(out / "model", overwrite=True) as place, full_disk_told(out / "model"):
                classifier.save_pretrained(place)
                run.fresh_tokenizer().save_pretrained(place)
        if stale and len(done) == 1 and not settings.keep_model:
            shutil.rmtree(out / "model", ignore_errors=True)
        _keep_predictions(out / PREDICTIONS, seed, task, predicted, fresh=len(done) == 1)
        write_json(out / RESULT_FILE, header | figures(result) | {"versions": versions()})
    return result


def _keep_predictions(file: Path, seed: int, task: LabelledTask, predicted: npt.NDArray[np.int64], fresh: bool) -> None:
    """Adds a seed's classes of the test examples to those of other seeds, unless it is the first one."""
    names, count = pa.array(task.labels), len(predicted)
    table = pa.table(
        {
            "seed": np.full(count, seed, np.int32),
            "example": np.arange(count, dtype=np.int32),
            "label": names.take(task.splits["test"]["label"].combine_chunks()),
            "predicted": names.take(pa.array(predicted)),
        }
    )
    if not fresh and file.exists():
        known = pq.read_table(file)
        table = pa.concat_tables([known.filter(pc.not_equal(known["seed"], seed)), table])
    with atomic_write(file) as aside:
        pq.write_table(table, aside)


def _identity(folder: Path, task: LabelledTask, settings: FinetuneSettings, metric: str, processes: int) -> str:
    # The number of seeds is left out, so that more of them can be added to a finished run.
    shaping = asdict(settings) | {"seeds": None, "metric": metric}
    if processes > 1:  # which draw other dropout, and may take other batches
        shaping["processes"] = processes
    return fingerprint(model_fingerprint(folder), task.identity(), json.dumps(shaping, sort_keys=True))


def _done(out: Path, identity: str, overwrite: bool) -> tuple[dict[int, SeedResult], bool | None]:
    """Seeds that earlier runs finished, and whether they trained in bfloat16."""
    file = out / RESULT_FILE
    if not file.exists():
        return {}, None
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        if known["identity"] == identity:
            seeds = {int(seed): SeedResult(**result) for seed, result in known["seeds"].items()}
            return seeds, bool(known["settings"]["bf16"])
    except (ValueError, KeyError, TypeError) as error:
        if not overwrite:
            raise NearkinError(
                f"{file} is not a result of nearkin: name another folder, or pass --overwrite"
            ) from error
        return {}, None
    if overwrite:
        return {}, None
    raise NearkinError(
        f"{file} holds results of another model, task or settings: name another folder, or pass --overwrite"
    )


def _kept_model(out: Path) -> bool:
    """Whether the results there, which others take the place of, have their classifier beside them."""
    try:
        known = json.loads((out / RESULT_FILE).read_text(encoding="utf-8"))
        return bool(known["settings"]["keep_model"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def figures(result: FinetuneResult) -> dict[str, Any]:
    """What ``results.json`` says of a result: each seed by its number as text, and means and deviations by split."""
    seeds = sorted(result.by_seed.items())
    found: dict[str, Any] = {
        "metric": result.metric,
        "best_epoch": {str(seed): r.best_epoch for seed, r in seeds},
        "seconds": round(sum(r.seconds for _, r in seeds), 3),
        "seeds": {str(seed): asdict(r) for seed, r in seeds},
    }
    for split in ("dev", "test"):
        found[split] = {str(seed): getattr(r, split) for seed, r in seeds}
        found[f"{split}_mean"], found[f"{split}_std"] = result.mean(split), result.std(split)
    return found
