"""The benchmark floor's commands: demo, bench, report."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.choices import PARTS, PATHS
from selection.commands import add_command, positive, say, seed, share
from selection.encoders.recall import MIN_RECALL
from selection.index.kinds import KINDS
from selection.models import DEFAULT_ENCODER

if TYPE_CHECKING:
    from benchmarks.results import Row
    from selection.commands import Subparsers


def register(commands: Subparsers) -> None:
    """Adds this floor's commands."""
    demo = add_command(
        commands,
        "demo",
        run_demo,
        "all of it on the docstrings of the installed packages, in minutes",
        "nearkin demo\nnearkin demo --out somewhere --seed 1",
    )
    demo.add_argument("--out", metavar="DIR", default="nearkin-demo", help="where it works (default: nearkin-demo)")
    demo.add_argument("--seed", type=seed, default=0)
    _register_report(commands)
    bench = add_command(
        commands,
        "bench",
        None,
        "the measurements, peers in the same run",
        """
        nearkin bench selectors store tasks/my-task --tokens 100000 --out selectors.parquet
        nearkin bench frontier store --tasks tasks/my-task --methods knn dsir --out frontier.parquet
        """,
    )
    benches = bench.add_subparsers(metavar="BENCHMARK", required=True)
    _register_throughput(benches)
    _register_search(benches)
    _register_cascade(benches)
    _register_selectors(benches)
    _register_training(benches)
    _register_frontier(benches)
    _register_chunking(benches)
    _register_memory(benches)


def _register_throughput(benches: Subparsers) -> None:
    parser = add_command(
        benches,
        "throughput",
        run_throughput,
        "encoding speed and its cost in recall, beside sentence-transformers, model2vec and others that are installed",
        """
        nearkin bench throughput $NEARKIN_DATA/corpora/biomed.parquet --out throughput.parquet --plot throughput.png
        nearkin bench throughput papers.jsonl --paths exact int8 --passages 512
        """,
    )
    parser.add_argument("corpus", metavar="CORPUS", help="a corpus as --corpus takes it")
    parser.add_argument("--passages", type=positive, default=1024, help="drawn from it (default: 1024)")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--device")
    parser.add_argument(
        "--paths",
        nargs="+",
        choices=PATHS,
        default=PATHS,
        help="which of nearkin's own; compiled is bf16 on a GPU (default: all)",
    )
    parser.add_argument(
        "--min-recall", type=share, default=0.0, help="take the first int8 candidate that reaches it (default: any)"
    )
    parser.add_argument("--plot", metavar="FILE", type=Path, help="recall against speed, as .png, .svg or .pdf")
    _add_rounds(parser)
    _add_out(parser)


def _register_search(benches: Subparsers) -> None:
    parser = add_command(
        benches,
        "search",
        run_search,
        "a task's neighbours: making an index and searching it, beside FAISS, hnswlib, usearch, autofaiss",
        """
        nearkin bench search store tasks/chemprot --out search.parquet --plot search.png
        nearkin bench search store tasks/chemprot --passages 134105 1000000 --kinds stream ivf --out search.parquet
        """,
    )
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("task", metavar="TASK")
    parser.add_argument("-k", type=positive, default=50, help="neighbours an example (default: 50)")
    parser.add_argument("--encoder", metavar="E", help="which of the store's encoders, where it has several")
    parser.add_argument(
        "--passages",
        type=positive,
        nargs="+",
        default=[],
        help="sizes: the store's vectors repeated and moved a little",
    )
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS[1:], default=KINDS[1:], help="which of nearkin's (default: all)"
    )
    parser.add_argument("--peers", nargs="*", metavar="PEER", help="which peers, by their names (default: all)")
    parser.add_argument(
        "--min-recall", type=share, default=MIN_RECALL, help="what approximate paths must reach (default: %(default)s)"
    )
    parser.add_argument(
        "--scratch", metavar="DIR", type=Path, help="for larger corpora and indexes; kept for the next run"
    )
    parser.add_argument("--plot", metavar="FILE", type=Path, help="recall against seconds, as .png, .svg or .pdf")
    _add_rounds(parser)
    _add_out(parser)


