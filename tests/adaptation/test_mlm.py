from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file

import adaptation.masking
import adaptation.mlm
import adaptation.training
from adaptation.mlm import AdaptSettings, adapt
from adaptation.texts import read_training_text
from selection.building import collect
from selection.errors import InputError, ModelError, NearkinError
from selection.ingest import CorpusSpec
from tests.adaptation.conftest import SMALL


@pytest.fixture
def texts(tmp_path: Path, jsonl, sentences) -> Path:
    return jsonl(tmp_path / "texts.jsonl", sentences[:120])


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_held_out_loss_falls_and_the_model_loads_whole(tmp_path, tiny_model, texts, kind) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    result = adapt(tiny_model(kind), [texts], tmp_path / "out", settings=replace(SMALL, max_steps=60))
    assert not result.new_head
    assert result.held_out_loss["after_head_warmup"] is None
    assert result.held_out_loss["after"] < result.held_out_loss["before"] - 2
    model, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(tmp_path / "out").mask_token == "[MASK]"
    kinds = {file.suffix for file in (tmp_path / "out").rglob("*")}
    assert kinds <= {".safetensors", ".json", ".txt"}
    assert not (tmp_path / "out.work").exists()
    record = json.loads((tmp_path / "out" / "adaptation.json").read_text())
    assert record["held_out_loss"] == result.held_out_loss
    assert record["counts"]["train"] == 114
    assert record["counts"]["held_out"] == 6
    assert record["steps"] == 60


def test_held_out_loss_is_float32s_before_and_after_bfloat16(tmp_path, tiny_model, texts, sentences, jsonl) -> None:
    kept = {"held_out": jsonl(tmp_path / "held-out.jsonl", sentences[120:150])}
    short = replace(SMALL, max_steps=4, head_warmup_steps=2, bf16="on")
    first = adapt(tiny_model("bert-encoder"), [texts], tmp_path / "out", settings=short, **kept)
    assert first.new_head
    again = adapt(str(tmp_path / "out"), [texts], tmp_path / "again", settings=short, **kept)
    assert again.held_out_loss["before"] == pytest.approx(first.held_out_loss["after"], abs=1e-6)


def test_a_precision_of_accelerates_environment_is_not_taken(tmp_path, tiny_model, texts, monkeypatch) -> None:
    short = replace(SMALL, max_steps=4)
    adapt(tiny_model("bert"), [texts], tmp_path / "plain", settings=short)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    adapt(tiny_model("bert"), [texts], tmp_path / "launched", settings=short)
    assert weights(tmp_path / "launched") == weights(tmp_path / "plain")


