"""The report says what the rows say, and its page is whole and safe in a browser.

Rows are made by a formula where only words and layout are looked at; sets are real ones, selected from a small store.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from adaptation.recipe import Recipe
from benchmarks.grid import Grid, grids_of
from benchmarks.report import report
from benchmarks.report_examples import examples_of
from benchmarks.results import Row, write_rows
from benchmarks.scatter import FONT, Dot, place_names, scatter
from selection import pages
from selection.augmentation import Budget, select
from selection.errors import InputError
from selection.pages import Cell
from selection.task import read_task
from tests.conftest import Cli

PHASES = ("none", "TAPT", "RAND-TAPT", "50NN-TAPT", "dsir-TAPT", "tsds:alpha=0.8-TAPT", "DAPT", "DAPT+TAPT")
TASKS = ("citation_intent", "chemprot", "sciie")
NASTY = "</p><script>alert('x')</script> & \"quotes\" <img src=x onerror=alert(1)>\x1b[31m" + "w" * 600


def made(
    phases: Sequence[str] = PHASES,
    tasks: Sequence[str] = TASKS,
    seeds: int = 3,
    budget: int | None = 300_000,
    **keys: Any,
) -> list[Row]:
    """Rows made by a formula: costs and F1 rise with the phase's place, F1 also moves with the seed."""
    rows = []
    for seed in range(seeds):
        for task in tasks:
            for place, phase in enumerate(phases):
                selects = phase not in ("none", "TAPT")
                trained = phase != "none"
                rows.append({
                    "key": f"{task}-{phase}-{budget if selects else ''}-{seed}-{json.dumps(keys)}", "task": task,
                    "phase": phase, "seed": seed, "metric": "micro-F1" if task == "chemprot" else "macro-F1",
                    "dev": 70.0 + place, "test": 60.0 + 10 * len(task) % 7 + place + 0.5 * ((seed * 7 + place * 3) % 5),
                    "best_epoch": 3, "finetune_s": 20.0, "embed_s": 900.0 * (phase == "50NN-TAPT"),
                    "first_s": 0.7 * 2.0**place * selects, "again_s": 0.4 * 2.0**place * selects,
                    "passages": 1000 * place * selects, "set_tokens": 290_000 * selects, "steps": 600 * trained,
                    "tokens": (2_000_000 + 60_000 * place) * trained, "pretrain_s": (60.0 + 5 * place) * trained,
                    "loss_before": 3.0, "loss": 3.0 - 0.1 * place if trained else None, "sets": "",
                    "model": "tiny/model", "commit": "abc1234", "machine": "a processor, 2 CPUs, 1 threads",
                    "preset": "quick", "budget": budget, "grid": json.dumps({"tokens": budget, "adapt": {"epochs": 3}}),
                    "settings": json.dumps({"finetune": {"epochs": 8, "learning_rate": 1e-4, "bf16": "auto"},
                                            "adapt": [{"max_steps": 600, "epochs": 100, "seed": 0}] * trained}),
                    "command": "nearkin bench frontier store --tasks a b --out frontier.parquet", **keys,
                })  # fmt: skip
    return rows


def written(path: Path, rows: Sequence[Row]) -> Path:
    write_rows(rows, path)
    return path


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.partition("</style>")[2]))


def sections(html: str) -> dict[str, str]:
    return dict(re.findall(r"<section><h2>([^<]+)</h2>(.*?)(?=<section><h2>|<footer>)", html, re.DOTALL))


def table_of(html: str) -> dict[str, list[str]]:
    """Cells of the first table by the row's name; bold ones with stars, the smaller line after a bar."""
    body = html.partition("<tbody>")[2].partition("</tbody>")[0]
    rows = {}
    for row in re.findall(r"<tr>(.*?)</tr>", body):
        name, *cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
        rows[name] = [re.sub(r"<span>(.*)</span>", r"|\1", c).replace("<b>", "*").replace("</b>", "*") for c in cells]
    return rows


