"""A reading that was stopped goes on where it was, and ends as one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from selection import convert, unfinished
from selection import corpus as module
from selection.building import build, collect
from selection.errors import InputError
from selection.ingest import CorpusSpec
from selection.store import Store
from selection.verifying import verify
from selection.where import Filter

KINDS = ("parquet", "one file", "where", "jsonl", "chunk")


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes every step; shards and parts are small."""
    monkeypatch.setattr(unfinished, "SECONDS", 0)
    monkeypatch.setattr(unfinished, "TIMES", 0)
    monkeypatch.setattr(module, "SHARD_ROWS", 16)
    monkeypatch.setattr("selection.reading.BATCH_ROWS", 8)
    monkeypatch.setattr("selection.columnar.BATCH_ROWS", 8)
    monkeypatch.setattr(convert, "BATCH_ROWS", 8)


def corpus(passages: pa.Table, folder: Path, kind: str) -> CorpusSpec:
    """Three hundred passages, a blank one among them, in files of 75 or one."""
    folder.mkdir()
    texts = passages["text"].to_pylist()[:300]
    texts[130] = " "
    size = 300 if kind in ("one file", "jsonl") else 75
    lines = kind in ("jsonl", "lines")
    for at in range(0, 300, size):
        part = pa.table({"text": texts[at : at + size], "n": range(at, at + size)})
        if lines:
            (folder / f"{at:03d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part.to_pylist()))
        else:
            pq.write_table(part, folder / f"{at:03d}.parquet")
    return CorpusSpec(
        "c", str(folder), where="n % 7 <> 3" if kind == "where" else None, chunk=24 if kind == "chunk" else None
    )


def state_of(store: Path) -> dict[str, Any]:
    """All that a store has of its corpora: the manifest and the bytes of its files."""
    files = {str(p.relative_to(store)): p.read_bytes() for p in (store / "corpus").rglob("*") if p.is_file()}
    return {"manifest": (store / "manifest.json").read_text(), "files": files}


def stop_after(patch: pytest.MonkeyPatch, batches: int, error: type[BaseException] = KeyboardInterrupt) -> list[int]:
    """Has the reading stopped at a batch; the list counts those that are read, from then on too."""
    read, kept = [0], Filter.rows

    def counted(*arguments: Any) -> Any:
        read[0] += 1
        if read[0] == batches:
            raise error("stopped")
        return kept(*arguments)

    patch.setattr(Filter, "rows", counted)
    return read


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_reading_goes_on(
    kind: str, passages: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = corpus(passages, tmp_path / "files", kind)
    with pytest.MonkeyPatch.context() as patch:
        read = stop_after(patch, -1)
        collect(tmp_path / "whole", [spec])
        total = read[0]
    for stop in (2, total // 2, total):
        store = tmp_path / f"stopped-{stop}"
        with pytest.MonkeyPatch.context() as patch:
            read = stop_after(patch, stop)
            with pytest.raises(KeyboardInterrupt):
                collect(store, [spec])
            read[0] = -10_000
            collect(store, [spec])
        assert state_of(store) == state_of(tmp_path / "whole")
        most = {2: total, total // 2: total * 3 // 4, total: total // 3}[stop]
        assert read[0] + 10_000 <= most, "it read again what had been read"


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("kind", ["where", "chunk"])
def test_what_was_read_of_other_files_is_not_taken(kind: str, passages: pa.Table, tmp_path: Path) -> None:
    spec = corpus(passages, tmp_path / "files", kind)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 36)
        with pytest.raises(KeyboardInterrupt):
            collect(tmp_path / "stopped", [spec])
    changed = tmp_path / "files" / "075.parquet"
    table = pq.read_table(changed)
    pq.write_table(table.set_column(0, "text", pc.utf8_upper(table["text"])).slice(2), changed)
    for store in ("stopped", "whole"):
        collect(tmp_path / store, [spec])
    assert state_of(tmp_path / "stopped") == state_of(tmp_path / "whole")


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("kind", ["parquet", "where", "chunk", "lines"])
def test_of_a_corpus_that_gains_files_only_those_are_read(kind: str, passages: pa.Table, tmp_path: Path) -> None:
    spec = corpus(passages, tmp_path / "files", kind)
    last = max((tmp_path / "files").iterdir())
    last.rename(tmp_path / last.name)
    collect(tmp_path / "store", [spec])
    parts = tmp_path / "store" / "corpus" / "c"
    before = {part.name: part.stat().st_ino for part in parts.glob("part-*")}
    (tmp_path / last.name).rename(last)
    with pytest.MonkeyPatch.context() as patch:
        read = stop_after(patch, -1)
        collect(tmp_path / "store")
        gained = read[0]
        collect(tmp_path / "whole", [spec])
    now = {part.name: part.stat().st_ino for part in parts.glob("part-*")}
    assert [name for name in before if now[name] != before[name]] == sorted(before)[-1:], "parts were written again"
    # Of what was written to the store, the last part is begun anew too.
    assert 0 < gained < (read[0] - gained) / (3 if kind in ("parquet", "where") else 2)
    assert state_of(tmp_path / "store") == state_of(tmp_path / "whole")


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("kind", ["where", "chunk", "lines"])
def test_a_store_that_answers_has_all_passages_once_files_came(
    kind: str, passages: pa.Table, tiny_encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = corpus(passages, tmp_path / "files", kind)
    last = max((tmp_path / "files").iterdir())
    last.rename(tmp_path / last.name)
    build(tmp_path / "store", [spec], encoder=str(tiny_encoder))
    (tmp_path / last.name).rename(last)
    caplog.clear()
    build(tmp_path / "store")
    assert [record.getMessage() for record in caplog.records if "changed" in record.getMessage()] == []
    build(tmp_path / "whole", [spec], encoder=str(tiny_encoder))
    one, other = Store(tmp_path / "store"), Store(tmp_path / "whole")
    assert one.corpus.take(np.arange(len(one.corpus))).equals(other.corpus.take(np.arange(len(other.corpus))))
    build(tmp_path / "store")
    assert not [wrong for _, wrong in verify(tmp_path / "store") if wrong]


def test_bad_input_leaves_nothing_of_a_reading_of_seconds(passages: pa.Table, tmp_path: Path) -> None:
    spec = corpus(passages, tmp_path / "files", "where")
    (tmp_path / "files" / "300.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="not a whole Parquet file"):
        collect(tmp_path / "store", [spec])
    assert not (tmp_path / "store").exists()


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("kind", ["where", "chunk"])
def test_bad_input_costs_no_more_than_itself(kind: str, passages: pa.Table, tmp_path: Path) -> None:
    spec = corpus(passages, tmp_path / "files", kind)
    last = tmp_path / "files" / "225.parquet"
    whole = last.read_bytes()
    last.write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="not a whole Parquet file"):
        collect(tmp_path / "store", [spec])
    last.write_bytes(whole)
    with pytest.MonkeyPatch.context() as patch:
        read = stop_after(patch, -1)
        collect(tmp_path / "store", [spec])
        again = read[0]
        collect(tmp_path / "whole", [spec])
    assert again < (read[0] - again) / 2
    assert state_of(tmp_path / "store") == state_of(tmp_path / "whole")


@pytest.mark.usefixtures("often")
def test_a_stop_behind_the_last_row_costs_the_last_part(passages: pa.Table, tmp_path: Path) -> None:
    spec = corpus(passages, tmp_path / "files", "jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "_cut_part", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            collect(tmp_path / "store", [spec])
    with pytest.MonkeyPatch.context() as patch:
        read = stop_after(patch, -1)
        collect(tmp_path / "store", [spec])
        assert 0 < read[0] <= 4 * 16 / 8
        collect(tmp_path / "whole", [spec])
    assert state_of(tmp_path / "store") == state_of(tmp_path / "whole")


@pytest.mark.usefixtures("often")
def test_a_file_that_came_after_the_last_row_changes_no_part(passages: pa.Table, tmp_path: Path) -> None:
    spec = corpus(passages, tmp_path / "files", "jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "_cut_part", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            collect(tmp_path / "store", [spec])
    (tmp_path / "files" / "more.jsonl").write_text('{"text": "one more", "n": 300}\n' * 30)
    for store in ("store", "whole"):
        collect(tmp_path / store, [spec])
    assert state_of(tmp_path / "store") == state_of(tmp_path / "whole")


@pytest.mark.usefixtures("often")
def test_a_reading_that_was_stopped_outlasts_that_of_another_corpus(passages: pa.Table, tmp_path: Path) -> None:
    spec, other = corpus(passages, tmp_path / "files", "chunk"), corpus(passages, tmp_path / "others", "parquet")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 30)
        with pytest.raises(KeyboardInterrupt):
            collect(tmp_path / "store", [spec])
    collect(tmp_path / "store", [replace(other, name="other")])
    assert (tmp_path / "store" / "corpus" / ".c.unfinished" / unfinished.STATE).exists()
    collect(tmp_path / "store", [spec])
    assert {path.name for path in (tmp_path / "store" / "corpus").iterdir()} == {"c", "other"}


@pytest.mark.usefixtures("often")
def test_a_damaged_list_of_rows_is_not_taken_over(passages: pa.Table, tmp_path: Path) -> None:
    spec = corpus(passages, tmp_path / "files", "where")
    for store in ("store", "whole"):
        collect(tmp_path / store, [spec])
    keep = min((tmp_path / "store" / "corpus" / "c").glob("keep-*"))
    data = bytearray(keep.read_bytes())
    data[len(data) // 2] ^= 1
    keep.write_bytes(bytes(data))
    collect(tmp_path / "store", [])
    assert state_of(tmp_path / "store") == state_of(tmp_path / "whole")


@pytest.mark.usefixtures("often")
def test_what_is_gone_from_the_folder_is_read_again(passages: pa.Table, tmp_path: Path) -> None:
    for kind, names in (("where", "keep-*"), ("chunk", "part-*")):
        spec = corpus(passages, tmp_path / kind, kind)
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, 30)
            with pytest.raises(KeyboardInterrupt):
                collect(tmp_path / f"{kind}-stopped", [spec])
        min((tmp_path / f"{kind}-stopped" / "corpus" / ".c.unfinished").glob(names)).unlink()
        for store in ("stopped", "whole"):
            collect(tmp_path / f"{kind}-{store}", [spec])
        assert state_of(tmp_path / f"{kind}-stopped") == state_of(tmp_path / f"{kind}-whole")


def test_converted_files_that_give_way_to_parquet_leave_no_shards(passages: pa.Table, tmp_path: Path) -> None:
    spec = corpus(passages, tmp_path / "files", "jsonl")
    collect(tmp_path / "store", [spec])
    pq.write_table(passages.slice(400, 20), tmp_path / "files" / "b.parquet")
    for store in ("store", "whole"):
        collect(tmp_path / store, [spec])
    assert state_of(tmp_path / "store") == state_of(tmp_path / "whole")
    assert len(Store(tmp_path / "store").corpus.take(np.arange(20))) == 20


@pytest.mark.usefixtures("often")
def test_what_was_left_out_is_counted_once(passages: pa.Table, tmp_path: Path) -> None:
    """Files gained, stopped, one of the old ones edited."""
    spec = corpus(passages, tmp_path / "files", "where")
    gained = [tmp_path / "files" / name for name in ("150.parquet", "225.parquet")]
    for file in gained:
        file.rename(tmp_path / file.name)
    collect(tmp_path / "store", [spec])
    for file in gained:
        (tmp_path / file.name).rename(file)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 14)
        with pytest.raises(KeyboardInterrupt):
            collect(tmp_path / "store", [spec])
    edited = tmp_path / "files" / "075.parquet"
    pq.write_table(pq.read_table(edited).slice(3), edited)
    for store in ("store", "whole"):
        collect(tmp_path / store, [spec])
    assert state_of(tmp_path / "store") == state_of(tmp_path / "whole")


@pytest.mark.usefixtures("often")
def test_a_folder_that_lies_elsewhere_stays_there(passages: pa.Table, tmp_path: Path) -> None:
    spec = corpus(passages, tmp_path / "files", "jsonl")
    collect(tmp_path / "store", [spec])
    (tmp_path / "store" / "corpus" / "c").rename(tmp_path / "elsewhere")
    (tmp_path / "store" / "corpus" / "c").symlink_to(tmp_path / "elsewhere")
    with (tmp_path / "files" / "000.jsonl").open("a") as file:
        file.write('{"text": "one more", "n": 300}\n')
    collect(tmp_path / "store", [spec])
    assert (tmp_path / "store" / "corpus" / "c").is_symlink()
    assert sum(pq.read_metadata(part).num_rows for part in (tmp_path / "elsewhere").glob("part-*")) == 300


@pytest.mark.usefixtures("often")
def test_what_another_specification_left_is_cleared_away(passages: pa.Table, tmp_path: Path) -> None:
    spec = corpus(passages, tmp_path / "files", "where")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 36)
        with pytest.raises(KeyboardInterrupt):
            collect(tmp_path / "stopped", [spec])
    plain = CorpusSpec("c", spec.location)
    for store in ("stopped", "whole"):
        collect(tmp_path / store, [plain])
    assert state_of(tmp_path / "stopped") == state_of(tmp_path / "whole")


def test_a_killed_process_goes_on(passages: pa.Table, tmp_path: Path) -> None:
    """By the command line, killed in earnest."""
    spec = corpus(passages, tmp_path / "files", "chunk")
    code = (
        "import os, signal, sys\n"
        "from selection import corpus, unfinished\n"
        "from selection.where import Filter\n"
        "unfinished.SECONDS = unfinished.TIMES = 0\n"
        "corpus.SHARD_ROWS, kept, read = 16, Filter.rows, [0]\n"
        "def counted(*arguments):\n"
        "    read[0] += 1\n"
        "    if read[0] == 3 and sys.argv[1] == 'kill':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return kept(*arguments)\n"
        "Filter.rows = counted\n"
        "from nearkin import main\n"
        "status = main(sys.argv[2:])\n"
        "print(read[0])\n"
        "sys.exit(status)\n"
    )
    found = {}
    for store, way in (("stopped", "kill"), ("stopped", "go"), ("whole", "go")):
        arguments = [
            "build",
            str(tmp_path / store),
            "--encoder",
            "none",
            "--corpus",
            f"c={spec.location}",
            "--chunk",
            "24",
        ]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", code, way, *arguments], capture_output=True, text=True, env=environment
        )
        assert done.returncode == (-signal.SIGKILL if way == "kill" else 0), done.stderr
        found[store] = done.stdout
    assert int(found["stopped"].split()[-1]) < int(found["whole"].split()[-1])
    assert state_of(tmp_path / "stopped") == state_of(tmp_path / "whole")