@pytest.mark.parametrize("name", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_model_divided_among_processes_is_refused(tmp_path, tiny_model, texts, monkeypatch, name) -> None:
    monkeypatch.setenv(name, "true")
    with pytest.raises(NearkinError, match=f"{name}.*holds a whole model"):
        adapt(tiny_model("bert"), [texts], tmp_path / "out", settings=SMALL)
    assert list(tmp_path.glob("out*")) == []


def test_tokens_seen_are_the_tokens_of_every_epoch(tmp_path, tiny_model, texts) -> None:
    adapt(tiny_model("bert"), [texts], tmp_path / "out", settings=replace(SMALL, max_steps=None, epochs=3))
    record = json.loads((tmp_path / "out" / "adaptation.json").read_text())
    assert record["tokens_seen"] == 3 * record["counts"]["tokens"]
    assert record["steps"] == 3 * math.ceil(record["counts"]["pieces"] / 32)


def test_new_head_starts_at_frequencies_and_warms_up_alone(tmp_path, tiny_model, texts, monkeypatch) -> None:
    source = load_file(Path(tiny_model("bert-encoder")) / "model.safetensors")
    after_warmup = {}
    measure = adaptation.mlm._Run._measure

    def spy(run):
        after_warmup[len(after_warmup)] = {k: v.cpu().clone() for k, v in run.model.state_dict().items()}
        return measure(run)

    monkeypatch.setattr(adaptation.mlm._Run, "_measure", spy)
    said: list[str] = []
    settings = replace(SMALL, max_steps=30, head_warmup_steps=10)
    result = adapt(tiny_model("bert-encoder"), [texts], tmp_path / "out", settings=settings, say=said.append)
    assert result.new_head
    assert any("no masked-LM head" in sentence for sentence in said)
    before, warm, after = after_warmup[0], after_warmup[1], after_warmup[2]
    for name, tensor in source.items():
        if "pooler" not in name and "position_ids" not in name:
            assert torch.equal(warm[f"bert.{name}"], tensor), name
            assert torch.equal(before[f"bert.{name}"], tensor), name
    assert not torch.equal(
        warm["cls.predictions.transform.dense.weight"], before["cls.predictions.transform.dense.weight"]
    )
    assert not torch.equal(after["bert.encoder.layer.0.attention.self.query.weight"],
                           warm["bert.encoder.layer.0.attention.self.query.weight"])  # fmt: skip
    losses = result.held_out_loss
    bias = before["cls.predictions.bias"]
    assert torch.exp(bias).sum() == pytest.approx(1, abs=1e-4)
    assert torch.equal(bias, before["cls.predictions.decoder.bias"])
    # 114 sentences see few of 30,522 tokens; guessing by frequency is well below ln(vocabulary) all the same.
    assert 5 < losses["before"] < math.log(30522) - 1
    assert losses["after"] < losses["after_head_warmup"] < losses["before"]
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert "cls.predictions.decoder.weight" not in saved


def test_same_seed_same_bytes_and_another_seed_others(tmp_path, tiny_model, texts) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        adapt(tiny_model("bert-encoder"), [texts], tmp_path / name, settings=replace(SMALL, seed=seed))
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


@pytest.mark.parametrize("stop_at", [2, 5, 8])
def test_a_stopped_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path, tiny_model, texts, stopped, stop_at):
    # 114 texts in steps of 32 are 4 steps an epoch: stops within the first epoch, within the second, and between two.
    settings = replace(SMALL, checkpoint_minutes=0)
    whole = adapt(tiny_model("bert-encoder"), [texts], tmp_path / "whole", settings=SMALL)

    def due(trainer) -> bool:  # in training itself, not in the head's warm-up
        return trainer.state.global_step == stop_at and trainer.args.learning_rate == SMALL.learning_rate

    with stopped(due):
        adapt(tiny_model("bert-encoder"), [texts], tmp_path / "out", settings=settings)
    assert not (tmp_path / "out").exists()
    checkpoints = list((tmp_path / "out.work").glob("checkpoint-*"))
    assert [c.name for c in checkpoints] == [f"checkpoint-{stop_at}"]
    assert float((checkpoints[0] / "seconds.txt").read_text()) > 0
    (checkpoints[0] / "seconds.txt").write_text("1000.0")
    said: list[str] = []
    result = adapt(tiny_model("bert-encoder"), [texts], tmp_path / "out", settings=settings, say=said.append)
    assert f"continuing from step {stop_at}" in said
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    assert result.held_out_loss == whole.held_out_loss
    assert result.tokens_seen == whole.tokens_seen
    assert result.seconds >= 1000 > result.training_seconds  # of both calls; of the last alone


def test_settings_that_shape_nothing_stop_no_run_from_going_on(tmp_path, tiny_model, texts, stopped) -> None:
    settings = replace(SMALL, max_steps=4, checkpoint_minutes=0)
    with stopped(lambda trainer: trainer.state.global_step == 2):
        adapt(tiny_model("bert"), [texts], tmp_path / "out", settings=settings)
    said: list[str] = []
    other = replace(settings, epochs=7, head_warmup_steps=9, head_learning_rate=1.0)
    adapt(tiny_model("bert"), [texts], tmp_path / "out", settings=other, say=said.append)
    assert "continuing from step 2" in said