def test_page_holds_every_part_in_order(tmp_path: Path, cli: Cli) -> None:
    results = written(tmp_path / "frontier.parquet", made())
    code, out, err = cli("report", results, "--plots", tmp_path / "plots")
    assert code == 0, err
    assert f"wrote {tmp_path / 'frontier.html'}" in out
    html = (tmp_path / "frontier.html").read_text(encoding="utf-8")
    parts = sections(html)
    assert list(parts) == [
        "Frontier", "F1 by task", "Gains", "Costs", "Examples", "Settings", "How it was made",
    ]  # fmt: skip
    assert parts["Frontier"].count("<svg") == 5
    assert "nearkin bench frontier store --tasks a b --out frontier.parquet" in parts["How it was made"]
    settings = text_of("</style>" + parts["Settings"])
    assert "all phases: epochs 8, learning rate 0.0001, bf16 auto" in settings
    assert "TAPT, RAND-TAPT, 50NN-TAPT, dsir-TAPT, tsds:alpha=0.8-TAPT, DAPT, DAPT+TAPT: max steps 600" in settings
    assert "macro-F1: citation_intent and sciie; micro-F1: chemprot" in settings
    assert "a processor, 2 CPUs" in settings
    assert "abc1234" in settings
    assert "torch" in settings
    for name in ("frontier.png", "frontier.svg"):
        assert (tmp_path / "plots" / name).stat().st_size > 5000


def test_tables_say_what_the_rows_say(tmp_path: Path) -> None:
    rows = made()
    parts = sections(report(written(tmp_path / "r.parquet", rows), say=print).html())
    shown = table_of(parts["F1 by task"])
    tests = [row["test"] for row in rows if (row["task"], row["phase"]) == ("chemprot", "50NN-TAPT")]
    assert list(shown) == list(PHASES)
    assert shown["50NN-TAPT"][1] == f"{np.mean(tests):.1f} ({np.std(tests, ddof=1):.1f})|paper 83.3 (0.7)"
    assert shown["DAPT+TAPT"][0].startswith("*")
    assert shown["DAPT+TAPT"][0].endswith("|paper 75.6 (3.8)")
    assert "paper" not in shown["dsir-TAPT"][0]
    assert "paper" not in shown["tsds:alpha=0.8-TAPT"][0]
    whole = "".join(cell for cells in shown.values() for cell in cells)
    assert whole.count("*") == 2 * 4  # one phase a task, and of the means
    gains = table_of(parts["Gains"])
    difference = np.mean([row["test"] for row in rows if row["phase"] == "TAPT"]) - np.mean(
        [row["test"] for row in rows if row["phase"] == "none"]
    )
    assert gains["TAPT"][0].startswith(f"{difference:+.2f}|")
    assert gains["TAPT"][2] == "9"
    assert gains["none"][:3] == ["–", "–", "–"]
    costs = table_of(parts["Costs"])
    assert costs["50NN-TAPT"] == [
        "15 min 0 s",
        "5.6 s",
        "3.2 s",
        "3,000",
        "290,000",
        "600",
        "2,180,000",
        "1 min 15 s",
        "2.700",
    ]
    assert costs["none"] == ["–"] * 9


def test_finding_is_honest_about_noise(tmp_path: Path) -> None:
    def found(gains: Sequence[float]) -> str:
        rows = [
            row | {"test": 60.0 + (gains[row["seed"]] if row["phase"] == "TAPT" else 0.0)}
            for row in made(("none", "TAPT", "RAND-TAPT"), TASKS[:1], len(gains))
        ]
        return report(written(tmp_path / "r.parquet", rows), say=print).grid.finding

    steady = found([1.0 + 0.1 * n for n in range(8)])
    assert "TAPT (61.4, +1.4 over none, p = 0.008)" in steady
    assert "noise" not in steady
    assert "RAND-TAPT" not in steady  # as good as none, and dearer
    assert "within noise" in found([1.0, -1.0, 1.5, -0.9, 0.1, 0.2])
    few = found([2.0, 2.1, 1.9])
    assert "p = 0.25, within noise" in few
    assert "With 3 pairs of runs p cannot fall below 0.25" in few


def test_a_dearer_phase_is_held_to_the_one_before_it(tmp_path: Path) -> None:
    """TAPT is far above none; what kNN adds to that changes its sign with the seed."""
    over = {"none": [0.0] * 9, "TAPT": [6.0] * 9, "50NN-TAPT": [6.0 + d for d in (2, -1, 2, -1, 1, -2, 2, 1, -1)]}
    rows = made(tuple(over), TASKS[:1], 9)
    rows = [row | {"test": 50.0 + over[row["phase"]][row["seed"]]} for row in rows]
    found = report(written(tmp_path / "r.parquet", rows), say=print)
    assert "TAPT (56.0, +6.0 over none, p = 0.004)" in found.grid.finding
    assert "50NN-TAPT (56.3, +0.3 over TAPT, p = 0.67, within noise)" in found.grid.finding
    assert table_of(sections(found.html())["Gains"])["50NN-TAPT"][3].startswith("+0.33|")


