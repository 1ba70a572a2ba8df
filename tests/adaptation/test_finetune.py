from __future__ import annotations

import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import f1_score

import adaptation.texts
import adaptation.training
from adaptation.classifier import BestEpoch, encode, renew_head
from adaptation.finetune import FinetuneSettings, f1, finetune
from adaptation.loading import load_classifier, load_tokenizer
from adaptation.mlm import adapt
from adaptation.tasks import load_labelled
from adaptation.training import alone_at
from selection.errors import InputError, NearkinError

QUICK = FinetuneSettings(seeds=2, epochs=4, learning_rate=3e-3, max_tokens=24, bf16="off")


def record_of(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def test_a_separable_task_is_learnt_and_results_hold_the_contract(tmp_path, tiny_model, marked_task) -> None:
    result = finetune(tiny_model("bert"), marked_task, tmp_path / "out", settings=QUICK)
    record = record_of(tmp_path / "out")
    assert record["metric"] == result.metric == "macro-F1"
    for split in ("dev", "test"):
        values = record[split]
        assert set(values) == {"0", "1"}
        assert min(values.values()) > 95
        assert record[f"{split}_mean"] == pytest.approx(statistics.mean(values.values()))
        assert record[f"{split}_std"] == pytest.approx(statistics.stdev(values.values()))
    assert set(record["best_epoch"]) == {"0", "1"}
    assert record["settings"]["learning_rate"] == 3e-3
    assert record["settings"]["epochs"] == 4
    assert record["model"] == tiny_model("bert")
    assert record["seconds"] > 0
    assert record["labels"] == ["apple", "river"]
    assert {"torch", "transformers"} <= record["versions"].keys()
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["predictions.parquet", "results.json"]


def test_one_seed_has_no_deviation(tmp_path, tiny_model, marked_task) -> None:
    finetune(tiny_model("roberta"), marked_task, tmp_path / "out", settings=replace(QUICK, seeds=1, epochs=1))
    assert record_of(tmp_path / "out")["test_std"] is None


def test_reported_f1_is_that_of_the_kept_model(tmp_path, tiny_model, marked_task) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    settings = replace(QUICK, epochs=2, learning_rate=1e-3, keep_model=True)
    finetune(tiny_model("bert"), marked_task, tmp_path / "out", settings=settings)
    record = record_of(tmp_path / "out")
    best = max(record["dev"], key=lambda seed: record["dev"][seed])
    model, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out" / "model", output_loading_info=True
    )
    assert not info["missing_keys"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    rows = [json.loads(line) for line in (marked_task / "test.jsonl").read_text().splitlines()]
    with torch.inference_mode():
        inputs = tokenizer(
            [r["text"] for r in rows], padding="longest", truncation=True, max_length=24, return_tensors="pt"
        )
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    predicted = [model.config.id2label[i] for i in logits.argmax(-1).tolist()]
    expected = 100 * f1_score([r["label"] for r in rows], predicted, average="macro")
    assert record["test"][best] == pytest.approx(expected)
    files = {file.suffix for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert files <= {".safetensors", ".json", ".txt", ".parquet"}
    kept = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert [row["predicted"] for row in kept if row["seed"] == int(best)] == predicted
    assert [row["label"] for row in kept if row["seed"] == int(best)] == [r["label"] for r in rows]


def test_a_classifier_of_another_run_does_not_stay_beside_new_results(tmp_path, tiny_model, marked_task) -> None:
    settings = replace(QUICK, seeds=1, epochs=1, keep_model=True)
    finetune(tiny_model("bert"), marked_task, tmp_path / "out", settings=settings)
    assert (tmp_path / "out" / "model").is_dir()
    other = replace(settings, keep_model=False, learning_rate=1e-4)
    finetune(tiny_model("bert"), marked_task, tmp_path / "out", settings=other, overwrite=True)
    assert not (tmp_path / "out" / "model").exists()


def test_a_model_of_the_users_own_stays_where_it_is(tmp_path, tiny_model, marked_task) -> None:
    shutil.copytree(tiny_model("bert"), tmp_path / "out" / "model")
    settings = replace(QUICK, seeds=2, epochs=1)
    finetune(str(tmp_path / "out" / "model"), marked_task, tmp_path / "out", settings=settings)
    assert (tmp_path / "out" / "model" / "config.json").exists()
    assert len(record_of(tmp_path / "out")["seeds"]) == 2


def test_same_seed_same_numbers_and_stopped_runs_go_on(tmp_path, tiny_model, marked_task, monkeypatch, stopped) -> None:
    settings = replace(QUICK, epochs=2, learning_rate=5e-4)
    finetune(tiny_model("bert"), marked_task, tmp_path / "whole", settings=settings)
    whole = record_of(tmp_path / "whole")
    with stopped(lambda trainer: trainer.args.seed == 1):
        finetune(tiny_model("bert"), marked_task, tmp_path / "out", settings=settings)
    assert set(record_of(tmp_path / "out")["dev"]) == {"0"}

    step = adaptation.training.SteadyTrainer.training_step

    def second_only(trainer, *args, **kwargs):
        assert trainer.args.seed == 1
        return step(trainer, *args, **kwargs)

    monkeypatch.setattr(adaptation.training.SteadyTrainer, "training_step", second_only)
    finetune(tiny_model("bert"), marked_task, tmp_path / "out", settings=settings)
    resumed = record_of(tmp_path / "out")
    for name in ("dev", "test", "best_epoch", "dev_mean", "test_std"):
        assert resumed[name] == whole[name]
    kept = [pq.read_table(tmp_path / out / "predictions.parquet") for out in ("whole", "out")]
    assert kept[0] == kept[1]
    assert kept[0]["seed"].value_counts().field("values").to_pylist() == [0, 1]


def test_results_of_something_else_are_not_mixed_in(tmp_path, tiny_model, marked_task) -> None:
    settings = replace(QUICK, seeds=1, epochs=1)
    finetune(tiny_model("bert"), marked_task, tmp_path / "out", settings=settings)
    before = (tmp_path / "out" / "results.json").read_bytes()
    other = replace(settings, learning_rate=1e-5)
    with pytest.raises(NearkinError, match="another model, task or settings"):
        finetune(tiny_model("bert"), marked_task, tmp_path / "out", settings=other)
    assert (tmp_path / "out" / "results.json").read_bytes() == before
    finetune(tiny_model("bert"), marked_task, tmp_path / "out", settings=other, overwrite=True)
    assert record_of(tmp_path / "out")["settings"]["learning_rate"] == 1e-5
    finetune(tiny_model("bert"), marked_task, tmp_path / "out", settings=replace(other, seeds=2))
    assert set(record_of(tmp_path / "out")["test"]) == {"0", "1"}


def test_best_epoch_is_kept_and_patience_stops() -> None:
    scores = iter([50.0, 70.0, 60.0, 70.0, 10.0, 99.0])
    stepped: list[torch.Tensor] = []

    class Run:
        def predict(self, model, split):
            return split

        def score(self, predicted, split):
            assert predicted == split == "dev"
            return next(scores)

        def tell_epoch(self, *args):
            pass

    class Control:
        should_training_stop = False

    layer, control = torch.nn.Linear(1, 1), Control()
    best = BestEpoch(Run(), 0, patience=2)
    while not control.should_training_stop:
        with torch.no_grad():
            layer.weight.add_(1)
        stepped.append(layer.weight.clone())
        best.on_epoch_end(None, None, control, model=layer)
    assert (best.dev, best.epoch, best.epochs) == (70.0, 2, 4)
    assert torch.equal(best.weights["weight"], stepped[1])


def test_epochs_are_limited_by_steps_and_by_size() -> None:
    assert FinetuneSettings().passes(5000, 313) == 10
    assert FinetuneSettings().passes(5001, 313) == 3
    limited = FinetuneSettings(epochs=8, max_steps=850)
    assert [limited.passes(n, -(-n // 16)) for n in (500, 1688, 3219, 200_000)] == [8, 8, 4, 1]
    with pytest.raises(NearkinError, match="steps must be at least 1"):
        FinetuneSettings(max_steps=0)


def test_pooler_and_classifier_are_drawn_anew_by_seed(tiny_model) -> None:
    first, again, other = (load_classifier(Path(tiny_model("bert-encoder")), ["a", "b", "c"], 0.1) for _ in range(3))
    loaded = first.bert.pooler.dense.weight.clone()
    encoder = first.bert.encoder.layer[0].output.dense.weight.clone()
    for model, seed in ((first, 0), (again, 0), (other, 1)):
        renew_head(model, seed)
    assert not torch.equal(first.bert.pooler.dense.weight, loaded)
    assert torch.equal(first.bert.encoder.layer[0].output.dense.weight, encoder)
    for weight in ("bert.pooler.dense.weight", "classifier.weight"):
        assert torch.equal(first.state_dict()[weight], again.state_dict()[weight])
        assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])
    assert first.classifier.weight.std().item() == pytest.approx(first.config.initializer_range, rel=0.3)
    assert not first.classifier.bias.any()


def test_f1_is_that_of_its_definition() -> None:
    labels, predictions = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0])
    by_class = [2 * 1 / (2 + 2), 2 * 2 / (2 + 3), 0]
    assert f1(labels, predictions, "macro") == pytest.approx(100 * sum(by_class) / 3)
    assert f1(labels, predictions, "micro") == pytest.approx(100 * 3 / 5)


def test_unseen_label_and_bad_loss(tmp_path, tiny_model, marked_task, jsonl) -> None:
    with pytest.raises(NearkinError, match="not a number at step"):
        finetune(tiny_model("bert"), marked_task, tmp_path / "out", settings=replace(QUICK, learning_rate=1e30))
    jsonl(marked_task / "test.jsonl", ["x y"], ["unheard"])
    with pytest.raises(InputError, match="'unheard'"):
        finetune(tiny_model("bert"), marked_task, tmp_path / "out", settings=QUICK)
    assert not (tmp_path / "out").exists()


def test_what_is_cut_and_what_is_rare_is_said(tmp_path, tiny_model, marked_task, jsonl) -> None:
    rows = [json.loads(line) for line in (marked_task / "train.jsonl").read_text().splitlines()]
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    jsonl(marked_task / "train.jsonl", [*texts, "word " * 100, "alone"], [*labels, labels[0], "seldom"])
    said: list[str] = []
    finetune(
        tiny_model("bert"), marked_task, tmp_path / "out", settings=replace(QUICK, seeds=1, epochs=1), say=said.append
    )
    from adaptation.loading import load_tokenizer

    tokenizer = load_tokenizer(Path(tiny_model("bert")))
    every = [json.loads(line)["text"] for f in marked_task.iterdir() for line in f.read_text().splitlines()]
    long = sum(len(ids) > 24 for ids in tokenizer(every)["input_ids"])
    assert f"{long} of {len(every)} examples are longer than 24 tokens and cut" in said
    assert long > 0
    assert any("one training example only of 'seldom'" in line for line in said)


@pytest.mark.slow
def test_minilm_learns_a_separable_task(tmp_path, marked_task) -> None:
    settings = FinetuneSettings(seeds=1, epochs=2, learning_rate=1e-4, max_tokens=16)
    result = finetune("all-MiniLM-L6-v2", marked_task, tmp_path / "out", settings=settings)
    assert result.mean("test") > 95


def test_results_within_the_models_own_folder_change_no_identity(tmp_path, tiny_model, marked_task) -> None:
    model = Path(shutil.copytree(tiny_model("bert"), tmp_path / "model"))
    settings = FinetuneSettings(seeds=1, epochs=1, max_tokens=32, bf16="off")
    first = finetune(str(model), marked_task, model / "results", settings=settings)
    both = finetune(str(model), marked_task, model / "results", settings=replace(settings, seeds=2))
    assert both.by_seed[0] == first.by_seed[0]


def test_two_trainings_in_one_folder_are_refused(tmp_path, tiny_model, marked_task) -> None:
    out = tmp_path / "out"
    at_work = r"another training is at work in .*out: wait for it"
    with alone_at(out, out / ".lock"), pytest.raises(NearkinError, match=at_work):
        finetune(tiny_model("bert"), marked_task, out)
    with alone_at(out, tmp_path / ".out.lock"), pytest.raises(NearkinError, match="another training is at work"):
        adapt(tiny_model("bert"), [marked_task], out)
    out.rmdir()
    assert list(tmp_path.iterdir()) == [marked_task]


def test_a_base_that_learnt_several_labels_an_example_learns_one(tmp_path, tiny_model) -> None:
    base = load_classifier(Path(tiny_model("bert-encoder")), ["a", "b"], 0.1)
    base.config.problem_type = "multi_label_classification"
    base.save_pretrained(tmp_path)
    again = load_classifier(tmp_path, ["a", "b", "c"], 0.1)
    assert torch.isfinite(again(input_ids=torch.tensor([[5, 6]]), labels=torch.tensor([2])).loss)


def test_every_dropout_of_modernbert_is_set(tmp_path) -> None:
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ModernBertForMaskedLM(ModernBertConfig(vocab_size=60000, **shape)).save_pretrained(tmp_path)
    model = load_classifier(tmp_path, ["a", "b"], 0.25)
    shares = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert shares == {0.25}


def test_examples_are_encoded_alike_in_blocks_of_any_size(marked_task, tiny_model, monkeypatch) -> None:
    table, tokenizer = load_labelled(marked_task).splits["train"], load_tokenizer(Path(tiny_model("bert")))
    whole, cut = encode(table, tokenizer, 8)
    monkeypatch.setattr(adaptation.texts, "BLOCK_ROWS", 7)
    parts, cut_in_parts = encode(table, tokenizer, 8)
    assert parts.data.table.to_pylist() == whole.data.table.to_pylist()
    assert cut_in_parts == cut > 0
    for row, text in zip(parts.data.table.to_pylist(), table["text"].to_pylist(), strict=True):
        assert row["input_ids"] == tokenizer(text, truncation=True, max_length=8)["input_ids"]
        assert row["length"] == len(row["input_ids"])
