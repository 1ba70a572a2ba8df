from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptation import cards as cards_module
from adaptation.cards import ARMS, KINDS, card_of, cards, is_here, paper_rows
from adaptation.data import get_data
from adaptation.data_check import content_of
from adaptation.data_fetch import fetch_file
from adaptation.data_sample import draw_rows
from adaptation.tasks import metric_of
from selection.errors import InputError, ModelError, NearkinError
from selection.files import sha256_of_file
from selection.models import resolve_model
from selection.reading import read_table
from tests.adaptation.conftest import write_jsonl

DATA = Path(os.environ.get("NEARKIN_DATA", "/nowhere"))
SPLITS = ("train", "dev", "test")
EIGHT = {  # train, dev, test, classes; RoBERTa, DAPT, TAPT, DAPT + TAPT (Gururangan et al., 2020, tables 2 and 5)
    "chemprot": (4169, 2427, 3469, 13, 81.9, 84.2, 82.6, 84.4),
    "rct": (180040, 30212, 30135, 5, 87.2, 87.6, 87.7, 87.8),
    "citation_intent": (1688, 114, 139, 6, 63.0, 75.4, 67.4, 75.6),
    "sciie": (3219, 455, 974, 7, 77.3, 80.8, 79.3, 81.3),
    "hyperpartisan_news": (515, 65, 65, 2, 86.6, 88.2, 90.4, 90.0),
    "ag": (115000, 5000, 7600, 4, 93.9, 93.9, 94.5, 94.6),
    "amazon": (115251, 5000, 25000, 2, 65.1, 66.5, 68.5, 68.7),
    "imdb": (20000, 5000, 25000, 2, 95.0, 95.4, 95.5, 95.6),
}
FURTHER = {"imdb_500": (500, 500, 2000, 2), "reuters_r8": (4054, 500, 1901, 8)}
CARD = """
name = "fruit"
kind = "task"
title = "Which fruit"
domain = "food"
metric = "micro"
train = 40
dev = 8
test = 8
classes = 3
labels = ["apple", "fig", "plum"]
columns = ["text", "label"]
path = "tasks/fruit"
source = "made for this test"
licence = "none"
"""
DERIVED = """
name = "fruit_10_s0"
kind = "task"
title = "Ten of it"
train = 10
path = "tasks/fruit_10_s0"
note = "a sample"

[derive]
from = "fruit"
seed = 0
stratified = true
dev = "all"
test = 4
"""

FIXED = "96e75e766c979866118e1843531b24fc3d9176449a72d69f54ed87f1924bfaab"
PLAIN = [281, 315, 462, 591, 773, 873, 901, 950]

AddCard = Callable[[str, str], None]


@pytest.fixture
def add_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AddCard]:
    """A folder of cards of its own, to which a test adds."""
    folder = tmp_path / "cards"
    folder.mkdir()
    monkeypatch.setattr(cards_module, "_card_folder", lambda: folder)
    monkeypatch.delenv("NEARKIN_DATA", raising=False)

    def add(name: str, text: str) -> None:
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
        cards.cache_clear()

    yield add
    cards.cache_clear()


@pytest.fixture
def fruit(tmp_path: Path) -> Path:
    """A local copy of the task that CARD describes."""
    names = ("apple", "plum", "apple", "apple", "fig", "apple", "plum", "apple")
    for split, rows in (("train", 40), ("dev", 8), ("test", 8)):
        texts = [f"{split} text {row}" for row in range(rows)]
        write_jsonl(tmp_path / "given" / f"{split}.jsonl", texts, [names[row % 8] for row in range(rows)])
    return tmp_path / "given"


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serves the files under tmp_path; the path /short/… promises more bytes than it sends."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path.startswith("/short/"):
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"half")
            else:
                super().do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if ".partial" in p.name]


def test_every_card_says_what_its_kind_must() -> None:
    needed = {
        "task": {"metric", "train", "dev", "test", "classes", "labels", "columns"},
        "corpus": {"text_megabytes", "columns", "obtain"},
        "checkpoint": {"phase"},
    }
    paths = [card["path"] for card in cards().values()]
    assert len(set(paths)) == len(paths)
    for name, card in cards().items():
        assert card["kind"] in KINDS
        assert {"title", "domain", "source", "licence", "note", "path"} | needed[card["kind"]] <= card.keys(), name
        path = PurePosixPath(card["path"])
        assert not path.is_absolute()
        assert ".." not in path.parts
        assert path.stem == name.rpartition("/")[2], "a task folder's name is how its metric is found"
        assert sum(key in card for key in ("urls", "derive", "obtain")) == (card["kind"] != "checkpoint"), name
        assert card["domain"] in {"biomed", "cs", "news", "reviews"}


