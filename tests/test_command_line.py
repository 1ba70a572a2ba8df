"""The contracts of the command line, and bad input: one plain sentence, exit code 1, nothing half-written."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from huggingface_hub import constants

from selection import doctor
from selection.commands import size
from selection.errors import StoreError
from tests.conftest import Cli


def snapshot(folder: Path) -> dict[str, bytes]:
    ignored = {".lock", ".checked.json"}
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in ignored
    }


def assert_refused(result: tuple[int, str, str], *words: str) -> None:
    code, _, err = result
    assert code == 1
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("nearkin: ")
    assert "internal error" not in lines[0]
    for word in words:
        assert word in lines[0]


def test_build_query_select_verify(
    cli: Cli, corpus_file: Path, tiny_encoder: Path, task_folder: Path, tmp_path: Path
) -> None:
    store, chosen = tmp_path / "store", tmp_path / "set"
    code, out, _ = cli("build", store, "--corpus", f"docs={corpus_file}", "--encoder", tiny_encoder, "--dry-run")
    assert code == 0
    assert "600 of 600 passages to embed" in out
    assert "dry run" in out
    assert not list(store.glob("embeddings/*"))
    code, out, _ = cli("build", store, "--corpus", f"docs={corpus_file}", "--encoder", tiny_encoder)
    assert code == 0
    assert "600 passages embedded" in out
    code, out, _ = cli("query", store, task_folder, "-k", 2, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["query_id"] for line in lines] == list(range(40))
    assert list(lines[0]) == ["query_id", "text", "neighbours"]
    assert list(lines[0]["neighbours"][0]) == ["rank", "doc_id", "id", "source", "score", "text"]
    code, out, _ = cli("query", store, task_folder, "--limit", 1)
    assert out.count("docs") >= 5
    code, out, _ = cli("select", store, task_folder, "--method", "knn", "-k", 2, "--out", chosen)
    assert code == 0
    assert "share   docs 100.0%" in out
    assert sorted(p.name for p in chosen.iterdir()) == ["augmentation.parquet", "manifest.json"]
    assert cli("verify", store)[0] == 0
    next(store.glob("embeddings/*/*.arrow")).write_bytes(b"damaged")
    code, out, _ = cli("verify", store)
    assert code == 1
    assert "nearkin build" in out


@pytest.mark.parametrize(
    ("text", "there"), [("500MB", 500_000_000), ("2G", 2_000_000_000), ("1.5tb", 1_500_000_000_000), ("10", 10)]
)
def test_sizes(text: str, there: int) -> None:
    assert size(text) == there


@pytest.mark.parametrize("text", ["4 gigabytes", "GB", "-1", "0", "nan"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"write it as 500MB or 2GB|at least one byte"):
        size(text)


def test_doctor_and_help(cli: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEARKIN_DATA", raising=False)  # which may hold a part of it
    code, out, _ = cli("doctor")
    assert code == 0
    assert "faiss" in out
    monkeypatch.setattr(doctor, "DEFAULT_ENCODER", "no-such-encoder")
    code, out, _ = cli("doctor")
    assert "no-such-encoder is not here yet: the first build fetches it" in out
    assert code == int(constants.HF_HUB_OFFLINE)
    for command in ("build", "index", "query", "select", "verify", "adapt", "finetune", "demo", "bench"):
        with pytest.raises(SystemExit) as stop:
            cli(command, "--help")
        assert stop.value.code == 0
        assert command == "bench" or "example" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("build",), "the following arguments are required: STORE; `nearkin build --help` shows what there is"),
        (("slect", "store"), "did you mean select; `nearkin --help`"),
        (("build", "store", "--text-colum", "body"), "unknown argument --text-colum, did you mean --text-column;"),
        (("build", "store", "--max-mem=4GB"), "unknown argument --max-mem, did you mean --max-memory;"),
        (("data", "lst"), "did you mean list; `nearkin data --help`"),
        (("select", "store", "task", "--out", "x", "--near", "ngram"), "did you mean ngrams; `nearkin select --help`"),
        (("select", "store", "task", "--out", "x", "-k", "0"), "argument -k: 0 is not at least 1;"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    words: tuple[str, ...], said: str, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli(*words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_debug_shows_the_traceback(cli: Cli, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        cli("verify", tmp_path, "--debug")


def test_help_is_fast_because_it_loads_no_model_library() -> None:
    heavy = "('torch', 'transformers', 'faiss', 'datasets', 'sklearn')"
    code = f"import sys, nearkin; nearkin.parser(); print([m for m in {heavy} if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


def test_without_faiss_the_extra_is_named(
    cli: Cli, store: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    asked = ("build", tmp_path / "new", "--corpus", f"c={corpus_file}", "--index", "ivf")
    assert_refused(cli(*asked), "pip install 'nearkin[cpu]'", "gpu")
    assert not (tmp_path / "new").exists()
    assert_refused(cli("index", store, "--kind", "hnsw"), "pip install 'nearkin[cpu]'", "gpu")
    assert cli("index", store, "--kind", "stream")[0] == 0


BAD_CORPORA = {
    "missing": ("nowhere.jsonl", ["does not exist"]),
    "no match": ("*.xyz", ["no file matches"]),
    "empty folder": ("empty", ["no file that nearkin reads"]),
    "empty file": ("empty.jsonl", ["is empty"]),
    "truncated Parquet": ("cut.parquet", ["not a whole Parquet file"]),
    "invalid UTF-8, txt": ("utf.txt", ["line 3", "UTF-8"]),
    "invalid UTF-8, jsonl": ("utf.jsonl", ["line 2", "UTF-8"]),
    "invalid UTF-8, csv": ("utf.csv", ["line 3", "UTF-8"]),
    "invalid UTF-8, Arrow": ("utf.arrow", ["UTF-8"]),
    "broken line": ("broken.jsonl", ["line 4", "broken JSON"]),
    "not an object": ("list.jsonl", ["line 2", "not a JSON object"]),
    "cut gzip": ("cut.jsonl.gz", ["cut.jsonl.gz"]),
    "no text column": ("columns.csv", ["no column 'text'", "body, label"]),
    "text is not text": ("numbers.parquet", ["int64, not text"]),
    "two text columns": ("twice.parquet", ["twice.parquet has several columns 'text'"]),
    "blank": ("blank.txt", ["no passage with text"]),
    "unknown format": ("image.png", ["unknown format"]),
}
"""By what is wrong: a file, folder or glob, and words that its sentence must have."""


def make_bad_corpora(folder: Path, passages: pa.Table) -> None:
    """Makes the files of `BAD_CORPORA`."""
    (folder / "empty").mkdir()
    (folder / "empty.jsonl").touch()
    good = folder / "good.parquet"
    pq.write_table(passages, good)
    (folder / "cut.parquet").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (folder / "utf.txt").write_bytes(b"one\ntwo\n\xff\xfe three\n")
    (folder / "utf.jsonl").write_bytes(b'{"text": "one"}\n{"text": "\xff"}\n')
    (folder / "utf.csv").write_bytes(b"text\none\n\xff\n")
    (folder / "broken.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n{"text": \n{"text": "five"}\n')
    (folder / "list.jsonl").write_text('{"text": "one"}\n[1, 2]\n')
    (folder / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00")
    (folder / "columns.csv").write_text("body,label\none,1\n")
    (folder / "blank.txt").write_text("\n  \n\n")
    (folder / "image.png").write_bytes(b"png")
    pq.write_table(pa.table({"text": [1, 2, 3]}), folder / "numbers.parquet")
    twice = pa.table([pa.array(["one"]), pa.array(["two"])], ["text", "text"])
    pq.write_table(twice, folder / "twice.parquet")
    invalid = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe"))
    with pa.ipc.new_file(str(folder / "utf.arrow"), pa.schema([("text", pa.string())])) as writer:
        writer.write_batch(pa.record_batch([invalid], names=["text"]))


@pytest.mark.parametrize(("name", "words"), BAD_CORPORA.values(), ids=BAD_CORPORA)
def test_bad_corpora_are_refused(
    name: str, words: list[str], cli: Cli, passages: pa.Table, store: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad").mkdir()
    make_bad_corpora(tmp_path / "bad", passages)
    path, new = tmp_path / "bad" / name, tmp_path / "new"
    assert_refused(cli("build", new, "--corpus", f"c={path}", "--encoder", tiny_encoder), *words)
    assert not new.exists()
    before = snapshot(store)
    assert_refused(cli("build", store, "--corpus", f"c={path}"), *words)
    assert snapshot(store) == before


def test_bad_arguments_are_refused(cli: Cli, store: Path, corpus_file: Path, task_folder: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    corpus = f"c={corpus_file}"
    assert_refused(cli("build", new, "--corpus", str(corpus_file)), "NAME=PATH")
    assert_refused(cli("build", new), "no corpus yet")
    assert_refused(cli("build", new, "--corpus", corpus, "--corpus", corpus), "same name")
    assert_refused(cli("build", new, "--corpus", corpus, "--encoder", "no-such-encoder"), "not on this machine")
    assert_refused(cli("build", new, "--corpus", corpus, "--where", "nothing > 1"), "does not work", "nothing")
    assert_refused(cli("build", new, "--corpus", "c=hf://no-such-owner/no-such-dataset"), "cannot be loaded")
    assert_refused(cli("build", store, "--where", "length(text) > 5"), "name it with them")
    assert_refused(cli("build", new, "--corpus", corpus, "--encoder", "none", "--precision", "bf16"), "--precision is")
    assert not new.exists()
    assert_refused(cli("query", new, task_folder), "not a store")
    assert_refused(cli("query", task_folder, task_folder), "not a store")
    assert_refused(cli("build", task_folder, "--corpus", corpus), "is not a store")
    assert_refused(cli("query", store, tmp_path / "no-task"), "does not exist")
    assert_refused(cli("query", store, task_folder, "--encoder", "all-MiniLM-L6-v2"), "written by tiny-encoder")
    assert_refused(cli("query", store, task_folder, "--index", "ivf"), "nearkin index", "--kind ivf")
    (tmp_path / "task").mkdir()
    assert_refused(cli("query", store, tmp_path / "task"), "no train.jsonl")
    (tmp_path / "task" / "train.jsonl").write_text('{"sentence": "x"}\n')
    assert_refused(cli("query", store, tmp_path / "task"), "no column 'text'")


def test_a_task_without_labels_is_refused_where_labels_are_needed(cli: Cli, tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    out = tmp_path / "out"
    assert_refused(cli("finetune", "--model", "all-MiniLM-L6-v2", "--task", tmp_path, "--out", out), "label")
    assert not out.exists()


def test_k_larger_than_the_corpus_is_refused(cli: Cli, store: Path, task_folder: Path, tmp_path: Path) -> None:
    for command in (("query",), ("select", "--out", tmp_path / "set")):
        assert_refused(
            cli(command[0], store, task_folder, "-k", 601, *command[1:]), "-k 601 is more than the 600 passages"
        )
    assert not (tmp_path / "set").exists()
    code, out, _ = cli("query", store, task_folder, "-k", 600, "--limit", 1, "--json")
    assert code == 0
    assert len(json.loads(out)["neighbours"]) == 600


def test_a_store_being_built_is_locked(cli: Cli, store: Path, task_folder: Path) -> None:
    before = snapshot(store)
    with FileLock(str(store / ".lock")):
        assert_refused(cli("build", store), "another process is writing to")
        assert_refused(cli("index", store), "another process is writing to")
        assert cli("query", store, task_folder, "--limit", 1, "--json")[0] == 0
    shutil.rmtree(store / "tasks")
    assert snapshot(store) == before


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "kept"), [(1_000, 0), (30_000, 0), (60_000, 1)])
def test_a_disk_that_fills_up(
    limit: int, kept: int, cli: Cli, corpus_file: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    """Writes past `limit` bytes fail as on a full disk; a build with room then finishes what was begun."""
    resource = pytest.importorskip("resource")
    store = tmp_path / "store"
    build = ["build", str(store), "--encoder", str(tiny_encoder), "--index", "flat", "--corpus", f"docs={corpus_file}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}

    def full() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "nearkin", *build]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, preexec_fn=full)
    assert done.returncode == 1
    assert "no space left" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not [p for p in store.rglob("*") if p.name.endswith(".partial")]
    assert len(list(store.glob("embeddings/*/*.arrow"))) == kept
    assert not list(store.glob("index/*/faiss.index"))
    code, printed, errors = cli(*build)
    assert code == 0, errors
    assert f"{600 if kept else 0:,} kept" in printed
    assert cli("verify", store)[0] == 0


def test_what_stops_a_batch_job_cleans_up_too(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "import selection.doctor\n"
        "from nearkin import main\n"
        "from selection.files import atomic_folder\n"
        "folder = Path(sys.argv[1])\n"
        "def stopped():\n"
        "    with atomic_folder(folder):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(60)\n"
        "    yield\n"
        "selection.doctor.doctor = stopped\n"
        "sys.argv = ['nearkin', 'doctor']\n"
        "sys.exit(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], env=environment, timeout=50)
    assert done.returncode == 143
    assert list(tmp_path.iterdir()) == []