def _register_cascade(benches: Subparsers) -> None:
    parser = add_command(
        benches,
        "cascade",
        run_cascade,
        "what a cascade encodes and finds, over queries, k and corpus sizes, beside encoding everything",
        """
        nearkin bench cascade store tasks/chemprot --cheap static:all-MiniLM-L6-v2 --full all-MiniLM-L6-v2
        nearkin bench cascade store tasks/* --cheap static:all-MiniLM-L6-v2 --full all-MiniLM-L6-v2-bf16 --plot c.png
        """,
    )
    parser.add_argument("store", metavar="STORE", help="embedded by both encoders")
    parser.add_argument("tasks", metavar="TASK", nargs="+")
    parser.add_argument("--cheap", metavar="E", required=True, help="the static encoder, as the store names it")
    parser.add_argument("--full", metavar="E", required=True, help="the full one, likewise")
    parser.add_argument(
        "--queries", metavar="N", type=positive, nargs="+", default=[30, 100, 300, 1000, 4000],
        help="task examples asked at once (default: 30 100 300 1000 4000)",
    )  # fmt: skip
    parser.add_argument(
        "-k", type=positive, nargs="+", default=[5, 20, 50], dest="ks", help="neighbours of each (default: 5 20 50)"
    )
    parser.add_argument(
        "--passages", type=positive, nargs="+", default=[], help="sizes: a random part, or repeated and moved"
    )
    parser.add_argument("--min-recall", type=share, default=MIN_RECALL, help="what it promises (default: %(default)s)")
    parser.add_argument("--seeds", type=positive, default=1, help="runs of each (default: 1)")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="gain and recall, as .png, .svg or .pdf")
    _add_out(parser)


def _register_selectors(benches: Subparsers) -> None:
    parser = add_command(
        benches,
        "selectors",
        run_selectors,
        "selection methods at equal token budgets: what each costs and what it picks, beside data-selection and bm25s",
        """
        nearkin bench selectors store tasks/chemprot=biomed tasks/sciie=cs --out selectors.parquet --plot selectors.png
        nearkin bench selectors store tasks/chemprot --methods knn dsir tsds:alpha=0.8 --peers --tokens 500000
        """,
    )
    parser.add_argument("store", metavar="STORE")
    parser.add_argument(
        "tasks", metavar="TASK[=SOURCE]", nargs="+", help="a task folder, and which of the store's corpora is its own"
    )
    parser.add_argument("--methods", nargs="+", metavar="M", help="as select --method takes them (default: all)")
    parser.add_argument("--peers", nargs="*", metavar="PEER", help="data-selection, bm25s (default: those installed)")
    parser.add_argument("--tokens", type=positive, default=1_000_000, help="of each set (default: 1000000)")
    parser.add_argument("--encoder")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--scratch", metavar="DIR", type=Path, help="for the sets; they are left there")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="what is picked against seconds (.png, .svg, .pdf)")
    _add_out(parser)


def _register_training(benches: Subparsers) -> None:
    parser = add_command(
        benches,
        "training",
        run_training,
        "masked-LM training and finetuning, beside transformers' Trainer used the plain way",
        """
        nearkin bench training tasks/citation_intent --out training.parquet --plot training.png
        nearkin bench training tasks/citation_intent --text knn50 --steps 500 --seeds 1 --parts "masked LM"
        """,
    )
    parser.add_argument("task", metavar="TASK", type=Path, help="a labelled task folder")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: both)")
    parser.add_argument("--model", default=DEFAULT_ENCODER, metavar="M")
    parser.add_argument("--text", nargs="+", type=Path, default=[], metavar="FILE_OR_SET", help="for the masked LM too")
    parser.add_argument("--steps", type=positive, default=200, metavar="N", help="of the masked LM (default: 200)")
    parser.add_argument("--epochs", type=positive, default=4, metavar="N", help="of finetuning (default: 4)")
    parser.add_argument("--max-tokens", type=positive, default=128, metavar="N", help="longest input (default: 128)")
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="runs of each (default: 3)")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="speed beside the plain way's (.png, .svg, .pdf)")
    _add_out(parser)


def _register_frontier(benches: Subparsers) -> None:
    parser = add_command(
        benches,
        "frontier",
        run_frontier,
        "what a second of selection and a token of pretraining buy in F1: tasks x methods x seeds; resumes",
        """
        nearkin bench frontier store --tasks tasks/sciie tasks/chemprot --methods knn dsir --out frontier.parquet
        nearkin bench frontier store --tasks tasks/* --methods 5NN-TAPT knn dsir tsds ot bm25 DAPT --seeds 5 \\
            --budget-tokens 500000 --recipe frontier.toml --out frontier.parquet --plot frontier.png
        """,
    )
    parser.add_argument("store", metavar="STORE", help="where passages come from")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="TASK", help="labelled task folders")
    parser.add_argument(
        "--methods", nargs="+", required=True, metavar="M",
        help="phases of `nearkin run`, or methods of `nearkin select`; none, TAPT and random are always there",
    )  # fmt: skip
    parser.add_argument(
        "--leaks", action="store_true", help="each set without the leak guard too: what contamination would buy"
    )
    parser.add_argument("--seeds", type=positive, metavar="N", help="finetuning seeds (default: the recipe's, else 3)")
    parser.add_argument("--budget-tokens", type=positive, metavar="T", help="of each set (default: the preset's)")
    parser.add_argument("--model", metavar="M", help=f"(default: the recipe's, else {DEFAULT_ENCODER})")
    parser.add_argument("--preset", choices=("quick", "paper"), help="(default: the recipe's, else quick)")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="settings, as `nearkin run` takes them")
    parser.add_argument("--encoder", metavar="E", help="which of the store's encoders, where it has several")
    parser.add_argument("--seed", type=seed, metavar="S", help="of selection and masked-LM training (default: 0)")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("frontier"),
        metavar="DIR",
        help="for sets and models; the same one resumes (default: frontier)",
    )
    parser.add_argument("--plot", metavar="FILE", type=Path, help="F1 against what it cost (.png, .svg, .pdf)")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="results, a row a cell; appended to")