def test_means_are_over_the_seeds_that_all_have(tmp_path: Path) -> None:
    rows = [row for row in made() if row["phase"] != "DAPT" or row["seed"] == 1]
    found = report(written(tmp_path / "r.parquet", rows), say=print).grid
    alone = [row["test"] for row in rows if row["seed"] == 1 and row["phase"] == "TAPT"]
    assert {point.phase: point.f1 for point in found.points}["TAPT"] == pytest.approx(np.mean(alone))
    assert found.gains["TAPT"]["none"] is not None
    assert found.gains["TAPT"]["none"].pairs == 9


def test_newest_of_several_grids(tmp_path: Path, cli: Cli) -> None:
    old = made(budget=100_000)
    new = made(("none", "RAND-TAPT", "50NN-TAPT"), budget=200_000)
    other = made(("none", "TAPT"), model="another")
    results = written(tmp_path / "r.parquet", [*other, *old, *new])
    code, out, _ = cli("report", results)
    assert code == 0
    assert "holds 3 grids; shown is number 3" in out
    assert "sets of 200,000 tokens" in out
    grids = grids_of([*other, *old, *new])
    assert [grid.rows for grid in grids] == [other, old, new]
    assert "3: 27 cells, model tiny/model, tokens 200000" in text_of((tmp_path / "r.html").read_text())
    code, out, _ = cli("report", results, "--grid", 1)
    assert "another" in (tmp_path / "r.html").read_text()
    assert cli("report", results, "--grid", 4)[0] == 1


def test_phases_without_the_guard_win_nothing(tmp_path: Path) -> None:
    leaky = "unguarded-50NN-TAPT"
    found = report(written(tmp_path / "r.parquet", made((*PHASES, leaky))), plots=tmp_path, say=print)
    assert leaky not in {point.phase for point in found.grid.points}
    assert leaky not in found.grid.finding
    shown = table_of(sections(found.html())["F1 by task"])
    assert "*" not in "".join(shown[leaky])
    assert shown["DAPT+TAPT"][0].startswith("*")
    assert leaky in table_of(sections(found.html())["Gains"])
    assert f"{leaky}: trained on sets that may hold dev and test texts" in text_of(found.html())
    assert leaky not in (tmp_path / "r.svg").read_text()


def test_a_grid_stopped_early_compares_only_what_has_every_task(tmp_path: Path) -> None:
    rows = made(seeds=1)[:-1]
    found = report(written(tmp_path / "r.parquet", rows), say=print)
    assert found.grid.lacking == {"DAPT+TAPT": ["sciie"]}
    assert "DAPT+TAPT" not in {point.phase for point in found.grid.points}
    assert "DAPT+TAPT (not run for sciie)" in text_of(found.html())
    alone = Grid([row for row in rows if row["phase"] == "DAPT+TAPT" or row["task"] == "sciie"])
    assert "none can be compared" not in found.grid.finding
    assert "none can be compared" in alone.finding


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: written(path, [*made(), made()[4]]), "holds citation_intent, dsir-TAPT, seed 0 of one grid more"),
        (lambda path: path.write_text("no"), "is not a results file of `nearkin bench frontier`"),
        (lambda path: written(path, [{"corpus": "x", "seconds": 1.0}]), "it has no column grid"),
        (lambda path: written(path, [row | {"test": None} for row in made()]), "its column test has gaps"),
        (lambda path: written(path, [row | {"test": "high"} for row in made()]), "is not a results file"),
        (lambda path: pq.write_table(pq.read_table(written(path, made()))[:0], path), "holds no rows"),
    ],
)  # fmt: skip
def test_bad_files_are_one_sentence(spoil: Callable[[Path], Any], words: str, tmp_path: Path, cli: Cli) -> None:
    spoil(tmp_path / "r.parquet")
    code, _, err = cli("report", tmp_path / "r.parquet")
    assert code == 1
    assert words in err
    assert str(tmp_path / "r.parquet") in err
    assert err.count("\n") == 1
    assert not (tmp_path / "r.html").exists()


