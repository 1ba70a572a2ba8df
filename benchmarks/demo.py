"""The demo: everything, end to end, on text that every installation has, in minutes.

The corpus is docstrings of the installed packages, the task is to tell which library a docstring belongs to. Four arms
are compared: no adaptation, TAPT, and TAPT with as many tokens of random or of nearest passages beside the task's own
text. Each adapted arm takes the same number of optimiser steps, and every masked-LM loss is measured on the task's
dev texts with the same masks. Whatever the F1 says is what is printed: 200 examples and one seed show how the pieces
fit, not which method is best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from adaptation.finetune import FinetuneSettings, finetune
from adaptation.mlm import AdaptSettings, adapt
from benchmarks.harvest import harvest, write_harvest
from selection.augmentation import AugmentationSet, Budget, select
from selection.building import build
from selection.files import write_json
from selection.ingest import CorpusSpec
from selection.models import DEFAULT_ENCODER
from selection.querying import query
from selection.terminal import aligned, plain
from selection.wording import human_seconds, or_dash

PASSAGES = 2000
TOKENS = 30_000
STEPS = 24
BATCH = 24
EPOCHS = 3
TRAIN, DEV, TEST = 200, 100, 300
ARMS: dict[str, str | None] = {"none": None, "TAPT": None, "RAND-TAPT": "random", "kNN-TAPT": "knn"}


@dataclass(frozen=True)
class Arm:
    """One row of the demo's table; None where the arm has no such thing. F1 in per cent, loss in nats."""

    arm: str
    passages: int | None
    selection_seconds: float | None
    pretraining_tokens: int | None
    masked_lm_loss: float | None
    f1: float


def demo(
    folder: Path | str, *, seed: int = 0, overwrite: bool = False, say: Callable[[str], None] = lambda line: None
) -> list[Arm]:
    """Runs the demo in `folder` and writes FOLDER/results.json; what is there already (store, corpus) is reused.

    Args:
        folder: gets harvest/, store/, sets/, models/, results/.
        seed: of the harvest, the selection and the training.
        overwrite: redo sets, models and results that an earlier demo left.
        say: takes what is to be shown, a line at a time.
    """
    folder = Path(folder)
    say("1  harvesting docstrings of the installed packages")
    harvested = harvest(passages=PASSAGES, seed=seed, train=TRAIN, dev=DEV, test=TEST)
    corpus, task = write_harvest(harvested, folder / "harvest")
    say(f"   {harvested.corpus.num_rows:,} passages; task: which of {', '.join(harvested.labels)} does a text document")
    say("2  nearkin build")
    build(folder / "store", [CorpusSpec("docstrings", str(corpus))], report=lambda line: say(f"   {line}"))
    say("3  nearkin query: three task examples and what is near them")
    _show_neighbours(folder / "store", task, say)
    say(f"4  nearkin select: {TOKENS:,} tokens of nearest and of random passages")
    sets = {}
    for method in ("random", "knn"):
        budget = Budget(tokens=TOKENS)
        sets[method] = select(
            folder / "store", task, folder / "sets" / method, method, budget, seed=seed, overwrite=overwrite
        )
        removed = sets[method].removed
        say(
            f"   {method}: {sets[method].table.num_rows:,} passages, {sets[method].tokens:,} tokens; kept out "
            f"{removed.duplicates} duplicates, {sum(removed.leaks.values())} texts of the task"
        )
    say(f"5  nearkin adapt and finetune, four arms; base {DEFAULT_ENCODER}")
    arms = []
    for name, chosen in ARMS.items():
        arms.append(_run_arm(name, chosen, folder, task, sets.get(chosen or ""), seed, overwrite))
        say(f"   {name}: F1 {arms[-1].f1:.1f}")
    write_json(folder / "results.json", [asdict(arm) for arm in arms])
    return arms


def _show_neighbours(store: Path, task: Path, say: Callable[[str], None]) -> None:
    answer = query(store, task, 3, limit=3)
    for rows in answer.rows():
        for row in rows.to_pylist():
            if row["rank"] == 1:
                say(f"   [{row['query_id']}] {plain(answer.task.train_texts[row['query_id']].as_py(), 100)}")
            say(f"       {row['score']:.3f}  {plain(row['id'], 40):<40}  {plain(row['text'], 60)}")


def _run_arm(
    name: str, method: str | None, folder: Path, task: Path, chosen: AugmentationSet | None, seed: int, overwrite: bool
) -> Arm:
    model, adapted = DEFAULT_ENCODER, None
    if name != "none":
        texts = [task] + ([folder / "sets" / method] if method else [])
        settings = AdaptSettings(
            max_steps=STEPS, batch_size=BATCH, learning_rate=3e-4, head_warmup_steps=STEPS, seed=seed
        )
        out = folder / "models" / name
        adapted = adapt(model, texts, out, settings=settings, held_out=task / "dev.jsonl", overwrite=overwrite)
        model = str(out)
    training = FinetuneSettings(seeds=1, epochs=EPOCHS, learning_rate=2e-4, max_tokens=64)
    result = finetune(model, task, folder / "results" / name, settings=training, overwrite=overwrite)
    return Arm(
        name,
        chosen.passages if chosen else None,
        round(chosen.seconds, 2) if chosen else None,
        adapted.tokens_seen if adapted else None,
        round(float(adapted.held_out_loss["after"] or 0), 3) if adapted else None,
        round(result.mean("test"), 1),
    )


def table(arms: list[Arm]) -> list[str]:
    """The arms as lines of a table."""
    rows = [("arm", "passages", "selection s", "tokens", "MLM loss", "F1")]
    rows += [
        (
            arm.arm, or_dash(arm.passages, ",d"), or_dash(arm.selection_seconds, ".2f"),
            or_dash(arm.pretraining_tokens, ",d"), or_dash(arm.masked_lm_loss, ".3f"), f"{arm.f1:.1f}",
        )
        for arm in arms
    ]  # fmt: skip
    return aligned(rows)


def took(seconds: float) -> str:
    """The demo's last line."""
    return f"took {human_seconds(seconds)}; one seed on a small task: a tour, not a benchmark"
