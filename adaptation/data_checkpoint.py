"""Published checkpoints whose weights are pickled, made into folders of safetensors that every command takes.

PyTorch reads the old file with ``weights_only``, which builds tensors and nothing else; a file that asks for more is
refused.
"""

from __future__ import annotations

from pathlib import Path

from adaptation.cards import Card
from selection.errors import ModelError, NearkinError
from selection.files import atomic_folder
from selection.models import quiet_libraries

WANTED = ["*.json", "*.txt", "*.safetensors", "pytorch_model.bin"]


def convert_checkpoint(card: Card, given: Path | None, path: Path) -> str:
    """Writes the checkpoint of `card` to folder `path` as safetensors with its tokenizer.

    Args:
        card: its name is the hub id.
        given: a local folder with the published files; None: the hub, through its cache.

    Returns:
        Where it came from.

    Raises:
        ModelError: not to be had, without weights, or weights that hold more than tensors.
    """
    folder = _from_hub(card["name"]) if given is None else given
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json, so it is not the checkpoint {card['name']}")
    if not any(folder.glob("*.safetensors")) and not (folder / "pytorch_model.bin").is_file():
        raise ModelError(f"{folder} has neither safetensors nor pytorch_model.bin, so there are no weights to take")
    with atomic_folder(path) as aside:
        _convert(folder, aside)
    return str(folder) if given is not None else f"https://huggingface.co/{card['name']}"


def _from_hub(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=WANTED, etag_timeout=10))
    except Exception as error:  # the hub's client raises many kinds, none of which a caller could act upon
        raise ModelError(
            f"the hub did not give {hub_id} ({type(error).__name__}): connect and try again, or give a folder with "
            "its files with --from"
        ) from error


def _convert(folder: Path, target: Path) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    quiet_libraries()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForMaskedLM.from_pretrained(
            folder, trust_remote_code=False, weights_only=True, local_files_only=True
        )
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    except NearkinError:
        raise
    except Exception as error:  # torch and transformers raise many kinds for a file they refuse
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder} cannot be converted to safetensors ({type(error).__name__}: {reason})") from error
