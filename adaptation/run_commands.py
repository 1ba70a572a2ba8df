"""The command `nearkin run`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from selection.commands import add_command, positive, seed
from selection.commands import say as print_line
from selection.gate import NEAR
from selection.wording import human_seconds

if TYPE_CHECKING:
    from selection.commands import Subparsers

ABOUT = """\
Run phases of adaptive pretraining end to end: select, train the masked LM, measure its loss, finetune, F1 over seeds.

A phase is parts joined by +, each trained from the model before it: none, TAPT, DAPT, DAPT+TAPT, kNN-TAPT or
50NN-TAPT (any number), RAND-TAPT, Curated-TAPT, DAPT+Curated, Transfer-TAPT, not-DAPT, TLM, and METHOD-TAPT with any
method of `nearkin select`, as dsir-TAPT or mix:knn=0.8,random=0.2-TAPT; unguarded-METHOD-TAPT without the leak guard.
docs/recipes.md tells what each trains on.

A recipe is a TOML file with the same names as the options here, and tables [adapt], [dapt] and [finetune] with the
settings of `nearkin adapt` and `nearkin finetune` by their Python names (learning_rate for --lr, max_steps for --steps;
docs/recipes.md lists them); options win over the file. Each step is kept by the fingerprint of
what went into it: the same command goes on where it was stopped, and redoes only what a change touches.
"""
EXAMPLE = """
nearkin run recipe.toml --dry-run                       # steps, tokens, predicted seconds
nearkin run recipe.toml
nearkin run recipe.toml --phases none 150NN-TAPT --seeds 10
nearkin run --phases none TAPT DAPT+TAPT kNN-TAPT RAND-TAPT --model roberta-base --task tasks/chemprot \\
    --store store --domain biomed --out runs/chemprot
nearkin run --preset quick --phases none TAPT kNN-TAPT dsir-TAPT --model all-MiniLM-L6-v2 \\
    --task tasks/chemprot tasks/sciie --store store --out runs/quick
"""
OPTIONS = (
    "phases", "model", "task", "store", "out", "preset", "seeds", "seed", "k", "tokens", "docs", "domain", "unrelated",
    "curated", "transfer", "encoder", "near",
)  # fmt: skip


def register(subparsers: Subparsers) -> None:
    """Adds ``run`` to a command line."""
    summary = "phases end to end: DAPT, TAPT, kNN-TAPT, ...; cached and resumable"
    add = add_command(subparsers, "run", run_recipe, summary, EXAMPLE, ABOUT).add_argument
    add("recipe", nargs="?", type=Path, metavar="RECIPE", help="TOML file; may be left out where options say it all")
    add("--phases", nargs="+", metavar="P", help="what to compare, in this order")
    add("--model", metavar="M", help="what every phase starts from: folder, hub id, or short name")
    add("--task", nargs="+", metavar="DIR", help="folders with train, dev and test .jsonl (text, label)")
    add("--store", metavar="S", help="where passages come from; TAPT alone needs none")
    add("--out", metavar="DIR", help="gets results.json, and steps/ with sets, models and classifier results")
    add(
        "--preset", choices=("paper", "quick"),
        help="paper: the settings of Don't Stop Pretraining (default); quick: sized for two CPU cores",
    )  # fmt: skip
    add("--seeds", type=positive, metavar="N", help="finetuning runs (default: 5, quick 3)")
    add("--seed", type=seed, metavar="S", help="of selection and masked-LM training (default: 0)")
    add("-k", type=positive, help="passages a task example, for kNN-TAPT, RAND-TAPT and METHOD-TAPT (default: 50)")
    add("--tokens", type=positive, metavar="N", help="tokens of every set, instead (quick: 300000)")
    add("--docs", type=positive, metavar="N", help="passages of every set, instead")
    add("--domain", metavar="NAME", help="DAPT's corpus: one of the store's, or a path (default: the task card's)")
    add("--unrelated", metavar="NAME", help="not-DAPT's corpus: one of the store's, or a path")
    add("--curated", metavar="FILE", help="Curated-TAPT's passages")
    add("--transfer", metavar="DIR", help="the task of Transfer-TAPT")
    add("--encoder", metavar="E", help="which of the store's encoders, where it has several; or cascade[:MODEL]")
    add("--near", choices=NEAR, help="what sets leave out beside equal texts, as in nearkin select (default: ngrams)")
    add("--cache", type=Path, metavar="DIR", help="where steps are kept, to be shared by recipes (default: OUT/steps)")
    add("--dry-run", action="store_true", help="print the steps and what they will take, and stop")


def run_recipe(options: argparse.Namespace) -> int:
    """Runs ``nearkin run``; returns the exit code."""
    from adaptation.recipe import read_recipe
    from adaptation.run import run, table

    recipe = read_recipe(options.recipe, {name: getattr(options, name) for name in OPTIONS})
    result = run(recipe, cache=options.cache, dry_run=options.dry_run, say=say)
    if result.file is None:
        say("dry run: nothing was done")
        return 0
    say("")
    for line in table(result.rows):
        say(line)
    say(f"written to {result.file} after {human_seconds(result.seconds)}")
    return 0


def say(line: str) -> None:
    """Prints a line, once: under `accelerate launch` or torchrun every process runs the command."""
    if os.environ.get("RANK", "0") == "0":
        print_line(line)