def test_the_eight_tasks_carry_the_papers_figures() -> None:
    for name, (train, dev, test, classes, *figures) in EIGHT.items():
        card = cards()[name]
        assert (card["train"], card["dev"], card["test"], card["classes"]) == (train, dev, test, classes)
        assert [card["paper"][arm][0] for arm in ("none", "dapt", "tapt", "dapt_tapt")] == figures
        assert card["urls"][0].endswith("/{split}.jsonl")
        assert card["metric"] == ("micro" if name in {"chemprot", "rct"} else "macro")
    assert cards()["rct_sample"]["paper"]["knn500"] == [81.7, 0.4]
    assert cards()["citation_intent"]["paper"]["knn150"] == [73.3, 2.7]


def test_further_tasks_and_corpora_have_cards() -> None:
    for name, sizes in FURTHER.items():
        card = cards()[name]
        assert card["kind"] == "task"
        assert (card["train"], card["dev"], card["test"], card["classes"]) == sizes
    assert {name for name, card in cards().items() if card["kind"] == "corpus"} >= {"biomed", "cs", "reviews", "news"}


def test_figures_are_consistent() -> None:
    for name, card in cards().items():
        if card["kind"] == "task":
            assert len(card["labels"]) == card["classes"] == len(set(card["labels"]))
            assert card["labels"] == sorted(card["labels"])
            for arm, figure in card.get("paper", {}).items():
                assert arm in ARMS
                assert 50 < figure[0] < 100, name
                assert 0 < figure[-1] < 100
        for known in ("sha256", "content"):
            assert all(len(value) == 64 and int(value, 16) for value in card.get(known, {}).values())
        if "derive" in card:
            parent = cards()[card["derive"]["from"]]
            assert card["train"] < parent["train"]
            assert (card["dev"], card["test"], card["metric"]) == (parent["dev"], parent["test"], parent["metric"])
            assert "paper" not in card, "another sample than the paper's"
    losses = {name: card["paper"] for name, card in cards().items() if name.startswith("dsp_")}
    assert losses == {
        "dsp_biomed": {"loss_before": 1.32, "loss_after": 0.99},
        "dsp_cs": {"loss_before": 1.63, "loss_after": 1.34},
        "dsp_news": {"loss_before": 1.08, "loss_after": 1.16},
        "dsp_reviews": {"loss_before": 2.10, "loss_after": 1.93},
    }


def test_checkpoints_belong_to_tasks_and_domains() -> None:
    published = [card for card in cards().values() if card["kind"] == "checkpoint"]
    assert len(published) == 4 + 22
    for card in published:
        assert card["name"].startswith("allenai/")
        assert f"dsp_{card['domain']}" in cards()
        assert card["phase"] in ARMS
        if "task" in card:
            task = cards()[card["task"]]
            curated = "curated" in card["phase"]
            extra = task["unlabelled"] if curated else 0
            # HyperPartisan's curated checkpoint has 5015 in its name, not the 515 + 5000 of the paper.
            assert card["texts"] == (5015 if card["name"].endswith("_5015") else task["train"] + extra)
            assert card["domain"] == task["domain"]
            assert ("dapt_" + card["domain"] in card["name"]) == card["phase"].startswith("dapt_")
    assert paper_rows(card_of("dsp_roberta_base_tapt_chemprot_4169")) == [("TAPT", "82.6 (0.4)")]


def test_metrics_of_derived_tasks_are_their_parents() -> None:
    assert [metric_of(name) for name in ("rct_500_s0", "imdb_500_s0", "rct_sample")] == ["micro", "macro", "micro"]


