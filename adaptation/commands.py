"""The commands `nearkin adapt`, `nearkin finetune` and `nearkin overlap`, which may ask a model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptation import data_commands, run_commands
from adaptation.run_commands import say
from adaptation.settings import AdaptSettings, FinetuneSettings
from selection.commands import add_command, positive, seed
from selection.wording import human_seconds, mean_and_sd

if TYPE_CHECKING:
    from selection.commands import Subparsers

ADAPT = """\
Continue masked-LM training of a model on task text, an augmentation set, or any text, and write the adapted model.

Defaults are TAPT of Don't Stop Pretraining (Gururangan et al., 2020): 100 epochs, 15 % of tokens masked anew each
time, batches of 256, learning rate 1e-4. Of a task folder only the train split is used. A model without a masked-LM
head (all-MiniLM-L6-v2 has none) gets a new one, which is trained alone before the encoder moves. The masked-LM loss
on held-out text is measured before and after. A stopped run continues when the same command is given again.
"""
ADAPT_EXAMPLE = """
nearkin adapt --model roberta-base --text tasks/chemprot sets/chemprot-50nn --out models/chemprot-50nn

# on several GPUs
accelerate launch -m nearkin adapt --model roberta-base --text tasks/chemprot --out models/chemprot

# masked LM and task together (TLM, Yao et al., 2022), then finetuned as usual
nearkin adapt --model roberta-base --text tasks/chemprot sets/bm25 --joint-task tasks/chemprot --out models/tlm
"""
FINETUNE = """\
Finetune a model on a classification task once a seed, and write F1 on dev and test to results.json.

The epoch with the best dev F1 counts; mean and sample standard deviation are over seeds. The metric is macro-F1,
or micro-F1 where the task's card says so (chemprot, rct). A stopped run continues with the seeds that are left.
"""
FINETUNE_EXAMPLE = """
nearkin finetune --model models/chemprot-50nn --task tasks/chemprot --out results/chemprot-50nn
"""
OVERLAP = """\
How far domains are apart: the share of their most frequent words, stop words left out, that two have in common
(Gururangan et al., 2020, section 3.1). All rows are counted; --sample takes some of each. A domain is a file, folder or
glob of text, a task folder (its training texts), an augmentation set, or a store (each of its corpora). Domains with
fewer distinct words than --top are not comparable with larger ones: choose a --top below all of them.

With --model, the second measure: that model's masked-LM loss on a sample of each domain.
"""
OVERLAP_EXAMPLE = """
nearkin overlap biomed=biomed.parquet cs=cs.parquet reviews='reviews/*.jsonl' --plot overlap.png
nearkin overlap all=store chemprot=tasks/chemprot chosen=knn50 --top 2000 --out overlap.parquet
nearkin overlap biomed=biomed.parquet news=news.parquet --model roberta-base --loss-documents 5000
"""


def register(subparsers: Subparsers) -> None:
    """Adds this floor's commands to a command line; each sets ``run``, from options to exit code."""
    _register_adapt(subparsers)
    _register_finetune(subparsers)
    _register_overlap(subparsers)
    data_commands.register(subparsers)
    run_commands.register(subparsers)


