"""Shares of several machines, taken in by a build, are what one machine would have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selection import embedding
from selection.building import build
from selection.errors import NearkinError
from selection.ingest import CorpusSpec
from selection.manifest import FileEntry
from selection.querying import query
from selection.sharing import embed_share, share_of
from selection.store import Store
from selection.verifying import verify
from tests.conftest import Cli


@pytest.fixture
def read(passages: pa.Table, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of ten shards, read and not embedded."""
    monkeypatch.setattr("selection.corpus.SHARD_ROWS", 64)
    monkeypatch.setattr("selection.columnar.BATCH_ROWS", 64)
    pq.write_table(passages, tmp_path / "docs.parquet", row_group_size=64)
    spec = [CorpusSpec("docs", str(tmp_path / "docs.parquet"))]
    build(tmp_path / "one", spec, encoder=str(tiny_encoder))
    build(tmp_path / "shared", spec, encoder=str(tiny_encoder), dry_run=True)
    return tmp_path / "shared"


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=60), st.integers(1, 9))
def test_shares_are_runs_of_about_as_much_text_that_make_up_the_whole(sizes: list[int], of: int) -> None:
    runs = [share_of(sizes, number, of) for number in range(1, of + 1)]
    assert [at for run in runs for at in run] == list(range(len(sizes)))
    for run in runs:
        assert abs(sum(sizes[at] for at in run) - sum(sizes) / of) <= max(sizes)


def test_shares_are_what_one_machine_writes(read: Path, cli: Cli, tiny_encoder: Path, task_folder: Path) -> None:
    before = (read / "manifest.json").read_bytes()
    code, out, errors = cli("build", read, "--share", "1/3", "--encoder", tiny_encoder)
    assert code == 0, errors
    mine = share_of([shard.text_bytes for shard in Store(read).corpus.shards], 1, 3)
    first = 64 * len(mine)
    assert 2 <= len(mine) <= 5
    assert f"share   1 of 3: {first} passages to embed by tiny-encoder" in out
    assert f"{first} passages embedded" in out
    others = [embed_share(read, number, 3, encoder=str(tiny_encoder)).passages for number in (2, 3)]
    assert first + sum(others) == 600
    assert (read / "manifest.json").read_bytes() == before
    assert len(list(read.glob("shares/*/*.arrow"))) == 10
    again = embed_share(read, 1, 3, encoder=str(tiny_encoder))
    assert (again.passages, again.reused) == (0, first)
    assert build(read).plan.embedding.passages == 0  # by the encoder whose shares there are
    one = sorted((read.parent / "one" / "embeddings").rglob("*.arrow"))
    shared = sorted((read / "embeddings").rglob("*.arrow"))
    assert [path.name for path in shared] == [path.name for path in one]
    assert [path.read_bytes() for path in shared] == [path.read_bytes() for path in one]
    assert cli("verify", read)[0] == 0
    assert len(query(read, task_folder, k=2, limit=3).neighbours) == 6


def test_a_build_that_is_killed_as_it_takes_shares_in_keeps_what_it_took(
    read: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_share(read, 1, 1, encoder=str(tiny_encoder))
    saved: list[int] = []
    real = Store.hashed

    def killed(store: Store, *about: Any) -> FileEntry:
        saved.append(len(Store(read).manifest.encoders["tiny-encoder"].shards))
        if len(saved) == 8:
            raise KeyboardInterrupt
        return real(store, *about)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "hashed", killed)
        patch.setattr("selection.strays.SAVE_EVERY_SECONDS", 0.0)
        patch.setattr("selection.store.SAVING", 0)
        with pytest.raises(KeyboardInterrupt):
            build(read, encoder=str(tiny_encoder))
    assert saved == list(range(8))
    assert build(read, encoder=str(tiny_encoder)).plan.embedding.passages == 0
    one = [path.read_bytes() for path in sorted((read.parent / "one" / "embeddings").rglob("*.arrow"))]
    assert [path.read_bytes() for path in sorted((read / "embeddings").rglob("*.arrow"))] == one