def test_a_note_that_is_deleted_meanwhile_is_none(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: True)
    assert adaptation.mlm._note_of(tmp_path / "progress.json") == {}


def test_order_is_kept_where_asked(tmp_path, tiny_model, texts, monkeypatch) -> None:
    seen: list[int] = []
    take = adaptation.masking.Pieces.__getitems__

    def watch(self, rows):  # type: ignore[no-untyped-def]
        seen.extend(rows)
        return take(self, rows)

    kept = replace(SMALL, max_steps=None, epochs=2, head_warmup_steps=0, keep_order=True)
    monkeypatch.setattr("adaptation.mlm._Run._measure", lambda run: 1.0)
    monkeypatch.setattr("adaptation.masking.Pieces.__getitems__", watch)
    result = adapt(tiny_model("bert"), [texts], tmp_path / "out", settings=kept)
    assert seen == 2 * list(range(result.pieces))


def test_other_texts_do_not_continue_a_stopped_run(tmp_path, tiny_model, texts, jsonl, sentences, monkeypatch) -> None:
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(adaptation.mlm._Run, "_write", stop)
        with pytest.raises(KeyboardInterrupt):
            adapt(tiny_model("bert"), [texts], tmp_path / "out", settings=replace(SMALL, checkpoint_minutes=0))
    assert list((tmp_path / "out.work").glob("checkpoint-*"))
    said: list[str] = []
    others = jsonl(tmp_path / "others.jsonl", sentences[120:200])
    adapt(tiny_model("bert"), [others], tmp_path / "out", settings=SMALL, say=said.append)
    assert not any("continuing" in sentence for sentence in said)
    adapt(tiny_model("bert"), [others], tmp_path / "clean", settings=SMALL)
    assert weights(tmp_path / "out") == weights(tmp_path / "clean")


def test_micro_batches_do_not_change_the_gradient(tmp_path, tiny_model, texts, monkeypatch) -> None:
    seen = []
    clip = Accelerator.clip_grad_norm_

    def spy(accelerator, parameters, *others, **named):
        parameters = list(parameters)
        seen.append(torch.cat([p.grad.flatten() for p in parameters]))
        return clip(accelerator, parameters, *others, **named)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", spy)

    # Masks are drawn a micro-batch at a time, so they are pinned here; dropout is off for the same reason.
    def pinned(masker, ids, real, words, draws):
        chosen = (ids % 5 == 0) & real & ~torch.isin(ids, masker.special)
        return torch.where(chosen, masker.mask_id, ids), torch.where(chosen, ids, -100)

    monkeypatch.setattr(adaptation.training.Masker, "mask", pinned)
    folder = tmp_path / "still"
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model = AutoModelForMaskedLM.from_pretrained(tiny_model("bert"))
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model("bert")).save_pretrained(folder)
    for micro in (32, 8):
        adapt(str(folder), [texts], tmp_path / str(micro), settings=replace(SMALL, max_steps=1, micro_batch=micro))
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-3, atol=1e-6)
    assert seen[0].abs().max() > 1e-5


