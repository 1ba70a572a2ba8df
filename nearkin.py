"""The command line: mounts the commands of the three floors, and turns every failure into one plain sentence."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from selection.errors import NearkinError, did_you_mean, explain_os_error

EPILOG = """\
a first session:
  nearkin build store --corpus papers=papers.parquet
  nearkin query store tasks/my-task -k 5 --limit 3
  nearkin select store tasks/my-task --method knn -k 50 --out knn50
  nearkin adapt --model roberta-base --text tasks/my-task knn50 --out adapted
  nearkin finetune --model adapted --task tasks/my-task --out result

`nearkin demo` shows all of it on data that every machine has.
"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the nearest name there is; options are not abbreviated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**(options | {"allow_abbrev": False}))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            option = unknown[0].partition("=")[0]
            near = did_you_mean(option, self._option_string_actions, 0.75) if option.startswith("-") else ""
            self.error(f"unknown argument {option}{near}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        if choice := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)$", message):
            message += did_you_mean(choice[1], re.findall(r"[^', ]+", choice[2]))
        self.exit(2, f"nearkin: {message.rstrip('?')}; `{self.prog} --help` shows what there is\n")


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from adaptation.commands import register as register_adaptation
    from benchmarks.commands import register as register_benchmarks
    from selection.commands import register as register_selection

    root: argparse.ArgumentParser = Parser(
        prog="nearkin",
        description="Finds, in a domain corpus, the text that will help a task most, and adapts a masked LM on it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"nearkin {_version()}")
    root.add_argument("--debug", action="store_true", help="anywhere: show tracebacks and the libraries' own messages")
    commands = root.add_subparsers(metavar="COMMAND", required=True)
    for register in (register_selection, register_adaptation, register_benchmarks):
        register(commands)
    return root


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("nearkin")
    except PackageNotFoundError:
        return "(source tree)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0 (done) or 1 (failed, said on stderr); wrong usage exits with 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:  # a batch system's way to stop what takes too long: clean up as for Ctrl-C
        signal.signal(signal.SIGTERM, _end)
    debug = "--debug" in words
    args = parser().parse_args([word for word in words if word != "--debug"])
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="nearkin: %(message)s")
    if not debug:
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        logging.getLogger("httpx").setLevel(logging.ERROR)
    # cuBLAS reads it when CUDA starts; without it the same training gives other bits.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        return int(args.run(args))
    except NearkinError as error:
        if debug:
            raise
        return _fail(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1  # whoever read the output is gone, and what was to be done may not be
    except KeyboardInterrupt:
        return _fail(
            "stopped; build, index, adapt, finetune, run, and bench search, selectors, training and frontier go on "
            "where they were when given again"
        )
    except OSError as error:
        if debug:
            raise
        return _fail(str(explain_os_error(error, f"using {error.filename}" if error.filename else "working")))
    except MemoryError:
        return _fail("out of memory: give a smaller --micro-batch (adapt) or --max-tokens, or a smaller corpus")
    except Exception as error:
        if debug:
            raise
        if type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error):  # torch's, not imported here
            return _fail("the GPU is out of memory: give a smaller --micro-batch (adapt) or a smaller --max-tokens")
        reason = " ".join(str(error).split())[:300]
        return _fail(f"internal error ({type(error).__name__}: {reason}); run it with --debug for the traceback")


def _end(number: int, _: Any) -> NoReturn:
    """Ends this process by a signal, with its children, for which pools would wait."""
    for child in multiprocessing.active_children():
        child.terminate()
    sys.exit(128 + number)


def _fail(sentence: str) -> int:
    print(f"nearkin: {sentence}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
