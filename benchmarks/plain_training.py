"""The plain way to train: transformers' Trainer as its documentation shows it, the peer of `benchmarks.training`.

float32, batches in random order padded to their longest text, logits at every position, an evaluation and a checkpoint
an epoch in finetuning. Optimiser, schedule, batch and steps are those of nearkin's path, so that only the way differs.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from adaptation.finetune import f1
from adaptation.settings import AdaptSettings, FinetuneSettings
from adaptation.tasks import LabelledTask, Metric


def plain_masked_lm(
    model: Path, texts: pa.ChunkedArray, *, steps: int, batch: int, learning_rate: float, max_tokens: int, seed: int
) -> tuple[Any, int, float]:
    """Continued masked-LM training.

    Args:
        model: folder of a masked LM and its tokenizer.
        texts: to train on; longer ones are cut.
        steps: of the optimiser.
        batch: texts a step.
        learning_rate: peak.
        max_tokens: longest input.
        seed: of order, masks and dropout.

    Returns:
        The trained model, the tokens that went through it (no padding) and the seconds that took.
    """
    import datasets
    from transformers import AutoModelForMaskedLM, AutoTokenizer, DataCollatorForLanguageModeling, Trainer, set_seed
    from transformers.trainer_callback import PrinterCallback

    set_seed(seed)
    network, tokenizer = AutoModelForMaskedLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    encoded = datasets.Dataset(datasets.table.InMemoryTable(pa.table({"text": texts}))).map(
        lambda rows: tokenizer(rows["text"], truncation=True, max_length=max_tokens),
        batched=True,
        remove_columns=["text"],
    )
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=network,
            args=_arguments(
                scratch, steps, seed, learning_rate, batch, max_steps=steps, save_strategy="no",
                include_num_input_tokens_seen="non_padding",
            ),
            train_dataset=encoded,
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=AdaptSettings.mlm_probability),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        began = time.perf_counter()
        trainer.train()
        return network, int(trainer.state.num_input_tokens_seen), time.perf_counter() - began


def plain_finetuning(
    model: Path, task: LabelledTask, metric: Metric, *, epochs: int, learning_rate: float, max_tokens: int, seed: int
) -> tuple[float, float]:
    """Finetunes a classifier, the best dev epoch loaded at the end.

    Args:
        model: folder of an encoder and its tokenizer.
        task: labelled.
        metric: F1 that chooses the epoch.
        epochs: all of them are run.
        learning_rate: peak.
        max_tokens: longer examples are cut.
        seed: of new layers, order and dropout.

    Returns:
        F1 on test, in per cent, and the seconds of training and of that test together.
    """
    import datasets
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        set_seed,
    )
    from transformers.trainer_callback import PrinterCallback

    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(task.labels))
    splits = {
        name: datasets.Dataset(datasets.table.InMemoryTable(table)).map(
            lambda rows: tokenizer(rows["text"], truncation=True, max_length=max_tokens),
            batched=True,
            remove_columns=["text"],
        )
        for name, table in task.splits.items()
    }
    batch = FinetuneSettings.batch_size
    steps = epochs * -(-len(splits["train"]) // batch)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=network,
            args=_arguments(
                scratch, steps, seed, learning_rate, batch, num_train_epochs=epochs, save_strategy="epoch",
                eval_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="f1", save_total_limit=1,
            ),
            train_dataset=splits["train"],
            eval_dataset=splits["dev"],
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda p: {"f1": f1(p.label_ids, p.predictions.argmax(-1), metric)},
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        began = time.perf_counter()
        trainer.train()
        found = trainer.predict(splits["test"])
        return float(found.metrics["test_f1"]), time.perf_counter() - began


def _arguments(scratch: str, steps: int, seed: int, learning_rate: float, batch: int, **others: Any) -> Any:
    import torch
    from transformers import TrainingArguments

    from adaptation.training import ADAM, WARMUP_SHARE, one_device

    arguments = TrainingArguments(
        output_dir=scratch,
        learning_rate=learning_rate,
        per_device_train_batch_size=batch,
        warmup_steps=int(-(-WARMUP_SHARE * steps // 1)),
        seed=seed,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        logging_strategy="no",
        dataloader_pin_memory=torch.cuda.is_available(),
        **ADAM,
        **others,
    )
    return one_device(arguments)
