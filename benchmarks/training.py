"""Training speed: nearkin's masked-LM training and finetuning beside the plain way (`benchmarks.plain_training`).

Every run has a process of its own, which tells its peak memory; the ways take turns seed by seed, so that a machine
that slows down slows all. Losses are measured by one routine on the task's dev texts, with the same masks for every
run. Rows are written as they come, and what is in the file is not measured again.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.choices import PARTS
from benchmarks.processes import alone, megabytes
from benchmarks.results import Row, machine, read_rows, write_rows
from selection.memory import peak_memory

WAYS = ("transformers Trainer", "nearkin, float32", "nearkin")
PLAIN = WAYS[0]


@dataclass(frozen=True)
class Training:
    """What every way trains alike.

    Attributes:
        model: the base.
        task: folder; its train split is trained on, its dev texts the loss is measured on.
        texts: further text for the masked LM.
        steps: of masked-LM training.
        batch: texts a masked-LM step.
        epochs: of finetuning.
        max_tokens: longest input.
        mlm_rate, rate: peak learning rates of masked LM and finetuning.
    """

    model: str
    task: Path
    texts: tuple[Path, ...] = ()
    steps: int = 200
    batch: int = 32
    epochs: int = 4
    max_tokens: int = 128
    mlm_rate: float = 3e-4
    rate: float = 1e-4


def training(
    what: Training,
    *,
    parts: Sequence[str] = PARTS,
    ways: Sequence[str] = WAYS,
    seeds: int = 3,
    out: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Measures every part, way and seed.

    Args:
        what: see `Training`.
        parts: of `PARTS`.
        ways: of `WAYS`.
        seeds: runs of each, seeds 0 to seeds - 1.
        out: rows are added to this Parquet file as they are measured.
        say: told each run.

    Returns:
        One row a run: ``part``, ``way``, ``seed``, of `Training` ``task``, ``model``, ``texts``, ``max_tokens``,
        ``batch``, ``mlm_rate``, ``rate``, ``steps`` and ``epochs`` (of the part that has them); ``tokens`` (None in
        finetuning), ``seconds``, ``tokens_s``, ``result`` (held-out loss in nats, or test F1 in per cent),
        ``memory_mb`` (peak).
    """
    rows = read_rows(out)
    same = {"task": what.task.name, "model": what.model, "max_tokens": what.max_tokens, "batch": what.batch}
    same |= {"mlm_rate": what.mlm_rate, "rate": what.rate, "machine": machine()}
    same["texts"] = " ".join(map(str, what.texts))
    lengths = {PARTS[0]: {"steps": what.steps, "epochs": None}, PARTS[1]: {"steps": None, "epochs": what.epochs}}
    known = {part: same | lengths[part] | {"part": part} for part in parts}
    done = {(part, row["way"], row["seed"]) for part in parts for row in rows if known[part].items() <= row.items()}
    with tempfile.TemporaryDirectory(prefix="nearkin-") as scratch:
        start = Path(scratch) / "start"
        _start(what.model, start)
        for part in parts:
            for seed in range(seeds):
                for way in ways:
                    if (part, way, seed) in done:
                        continue
                    row = alone(_measured, what, part, way, start, seed)
                    rows.append({**known[part], "way": way, "seed": seed, **row})
                    say(f"{part}, seed {seed}: {way} {row['seconds']:.1f} s, {row['result']:.3f}")
                    write_rows(rows, out)
    return [row for part in parts for row in rows if known[part].items() <= row.items()]


def summary(rows: Sequence[Row]) -> list[Row]:
    """One row a part and way: medians over seeds, means of the result, ratio of seconds a token to the plain way's.

    Args:
        rows: of `training`, of one task and model.
    """
    found: list[Row] = []
    for part in dict.fromkeys(row["part"] for row in rows):
        mine = [row for row in rows if row["part"] == part]
        costs = {}
        for way in dict.fromkeys(row["way"] for row in mine):
            runs = [row for row in mine if row["way"] == way]
            cost = statistics.median(row["seconds"] / (row["tokens"] or 1) for row in runs)
            costs[way] = cost
            found.append(
                {
                    "part": part,
                    "way": way,
                    "runs": len(runs),
                    "seconds": statistics.median(row["seconds"] for row in runs),
                    "tokens_s": None if runs[0]["tokens"] is None else 1 / cost,
                    "ratio": costs[PLAIN] / cost if PLAIN in costs else None,
                    "result": statistics.mean(row["result"] for row in runs),
                    "result_sd": statistics.stdev(row["result"] for row in runs) if len(runs) > 1 else None,
                    "memory_mb": max(row["memory_mb"] or 0 for row in runs) or None,
                }
            )
    return found


