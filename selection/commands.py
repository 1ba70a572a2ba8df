"""The selection floor's commands: build, index, query, select, inspect, verify, doctor."""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selection.encoders import PRECISIONS, STATIC, model_of_cascade
from selection.encoders.recall import MIN_RECALL
from selection.gate import NEAR
from selection.index.kinds import KINDS
from selection.index.plan import QUERIES
from selection.models import DEFAULT_ENCODER
from selection.terminal import plain

if TYPE_CHECKING:
    from selection.querying import Answer

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def register(commands: Subparsers) -> None:
    """Adds this floor's commands."""
    _register_build(commands)
    _register_index(commands)
    _register_query(commands)
    _register_select(commands)
    _register_inspect(commands)
    verify = add_command(
        commands, "verify", run_verify, "is the store whole; which command repairs what is not", "nearkin verify store"
    )
    verify.add_argument("store", metavar="STORE")
    doctor = "is this machine ready: versions, devices, what is missing"
    add_command(commands, "doctor", run_doctor, doctor, "nearkin doctor")


def add_command(
    commands: Subparsers,
    name: str,
    run: Any,
    summary: str,
    example: str = "",
    about: str = "",
) -> argparse.ArgumentParser:
    """A subcommand with its one-line summary and, under ``--help``, what there is to say about it and its examples."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=about or summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n{textwrap.indent(textwrap.dedent(example).strip(), '  ')}" if example else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _register_build(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "build",
        run_build,
        "ingest, embed and index domain corpora; run it again to resume, extend or repair",
        """
        nearkin build store --corpus papers=papers.parquet
        nearkin build store --corpus papers='papers/*.jsonl.zst'
        nearkin build store --corpus reviews=reviews.csv --text-column body      # adds a corpus whose text is elsewhere
        nearkin build store --corpus papers=papers.parquet --where "source = 'papers' and length(text) > 200" --dry-run
        nearkin build store --corpus wiki=hf://owner/dataset:train --chunk 128
        nearkin build store --corpus papers=papers.parquet --precision auto --max-seconds 3600
        nearkin build store --corpus papers=papers.parquet --encoder intfloat/e5-base-v2 --prompt "query: "
        nearkin build store --corpus papers=papers.parquet --encoder static:all-MiniLM-L6-v2
        nearkin build store --corpus papers=papers.parquet --encoder cascade:all-MiniLM-L6-v2 --precision bf16
        nearkin build store --share 3/8        # the third of eight machines, after a dry run that read the corpus
        nearkin build store                    # goes on with what an earlier build left undone, or takes shares in
        """,
    )
    parser.add_argument("store", metavar="STORE", help="the store's folder; made where it does not exist")
    parser.add_argument(
        "--corpus",
        metavar="NAME=PATH",
        action="append",
        default=[],
        help=".txt (one passage a line), .csv, .tsv, .jsonl (each also .gz, .zst), .parquet, .arrow; a folder or glob "
        "of those; or hf://owner/dataset[/CONFIGURATION][:split]. Parquet and Arrow are read where they lie. Repeat "
        "for more corpora",
    )
    parser.add_argument(
        "--text-column",
        metavar="COLUMN",
        default="text",
        help="where the text is, in every --corpus of this call (default: text)",
    )
    parser.add_argument(
        "--where",
        metavar="SQL",
        help="keep only rows that satisfy this DuckDB condition; it knows id, text, source (the corpus's NAME) and the "
        "file's own columns, with _ behind one that has such a name itself (source_)",
    )
    parser.add_argument(
        "--chunk", metavar="N", type=positive, help="split passages longer than N tokens at sentence boundaries"
    )
    parser.add_argument(
        "--encoder",
        metavar="E",
        help="a sentence-transformers model; static:MODEL, hundreds of times faster and less exact; or cascade:MODEL, "
        "which embeds by the static one and lets query and select find the model's own neighbours from there; or none, "
        "which is enough for methods that read text alone "
        f"(default: the store's, else {DEFAULT_ENCODER})",
    )
    parser.add_argument(
        "--precision",
        choices=(*PRECISIONS, "auto"),
        help="exact: float32 (default); bf16: faster on GPUs and on some CPUs; int8: fastest on CPUs, calibrated on "
        "the corpus, needs nearkin[openvino]; auto: the fastest of them that keeps --min-recall",
    )
    parser.add_argument(
        "--min-recall",
        metavar="R",
        type=share,
        default=MIN_RECALL,
        help="the least share of exact neighbours that int8, auto and an approximate index must each keep, measured on "
        "the corpus (default: %(default)s)",
    )
    parser.add_argument(
        "--max-seconds",
        metavar="S",
        type=positive,
        help="with --precision auto: the most exact path whose embedding is predicted to end in time; where none that "
        "keeps --min-recall does, static vectors, which find a quarter to a half of the neighbours",
    )
    parser.add_argument(
        "--max-tokens", metavar="N", type=positive, help="cut the encoder's input: faster, blind to a passage's rest"
    )
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help="put this before every passage and every example, as e5 wants 'query: '; or the name of one of the "
        "model's own prompts (default: the store's, else the model's default prompt, which most have not)",
    )
    parser.add_argument(
        "--device",
        help="auto, cpu, cuda, mps; or several, as cuda:0,cuda:1 (default: all GPUs, else the best there is)",
    )
    parser.add_argument(
        "--index",
        choices=KINDS,
        help="stream and flat are exact, the others visit a part; auto is the least time in all (default: the store's "
        "kind, else auto)",
    )
    _index_limits(parser)
    parser.add_argument(
        "--share",
        metavar="I/N",
        type=_share,
        help="embed only the I-th of N parts of what was read, on this machine of several that see the store; a build "
        "without it takes all of them in",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan and stop: corpora are read into the store and an encoder that needs it is fitted; nothing "
        "is embedded, and the next build may name another encoder",
    )


def _register_index(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "index",
        run_index,
        "(re)build the index alone, from the embeddings; it becomes the one that is searched",
        """
        nearkin index store                                  # the one that takes least time in all
        nearkin index store --queries 1000000 --dry-run      # what would pay for a million questions
        nearkin index store --kind ivf-sq8 --min-recall 0.98 --task tasks/chemprot
        nearkin index store --kind stream                    # exact search again; takes no time and no space
        """,
    )
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--kind", choices=KINDS, default="auto", help="default: auto, the least time in all")
    parser.add_argument("--encoder", metavar="E", help="which of the store's encoders")
    parser.add_argument(
        "--min-recall",
        metavar="R",
        type=share,
        default=MIN_RECALL,
        help="the least share of exact neighbours that it must find, measured on queries held back "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--max-seconds", metavar="S", type=positive, help="for making it and answering --queries examples"
    )
    parser.add_argument("--task", metavar="TASK", help="measure the recall among this task's examples too")
    _index_limits(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")


def _index_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-memory", metavar="M", type=size, help="what indexing may take in memory, as 2GB (default: the machine's)"
    )
    parser.add_argument(
        "--queries",
        metavar="N",
        type=positive,
        default=QUERIES,
        help="how many task examples the index will answer in all (default: 10000)",
    )


def _register_query(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "query",
        run_query,
        "each task example with its nearest passages",
        """
        nearkin query store tasks/chemprot -k 5 --limit 3
        nearkin query store tasks/chemprot -k 50 --json > neighbours.jsonl
        nearkin query store tasks/chemprot -k 5 --encoder cascade --min-recall 0.9
        """,
    )
    _task_arguments(parser)
    parser.add_argument("-k", type=positive, default=5, help="neighbours an example (default: 5)")
    parser.add_argument("--limit", metavar="N", type=positive, help="only the first N examples")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, for programs")


def _task_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE")
    parser.add_argument(
        "task",
        metavar="TASK",
        help="a folder of train, dev, test .jsonl, or one file (.jsonl, .csv, .parquet ...) with a column text",
    )
    parser.add_argument(
        "--encoder",
        metavar="E",
        help="which of the store's encoders, where it has several; or cascade[:MODEL], on a store that was built by "
        "one, whose static vectors answer else",
    )
    parser.add_argument(
        "--min-recall",
        metavar="R",
        type=share,
        help=f"the share of the full encoder's neighbours that a cascade must find (default: {MIN_RECALL})",
    )
    parser.add_argument(
        "--index", choices=KINDS[1:], help="which of its indexes (default: the one made last); stream is always there"
    )
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")


def _register_select(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "select",
        run_select,
        "an augmentation set for a task",
        """
        nearkin select store tasks/chemprot --method knn -k 50 --out knn50
        nearkin select store tasks/chemprot --method random --tokens 1000000 --seed 1 --out random1m
        nearkin select store tasks/chemprot --method knn --docs 5000 --exclude other-test.jsonl --out knn5k
        nearkin select store tasks/chemprot --method dsir --tokens 1000000 --out dsir1m
        nearkin select store tasks/chemprot --method mix:knn=0.8,random=0.2 --docs 5000 --order curriculum --out mixed
        nearkin select store tasks/chemprot --method domain:source=biomed --out dapt
        nearkin select store tasks/chemprot --method curated:file=mine.jsonl --out curated

        methods (docs/selectors.md says what each does and costs):
          knn random domain curated:file=FILE dsir bm25 tsds ot cluster classifier mix:METHOD=SHARE,METHOD=SHARE
        """,
    )
    _task_arguments(parser)
    parser.add_argument(
        "--method", metavar="M", default="knn", help="how to choose, as NAME[:PARAMETER=VALUE,...] (default: knn)"
    )
    parser.add_argument(
        "-k",
        type=positive,
        help="passages a task example, before duplicates go (default: 50, where neither --docs nor --tokens is given; "
        "domain and curated then take everything; of several limits, the first that is reached ends the set)",
    )
    parser.add_argument("--docs", metavar="N", type=positive, help="passages in all")
    parser.add_argument("--tokens", metavar="N", type=positive, help="tokens in all, by the encoder's tokenizer")
    parser.add_argument(
        "--exclude", metavar="FILE", nargs="+", action="extend", default=[], help="texts that must not be selected"
    )
    parser.add_argument(
        "--order",
        choices=("rank", "random", "curriculum"),
        default="rank",
        help="of the rows: nearest first, shuffled, or farthest first and nearest last (default: rank)",
    )
    parser.add_argument(
        "--near",
        choices=NEAR,
        default="ngrams",
        help="what is kept out beside equal texts: ngrams, passages that share 13 words in a row with dev, test or "
        "excluded texts, or half of such runs with better-ranked passages; all, those of cosine 0.95 too, by the "
        "store's embeddings (default: ngrams)",
    )
    parser.add_argument(
        "--no-guard",
        dest="guarded",
        action="store_false",
        help="let the task's own texts in, to measure what contamination would buy",
    )
    parser.add_argument(
        "--report",
        metavar="FILE",
        type=Path,
        dest="removed",
        help="list each passage that was kept out, and why (.parquet, .csv, .jsonl)",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of methods that draw and of --order random (default: 0)")
    parser.add_argument("--out", metavar="DIR", required=True, help="gets augmentation.parquet and manifest.json")
    parser.add_argument("--overwrite", action="store_true", help="replace DIR where it exists")


def _register_inspect(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "inspect",
        run_inspect,
        "what is in an augmentation set, judged without training",
        """
        nearkin inspect knn50
        nearkin inspect knn50 --with random50 dsir50 --html knn50.html
        """,
    )
    parser.add_argument("set", metavar="SET", help="a folder that select wrote")
    parser.add_argument(
        "--with", metavar="SET", nargs="+", action="extend", default=[], dest="others", help="sets to compare it with"
    )
    parser.add_argument("--html", metavar="FILE", type=Path, help="write all of it as one page")
    parser.add_argument("--store", metavar="STORE", help="where the set's store is now, if it has moved")
    parser.add_argument("--task", metavar="TASK", help="where its task is now, if it has moved")
    parser.add_argument("--examples", metavar="N", type=seed, default=20, help="passages to show (default: 20)")
    parser.add_argument("--seed", type=seed, default=0, help="draws the passages that are shown (default: 0)")


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _share(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text} is no share: write the third of eight as 3/8")
    return int(number), int(of)


def share(text: str) -> float:
    """A number in [0, 1], for argparse."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def size(text: str) -> int:
    """Bytes, as 500MB, 2G, 1.5TB or a plain number, for argparse."""
    found = re.fullmatch(r"([\d.]+(?:E\d+)?) ?([KMGT]?)B?", text.upper())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text} is no size: write it as 500MB or 2GB")
    value = float(found[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}[found[2]]
    if not value >= 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least one byte")
    return int(value)


def seed(text: str) -> int:
    """An integer from 0 to 2**32 - 1, for argparse."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    if value >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} is more than {2**32 - 1}")
    return value


def run_build(args: argparse.Namespace) -> int:
    from selection.building import KEPT, build, collect
    from selection.errors import InputError
    from selection.index.plan import IndexWanted
    from selection.ingest import CorpusSpec, parse_corpus
    from selection.wording import human_seconds

    named = [parse_corpus(argument) for argument in args.corpus]
    if not named and (args.where or args.chunk or args.text_column != "text"):
        raise InputError("--where, --chunk and --text-column say how a --corpus is read: name it with them")
    if args.share:
        return _run_share(args)
    if args.encoder == "none":
        if args.dry_run:
            raise InputError("--dry-run is for a build that embeds: --encoder none reads a corpus, and no more")
        without = ("precision", "max_seconds", "max_tokens", "prompt", "device", "index", "max_memory")
        if given := [name for name in without if getattr(args, name) is not None]:
            flag = f"--{given[0].replace('_', '-')}"
            raise InputError(f"{flag} is for a build that embeds: leave it or --encoder none out")
        corpora = [CorpusSpec(n, path, args.text_column, args.where, args.chunk) for n, path in named]
        read = collect(args.store, corpora, report=say)
        print(f"done    {args.store}: {sum(c.passages for c in read):,} passages, none embedded")
        return 0
    model = (
        (model_of_cascade(args.encoder) or args.encoder.removeprefix(STATIC)) if args.chunk and args.encoder else None
    )
    corpora = [CorpusSpec(n, path, args.text_column, args.where, args.chunk, model) for n, path in named]
    result = build(
        args.store,
        corpora,
        encoder=args.encoder,
        precision=args.precision,
        max_tokens=args.max_tokens,
        prompt=args.prompt,
        index=IndexWanted(args.index or KEPT, args.min_recall, args.max_memory, None, args.queries),
        device=args.device,
        min_recall=args.min_recall,
        max_seconds=args.max_seconds,
        dry_run=args.dry_run,
        report=say,
    )
    if not result.done:
        print("dry run: nothing was embedded or indexed")
        return 0
    stages = ", ".join(f"{stage} {human_seconds(taken)}" for stage, taken in result.seconds.items())
    done = result.plan.embedding.passages
    speed = f", {done / result.seconds['embed']:.0f} passages/s" if done else ""
    print(f"done    {args.store}: {done:,} passages embedded, {result.plan.embedding.reused:,} kept; {stages}{speed}")
    if against := result.against_plan():
        print(f"plan    {against}")
    return 0


def _run_share(args: argparse.Namespace) -> int:
    from selection.errors import InputError
    from selection.sharing import embed_share
    from selection.wording import human_seconds

    others: dict[str, Any] = {"corpus": [], "index": None, "max_memory": None, "max_seconds": None, "dry_run": False}
    others |= {"min_recall": MIN_RECALL, "queries": QUERIES}
    if args.encoder == "none":
        raise InputError("--share embeds, and --encoder none does not: leave one of them out")
    if given := [name for name, unsaid in others.items() if getattr(args, name) != unsaid]:
        flag = f"--{given[0].replace('_', '-')}"
        raise InputError(f"--share embeds what a build has read, and no more: leave {flag} to other builds")
    done = embed_share(
        args.store,
        *args.share,
        encoder=args.encoder,
        precision=args.precision,
        max_tokens=args.max_tokens,
        prompt=args.prompt,
        device=args.device,
        report=say,
    )
    print(
        f"done    {args.store}: {done.passages:,} passages embedded in {human_seconds(done.seconds)}, {done.reused:,} "
        f"were there; once all shares are, `{done.build}` takes them in"
    )
    return 0


def run_index(args: argparse.Namespace) -> int:
    from selection.indexing import index

    index(
        args.store,
        args.kind,
        encoder=args.encoder,
        min_recall=args.min_recall,
        max_memory=args.max_memory,
        max_seconds=args.max_seconds,
        queries=args.queries,
        task=args.task,
        dry_run=args.dry_run,
        report=say,
    )
    if args.dry_run:
        print("dry run: nothing was indexed")
    return 0


def say(line: str) -> None:
    """Prints a line at once, so that who waits for a long command sees it."""
    print(line, flush=True)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run_query(args: argparse.Namespace) -> int:
    from selection.querying import query

    answer = query(
        args.store,
        args.task,
        args.k,
        encoder=args.encoder,
        index=args.index,
        device=args.device,
        limit=args.limit,
        min_recall=args.min_recall,
        report=_to_stderr,
    )
    (print_json if args.json else print_answer)(answer)
    searched = f"{len(answer.task.train_texts):,} examples over {len(answer.corpus):,} passages"
    encoding = f"encoding {answer.encode_seconds:.2f} s, " if answer.encode_seconds else ""  # a cascade does both
    print(f"searched {searched}: {encoding}search {answer.search_seconds:.2f} s", file=sys.stderr)
    return 0


def print_answer(answer: Answer) -> None:
    """Examples and neighbours for a person, one line each, cut to the line."""
    texts = answer.task.train_texts
    for rows in answer.rows():
        last = None
        for row in rows.to_pylist():
            if row["query_id"] != last:
                last = row["query_id"]
                print(f"\n[{last}] {plain(texts[last].as_py(), 150)}")
            source, name, text = plain(row["source"], 40), plain(row["id"], 80), plain(row["text"], 100)
            print(f"  {row['rank']:>3}  {row['score']:.3f}  {source:<10} {name:<24} {text}")


def print_json(answer: Answer) -> None:
    """One object a line: query_id, text, neighbours (rank, doc_id, id, source, score, text)."""
    texts = answer.task.train_texts
    fields = ("rank", "doc_id", "id", "source", "score", "text")
    for rows in answer.rows():
        current: dict[str, Any] = {}
        for row in rows.to_pylist():
            if current.get("query_id") != row["query_id"]:
                if current:
                    print(json.dumps(current, ensure_ascii=False))
                current = {"query_id": row["query_id"], "text": texts[row["query_id"]].as_py(), "neighbours": []}
            current["neighbours"].append({name: row[name] for name in fields})
        print(json.dumps(current, ensure_ascii=False))


def run_select(args: argparse.Namespace) -> int:
    from selection.augmentation import Budget, select
    from selection.wording import human_seconds

    limits = (args.k, args.docs, args.tokens)
    result = select(
        args.store,
        args.task,
        args.out,
        args.method,
        None if limits == (None, None, None) else Budget(*limits),
        exclude=args.exclude,
        order=args.order,
        near=args.near,
        guarded=args.guarded,
        removed=args.removed,
        encoder=args.encoder,
        index=args.index,
        seed=args.seed,
        device=args.device,
        overwrite=args.overwrite,
        min_recall=args.min_recall,
        report=_to_stderr,
    )
    print(f"{args.out}: {result.passages:,} passages, {result.tokens:,} tokens, {human_seconds(result.seconds)}")
    print("share   " + ", ".join(f"{source} {share:.1%}" for source, share in result.shares.items()))
    removed = result.removed
    copies = f"{removed.duplicates:,} duplicates, {removed.near_duplicates:,} near-duplicates"
    print(f"removed {copies}; texts of the task or excluded: {_counts(removed.leaks)}")
    if args.near != "off":
        print(f"        passages that hold a piece of one, or are too near: {_counts(removed.near_leaks)}")
    if not args.guarded:
        print("no guard: the set may hold dev and test texts, so nothing that is trained on it is a result")
    return 0


def _counts(by_reason: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in by_reason.items()) or "none"


def run_inspect(args: argparse.Namespace) -> int:
    from selection.inspect import inspect
    from selection.inspect_page import write_html

    found = inspect(
        args.set,
        others=args.others,
        store=args.store,
        task=args.task,
        examples=args.examples,
        seed=args.seed,
        report=_to_stderr,
    )
    print("\n".join(found.lines(examples=args.examples)))
    if args.html:
        write_html(found, args.html)
        print(f"page    {args.html}")
    return 0


def run_verify(args: argparse.Namespace) -> int:
    from selection.verifying import verify

    files = bad = 0
    for name, problem in verify(args.store):
        files += 1
        if problem:
            bad += 1
            print(f"{name}: {problem}")
    print(f"{args.store}: {files} files read again, {bad} to repair")
    return 1 if bad else 0


def run_doctor(args: argparse.Namespace) -> int:
    from selection.doctor import doctor

    ready = True
    for what, finding, good in doctor():
        print(f"{'  ' if good else '! '}{what:<22} {finding}")
        ready &= good
    print("ready" if ready else "not ready: see the lines marked !")
    return 0 if ready else 1