def test_list_says_what_is_here(tmp_path: Path, cli, add_card: AddCard, fruit: Path) -> None:
    add_card("fruit", CARD)
    add_card("derived", DERIVED)
    code, out, _ = cli("data", "list")
    assert code == 0
    assert "name a data folder with --data" in out
    get_data("fruit", fruit, tmp_path / "data")
    code, out, _ = cli("data", "list", "--kind", "task", "--data", tmp_path / "data")
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert lines["fruit"].endswith("yes")
    assert lines["fruit_10_s0"].endswith("no")
    assert "40 / 8 / 8, 3 classes" in lines["fruit"]
    code, out, _ = cli("data", "list", "--json", "--data", tmp_path / "data")
    assert {card["name"]: card["here"] for card in json.loads(out)} == {"fruit": True, "fruit_10_s0": False}
    assert "fruit" not in cli("data", "list", "--kind", "corpus")[1]


def test_show_has_the_papers_table_and_the_place(tmp_path: Path, cli) -> None:
    code, out, _ = cli("data", "show", "citation_intent", "--data", tmp_path)
    assert code == 0
    assert "150NN-TAPT   " in out
    assert "73.3 (2.7)" in out
    assert f"  place     {tmp_path / 'tasks/citation_intent'} (not here)\n" in out
    assert json.loads(cli("data", "show", "rct", "--json")[1])["paper"]["not_dapt"] == [86.9, 0.1]
    assert "1.63" in cli("data", "show", "dsp_cs")[1]
    for name in cards():
        assert cli("data", "show", name)[0] == 0


def test_an_unknown_name_is_told_the_nearest(cli) -> None:
    code, _, err = cli("data", "show", "chemport")
    assert code == 1
    assert "did you mean chemprot" in err
    assert card_of("cs_roberta_base")["name"] == "allenai/cs_roberta_base"
    with pytest.raises(InputError, match=r"no data card 'zzzz': `nearkin data list`"):
        card_of("zzzz")


@pytest.mark.parametrize("layout", ["folder", "named", "data"])
def test_get_copies_a_local_folder(tmp_path: Path, cli, add_card: AddCard, fruit: Path, layout: str) -> None:
    add_card("fruit", CARD)
    below = {"folder": ".", "named": "fruit", "data": "tasks/fruit"}[layout]
    given = tmp_path / "elsewhere" / below
    given.parent.mkdir(parents=True, exist_ok=True)
    fruit.rename(given) if layout != "folder" else fruit.rename(tmp_path / "elsewhere")
    code, out, err = cli("data", "get", "fruit", "--from", tmp_path / "elsewhere", "--out", tmp_path / "data")
    assert (code, err) == (0, "")
    assert "40 / 8 / 8 examples and 3 labels fit" in out
    assert "no sha256" in out
    for split in SPLITS:
        copied = (tmp_path / "data" / "tasks" / "fruit" / f"{split}.jsonl").read_bytes()
        assert copied == (given / f"{split}.jsonl").read_bytes()
    code, out, _ = cli("data", "get", "fruit", "--out", tmp_path / "data")
    assert code == 0
    assert "nothing to do" in out


def test_get_compares_with_the_card(tmp_path: Path, add_card: AddCard, fruit: Path) -> None:
    data = tmp_path / "data"
    add_card("fruit", CARD + "slack = 1\n")
    lines = (fruit / "dev.jsonl").read_text().splitlines(keepends=True)
    (fruit / "dev.jsonl").write_text("".join(lines[:-1]))
    get_data("fruit", fruit, tmp_path / "slack")
    add_card("fruit", CARD)
    with pytest.raises(InputError, match=r"dev\.jsonl has 7 examples and the card of fruit says 8"):
        get_data("fruit", fruit, data)
    (fruit / "dev.jsonl").write_text("".join(lines[:-1]) + '{"text": "sour", "label": "lemon"}\n')
    with pytest.raises(InputError, match=r"dev\.jsonl has the label 'lemon'"):
        get_data("fruit", fruit, data)
    (fruit / "dev.jsonl").write_text("".join(lines[:-1]) + '{"text": "sour", "label": null}\n')
    with pytest.raises(InputError, match=r"1 examples have no label"):
        get_data("fruit", fruit, data)
    (fruit / "dev.jsonl").write_text("".join(line.replace('"text"', '"words"') for line in lines))
    with pytest.raises(InputError, match="no column text"):
        get_data("fruit", fruit, data)
    (fruit / "dev.jsonl").unlink()
    with pytest.raises(InputError, match=r"no dev\.jsonl"):
        get_data("fruit", fruit, data)
    with pytest.raises(InputError, match=r"no train\.jsonl"):
        get_data("fruit", tmp_path, data)
    with pytest.raises(InputError, match="does not exist"):
        get_data("fruit", tmp_path / "nowhere", data)
    with pytest.raises(InputError, match="NEARKIN_DATA"):
        get_data("fruit", fruit)
    assert not data.exists()


