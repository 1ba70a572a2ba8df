"""One published file to a local path, from https or the hub: whole or not at all."""

from __future__ import annotations

import http.client
import logging
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from selection.errors import NearkinError
from selection.files import atomic_write

HUB = "hf://datasets/"
TIMEOUT_SECONDS = 30
BLOCK_BYTES = 1 << 20


def fetch_file(urls: Sequence[str], path: Path) -> str:
    """Downloads the first of `urls` that answers to `path`; returns that one.

    Args:
        urls: http(s) addresses, or ``hf://datasets/OWNER/NAME/FILE``; mirrors last.

    Raises:
        NearkinError: none of them gave the file; the message names each with its reason.
    """
    failures = []
    for url in urls:
        try:
            with atomic_write(path) as aside:
                if url.startswith(HUB):
                    _from_hub(url, aside)
                else:
                    _from_web(url, aside)
            return url
        except _Failed as error:
            failures.append(f"{url}: {error}")
    raise NearkinError(
        f"{path.name} could not be downloaded ({'; '.join(failures)}): connect and try again, or give a local copy "
        "with --from"
    )


class _Failed(Exception):
    """This address did not give the file; the next may."""


def _from_web(url: str, aside: Path) -> None:
    from tqdm import tqdm

    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer, aside.open("wb") as file:
            length = answer.headers.get("Content-Length")
            expected = int(length) if length and length.isdigit() else None
            name = url.rpartition("/")[2]
            with tqdm(total=expected, unit="B", unit_scale=True, desc=name, disable=None, leave=False) as bar:
                while block := answer.read(BLOCK_BYTES):
                    file.write(block)
                    bar.update(len(block))
            if expected is not None and file.tell() != expected:
                raise _Failed(f"ended after {file.tell():,} of {expected:,} bytes")
    except urllib.error.HTTPError as error:
        raise _Failed(f"answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        reason = getattr(error.reason, "strerror", None) or error.reason
        raise _Failed(f"no connection, {reason}") from error
    except http.client.HTTPException as error:
        raise _Failed(f"broke off ({type(error).__name__})") from error
    except (ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise _Failed(f"broke off ({error.strerror or type(error).__name__})") from error


def _from_hub(url: str, aside: Path) -> None:
    from huggingface_hub import hf_hub_download

    # It tells of each of its attempts.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    owner, name, file = url.removeprefix(HUB).split("/", 2)
    try:
        found = hf_hub_download(f"{owner}/{name}", file, repo_type="dataset", etag_timeout=10)
    except Exception as error:  # the hub's client raises many kinds, none of which a caller could act upon
        raise _Failed(f"the hub did not give it ({type(error).__name__})") from error
    shutil.copyfile(found, aside)
