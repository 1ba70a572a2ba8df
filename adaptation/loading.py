"""Models and tokenizers of transformers, loaded safely: safetensors only, no code from the model, float32 weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selection.devices import suit_cuda
from selection.errors import ModelError, NearkinError
from selection.models import resolve_model

USUAL_TOKENS = 512
# These count positions from pad_token_id + 1, so that a table of 514 holds 512 tokens.
OFFSET_POSITIONS = {
    "roberta",
    "xlm-roberta",
    "camembert",
    "xlm-roberta-xl",
    "roberta-prelayernorm",
    "longformer",
    "mpnet",
}
SAFE = {"use_safetensors": True, "trust_remote_code": False}


class NoMaskedLMError(ModelError):
    """A model that has no masked-LM head or form, or no mask token."""


def transformer_folder(model: str) -> Path:
    """The folder of `model` that transformers can load; of a sentence-transformers model, its transformer module.

    Raises:
        ModelError: see `resolve_model`; or a model that is no transformer.
    """
    folder = resolve_model(model)
    if (folder / "config.json").exists():
        return folder
    for module in json.loads((folder / "modules.json").read_text(encoding="utf-8")):
        if (folder / module["path"] / "config.json").exists() and "Transformer" in module["type"]:
            return folder / str(module["path"])
    raise ModelError(f"model {model} at {folder} is not a transformer, so it cannot be trained here")


def load_tokenizer(folder: Path, *, masks: bool = False) -> Any:
    """The fast tokenizer of a model folder.

    Args:
        folder: see `transformer_folder`.
        masks: it must have a mask token.

    Raises:
        ModelError: no tokenizer, a slow one, or none of the tokens needed.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model {folder} has no tokenizer that can be loaded: {_first_line(error)}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"model {folder} has a slow tokenizer only; long texts need a fast one (tokenizer.json)")
    vocabulary = getattr(load_config(folder), "vocab_size", None)
    if vocabulary is not None and len(tokenizer) > vocabulary:
        raise ModelError(
            f"model {folder}: its tokenizer has {len(tokenizer)} tokens and its embeddings only {vocabulary}, so they "
            "do not belong together: copy the tokenizer files that came with the model"
        )
    if masks and tokenizer.mask_token_id is None:
        raise NoMaskedLMError(f"model {folder} has no mask token, so it cannot be trained as a masked language model")
    return tokenizer


def token_limit(asked: int | None, config: Any, tokenizer: Any) -> int:
    """Longest input in tokens: `asked`, else what model and tokenizer allow, at most `USUAL_TOKENS`.

    Raises:
        NearkinError: `asked` is more than the model has positions for, or too few to hold a token.
    """
    most = min(tokenizer.model_max_length, 1 << 30)
    if positions := getattr(config, "max_position_embeddings", None):
        offset = (config.pad_token_id or 0) + 1 if config.model_type in OFFSET_POSITIONS else 0
        most = min(most, positions - offset)
    if asked is None:
        return int(min(most, USUAL_TOKENS))
    least = tokenizer.num_special_tokens_to_add() + 1
    if not least <= asked <= most:
        raise NearkinError(f"--max-tokens {asked} does not fit this model: it takes {least} to {most} tokens")
    return asked


def load_masked_lm(folder: Path) -> tuple[Any, set[str]]:
    """A masked LM and the names of its parameters that the checkpoint lacks: empty, or those of a new head.

    A new head is drawn from transformers' current seed and shares its output matrix with the token embeddings.

    Raises:
        ModelError: no masked-LM form of this architecture, or a checkpoint without its encoder.
    """
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, AutoModelForMaskedLM

    config = load_config(folder)
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise NoMaskedLMError(f"model {folder} is of a kind without a masked-LM form ({config.model_type})")
    model, missing = _load(AutoModelForMaskedLM, folder, config)
    if not missing:
        return model, missing
    _check_encoder(folder, {name for name in missing if name.startswith(f"{model.base_model_prefix}.")})
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    config.tie_word_embeddings = True
    return _load(AutoModelForMaskedLM, folder, config)


def load_classifier(folder: Path, labels: list[str], dropout: float) -> Any:
    """A sequence classifier over `labels`; what the checkpoint lacks is drawn from transformers' current seed.

    Args:
        folder: see `transformer_folder`.
        labels: class names, in the order of their ids.
        dropout: put wherever the architecture's configuration has a dropout.

    Raises:
        ModelError: no classifier form of this architecture, or a checkpoint without its encoder.
    """
    from transformers import AutoModelForSequenceClassification

    config = load_config(folder)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.problem_type = "single_label_classification"  # a base may have learnt several labels an example
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "dropout",
                 "attention_dropout", "seq_classif_dropout", "classifier_dropout_prob", "embedding_dropout",
                 "mlp_dropout"):  # fmt: skip
        if hasattr(config, name):
            setattr(config, name, dropout)
    model, missing = _load(AutoModelForSequenceClassification, folder, config, ignore_mismatched_sizes=True)
    _check_encoder(folder, {n for n in missing if n.startswith(f"{model.base_model_prefix}.") and ".pooler." not in n})
    return model


def _check_encoder(folder: Path, missing: set[str]) -> None:
    """Refuses a model that lacks weights of its encoder."""
    if missing:
        raise ModelError(
            f"model {folder} lacks weights of its encoder, such as {min(missing)}: it cannot be trained on"
        )


def load_config(folder: Path) -> Any:
    """The configuration of a model folder.

    Raises:
        ModelError: none, or of an architecture transformers does not know.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model {folder} has a config.json that cannot be used: {_first_line(error)}") from error


def _load(kind: Any, folder: Path, config: Any, **options: Any) -> tuple[Any, set[str]]:
    import torch

    suit_cuda()
    try:
        model, info = kind.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True, **SAFE, **options
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"model {folder} cannot be loaded as {kind.__name__}: {_first_line(error)}") from error
    return model, {name for name, _ in model.named_parameters()} & set(info["missing_keys"])


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