def test_checksums_and_contents(tmp_path: Path, add_card: AddCard, fruit: Path) -> None:
    sums = "".join(f'"{s}.jsonl" = "{sha256_of_file(fruit / f"{s}.jsonl")}"\n' for s in SPLITS)
    tables = {s: read_table(fruit / f"{s}.jsonl") for s in SPLITS}
    contents = "".join(f'"{s}.jsonl" = "{content_of(t["text"], t["label"])}"\n' for s, t in tables.items())
    add_card("fruit", f"{CARD}\n[sha256]\n{sums}")
    assert any("sha256 fits" in check for check in get_data("fruit", fruit, tmp_path / "a").checks)
    spaced = [json.dumps({"id": 1, **json.loads(line)}) for line in (fruit / "dev.jsonl").read_text().splitlines()]
    (fruit / "dev.jsonl").write_text("\n".join(spaced) + "\n")
    with pytest.raises(InputError, match=r"dev\.jsonl has the sha256"):
        get_data("fruit", fruit, tmp_path / "b")
    add_card("fruit", f"{CARD}\n[content]\n{contents}")
    assert any("are those of the copy" in check for check in get_data("fruit", fruit, tmp_path / "b").checks)
    (fruit / "dev.jsonl").write_text("\n".join(spaced).replace("dev text 3", "another") + "\n")
    assert any("differ from the copy" in check for check in get_data("fruit", fruit, tmp_path / "c").checks)


def test_what_is_there_but_broken_is_said(tmp_path: Path, add_card: AddCard, fruit: Path) -> None:
    add_card("fruit", CARD)
    got = get_data("fruit", fruit, tmp_path / "data")
    (got.path / "test.jsonl").unlink()
    assert not is_here(got.card, tmp_path / "data")
    with pytest.raises(InputError, match=r"no test\.jsonl.*remove .* and get fruit again"):
        get_data("fruit", fruit, tmp_path / "data")


def test_corpora_as_file_and_as_folder(tmp_path: Path, add_card: AddCard) -> None:
    import pyarrow.parquet as pq

    shared = 'kind = "corpus"\ndomain = "food"\ntext_megabytes = 1\nobtain = "grow it"\n'
    add_card("one", f'name = "one"\n{shared}passages = 3\ncolumns = ["id", "text"]\npath = "corpora/one.parquet"\n')
    add_card(
        "big",
        f'name = "big"\n{shared}documents = 9\nrounded = true\ncolumns = ["text"]\npath = "corpora/big"\n',
    )
    table = pa.table({"id": ["a", "b", "c"], "text": ["one", "two", "three"]})
    (tmp_path / "given").mkdir()
    pq.write_table(table, tmp_path / "given" / "one.parquet")
    got = get_data("one", tmp_path / "given", tmp_path / "data")
    assert got.path == tmp_path / "data" / "corpora" / "one.parquet"
    assert pq.read_table(got.path).equals(table)
    assert get_data("one", None, tmp_path / "data").new is False
    pq.write_table(table.slice(1), tmp_path / "given" / "one.parquet")
    with pytest.raises(InputError, match="has 2 passages and the card of one says 3"):
        get_data("one", tmp_path / "given" / "one.parquet", tmp_path / "other")
    got = get_data("big", tmp_path / "given", tmp_path / "data")
    assert [p.name for p in got.path.iterdir()] == ["one.parquet"]
    assert "rounded, not checked" in got.checks[0]
    with pytest.raises(InputError, match=r"big is not published as files .*: grow it"):
        get_data("big", None, tmp_path / "other")
    with pytest.raises(InputError, match=r"one is a \.parquet"):
        get_data("one", write_jsonl(tmp_path / "x.jsonl", ["a"]), tmp_path / "other")


def test_download_takes_the_first_address_that_answers(tmp_path: Path, add_card: AddCard, fruit: Path, serve) -> None:
    add_card("fruit", f'{CARD}urls = ["{serve}/gone/{{split}}.jsonl", "{serve}/given/{{split}}.jsonl"]\n')
    got = get_data("fruit", None, tmp_path / "data")
    assert got.new
    assert got.came_from == f"{serve}/given"
    assert (got.path / "train.jsonl").read_bytes() == (fruit / "train.jsonl").read_bytes()
    assert not leftovers(tmp_path)