def _register_chunking(benches: Subparsers) -> None:
    parser = add_command(
        benches,
        "chunking",
        run_chunking,
        "cutting documents into pieces, beside semantic-text-splitter where it is installed",
        """
        nearkin bench chunking $NEARKIN_DATA/corpora/cs.parquet --tokens 128 --together 5
        nearkin bench chunking papers.jsonl --tokens 200 --passages 1000 --encoder roberta-base
        """,
    )
    parser.add_argument("corpus", metavar="CORPUS", help="a corpus as --corpus takes it")
    parser.add_argument("--tokens", type=positive, default=128, help="the most that a piece has (default: 128)")
    parser.add_argument("--passages", type=positive, default=10_000, help="drawn from it (default: 10000)")
    parser.add_argument("--together", type=positive, default=1, metavar="N", help="passages in a document (default: 1)")
    parser.add_argument("--rounds", type=positive, default=3, help="each way in turn, so often (default: 3)")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER, help="whose tokenizer counts")
    _add_out(parser)


def _register_memory(benches: Subparsers) -> None:
    parser = add_command(
        benches,
        "memory",
        run_memory,
        "peak memory of a build, and of one several times as large",
        "nearkin bench memory $NEARKIN_DATA/corpora/biomed.parquet --repeat 4 --max-tokens 16",
    )
    parser.add_argument("corpus", metavar="CORPUS", help="one Parquet file")
    parser.add_argument(
        "--repeat", metavar="N", type=positive, default=4, help="how often the second build has the corpus (default: 4)"
    )
    parser.add_argument("--max-tokens", type=positive, help="cut the encoder's input, to finish in minutes")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    _add_out(parser)


def _register_report(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "report",
        run_report,
        "the results of bench frontier as a page: plots, tables beside the paper's, examples, the command",
        """
        nearkin report frontier.parquet
        nearkin report frontier.parquet --html report.html --sets frontier/steps --plots plots
        """,
    )
    parser.add_argument("results", metavar="RESULTS", help="what bench frontier --out wrote")
    parser.add_argument("--html", metavar="FILE", help="the page (default: beside RESULTS, ending in .html)")
    parser.add_argument("--sets", metavar="DIR", help="the grid's sets, WORK/steps, to show passages of")
    parser.add_argument("--plots", metavar="DIR", help="write the plots there as .png and .svg too")
    parser.add_argument("--examples", type=int, default=3, metavar="N", help="training texts a task (default: 3)")
    parser.add_argument(
        "--grid", type=positive, metavar="N", help="which grid, where there are several (default: newest)"
    )


def _add_rounds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=positive, default=3, help="timed rounds (default: 3)")


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the rows to this Parquet file")


def run_demo(args: argparse.Namespace) -> int:
    from benchmarks.demo import demo, table, took

    start = time.perf_counter()
    arms = demo(args.out, seed=args.seed, overwrite=True, say=say)
    print("\n" + "\n".join(table(arms)))
    print(took(time.perf_counter() - start))
    return 0


def run_report(args: argparse.Namespace) -> int:
    from benchmarks.report import report

    report(
        args.results,
        args.html,
        sets=args.sets,
        plots=args.plots,
        examples=args.examples,
        grid=args.grid,
        say=say,
    )
    return 0


def run_throughput(args: argparse.Namespace) -> int:
    from benchmarks.plots import plot_throughput
    from benchmarks.throughput import throughput

    _check_plot(args.plot)
    rows = throughput(
        args.corpus,
        passages=args.passages,
        rounds=args.rounds,
        text_column=args.text_column,
        encoder=args.encoder,
        paths=tuple(args.paths),
        device=args.device,
        min_recall=args.min_recall,
        say=say,
    )
    if args.plot:
        plot_throughput(rows, args.plot)
    return _finish(rows, args.out)


