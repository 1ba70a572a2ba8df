"""Is a local copy of a data set what its card says: files, columns, counts, labels, checksums."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from adaptation.cards import Card, file_names
from selection.columnar import open_columnar
from selection.errors import InputError
from selection.files import TextFingerprint, fingerprint, sha256_of_file
from selection.finding import find_files
from selection.reading import COLUMNAR_KINDS, kind_of, read_batches, read_table
from selection.task import SPLITS
from selection.wording import join


def check_data(card: Card, path: Path) -> list[str]:
    """Compares what lies at `path` with its card.

    Args:
        card: of a task or a corpus.
        path: the task's folder, or the corpus's file or folder.

    Returns:
        What was found right, and what could not be checked: sentences for a person.

    Raises:
        InputError: something is not as the card says; the message names the file.
    """
    said = list(_check_task(card, path) if card["kind"] == "task" else _check_corpus(card, path))
    return [*said, *_check_bytes(card, path)]


def _check_task(card: Card, folder: Path) -> Iterator[str]:
    contents = {}
    for split in SPLITS:
        path = folder / f"{split}.jsonl"
        if not path.is_file():
            raise InputError(f"{folder} has no {path.name}, so it is not the task {card['name']}")
        table = read_table(path)
        _require_columns(card, table.schema, path)
        labels = table["label"].cast(pa.string())
        if labels.null_count:
            raise InputError(f"{path}: {labels.null_count:,} examples have no label, so it is not {card['name']}")
        if abs(table.num_rows - card[split]) > card.get("slack", 0):
            raise InputError(
                f"{path} has {table.num_rows:,} examples and the card of {card['name']} says {card[split]:,}: "
                "it is another version of the task, or damaged"
            )
        _require_labels(card, labels, path)
        contents[path.name] = content_of(table["text"], labels)
    yield f"columns, {' / '.join(f'{card[split]:,}' for split in SPLITS)} examples and {card['classes']} labels fit"
    if known := card.get("content"):
        same = contents == known
        yield (
            "texts and labels are those of the copy that nearkin was tested with"
            if same
            else "texts or labels differ from the copy that nearkin was tested with"
        )


def _require_columns(card: Card, schema: pa.Schema, path: Path) -> None:
    if lacking := [column for column in card["columns"] if column not in schema.names]:
        raise InputError(
            f"{path} has no column {join(lacking)} (it has {', '.join(schema.names)}), so it is not {card['name']}"
        )


def _require_labels(card: Card, labels: pa.ChunkedArray, path: Path) -> None:
    found = set(pc.unique(labels).to_pylist())
    if strange := sorted(found - set(card["labels"])):
        raise InputError(f"{path} has the label {strange[0]!r}, which the card of {card['name']} does not know")
    if path.stem == "train" and (lacking := sorted(set(card["labels"]) - found)):
        raise InputError(f"{path} has no example of {join(lacking)}, which the card of {card['name']} lists")


def content_of(texts: pa.ChunkedArray, labels: pa.ChunkedArray) -> str:
    """A fingerprint of a split's texts and labels, whatever other fields and spacing its file has."""
    return fingerprint(TextFingerprint.of(texts), TextFingerprint.of(labels))


def _check_corpus(card: Card, path: Path) -> Iterator[str]:
    if not path.exists():
        raise InputError(f"{path} does not exist")
    rows = 0
    files = find_files(str(path))
    for file in files:
        if kind_of(file) in COLUMNAR_KINDS:
            columnar = open_columnar(file)
            schema, rows = columnar.schema, rows + columnar.rows
        else:
            batches = read_batches(file)
            first = next(batches, None)
            if first is None:
                raise InputError(f"{file} has no rows")
            schema = first.schema
            if not card.get("rounded"):
                rows += first.num_rows + sum(batch.num_rows for batch in batches)
        _require_columns(card, schema, file)
    if card.get("rounded"):
        yield f"columns of {len(files)} file{'s' * (len(files) != 1)} fit; the card's counts are rounded, not checked"
        return
    if rows != card["passages"]:
        raise InputError(
            f"{path} has {rows:,} passages and the card of {card['name']} says {card['passages']:,}: "
            "it is another version of the corpus, or damaged"
        )
    yield f"columns and {rows:,} passages fit"


def _check_bytes(card: Card, path: Path) -> Iterator[str]:
    known = card.get("sha256", {})
    for name, expected in known.items():
        file = path if path.is_file() else path / name
        if (actual := sha256_of_file(file)) != expected:
            raise InputError(
                f"{file} has the sha256 {actual[:12]}… and the card of {card['name']} says {expected[:12]}…: "
                "it is another version, or damaged"
            )
    if known:
        yield f"sha256 fits ({join(known)})"
    elif file_names(card) and "derive" not in card:
        yield "the card has no sha256, so the bytes were not checked"
