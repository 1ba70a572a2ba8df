"""A domain corpus and a small labelled task from what every machine has: the docstrings of installed packages.

The corpus is a few thousand passages of prose about code. The task asks which library a passage documents, with the
names of libraries masked, so that it is decided by the subject and not by the name. Sources are parsed, never imported:
nothing of a package runs. Of a large package only a seeded sample of files is read, which keeps the harvest to seconds;
the price is that a passage can be missing whose neighbours are present.

One docstring goes to one place (train, dev, test or corpus), and each passage is kept once, where two count as one when
they differ only in identifiers, numbers and punctuation: model zoos repeat a docstring with another class name.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import logging
import os
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selection.errors import NearkinError
from selection.files import atomic_write
from selection.task import SPLITS
from selection.wording import join

log = logging.getLogger(__name__)

# The first ten can become classes of the task; the rest are there so that the corpus holds more than the task asks for.
DEFAULT = (
    *("torch", "transformers", "scipy", "sklearn", "pandas", "numpy", "sympy", "networkx", "pyarrow", "datasets"),
    *("sentence_transformers", "huggingface_hub", "accelerate", "fsspec", "joblib", "jinja2", "rich", "typer", "yaml"),
    *("tqdm", "pip", "setuptools"),
)
CLASSES, FEWEST_CLASSES = 6, 3
FILES_LIMIT, PASSAGES_LIMIT, BYTES_LIMIT = 400, 900, 150_000  # a package, a package, a file (larger: generated code)
RICH = 400  # passages past which a package's place in the list decides, not the luck of its sampled files
SHORTEST_DOCSTRING, FEWEST_WORDS, MOST_WORDS = 80, 25, 65

SKIPPED_FOLDERS = {"test", "tests", "testing", "_vendor", "vendor", "vendored", "externals", "extern", "third_party"}
MASK = "library"
DISTINCT = ("pytorch", "torch", "numpy", "scipy", "sklearn", "pandas", "pyarrow", "networkx", "sympy", "matplotlib")
# Aliases that are words or initials elsewhere count only where they are written as the library's.
ALIASES = (
    r"sci-?kit[-_ ]?learn|hugging[ -]?face|🤗|(?-i:\bHF\b)|sentence[- ]transformers|apache arrow|(?-i:\bArrow)"
    r"|tensorflow|\bjax\b|\b(?:np|pd|plt|nx)\b|\b(?:pa|pc|tf|sp|jnp)(?=\.\w)"
    r"|(?:🤗|hugging ?face) datasets|\bdatasets(?=\.[a-z])"
)
COMMON_WORDS = {"datasets", "rich"}

FENCE, DOCTEST, TABLE_ROW = re.compile(r"\s*(?:```|~~~)"), re.compile(r"\s*>>>"), re.compile(r"\s*\||.*\S {3,}\S")
UNDERLINE = re.compile(r"\s*(?:[-=~^*#+\"]{3,}\s*)+$")
PROSE_DIRECTIVE = re.compile(r"\.\. (?:note|warning|tip|important|attention|admonition)::\s*")
HEADING = re.compile(r"\s*(?:#+ .*|[A-Z][A-Za-z ]{2,24}::?)\s*$")
FIELD = re.compile(r"\s*(?:[-*]\s+)?(?:`{0,2}\*{0,2}[\w.]+`{0,2}\s*(?:\(.*\))?\s*:(?:\s+|$)|:\w+[^:`]*:\s+)")
NUMPYDOC_ROW = re.compile(r"\s*[*\w`., ]+ : \S.*$")
ROLE, MARKUP = (
    re.compile(r":[\w:+-]+:(?=`)"),
    re.compile(r"\(?https?://[^\s)]*\)?|\[(?=`)|(?<=`)\]|`+~?(?:__?\b)?|\*\*|</?[A-Za-z][^<>\s]*>|\[\d+\]_?"),
)
SENTENCE_END, CODE = re.compile(r"(?<=[.!?])\s+"), re.compile(r"[=(){}\[\]_<>\\|/@#$^]|::|\d|\w\.\w")


@dataclass(frozen=True)
class Harvest:
    """What was harvested.

    Attributes:
        corpus: ``id`` (string, ``module.qualname``, with ``#2`` on the second passage of a docstring), ``text``
            (string) and ``package`` (string), ordered by id.
        task: ``train``, ``dev`` and ``test``, each with ``text`` and ``label`` (string, the package's name), shuffled.
    """

    corpus: pa.Table
    task: dict[str, pa.Table]

    @property
    def labels(self) -> list[str]:
        return sorted(self.task["train"]["label"].unique().to_pylist())


@dataclass(frozen=True)
class Document:
    """One docstring: where it stands, and its passages."""

    package: str
    name: str
    passages: list[str]


def harvest(
    packages: Sequence[str] = DEFAULT,
    *,
    seed: int = 0,
    passages: int = 4000,
    train: int = 200,
    dev: int = 150,
    test: int = 400,
) -> Harvest:
    """Harvests a corpus and a task; the same on the same installation for the same arguments.

    Args:
        packages: top-level names; those that are not installed are left out. The task's classes are the (at most) six
            of them with the most passages, earlier names first among equals and among those with 400 or more.
        seed: of the files read, the examples and the passages kept.
        passages: most passages in the corpus, 25 to 65 words each.
        train, dev, test: examples in each split, as many of each class as divides evenly.

    Raises:
        NearkinError: fewer than three packages have enough docstrings for the task.
    """
    mask = _mask_pattern(packages)
    found = {name: _documents(name, seed, mask) for name in dict.fromkeys(packages)}
    found = {name: documents for name, documents in _without_repeats(found).items() if documents}
    sizes = dict(zip(SPLITS, (train, dev, test), strict=True))
    classes = _choose_classes(found, sizes)
    log.info("harvested %s; the classes are %s", {name: len(d) for name, d in found.items()}, join(classes))

    rng = np.random.default_rng(seed)
    examples: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for position, label in enumerate(classes):
        documents = [found[label][i] for i in rng.permutation(len(found[label]))]
        for split, size in sizes.items():
            share = _share(size, len(classes), position)
            examples[split] += [(document.passages[0], label) for document in documents[:share]]
            documents = documents[share:]
        found[label] = documents
    rows = sorted(
        (f"{document.name}#{i}" if i > 1 else document.name, text, document.package)
        for documents in found.values()
        for document in documents
        for i, text in enumerate(document.passages, start=1)
    )
    kept = np.sort(rng.permutation(len(rows))[:passages])
    task = {
        split: _table([pairs[i] for i in rng.permutation(len(pairs))], ["text", "label"])
        for split, pairs in examples.items()
    }
    return Harvest(_table([rows[i] for i in kept], ["id", "text", "package"]), task)


def write_harvest(harvest: Harvest, folder: Path | str) -> tuple[Path, Path]:
    """Writes ``folder/corpus.parquet`` and ``folder/task/{train,dev,test}.jsonl``; returns the two paths.

    The same harvest gives the same bytes. Files already there under these names are replaced.
    """
    corpus, task = Path(folder) / "corpus.parquet", Path(folder) / "task"
    with atomic_write(corpus) as aside:
        pq.write_table(harvest.corpus, aside)
    for split, table in harvest.task.items():
        with atomic_write(task / f"{split}.jsonl") as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())
    return corpus, task


def _table(rows: Sequence[tuple[str, ...]], columns: list[str]) -> pa.Table:
    values = zip(*rows, strict=True) if rows else [()] * len(columns)
    return pa.table({name: pa.array(column, pa.string()) for name, column in zip(columns, values, strict=True)})


def _share(size: int, classes: int, position: int) -> int:
    """How many of `size` examples class number `position` gives, evenly, the rest to the first classes."""
    return size // classes + (position < size % classes)


def _choose_classes(found: dict[str, list[Document]], sizes: dict[str, int]) -> list[str]:
    """The classes, as many as have the documents they must give and leave a third as many again to the corpus."""
    ranked = sorted(found, key=lambda name: -min(RICH, sum(len(document.passages) for document in found[name])))
    for count in range(min(CLASSES, len(ranked)), FEWEST_CLASSES - 1, -1):
        needed = sum(_share(size, count, 0) for size in sizes.values())
        if min(sizes.values()) < count:
            continue
        if len(enough := [name for name in ranked if len(found[name]) >= needed * 4 / 3]) >= count:
            return enough[:count]
    raise NearkinError(
        f"the demo's task needs {FEWEST_CLASSES} installed packages with enough docstrings for {sum(sizes.values())} "
        f"examples, at least {FEWEST_CLASSES} a split, and there is too little in {join(found)}: "
        "install more of numpy, scipy, scikit-learn, pandas, torch and transformers, or ask for fewer examples"
    )


def _without_repeats(found: dict[str, list[Document]]) -> dict[str, list[Document]]:
    """Keeps each passage, and each name, where it stands first, in the order of the packages and of their files."""
    seen, names = set(), set()
    kept: dict[str, list[Document]] = {}
    for name, documents in found.items():
        kept[name] = []
        for document in documents:
            new = []
            for text in document.passages:
                if (key := normalised(text)) not in seen:
                    seen.add(key)
                    new.append(text)
            if new and document.name not in names:
                names.add(document.name)
                kept[name].append(Document(name, document.name, new))
    return kept


def normalised(text: str) -> str:
    """What two passages must share to count as one: their words, without identifiers, numbers and punctuation."""
    return " ".join(word.lower() for word in re.findall(r"(?<![\w.])[A-Za-z]?[a-z]+(?![\w(])", text))


def _mask_pattern(packages: Sequence[str]) -> re.Pattern[str]:
    """Matches the names and aliases of the libraries, whatever their case; well-known ones inside identifiers too."""
    others = sorted({*packages, *DEFAULT} - {*DISTINCT, *COMMON_WORDS}, key=lambda name: (-len(name), name))
    bounded = "|".join(re.escape(name).replace("_", "[-_ ]?") for name in others)
    return re.compile(rf"{ALIASES}|{'|'.join(DISTINCT)}|(?<![^\W_])(?:{bounded})(?![^\W_])", re.IGNORECASE)


def _documents(package: str, seed: int, mask: re.Pattern[str]) -> list[Document]:
    """The docstrings of a seeded sample of a package's files, in the order of their paths; none if not installed."""
    files = _source_files(package)
    # Seeded by the name as well, so that one more package in the list changes nothing about the others.
    rng = np.random.default_rng([seed, zlib.crc32(package.encode())])
    sample: list[tuple[str, list[Document]]] = []
    count = 0
    for i in rng.permutation(len(files))[:FILES_LIMIT]:
        module, path = files[i]
        documents = []
        for qualname, docstring in _docstrings(path):
            if texts := passages_of(docstring, mask):
                name = f"{module}.{qualname}" if qualname else module
                documents.append(Document(package, name, texts))
                count += len(texts)
        sample.append((module, documents))
        if count >= PASSAGES_LIMIT:
            break
    return [document for _, documents in sorted(sample, key=lambda pair: pair[0]) for document in documents]


def _source_files(package: str) -> list[tuple[str, Path]]:
    """Module names and files of a package, ordered; empty where it is not installed or has no Python source."""
    if not package.isidentifier():
        return []  # find_spec would import the parents of a dotted name
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if not spec.submodule_search_locations:
        return [(package, Path(spec.origin))] if spec.origin and spec.origin.endswith(".py") else []
    files = []
    for root in map(Path, spec.submodule_search_locations):
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS and name.isidentifier()]
            for name in names:
                if name.endswith(".py") and not name.startswith(("test_", "conftest", "setup.")):
                    parts = (package, *Path(folder, name).relative_to(root).with_suffix("").parts)
                    files.append((".".join(parts).removesuffix(".__init__"), Path(folder, name)))
    return sorted(files)


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Qualified names and docstrings of a file's module, classes and functions; the first of each name."""
    try:
        if path.stat().st_size > BYTES_LIMIT:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    seen = set()
    waiting: list[tuple[str, ast.AST]] = [("", tree)]
    while waiting:
        qualname, node = waiting.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node, clean=False)
            if docstring and len(docstring) >= SHORTEST_DOCSTRING and qualname not in seen:
                seen.add(qualname)
                yield qualname, docstring
        if isinstance(node, (ast.Module, ast.ClassDef, ast.If, ast.Try)):
            for child in reversed(list(ast.iter_child_nodes(node))):
                name = getattr(child, "name", "") if not isinstance(child, ast.ExceptHandler) else ""
                waiting.append((f"{qualname}.{name}".strip("."), child))