def _register_adapt(subparsers: Subparsers) -> None:
    usual = AdaptSettings()
    summary = "continue masked-LM training on chosen text"
    add = add_command(subparsers, "adapt", run_adapt, summary, ADAPT_EXAMPLE, ADAPT).add_argument
    add("--model", required=True, metavar="M", help="model folder, hub id, or short name such as all-MiniLM-L6-v2")
    add(
        "--text", required=True, nargs="+", type=Path, metavar="FILE_OR_SET",
        help="text, csv, jsonl or Parquet files with a column text, folders of Parquet, globs, task folders, "
        "augmentation folders, stores",
    )  # fmt: skip
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the adapted model")
    add("--epochs", type=int, default=usual.epochs, metavar="N", help="passes over the text (default %(default)s)")
    add("--steps", type=int, metavar="N", help="optimiser steps, instead of --epochs")
    add(
        "--batch-size",
        type=int,
        default=usual.batch_size,
        metavar="N",
        help="pieces a step (default %(default)s)",
    )
    add(
        "--micro-batch", type=int, default=usual.micro_batch, metavar="N",
        help="pieces in memory at once on a device; smaller where memory is short (default %(default)s)",
    )  # fmt: skip
    add("--lr", type=float, default=usual.learning_rate, metavar="X", help="peak learning rate (default %(default)s)")
    add(
        "--max-tokens",
        type=int,
        metavar="N",
        help="longest input; longer texts are split (default: the model's, at most 512)",
    )
    add(
        "--mlm-probability", type=float, default=usual.mlm_probability, metavar="P",
        help="share of tokens to predict (default %(default)s)",
    )  # fmt: skip
    add("--whole-word", action="store_true", help="mask whole words")
    add(
        "--held-out",
        type=Path,
        metavar="FILE",
        help="text to measure on (default: 5%% of the text, at most 1000 texts)",
    )
    add(
        "--head-warmup", type=int, default=usual.head_warmup_steps, metavar="N",
        help="steps that train a new masked-LM head alone first (default %(default)s, at most as many as the run has)",
    )  # fmt: skip
    add(
        "--joint-task", type=Path, metavar="DIR",
        help="learn this task's labels along with the masked LM (TLM's first stage); finetune afterwards as usual",
    )  # fmt: skip
    add(
        "--task-weight", type=float, default=usual.task_weight, metavar="X",
        help="of the task's loss against the masked LM's (default %(default)s)",
    )  # fmt: skip
    add("--keep-order", action="store_true", help="train in the order of the texts (a set's --order curriculum)")
    _add_bf16(add)
    add("--seed", type=seed, default=usual.seed, metavar="S", help="seed of everything drawn (default %(default)s)")
    add("--overwrite", action="store_true", help="replace DIR where it exists")


def _register_finetune(subparsers: Subparsers) -> None:
    usual = FinetuneSettings()
    summary = "train classifiers on a task and report F1"
    add = add_command(subparsers, "finetune", run_finetune, summary, FINETUNE_EXAMPLE, FINETUNE).add_argument
    add("--model", required=True, metavar="M", help="model folder, hub id, or short name such as all-MiniLM-L6-v2")
    add("--task", required=True, type=Path, metavar="DIR", help="folder with train, dev and test .jsonl (text, label)")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for results.json")
    add("--seeds", type=int, default=usual.seeds, metavar="N", help="runs, seeds 0 to N-1 (default %(default)s)")
    add("--epochs", type=int, metavar="N", help="most passes over train (default: 10, or 3 above 5000 examples)")
    add("--steps", type=int, metavar="N", help="about so many optimiser steps at most, in whole epochs")
    add(
        "--patience", type=int, default=usual.patience, metavar="N",
        help="stop after N epochs without a better dev F1 (default %(default)s)",
    )  # fmt: skip
    add("--batch-size", type=int, default=usual.batch_size, metavar="N", help="examples a step (default %(default)s)")
    add("--lr", type=float, default=usual.learning_rate, metavar="X", help="peak learning rate (default %(default)s)")
    add(
        "--max-tokens",
        type=int,
        metavar="N",
        help="longest input; longer ones are cut (default: the model's, at most 512)",
    )
    add("--metric", choices=("macro", "micro"), help="F1 average (default: the task card's, else macro)")
    add("--keep-model", action="store_true", help="write the classifier of the best dev seed to DIR/model")
    _add_bf16(add)
    add("--overwrite", action="store_true", help="start anew where DIR holds results of something else")


def _add_bf16(add: Any) -> None:
    add(
        "--bf16", choices=("auto", "on", "off"), default="auto",
        help="compute in bfloat16; auto: where the GPU has it, or a trial on the CPU does (default %(default)s)",
    )  # fmt: skip