def run_search(args: argparse.Namespace) -> int:
    from benchmarks.peers import PEERS
    from benchmarks.plots import plot_search
    from benchmarks.search import search

    _check_plot(args.plot)
    rows = search(
        args.store,
        args.task,
        args.k,
        passages=args.passages,
        kinds=args.kinds,
        peers=[peer.name for peer in PEERS] if args.peers is None else args.peers,
        min_recall=args.min_recall,
        rounds=args.rounds,
        encoder=args.encoder,
        out=args.out,
        scratch=args.scratch,
        say=say,
    )
    if args.plot:
        plot_search(rows, args.plot)
    return _finish(rows, None)  # which are written, beside those of other calls


def run_cascade(args: argparse.Namespace) -> int:
    from benchmarks.cascade import cascade, plot_cascade

    _check_plot(args.plot)
    rows = cascade(
        args.store,
        args.tasks,
        args.cheap,
        args.full,
        queries=args.queries,
        ks=args.ks,
        sizes=args.passages,
        min_recall=args.min_recall,
        seeds=args.seeds,
        say=say,
    )
    if args.plot:
        plot_cascade(rows, args.plot)
    return _finish(rows, args.out)


def run_selectors(args: argparse.Namespace) -> int:
    from benchmarks.selector_peers import PEERS
    from benchmarks.selectors import METHODS, plot_selectors, selectors
    from selection.errors import InputError

    _check_plot(args.plot)
    peers = list(PEERS) if args.peers is None else args.peers
    if unknown := [peer for peer in peers if peer not in PEERS]:
        raise InputError(f"unknown peer {unknown[0]!r}: choose from {', '.join(PEERS)}")
    rows = selectors(
        args.store,
        args.tasks,
        methods=args.methods or METHODS,
        peers=peers,
        tokens=args.tokens,
        seed=args.seed,
        encoder=args.encoder,
        out=args.out,
        scratch=args.scratch,
        say=say,
    )
    if args.plot:
        plot_selectors(rows, args.plot)
    return _finish(rows, None)  # which are written, beside those of other calls


def run_training(args: argparse.Namespace) -> int:
    from benchmarks.training import Training, plot_training, summary, training

    _check_plot(args.plot)
    what = Training(
        args.model, args.task, tuple(args.text), steps=args.steps, epochs=args.epochs, max_tokens=args.max_tokens
    )
    rows = training(what, parts=args.parts, seeds=args.seeds, out=args.out, say=say)
    found = summary(rows)
    if args.plot:
        plot_training(found, args.plot)
    return _finish(found, None)  # the rows themselves are written, beside those of other calls


def run_frontier(args: argparse.Namespace) -> int:
    from adaptation.recipe import read_recipe
    from benchmarks.frontier import frontier, phase_names, unguarded
    from benchmarks.frontier_plot import plot_frontier
    from benchmarks.grid import summary

    _check_plot(args.plot)
    phases = phase_names(args.methods)
    options = {
        "tasks": args.tasks, "store": args.store, "model": args.model, "preset": args.preset, "encoder": args.encoder,
        "seeds": args.seeds, "seed": args.seed, "out": str(args.work), "tokens": args.budget_tokens,
        "phases": [*phases, *(unguarded(phases) if args.leaks else ())],
    }  # fmt: skip
    recipe = read_recipe(args.recipe, options, {"model": DEFAULT_ENCODER, "preset": "quick"})
    command = shlex.join(["nearkin", *sys.argv[1:]])
    seeds = recipe.tables.get("finetune", {}).get("seeds", 3)
    rows = frontier(recipe, seeds=seeds, out=args.out, command=command, say=say)
    found = summary(rows)
    if args.plot:
        plot_frontier(rows, args.plot)
    return _finish(found, None)  # the rows themselves are written, beside those of other calls


def run_chunking(args: argparse.Namespace) -> int:
    from benchmarks.chunking import chunking

    with tempfile.TemporaryDirectory(prefix="nearkin-") as scratch:
        rows = chunking(
            args.corpus, Path(scratch), tokens=args.tokens, passages=args.passages, together=args.together,
            rounds=args.rounds, text_column=args.text_column, encoder=args.encoder, say=say,
        )  # fmt: skip
    return _finish(rows, args.out)


def run_memory(args: argparse.Namespace) -> int:
    from benchmarks.memory import memory

    rows = memory(
        args.corpus,
        repeat=args.repeat,
        text_column=args.text_column,
        encoder=args.encoder,
        max_tokens=args.max_tokens,
        say=say,
    )
    return _finish(rows, args.out)


def _check_plot(plot: Path | None) -> None:
    """Before anything is measured."""
    from selection.plotting import require_plots

    if plot:
        require_plots("--plot", plot)


def _finish(rows: list[Row], out: Path | None) -> int:
    from benchmarks.results import format_rows, machine, write_rows

    write_rows(rows, out)
    print("\n".join(["", *format_rows(rows), machine()]))
    return 0