@pytest.mark.parametrize("rate", [1e30, math.inf])
def test_a_loss_that_is_no_number_stops_with_its_step(tmp_path, tiny_model, texts, rate) -> None:
    with pytest.raises(NearkinError, match=r"not a number at step \d+"):
        adapt(tiny_model("bert"), [texts], tmp_path / "out", settings=replace(SMALL, learning_rate=rate))
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_no_number_leaves_the_last_good_checkpoint(tmp_path, tiny_model, texts, monkeypatch) -> None:
    loss = adaptation.training.MaskedLMTrainer.compute_loss

    def spoil(trainer, *args, **kwargs):
        found = loss(trainer, *args, **kwargs)
        return found * math.nan if trainer.state.global_step == 5 else found

    monkeypatch.setattr(adaptation.training.MaskedLMTrainer, "compute_loss", spoil)
    with pytest.raises(NearkinError, match=r"at step 6: .*last good checkpoint is .*checkpoint-5$"):
        adapt(tiny_model("bert"), [texts], tmp_path / "out", settings=replace(SMALL, checkpoint_minutes=0))
    kept = load_file(tmp_path / "out.work" / "checkpoint-5" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


@pytest.mark.parametrize(
    "said", ["Error while serializing: Disk quota exceeded (os error 122)", "I/O error: File too large (os error 27)"]
)
def test_a_model_that_finds_no_room_is_told_plainly(said: str, tmp_path: Path) -> None:
    from adaptation.training import full_disk_told

    with pytest.raises(NearkinError, match=r"no space left while writing .*model"), full_disk_told(tmp_path / "model"):
        raise SafetensorError(said)
    with pytest.raises(SafetensorError), full_disk_told(tmp_path / "model"):
        raise SafetensorError("another thing")


def test_a_full_disk_costs_a_checkpoint_not_the_run(tmp_path, tiny_model, texts, monkeypatch, caplog) -> None:
    save, full = adaptation.training.Trainer._save_checkpoint, [3, 4, 5]

    def fail(trainer, *args, **kwargs):
        save(trainer, *args, **kwargs)
        if trainer.state.global_step in full:
            raise OSError(errno.ENOSPC, "No space left on device")
        if trainer.state.global_step == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(adaptation.training.Trainer, "_save_checkpoint", fail)
    settings = replace(SMALL, checkpoint_minutes=0)
    with pytest.raises(KeyboardInterrupt):
        adapt(tiny_model("bert"), [texts], tmp_path / "out", settings=settings)
    assert len([r for r in caplog.records if "no room for a checkpoint" in r.message]) == 3
    monkeypatch.setattr(adaptation.training.Trainer, "_save_checkpoint", save)
    adapt(tiny_model("bert"), [texts], tmp_path / "out", settings=settings)
    adapt(tiny_model("bert"), [texts], tmp_path / "whole", settings=SMALL)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")

    monkeypatch.setattr(adaptation.mlm.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(NearkinError, match="the adapted model takes"):
        adapt(tiny_model("bert"), [texts], tmp_path / "none", settings=SMALL)


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path, tiny_model, texts) -> None:
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=1000, **shape)).save_pretrained(tmp_path / "odd")
    AutoTokenizer.from_pretrained(tiny_model("bert")).save_pretrained(tmp_path / "odd")
    with pytest.raises(ModelError, match=r"tokenizer has 30522 tokens and its embeddings only 1000"):
        adapt(str(tmp_path / "odd"), [texts], tmp_path / "out", settings=SMALL)