def _start(model: str, folder: Path) -> None:
    """The base as a masked LM, its head drawn where it has none, so that every way starts from the same weights."""
    from transformers import set_seed

    from adaptation.loading import load_masked_lm, load_tokenizer, transformer_folder
    from selection.models import quiet_libraries

    quiet_libraries()
    set_seed(0)
    source = transformer_folder(model)
    load_masked_lm(source)[0].save_pretrained(folder)
    load_tokenizer(source).save_pretrained(folder)


def _measured(what: Training, part: str, way: str, start: Path, seed: int) -> Row:
    """One run in this process."""
    from selection.models import quiet_libraries

    quiet_libraries()
    measure = _masked_lm if part == PARTS[0] else _finetuning
    return {**measure(what, way, start, seed), "memory_mb": megabytes(peak_memory())}


def _masked_lm(what: Training, way: str, start: Path, seed: int) -> Row:
    from adaptation.domain_loss import domain_losses
    from adaptation.mlm import AdaptSettings, adapt
    from adaptation.texts import read_training_text
    from benchmarks.plain_training import plain_masked_lm

    dev = what.task / "dev.jsonl"
    with tempfile.TemporaryDirectory(prefix="nearkin-") as scratch:
        out = Path(scratch) / "trained"
        sources = [what.task, *what.texts]
        if way == PLAIN:
            file = Path(scratch) / "texts.arrow"
            text = read_training_text(sources, file, held_out_file=dev, held_out=0.05, seed=seed).train
            network, tokens, seconds = plain_masked_lm(
                start, text, steps=what.steps, batch=what.batch, learning_rate=what.mlm_rate,
                max_tokens=what.max_tokens, seed=seed,
            )  # fmt: skip
            _save(network, start, out)
        else:
            settings = AdaptSettings(
                max_steps=what.steps, batch_size=what.batch, micro_batch=what.batch, learning_rate=what.mlm_rate,
                max_tokens=what.max_tokens, seed=seed, bf16=_bf16(way),
            )  # fmt: skip
            result = adapt(str(start), sources, out, settings=settings, held_out=dev)
            tokens, seconds = result.training_tokens, result.training_seconds
        loss = domain_losses(str(out), [("dev", str(dev))], max_tokens=what.max_tokens)[0]
    return {"tokens": tokens, "seconds": seconds, "tokens_s": tokens / seconds, "result": loss}


def _finetuning(what: Training, way: str, start: Path, seed: int) -> Row:
    from adaptation.classifier import Finetuning
    from adaptation.finetune import FinetuneSettings
    from adaptation.precision import use_bf16
    from adaptation.tasks import load_labelled, metric_of
    from adaptation.training import repeatable
    from benchmarks.plain_training import plain_finetuning

    task = load_labelled(what.task)
    metric = metric_of(task.task.name)
    if way == PLAIN:
        score, seconds = plain_finetuning(
            start, task, metric, epochs=what.epochs, learning_rate=what.rate, max_tokens=what.max_tokens, seed=seed
        )
    else:
        settings = FinetuneSettings(
            epochs=what.epochs, patience=what.epochs, learning_rate=what.rate, max_tokens=what.max_tokens
        )
        run = Finetuning(start, task, settings, metric, use_bf16(_bf16(way)), lambda line: None)
        with repeatable():
            _, result, _ = run.train(seed)
        score, seconds = result.test, result.seconds
    return {"tokens": None, "seconds": seconds, "tokens_s": None, "result": score}


def _bf16(way: str) -> str:
    return "off" if way.endswith("float32") else "auto"


def _save(network: object, start: Path, out: Path) -> None:
    from adaptation.loading import load_tokenizer

    network.save_pretrained(out)  # type: ignore[attr-defined]
    load_tokenizer(start).save_pretrained(out)


def plot_training(rows: Sequence[Row], path: Path) -> None:
    """Speed over the plain way's, a bar a way, a panel a part.

    Args:
        rows: of `summary`.
        path: .png, .svg or .pdf.
    """
    from matplotlib.figure import Figure

    from selection.plotting import save

    parts = list(dict.fromkeys(row["part"] for row in rows))
    figure = Figure(figsize=(5.5 * len(parts), 2.6), layout="constrained")
    for number, part in enumerate(parts):
        axes = figure.add_subplot(1, len(parts), number + 1)
        mine = [row for row in rows if row["part"] == part][::-1]
        colours = ["tab:gray" if row["way"] == PLAIN else "tab:blue" for row in mine]
        bars = axes.barh([row["way"] for row in mine], [row["ratio"] for row in mine], color=colours)
        unit = "loss" if part == PARTS[0] else "F1"
        axes.bar_label(
            bars, [f"{row['ratio']:.2f}x, {unit} {row['result']:.2f}" for row in mine], padding=3, fontsize=8
        )
        axes.set_xlim(0, 1.6 * max(row["ratio"] for row in mine))
        axes.set_title(part)
        axes.set_xlabel("speed over the plain way's")
    save(figure, path)