@pytest.fixture(scope="module")
def sets(built: Path, task_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps")
    for method in ("knn", "bm25", "random"):
        select(built, task_folder, folder / f"select-{method}", method, Budget(docs=80))
    return folder


def rows_with_sets() -> list[Row]:
    named = {"RAND-TAPT": "select-random", "50NN-TAPT": "select-knn", "bm25-TAPT": "select-bm25,select-gone"}
    rows = made(("none", *named, "DAPT+TAPT"), ("libraries",))
    return [row | {"sets": named.get(row["phase"], "select-knn" if "DAPT" in row["phase"] else "")} for row in rows]


def test_examples_are_those_of_the_sets(sets: Path, task_folder: Path) -> None:
    (found,), why = examples_of(rows_with_sets(), sets, 2)
    assert why == ""
    *asked, unasked = found.examples
    assert len(asked) == 2
    texts = read_task(task_folder).train_texts
    rows = pq.read_table(sets / "select-knn" / "augmentation.parquet").to_pylist()
    for example in asked:
        assert example.query_id is not None
        assert example.text == texts[example.query_id].as_py()
        mine = [row for row in rows if row["query_id"] == example.query_id]
        best = sorted(mine, key=lambda row: row["rank"])[:2]
        shown = [passage for passage in example.passages if passage.phase == "50NN-TAPT, DAPT+TAPT"]
        assert [p.text for p in shown] == [row["text"][:4000] for row in best]
        assert [p.score for p in shown] == [row["score"] for row in best]
        assert {p.phase for p in example.passages} == {"50NN-TAPT, DAPT+TAPT", "bm25-TAPT"}
    assert found.gone == ["bm25-TAPT"]  # one of its two
    assert [p.phase for p in unasked.passages] == ["RAND-TAPT"] * 2


def test_examples_say_why_there_are_none(sets: Path, tmp_path: Path) -> None:
    assert "--sets" in examples_of(rows_with_sets(), None, 3)[1]
    assert str(tmp_path) in examples_of(rows_with_sets(), tmp_path, 3)[1]
    assert "selected any passages" in examples_of(made(("none", "TAPT")), sets, 3)[1]
    with pytest.raises(InputError, match="no folder"):
        report(written(tmp_path / "r.parquet", made()), sets=tmp_path / "gone")


def test_a_moved_task_leaves_its_text_out(sets: Path, tmp_path: Path) -> None:
    shutil.copytree(sets, tmp_path / "steps")
    for manifest in (tmp_path / "steps").glob("*/manifest.json"):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"task": "gone"}))
    (found,), _ = examples_of(rows_with_sets(), tmp_path / "steps", 1)
    assert found.examples[0].text is None
    assert found.examples[0].passages