def test_bfloat16_is_chosen_once_a_run(tmp_path, tiny_model, texts, monkeypatch) -> None:
    import adaptation.precision

    trying = replace(SMALL, bf16="auto")

    monkeypatch.setattr(adaptation.precision, "cpu_gain", lambda: 2.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with monkeypatch.context() as patch:
        patch.setattr(adaptation.mlm._Run, "train", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            adapt(tiny_model("bert"), [texts], tmp_path / "out", settings=trying)
    monkeypatch.setattr(adaptation.precision, "cpu_gain", lambda: 0.5)
    adapt(tiny_model("bert"), [texts], tmp_path / "out", settings=trying)
    adapt(tiny_model("bert"), [texts], tmp_path / "after", settings=trying)
    chosen = [json.loads((tmp_path / n / "adaptation.json").read_text())["settings"]["bf16"] for n in ("out", "after")]
    assert chosen == [True, False]


def test_the_trial_of_bfloat16_takes_the_best_of_each_after_the_first(monkeypatch) -> None:
    from adaptation import precision

    turns = [*[2.0, 7.0] * 5, *[4.0, 6.0] * 6]  # seconds that bfloat16 and float32 take in turn, after one of each
    clock = iter(np.cumsum([0.0, 1.0, 1.0, *chain.from_iterable((turn, 1.0) for turn in turns)]).tolist())
    with monkeypatch.context() as patch:
        patch.setattr(precision, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
        assert precision.cpu_gain.__wrapped__() == pytest.approx(3.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for gain, taken in ((1.2, True), (1.1, False)):
        monkeypatch.setattr(precision, "cpu_gain", lambda gain=gain: gain)
        assert precision.use_bf16("auto") is taken
    assert precision.use_bf16("on")
    assert not precision.use_bf16("off")
    with pytest.raises(NearkinError, match="none of auto, on, off"):
        precision.use_bf16("maybe")


def test_dev_and_test_of_a_task_never_enter(tmp_path, jsonl, sentences) -> None:
    task = tmp_path / "task"
    jsonl(task / "train.jsonl", [*sentences[:30], sentences[50]])
    jsonl(task / "dev.jsonl", sentences[40:50])
    jsonl(task / "test.jsonl", [*sentences[50:59], f"  {sentences[59].upper()} !"])
    corpus = jsonl(tmp_path / "corpus.jsonl", [*sentences[20:45], *sentences[59:60], *sentences[70:80]])
    file = tmp_path / "texts.arrow"
    text = read_training_text([task, corpus], file, held_out_file=None, held_out=0.1, seed=0)
    entered = {*text.train.to_pylist(), *text.held_out.to_pylist()}
    assert entered == {*sentences[:40], *sentences[70:80]}
    assert len(text.train) + len(text.held_out) == 50
    assert text.duplicates == 10
    assert text.withheld == 7  # one of them but for case, spacing and punctuation
    assert [s.kind for s in text.sources] == ["task", "file"]
    open_to_all = read_training_text(
        [task, corpus], file.with_suffix(".2"), held_out_file=None, held_out=0.1, seed=0, guarded=False
    )
    assert len(open_to_all.train) + len(open_to_all.held_out) == 57
    split = task / "dev.jsonl"
    measured = read_training_text(
        [task, corpus], file.with_suffix(".3"), held_out_file=split, held_out=0.1, seed=0, guarded=False
    )
    assert set(measured.train.to_pylist()) == {*sentences[:40], sentences[50], sentences[59], *sentences[70:80]}


def test_augmentation_sets_and_held_out_files(tmp_path, jsonl, sentences) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    pq.write_table(pa.table({"doc_id": list(range(20)), "text": sentences[:20]}), folder / "augmentation.parquet")
    held_out = jsonl(tmp_path / "held.jsonl", sentences[18:25])
    text = read_training_text([folder], tmp_path / "a", held_out_file=held_out, held_out=0.05, seed=0)
    assert text.train.to_pylist() == sentences[:18]
    assert text.held_out.to_pylist() == sentences[18:25]
    assert (text.sources[0].kind, text.withheld) == ("set", 2)


@pytest.mark.slow
def test_two_processes_train_one_model_of_texts_that_one_reads(tmp_path, tiny_model, texts) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "nearkin"]
    settings = ["--max-tokens", "32", "--steps", "4", "--batch-size", "8", "--micro-batch", "4", "--bf16", "off"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}

    def run(text: Path, out: Path) -> subprocess.CompletedProcess[str]:
        command = [*launch, "adapt", "--model", tiny_model("bert"), "--text", str(text), "--out", str(out), *settings]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    first, second = tmp_path / "first", tmp_path / "second"
    for out in (first, second):
        done = run(texts, out)
        assert done.returncode == 0, done.stderr
    told = json.loads((first / "adaptation.json").read_text(encoding="utf-8"))
    assert told["batch"] == {"processes": 2, "micro": 4, "accumulation": 1}
    assert told["counts"]["train"] == 114
    assert weights(first) == weights(second)
    refused = run(tmp_path / "absent.jsonl", tmp_path / "third")
    assert refused.returncode != 0
    assert "absent.jsonl does not exist" in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second", "texts.jsonl"]


def test_texts_come_in_order_once_from_files_folders_globs_and_stores(tmp_path, jsonl, sentences) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    rows = [None, *sentences[:30], " ", *sentences[10:40], sentences[0] + " ", sentences[1].replace(" ", "\t", 1)]
    for number, start in enumerate(range(0, len(rows), 7)):
        pq.write_table(pa.table({"text": pa.array(rows[start : start + 7], pa.string())}), folder / f"{number}.parquet")
    jsonl(tmp_path / "a1.jsonl", sentences[35:50])
    jsonl(tmp_path / "a2.jsonl", sentences[45:60])
    collect(tmp_path / "store", [CorpusSpec("c", str(jsonl(tmp_path / "c.jsonl", sentences[55:80])))])
    paths = [folder, str(tmp_path / "a?.jsonl"), tmp_path / "store"]
    text = read_training_text(paths, tmp_path / "file", held_out_file=None, held_out=0.1, seed=3)
    expected = [*sentences[:40], *rows[-2:], *sentences[40:80]]
    held = sorted(np.random.default_rng(3).permutation(len(expected))[:8].tolist())
    assert text.held_out.to_pylist() == [expected[row] for row in held]
    assert text.train.to_pylist() == [one for row, one in enumerate(expected) if row not in held]
    assert [(source.kind, source.texts) for source in text.sources] == [("file", 62), ("file", 30), ("store", 25)]
    assert (text.duplicates, text.withheld) == (62 + 30 + 25 - len(expected), 0)


def test_bad_inputs_are_said_plainly(tmp_path, tiny_model, texts, jsonl, sentences) -> None:
    bert = tiny_model("bert")
    with pytest.raises(InputError, match="neither a task folder"):
        adapt(bert, [tmp_path], tmp_path / "out", settings=SMALL)
    with pytest.raises(InputError, match="does not exist"):
        adapt(bert, [tmp_path / "absent.jsonl"], tmp_path / "out", settings=SMALL)
    with pytest.raises(InputError, match="too few"):
        adapt(bert, [jsonl(tmp_path / "one.jsonl", sentences[:1] * 3)], tmp_path / "out", settings=SMALL)
    with pytest.raises(NearkinError, match="64 tokens"):
        adapt(bert, [texts], tmp_path / "out", settings=replace(SMALL, max_tokens=999))
    with pytest.raises(ModelError):
        adapt(str(tmp_path / "no-model"), [texts], tmp_path / "out", settings=SMALL)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    with pytest.raises(NearkinError, match="exists already"):
        adapt(bert, [texts], tmp_path / "full", settings=SMALL)
    with pytest.raises(NearkinError, match="is something else and is not replaced"):
        adapt(bert, [texts], tmp_path / "full", settings=SMALL, overwrite=True)
    (tmp_path / "full").rename(tmp_path / "out.work")
    with pytest.raises(NearkinError, match="is no unfinished training and in the way"):
        adapt(bert, [texts], tmp_path / "out", settings=SMALL)
    assert (tmp_path / "out.work" / "note.txt").read_text() == "mine"
    with pytest.raises(NearkinError, match="between 0 and 1"):
        AdaptSettings(mlm_probability=1.5)


@pytest.mark.slow
def test_minilm_gets_a_head_and_learns(tmp_path, texts) -> None:
    settings = AdaptSettings(max_steps=6, batch_size=16, micro_batch=16, max_tokens=32, head_warmup_steps=6)
    result = adapt("all-MiniLM-L6-v2", [texts], tmp_path / "out", settings=settings)
    assert result.new_head
    assert 5 < result.held_out_loss["before"] < math.log(30522) - 1
    assert result.held_out_loss["after"] < result.held_out_loss["before"]