def test_a_build_does_what_a_killed_share_left(
    read: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, calls = embedding.write_vectors, []

    def killed(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(embedding, "write_vectors", killed)
        with pytest.raises(KeyboardInterrupt):
            embed_share(read, 2, 2, encoder=str(tiny_encoder))
    first, _ = sorted(read.glob("shares/*/*.arrow"))
    body = bytearray(first.read_bytes())
    body[2000] ^= 1  # a disk that changed something
    first.write_bytes(body)
    caplog.clear()
    build(read, encoder=str(tiny_encoder))
    assert "is damaged: its passages are embedded again" in caplog.text
    assert not list(read.glob("shares/*/*"))
    one = [path.read_bytes() for path in sorted((read.parent / "one" / "embeddings").rglob("*.arrow"))]
    assert sorted(one) == sorted(path.read_bytes() for path in (read / "embeddings").rglob("*.arrow"))
    assert build(read).plan.embedding.passages == 0


def test_the_encoder_of_the_last_dry_run_is_shared(read: Path, tiny_encoder: Path) -> None:
    build(read, encoder=str(tiny_encoder), max_tokens=16, precision="auto", dry_run=True)
    first = embed_share(read, 1, 2)
    assert first.build.endswith(f"{read} --encoder {tiny_encoder} --max-tokens 16")
    assert {path.name for path in (read / "shares").iterdir()} == {"tiny-encoder-16"}
    embed_share(read, 2, 2)
    embed_share(read, 1, 3, encoder=str(tiny_encoder), prompt="query: ")
    others = sorted((read / "shares" / "tiny-encoder").iterdir())
    assert others
    with pytest.raises(NearkinError, match="has shares by tiny-encoder and tiny-encoder-16"):
        build(read)
    assert build(read, encoder="tiny-encoder-16").plan.embedding.passages == 0
    assert not list((read / "shares" / "tiny-encoder-16").iterdir())
    assert sorted((read / "shares" / "tiny-encoder").iterdir()) == others  # those of another encoder stay
    assert [problem for _, problem in verify(read) if problem] == []


def test_of_two_files_of_a_text_the_sound_one_is_taken(read: Path, tiny_encoder: Path) -> None:
    embed_share(read, 1, 1, encoder=str(tiny_encoder))
    whole = sorted(read.glob("shares/*/*.arrow"))[0]
    twin = whole.with_name(f"{whole.stem[:-64]}{'0' * 64}.arrow")
    twin.write_bytes(whole.read_bytes()[:-9])
    build(read, encoder=str(tiny_encoder))
    assert len(Store(read).manifest.encoders["tiny-encoder"].shards) == 10
    one = [path.read_bytes() for path in sorted((read.parent / "one" / "embeddings").rglob("*.arrow"))]
    assert [path.read_bytes() for path in sorted((read / "embeddings").rglob("*.arrow"))] == one


def test_shares_of_a_fitted_encoder(read: Path, tiny_encoder: Path) -> None:
    name = f"static:{tiny_encoder}"
    with pytest.raises(NearkinError, match="is fitted to the corpus, by one machine for all"):
        embed_share(read, 1, 2, encoder=name)
    build(read, encoder=name, dry_run=True)
    with pytest.raises(NearkinError, match="fitted with another model or prompt"):
        embed_share(read, 1, 2, encoder=name, prompt="query: ")
    done = [embed_share(read, number, 2, encoder=name).passages for number in (1, 2)]
    assert sum(done) == 600
    assert build(read, encoder=name).plan.embedding.passages == 0


def test_what_no_share_can_do_is_said(read: Path, cli: Cli, tmp_path: Path) -> None:
    for text in ("4/3", "0/3", "3", "a/b"):
        with pytest.raises(SystemExit, match="2"):
            cli("build", read, "--share", text)
    for more, sentence in (
        (("--dry-run",), "leave --dry-run to other builds"),
        (("--precision", "auto"), "one precision on every machine"),
        (("--encoder", "cascade"), "let one machine do it"),
        (("--device", "cpu,cpu"), "a share is for one device"),
    ):
        code, _, errors = cli("build", read, "--share", "1/3", *more)
        assert (code, sentence in errors) == (1, True), errors
    for more in (("--min-recall", 0.9), ("--encoder", "none"), ("--prompt", "query: "), ("--queries", 5)):
        assert cli("build", read, "--share", "1/3", *more)[0] == 1
    (tmp_path / "empty").mkdir()
    assert "is not a store" in cli("build", tmp_path / "empty", "--share", "1/3")[2]