@pytest.mark.slow
def test_a_real_grid_and_its_sets(grid: tuple[Path, list[Row]], recipe: Recipe, tmp_path: Path) -> None:
    results, rows = grid
    found = report(results, tmp_path / "page.html", sets=recipe.out / "steps", examples=2, say=print)
    parts = sections((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert [row["key"] for row in found.grid.rows] == [row["key"] for row in rows]
    for phase, cells in table_of(parts["F1 by task"]).items():
        mean = np.mean([row["test"] for row in rows if row["phase"] == phase])
        assert cells[0].strip("*").startswith(f"{mean:.1f} (")
    knn = next(row["phase"] for row in rows if row["embed_s"])
    assert knn in {passage.phase for example in found.examples[0].examples for passage in example.passages}
    assert "Without a loss, since the model has no masked-LM head: none." in text_of("</style>" + parts["Frontier"])
    assert re.search(r"TAPT: batch size 8, .*max steps 2, ", text_of("</style>" + parts["Settings"]))


def test_scatter_keeps_names_apart_and_zero_off_the_scale() -> None:
    dots = [
        Dot(f"phase {n}", 0.0 if n < 2 else 0.9 + 0.02 * n, 70 + 0.1 * (n % 4), "words", n % 3 == 0) for n in range(10)
    ]
    chart = scatter(dots, "title", "seconds", "F1", logarithmic=True, joined=True)
    assert chart.count("<circle") == 10
    places = [(float(x), float(y)) for x, y in re.findall(r' cx="([\d.]+)" cy="([\d.]+)"', chart)]
    boxes = [label.box for label in place_names(dots, places, (0, 0, pages.WIDTH, 240), FONT)]
    over = [
        (a, b) for n, a in enumerate(boxes) for b in boxes[:n]
        if min(a[2], b[2]) - max(a[0], b[0]) > 1 and min(a[3], b[3]) - max(a[1], b[1]) > 1
    ]  # fmt: skip
    assert over == []
    assert all(box[0] >= 0 and box[2] <= pages.WIDTH for box in boxes)
    centres = [float(x) for x in re.findall(r'<circle[^>]* cx="([\d.]+)"', chart)]
    assert sorted(centres)[1] + 20 < sorted(centres)[2]
    assert ">0</text>" in chart


@pytest.mark.parametrize("values", [[0.0], [3.0], [0.0, 5.0], [1e-3, 1e7], [2.0e6, 2.1e6], [5.0, 5.0]])
def test_scatter_of_any_costs(values: list[float]) -> None:
    chart = scatter([Dot("a", value, 1.0, "") for value in values], "t", "x", "y", True, True)
    assert "nan" not in chart
    assert "inf" not in chart
    places = [float(x) for x in re.findall(r' cx="([\d.]+)"', chart)]
    assert all(pages.LEFT <= place <= pages.WIDTH for place in places)
    assert len(set(places)) == len(set(values))


def test_cells_are_escaped() -> None:
    assert Cell("<a>", "<b>", True).html() == "<b>&lt;a&gt;</b><span>&lt;b&gt;</span>"
    assert "<script" not in pages.folded(NASTY, 9000, 40)


def browse(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--hide-scrollbars",
        "--enable-logging=stderr", f"--user-data-dir={profile}", *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_page_in_a_browser(sets: Path, tmp_path: Path) -> None:
    hostile = {"command": NASTY, "machine": NASTY, "model": NASTY, "commit": NASTY}
    rows = [row | hostile for row in rows_with_sets()] + [row | hostile for row in made()]
    found = report(written(tmp_path / "page.parquet", rows), sets=sets, say=print)
    assert "no longer there: of bm25-TAPT." in found.html()
    example = found.examples[0].examples[0]
    spoilt = replace(example, text=NASTY, passages=[replace(p, text=NASTY, source=NASTY) for p in example.passages])
    found.examples[0].examples[0] = spoilt
    page = tmp_path / "page.html"
    page.write_text(found.html(), encoding="utf-8")
    shown = browse(page, tmp_path / "profile", "--dump-dom")
    assert "CONSOLE" not in shown.stderr
    assert "<script" not in shown.stdout
    assert shown.stdout.count("<article") == len(found.examples[0].examples) + 1
    # A page around it, of a phone's width, measures how wide the content is.
    probe = tmp_path / "probe.html"
    probe.write_text(
        '<iframe src="page.html" width="360" height="800"></iframe><script>onload = () => { const inner = '
        "document.querySelector('iframe').contentDocument.documentElement; "
        "document.title = inner.scrollWidth + ' ' + inner.clientWidth }</script>"
    )
    measured = browse(probe, tmp_path / "profile", "--dump-dom", "--allow-file-access-from-files").stdout
    title = re.search(r"<title>(\d+) (\d+)</title>", measured)
    assert title is not None
    assert int(title[1]) <= int(title[2]) == 360
    for dark in (False, True):
        picture = tmp_path / f"dark-{dark}.png"
        options = ["--blink-settings=preferredColorScheme=0"] if dark else []
        browse(page, tmp_path / "profile", f"--screenshot={picture}", "--window-size=360,800", *options)
        assert (brightness(picture) < 100) == dark


def brightness(picture: Path) -> float:
    """Mean of a picture's pixels, 0 to 255."""
    from matplotlib.image import imread

    return float(255 * imread(picture)[..., :3].mean())


def test_seconds_of_several_machines_are_not_compared(tmp_path: Path) -> None:
    rows = made()
    for row in rows:
        row["pretrain_s"] = 1.0 if row["phase"] == "DAPT" else row["pretrain_s"]
    (one,) = grids_of(rows)
    assert one.finding.startswith("Of selection and training (")
    for row in rows:
        row["machine"] = "another" if row["phase"] == "DAPT" else row["machine"]
    (several,) = grids_of(rows)
    assert several.finding.startswith("Of tokens trained on, ")
    page = report(written(tmp_path / "rows.parquet", rows), tmp_path / "page.html").html()
    assert "Seconds are of 2 machines and do not compare between them: " in text_of(page)


def test_of_a_task_that_changed_the_latest_rows_are_shown() -> None:
    before = [row | {"data": "before"} for row in made(("none", "TAPT", "DAPT"))]
    after = [row | {"data": "after"} for row in made(("none", "TAPT"), ("sciie",))]
    (grid,) = grids_of([*before, *after])
    assert {row["data"] for row in grid.rows if row["task"] == "sciie"} == {"after"}
    assert {row["data"] for row in grid.rows if row["task"] != "sciie"} == {"before"}
    assert grid.lacking == {"DAPT": ["sciie"]}