def test_downloads_that_fail_leave_nothing(tmp_path: Path, cli, add_card: AddCard, fruit: Path, serve) -> None:
    for urls, said in (
        (f"{serve}/gone/{{split}}.jsonl", "answered 404"),
        (f"{serve}/short/{{split}}.jsonl", "ended after 4 of 1,000 bytes"),
        ("http://127.0.0.1:9/{split}.jsonl", "no connection"),
    ):
        add_card("fruit", f'{CARD}urls = ["{urls}"]\n')
        code, _, err = cli("data", "get", "fruit", "--out", tmp_path / "data")
        assert code == 1
        assert said in err
        assert "--from" in err
        assert err.count("\n") == 1
        assert not [p for p in (tmp_path / "data").rglob("*") if p.name != "tasks"]
    write_jsonl(fruit / "dev.jsonl", ["one"], ["fig"])
    add_card("fruit", f'{CARD}urls = ["{serve}/given/{{split}}.jsonl"]\n')
    with pytest.raises(InputError, match=r"downloaded from http.*/given: fruit/dev\.jsonl has 1 examples"):
        get_data("fruit", None, tmp_path / "data")
    assert not (tmp_path / "data" / "tasks" / "fruit").exists()


def test_hub_addresses_go_through_the_hubs_client(tmp_path: Path, monkeypatch, fruit: Path) -> None:
    asked = []

    def download(repository: str, file: str, **options: object) -> str:
        asked.append((repository, file, options["repo_type"]))
        return str(fruit / "train.jsonl")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    fetch_file(["hf://datasets/someone/fruit/deep/train.jsonl"], tmp_path / "train.jsonl")
    assert asked == [("someone/fruit", "deep/train.jsonl", "dataset")]
    assert (tmp_path / "train.jsonl").read_bytes() == (fruit / "train.jsonl").read_bytes()
    monkeypatch.undo()
    with pytest.raises(NearkinError, match="the hub did not give it"):
        fetch_file(["hf://datasets/someone/fruit/train.jsonl"], tmp_path / "other.jsonl")


def test_a_derived_task_is_the_same_everywhere(tmp_path: Path, cli, add_card: AddCard, fruit: Path) -> None:
    add_card("fruit", CARD)
    add_card("derived", DERIVED)
    code, out, _ = cli("data", "get", "fruit_10_s0", "--from", fruit, "--out", tmp_path / "data")
    assert code == 0
    assert "10 / 8 / 4 examples" in out
    folder = tmp_path / "data" / "tasks" / "fruit_10_s0"
    train = read_table(folder / "train.jsonl")
    assert content_of(train["text"], train["label"]) == FIXED
    assert sorted(train["label"].to_pylist()) == ["apple"] * 6 + ["fig"] + ["plum"] * 3
    assert (folder / "dev.jsonl").read_bytes() == (fruit / "dev.jsonl").read_bytes()
    assert not (tmp_path / "data" / "tasks" / "fruit").exists()
    get_data("fruit", fruit, tmp_path / "both")
    again = get_data("fruit_10_s0", None, tmp_path / "both")
    assert (again.path / "train.jsonl").read_bytes() == (folder / "train.jsonl").read_bytes()


def test_a_derived_task_gets_its_parent_first(tmp_path: Path, add_card: AddCard, fruit: Path, serve) -> None:
    add_card("fruit", f'{CARD}urls = ["{serve}/given/{{split}}.jsonl"]\n')
    add_card("derived", DERIVED)
    get_data("fruit_10_s0", None, tmp_path / "data")
    assert get_data("fruit", None, tmp_path / "data").new is False


def test_drawn_rows_are_fixed() -> None:
    labels = pa.array(["a", "b"] * 500)
    assert draw_rows(labels, 8, 0, stratified=False).tolist() == PLAIN
    assert draw_rows(labels, 8, 1, stratified=False).tolist() != PLAIN
    drawn = draw_rows(pa.array(["a"] * 100_000), 50_000, 3, stratified=False)
    assert abs(np.mean(drawn) - 50_000) < 500, "rows are drawn from all over the file"