def _register_overlap(subparsers: Subparsers) -> None:
    summary = "how far domains are apart: words they share, a model's loss on each"
    add = add_command(subparsers, "overlap", run_overlap, summary, OVERLAP_EXAMPLE, OVERLAP).add_argument
    add("domains", nargs="+", metavar="NAME=PATH", help="two or more")
    add("--top", type=positive, default=10_000, metavar="N", help="most frequent words compared (default %(default)s)")
    add("--sample", type=positive, metavar="N", help="count so many random documents of each (default all)")
    add("--text-column", default="text", metavar="COLUMN", help="where files have their text (default %(default)s)")
    add("--model", metavar="M", help="also this model's masked-LM loss on each domain")
    add("--loss-documents", type=positive, default=1000, metavar="N", help="of each for it (default %(default)s)")
    add("--seed", type=seed, default=0, help="draws them (default %(default)s)")
    add("--out", type=Path, metavar="FILE", help="write the table too (.parquet, .csv, .jsonl)")
    add("--plot", type=Path, metavar="FILE", help="write a heat map too (.png, .svg, .pdf)")


def run_adapt(options: argparse.Namespace) -> int:
    """Runs ``nearkin adapt``; returns the exit code."""
    from adaptation.mlm import adapt

    settings = AdaptSettings(
        epochs=options.epochs,
        max_steps=options.steps,
        batch_size=options.batch_size,
        micro_batch=options.micro_batch,
        learning_rate=options.lr,
        max_tokens=options.max_tokens,
        mlm_probability=options.mlm_probability,
        whole_word=options.whole_word,
        head_warmup_steps=options.head_warmup,
        bf16=options.bf16,
        seed=options.seed,
        keep_order=options.keep_order,
        task_weight=options.task_weight,
    )
    result = adapt(
        options.model,
        options.text,
        options.out,
        settings=settings,
        held_out=options.held_out,
        joint=options.joint_task,
        overwrite=options.overwrite,
        say=say,
    )
    say(f"{result.steps} steps, {result.tokens_seen} tokens seen, {human_seconds(result.seconds)}")
    return 0


def run_finetune(options: argparse.Namespace) -> int:
    """Runs ``nearkin finetune``; returns the exit code."""
    from adaptation.finetune import RESULT_FILE, finetune

    settings = FinetuneSettings(
        seeds=options.seeds,
        epochs=options.epochs,
        max_steps=options.steps,
        patience=options.patience,
        batch_size=options.batch_size,
        learning_rate=options.lr,
        max_tokens=options.max_tokens,
        metric=options.metric,
        bf16=options.bf16,
        keep_model=options.keep_model,
    )
    result = finetune(options.model, options.task, options.out, settings=settings, overwrite=options.overwrite, say=say)
    for split in ("dev", "test"):
        found = mean_and_sd(result.mean(split), result.std(split), 2)
        say(f"{split} {result.metric}: {found} over {len(result.by_seed)} seeds")
    say(f"written to {result.out / RESULT_FILE}")
    return 0


def run_overlap(options: argparse.Namespace) -> int:
    """Runs ``nearkin overlap``; returns the exit code."""
    from dataclasses import replace

    from adaptation.domain_loss import domain_losses
    from selection.ingest import parse_corpus
    from selection.overlap import overlap, save_heatmap
    from selection.plotting import require_plots
    from selection.writing import check_format, write_table

    if options.plot:
        require_plots("--plot", options.plot)
    if options.out:
        check_format(options.out)
    named, column = [parse_corpus(domain, "") for domain in options.domains], options.text_column
    losses = None
    if options.model:
        counts = {"documents": options.loss_documents, "text_column": column, "seed": options.seed}
        losses = domain_losses(options.model, named, **counts)
    found = overlap(named, top=options.top, sample=options.sample, text_column=column, seed=options.seed)
    found = replace(found, losses=losses)
    print("\n".join(found.lines()))
    print(f"counted in {human_seconds(found.seconds)}")
    if options.out:
        write_table(found.table(), options.out)
    if options.plot:
        save_heatmap(found, options.plot)
    return 0
