from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import adaptation.training
from adaptation.joint import HEAD, JointTrainer
from adaptation.mlm import AdaptSettings, adapt
from selection.errors import NearkinError
from tests.adaptation.conftest import SMALL


@pytest.fixture
def watched(monkeypatch):
    """Losses of the task's part alone, a micro-batch each, and the rows that were drawn."""
    losses, rows = [], []
    total, draw = adaptation.training.MaskedLMTrainer.compute_loss, JointTrainer._draw
    masked = []

    def keep(trainer, *args, **kwargs):
        masked.append(total(trainer, *args, **kwargs))
        return masked[-1]

    joint = JointTrainer.compute_loss

    def watch(trainer, *args, **kwargs):
        loss = joint(trainer, *args, **kwargs)
        losses.append(float((loss - masked[-1]).detach()))
        return loss

    monkeypatch.setattr(adaptation.training.MaskedLMTrainer, "compute_loss", keep)
    monkeypatch.setattr(JointTrainer, "compute_loss", watch)
    monkeypatch.setattr(JointTrainer, "_draw", lambda trainer: rows.append(draw(trainer)) or rows[-1])
    return losses, rows


@pytest.mark.parametrize("kind", ["bert", "bert-encoder"])
def test_the_task_is_learnt_and_its_head_thrown_away(tmp_path, tiny_model, marked_task, watched, kind) -> None:
    from transformers import AutoModelForMaskedLM

    losses, rows = watched
    # Random weights learn a task slowly beside a loss of ten nats, so the task weighs as much here.
    settings = replace(SMALL, max_steps=100, learning_rate=3e-3, task_batch=33, task_weight=10.0)
    result = adapt(tiny_model(kind), [marked_task], tmp_path / "out", settings=settings, joint=marked_task)
    assert [len(r) for r in rows[:4]] == [17, 16, 17, 16]
    steps = [a + b for a, b in zip(losses[::2], losses[1::2], strict=True)]
    assert steps[0] == pytest.approx(6.9, abs=1)
    assert max(steps[-5:]) < 2
    assert result.held_out_loss["after"] < result.held_out_loss["before"]
    model, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not hasattr(model, HEAD)
    assert json.loads((tmp_path / "out" / "adaptation.json").read_text())["joint_task"] == str(marked_task)


def test_a_short_last_step_has_all_its_examples_and_all_are_counted(tmp_path, tiny_model, marked_task, watched) -> None:
    _, rows = watched
    alone = replace(SMALL, max_steps=None, epochs=2, batch_size=32, micro_batch=8, task_batch=13)
    without = adapt(tiny_model("bert"), [marked_task], tmp_path / "plain", settings=alone)
    result = adapt(tiny_model("bert"), [marked_task], tmp_path / "out", settings=alone, joint=marked_task)
    epoch = len(rows) // 2
    assert result.pieces % 32  # so an epoch's last step is short
    assert sum(map(len, rows[:epoch])) == result.steps // 2 * 13
    assert result.tokens_seen > without.tokens_seen + 2 * sum(map(len, rows))


def test_a_weight_of_next_to_nothing_leaves_the_masked_lm_alone(tmp_path, tiny_model, marked_task) -> None:
    # Dropout of the task's pass moves the generator, so it is off.
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model = AutoModelForMaskedLM.from_pretrained(tiny_model("bert"))
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    model.save_pretrained(tmp_path / "still")
    AutoTokenizer.from_pretrained(tiny_model("bert")).save_pretrained(tmp_path / "still")
    settings = replace(SMALL, task_weight=1e-9)
    alone = adapt(str(tmp_path / "still"), [marked_task], tmp_path / "alone", settings=settings)
    joint = adapt(str(tmp_path / "still"), [marked_task], tmp_path / "joint", settings=settings, joint=marked_task)
    assert joint.held_out_loss["after"] == pytest.approx(alone.held_out_loss["after"], abs=1e-3)
    heavy = replace(SMALL, task_weight=3.0)
    other = adapt(str(tmp_path / "still"), [marked_task], tmp_path / "other", settings=heavy, joint=marked_task)
    assert other.held_out_loss["after"] != pytest.approx(alone.held_out_loss["after"], abs=1e-3)


def test_a_stopped_run_ends_with_the_same_weights(tmp_path, tiny_model, marked_task, stopped) -> None:
    adapt(tiny_model("bert"), [marked_task], tmp_path / "whole", settings=SMALL, joint=marked_task)
    settings = replace(SMALL, checkpoint_minutes=0)
    with stopped(lambda trainer: trainer.state.global_step == 5):
        adapt(tiny_model("bert"), [marked_task], tmp_path / "out", settings=settings, joint=marked_task)
    said: list[str] = []
    adapt(tiny_model("bert"), [marked_task], tmp_path / "out", settings=settings, joint=marked_task, say=said.append)
    assert "continuing from step 5" in said
    ends = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "out")]
    assert ends[0] == ends[1]


def test_several_processes_are_refused_before_anything_is_read(tmp_path, tiny_model, monkeypatch) -> None:
    together = SimpleNamespace(num_processes=2, is_main_process=True)
    monkeypatch.setattr(adaptation.training, "processes", lambda: together)
    with pytest.raises(NearkinError, match="start one process"):
        adapt(tiny_model("bert"), [tmp_path / "none"], tmp_path / "out", settings=SMALL, joint=tmp_path / "none")


def test_settings_of_the_task_are_checked() -> None:
    with pytest.raises(NearkinError, match="task weight must be more than 0"):
        AdaptSettings(task_weight=0)


def test_the_head_is_drawn_by_the_seed(tiny_model) -> None:
    from pathlib import Path

    from adaptation.joint import JointTask, remove_head
    from adaptation.loading import load_masked_lm

    model, _ = load_masked_lm(Path(tiny_model("bert")))
    task = JointTask(None, 2, 4, 1.0)  # type: ignore[arg-type]
    drawn = []
    for seed in (0, 0, 1):
        task.add_head(model, 0.1, seed)
        drawn.append(getattr(model, HEAD)[1].weight.clone())
        remove_head(model)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