@given(
    st.lists(st.sampled_from("aaaaaaaabbbc"), min_size=1, max_size=200),
    st.integers(0, 2**64 - 1),
    st.floats(0, 1),
)
def test_strata_keep_their_shares(labels: list[str], seed: int, share: float) -> None:
    classes = sorted(set(labels))
    count = max(len(classes), round(share * len(labels)))
    rows = draw_rows(pa.array(labels), count, seed, stratified=True)
    assert len(np.unique(rows)) == len(rows) == count
    assert (np.diff(rows) > 0).all()
    drawn = [labels[row] for row in rows]
    for name in classes:
        exact = labels.count(name) * count / len(labels)
        assert drawn.count(name) >= 1
        assert drawn.count(name) < exact + 1 or drawn.count(name) == 1
        assert drawn.count(name) > exact - len(classes)


def test_samples_that_cannot_be_drawn(tmp_path: Path, add_card: AddCard, fruit: Path) -> None:
    add_card("fruit", CARD)
    add_card("derived", DERIVED.replace("train = 10", "train = 41"))
    with pytest.raises(InputError, match=r"train\.jsonl: 41 examples are to be drawn and there are 40"):
        get_data("fruit_10_s0", fruit, tmp_path / "data")
    add_card("derived", DERIVED.replace("train = 10", "train = 2"))
    with pytest.raises(InputError, match="2 examples cannot hold all 3 classes"):
        get_data("fruit_10_s0", fruit, tmp_path / "data")
    assert not leftovers(tmp_path)
    add_card("derived", DERIVED.replace('from = "fruit"', 'from = "nothing"'))
    with pytest.raises(NearkinError, match="must name"):
        cards()


def test_cards_that_cannot_be_used(add_card: AddCard) -> None:
    add_card("one", CARD)
    add_card("two", CARD)
    with pytest.raises(NearkinError, match="the name fruit is taken"):
        cards()
    add_card("two", "name = ")
    with pytest.raises(NearkinError, match=r"two\.toml cannot be read"):
        cards()


CHECKPOINT = 'name = "owner/little"\nkind = "checkpoint"\ndomain = "food"\nphase = "dapt"\npath = "models/little"\n'


@pytest.mark.slow
def test_a_pickled_checkpoint_becomes_safetensors(tmp_path: Path, add_card: AddCard, tiny_model) -> None:
    import torch
    from safetensors.torch import load_file

    add_card("little", CHECKPOINT)
    published = Path(tiny_model("roberta"))
    old = tmp_path / "old"
    old.mkdir()
    for file in published.iterdir():
        if file.suffix == ".json":
            (old / file.name).write_bytes(file.read_bytes())
    weights = load_file(published / "model.safetensors")
    torch.save(weights, old / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no safetensors"):
        resolve_model(str(old))
    got = get_data("little", old, tmp_path / "data")
    made = load_file(resolve_model(str(got.path)) / "model.safetensors")
    assert made.keys() == weights.keys()
    assert all(torch.equal(made[key], weights[key]) for key in made)
    assert (got.path / "tokenizer.json").is_file()
    assert get_data("owner/little", None, tmp_path / "data").new is False


def test_a_checkpoint_that_holds_more_than_tensors_is_refused(tmp_path: Path, add_card: AddCard, tiny_model) -> None:
    import torch

    add_card("little", CHECKPOINT)
    old = tmp_path / "old"
    old.mkdir()
    for file in Path(tiny_model("roberta")).glob("*.json"):
        (old / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match="no weights to take"):
        get_data("little", old, tmp_path / "data")
    torch.save({"weight": Fraction(1, 2)}, old / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be converted"):
        get_data("little", old, tmp_path / "data")
    with pytest.raises(ModelError, match=r"no config\.json"):
        get_data("little", tmp_path, tmp_path / "data")
    with pytest.raises(ModelError, match="the hub did not give owner/little"):
        get_data("little", None, tmp_path / "data")
    assert not is_here(card_of("little"), tmp_path / "data")
    assert not leftovers(tmp_path)


@pytest.mark.skipif(not is_here(card_of("chemprot"), DATA), reason="NEARKIN_DATA names no folder with chemprot")
@pytest.mark.slow
def test_the_real_copies_fit_their_cards(tmp_path: Path) -> None:
    here = [card["name"] for card in cards().values() if card["kind"] != "checkpoint" and is_here(card, DATA)]
    for name in here:
        assert get_data(name, None, DATA).new is False
    checks = get_data("chemprot_500_s0", DATA, tmp_path).checks
    assert "texts and labels are those of the copy that nearkin was tested with" in checks