def passages_of(docstring: str, mask: re.Pattern[str]) -> list[str]:
    """A docstring's prose in passages of 25 to 65 words, whole sentences each; then masks the names that `mask` finds.

    Code, doctests, tables, headings and the names and types of parameters are left out; a rest of fewer words is too.
    """
    out: list[str] = []
    words = 0
    passages = []
    sentences = [s for paragraph in _paragraphs(docstring) for s in SENTENCE_END.split(paragraph)]
    for sentence in [*sentences, ""]:
        length = len(sentence.split())
        if out and (not sentence or words + length > MOST_WORDS):
            if words >= FEWEST_WORDS:
                passages.append(mask.sub(MASK, " ".join(out)))
            out, words = [], 0
        if 2 < length <= MOST_WORDS:
            out.append(sentence)
            words += length
    return passages


def _paragraphs(docstring: str) -> Iterator[str]:
    """The paragraphs of prose, whitespace collapsed, markup stripped, each ended by a full stop if by nothing else."""
    for lines in _blocks(inspect.cleandoc(docstring).splitlines()):
        text = " ".join(MARKUP.sub("", ROLE.sub("", " ".join(lines))).split())
        words = text.split()
        codelike = sum(1 for word in words if CODE.search(word.strip(".,;:()\"'")))
        if len(words) < 4 or codelike > 0.3 * len(words) or len(text.encode()) > 1.05 * len(text):
            continue
        yield text if text[-1] in ".!?" else text.rstrip(":;,") + "."


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Groups of lines that stand together, without what is not prose."""
    block: list[str] = []
    fenced, doctest, deeper_than = False, False, -1  # deeper_than: indent of the line that opened a literal block
    for line, after in pairwise([*lines, ""]):
        blank, indent = not line.strip(), len(line) - len(line.lstrip())
        if FENCE.match(line):
            fenced, blank = not fenced, True
        elif not blank and deeper_than >= 0:
            deeper_than = deeper_than if indent > deeper_than else -1
        doctest = not blank and (doctest or bool(DOCTEST.match(line)))
        starts = bool(FIELD.match(line)) or line.lstrip().startswith(("- ", "* "))
        row = bool(NUMPYDOC_ROW.match(line)) and len(after) - len(after.lstrip()) > indent
        if (blank or starts or row or doctest) and block:
            yield block
            block = []
        heading = bool(UNDERLINE.match(after) or HEADING.match(line))
        if (
            blank
            or fenced
            or doctest
            or deeper_than >= 0
            or row
            or heading
            or UNDERLINE.match(line)
            or TABLE_ROW.match(line)
        ):
            continue
        text = PROSE_DIRECTIVE.sub("", line.strip())
        if text.startswith(".. ") or text.endswith("::"):
            deeper_than = indent
        if not text.startswith(".. "):
            field = FIELD.match(text)
            block.append(text[field.end() if field else 0 :].lstrip("-* "))
    if block:
        yield block
