from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from adaptation.commands import register
from adaptation.finetune import FinetuneSettings
from adaptation.mlm import AdaptSettings


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nearkin")
    register(parser.add_subparsers(required=True))
    return parser


def test_defaults_are_those_of_the_functions(parser) -> None:
    options = parser.parse_args(["adapt", "--model", "m", "--text", "a", "b", "--out", "o"])
    usual = AdaptSettings()
    assert (options.epochs, options.batch_size, options.lr, options.mlm_probability, options.seed) == (
        usual.epochs, usual.batch_size, usual.learning_rate, usual.mlm_probability, usual.seed,
    )  # fmt: skip
    assert options.text == [Path("a"), Path("b")]
    assert (options.steps, options.max_tokens, options.bf16, options.overwrite) == (None, None, "auto", False)
    options = parser.parse_args(["finetune", "--model", "m", "--task", "t", "--out", "o"])
    assert (options.seeds, options.patience, options.lr) == (5, 3, FinetuneSettings().learning_rate)
    assert (options.epochs, options.metric) == (None, None)


def test_adapt_then_finetune(parser, tmp_path, tiny_model, marked_task, capsys) -> None:
    model, results = tmp_path / "model", tmp_path / "results"
    options = parser.parse_args(
        ["adapt", "--model", tiny_model("bert-encoder"), "--text", str(marked_task), "--out", str(model),
         "--steps", "6", "--batch-size", "32", "--lr", "1e-3", "--head-warmup", "3", "--whole-word", "--seed", "4"]
    )  # fmt: skip
    assert options.run(options) == 0
    printed = capsys.readouterr().out
    assert "152 texts to train on (0 duplicates, 0 withheld left out), 8 held out" in printed
    assert "no masked-LM head" in printed
    assert "held-out masked-LM loss after:" in printed
    assert json.loads((model / "adaptation.json").read_text())["settings"]["seed"] == 4
    options = parser.parse_args(
        ["finetune", "--model", str(model), "--task", str(marked_task), "--out", str(results), "--seeds", "1",
         "--epochs", "3", "--lr", "3e-3", "--metric", "micro"]
    )  # fmt: skip
    assert options.run(options) == 0
    printed = capsys.readouterr().out
    assert "160 / 60 / 60 examples, 2 classes, micro-F1" in printed
    assert "test micro-F1:" in printed
    assert json.loads((results / "results.json").read_text())["metric"] == "micro-F1"
