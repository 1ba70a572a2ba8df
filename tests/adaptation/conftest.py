from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from adaptation.mlm import AdaptSettings
from selection.models import quiet_libraries, resolve_model

# float32, so that runs compare to the bit whatever the machine.
SMALL = AdaptSettings(
    max_steps=12,
    batch_size=32,
    micro_batch=16,
    learning_rate=2e-3,
    head_warmup_steps=4,
    checkpoint_minutes=1e9,
    bf16="off",
)


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    # Threads that wait for each other over matrices this small cost 15 times the work on a busy machine.
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Distinct English sentences of the Python reference, which every installation has."""
    text = " ".join(topics[name] for name in sorted(topics)).replace("*", "").replace("\n", " ")
    found = dict.fromkeys(" ".join(s.split()) for s in text.split(". "))
    return [s for s in found if 40 < len(s) < 200 and s.isascii()][:400]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Makes a tiny randomly initialised model of a kind: bert (with head), bert-encoder (without), roberta."""
    folder = tmp_path_factory.mktemp("models")

    def make(kind: str) -> str:
        from transformers import (
            AutoTokenizer,
            BertConfig,
            BertForMaskedLM,
            BertModel,
            RobertaConfig,
            RobertaForMaskedLM,
            set_seed,
        )

        quiet_libraries()
        place = folder / kind
        if not place.exists():
            set_seed(0)
            tokenizer = AutoTokenizer.from_pretrained(resolve_model("all-MiniLM-L6-v2"))
            shape = {
                "vocab_size": len(tokenizer),
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "max_position_embeddings": 65 if kind == "roberta" else 64,
                "pad_token_id": 0,
            }
            models = {
                "bert": lambda: BertForMaskedLM(BertConfig(**shape)),
                "bert-encoder": lambda: BertModel(BertConfig(**shape)),
                "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**shape)),
            }
            models[kind]().save_pretrained(place)
            tokenizer.save_pretrained(place)
        return str(place)

    return make


def write_jsonl(path: Path, texts: list[str], labels: list[str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"text": t} if labels is None else {"text": t, "label": labels[i]} for i, t in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], bool]], AbstractContextManager[None]]:
    """Within it, training is stopped as by Ctrl-C before the first step of which a function of the trainer is true."""
    from adaptation.training import SteadyTrainer

    @contextmanager
    def stopping(due: Callable[[Any], bool]) -> Iterator[None]:
        step = SteadyTrainer.training_step

        def interrupt(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            if due(trainer):
                raise KeyboardInterrupt
            return step(trainer, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(SteadyTrainer, "training_step", interrupt)
            with pytest.raises(KeyboardInterrupt):
                yield

    return stopping


@pytest.fixture
def jsonl() -> Callable[..., Path]:
    return write_jsonl


@pytest.fixture
def marked_task(tmp_path: Path, sentences: list[str]) -> Path:
    """A task told apart by its first word."""
    folder = tmp_path / "marked"
    for split, start, stop in (("train", 0, 160), ("dev", 160, 220), ("test", 220, 280)):
        labels = [("apple", "river")[i % 2] for i in range(start, stop)]
        texts = [f"{label} {label} {s[:50]}" for label, s in zip(labels, sentences[start:stop], strict=True)]
        write_jsonl(folder / f"{split}.jsonl", texts, labels)
    return folder
