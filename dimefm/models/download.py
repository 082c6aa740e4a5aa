"""Models that the user named and that are not on this machine: say so, and fetch them.

Whatever is downloaded goes into the cache of the Hugging Face hub, or into ``~/.cache/clip``. A
model that lies there needs no network at all.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import open_clip
from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from dimefm.errors import ModelError
from dimefm.models import config_check
from dimefm.models.offline import CLIP_CACHE, WEIGHTS, is_downloaded, offline
from dimefm.runtime import console
from dimefm.runtime.text import shortened
from dimefm.runtime.torchrun import rank_of

CONFIG = "open_clip_config.json"
SMALL_FILES = ("*.json", "*.txt", "*.model")  # config and tokenizer
REPOSITORY = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
CONNECT_SECONDS = 10


def fetch_tag(architecture: str, tag: str) -> None:
    """Have the weights of an open_clip tag on this machine; raise ModelError when they cannot be.

    Before a download a line says what goes where.
    """
    config = open_clip.get_pretrained_cfg(architecture, tag) or {}
    if is_downloaded(config):
        return
    spec = f"{architecture}/{tag}"
    source, address, target = _source_of(config)
    remedy = (
        f"fetch {address} where there is a network, and name {architecture}/FILE --preprocess {tag}"
    )
    announce(f"downloading {spec} ({source}) to {target}")
    require_connection(spec, address, remedy)
    try:
        open_clip.download_pretrained(config)
    except Exception as error:  # the hub and urllib raise whatever the network raises
        raise failed(spec, error, remedy) from error


def fetch_repository(spec: str, repository: str, may_download: bool = True) -> Path:
    """Return the folder of a hub's model, ``ORG/MODEL``, with config, weights and tokenizer.

    Raises ModelError when the name is none, or the model cannot be had.
    """
    if not REPOSITORY.fullmatch(repository):
        raise ModelError(f"{spec}: expected hf-hub:ORG/MODEL. Fix: correct the name")
    folder = local_folder(repository, CONFIG, WEIGHTS)
    if folder is not None:
        return folder
    remedy = (
        f"fetch {constants.ENDPOINT}/{repository} where there is a network, and name its folder"
    )
    if not may_download:
        raise ModelError(
            f"{spec} is not on this machine, and a name that comes with data downloads nothing."
            f" Fix: name {spec} yourself, with --teacher, --text-model or --eval-text-model"
        )
    announce(f"downloading {spec} to {constants.HF_HUB_CACHE}")
    require_connection(spec, constants.ENDPOINT, remedy)
    try:
        return _download(repository)
    except ModelError:
        raise
    except Exception as error:  # the hub raises whatever the network raises
        raise failed(spec, error, remedy) from error


def require_transformers(spec: str, text_config: dict) -> None:
    """Raise ModelError when a text tower's tokenizer needs a package that is not installed."""
    needs = text_config.get("hf_tokenizer_name") or text_config.get("hf_model_name")
    if needs and not _is_installed("transformers"):
        raise ModelError(
            f"{spec}: its tokenizer needs the package transformers, which is not installed. Fix:"
            " pip install 'dimefm[transformers]'"
        )


def _is_installed(package: str) -> bool:
    if package in sys.modules:
        return sys.modules[package] is not None
    return importlib.util.find_spec(package) is not None


def _source_of(config: dict) -> tuple[str, str, str]:
    """Return what is downloaded in words, its address, and the folder that it goes to."""
    if config.get("hf_hub"):
        repository = config["hf_hub"].rpartition("/")[0]
        address = f"{constants.ENDPOINT}/{repository}"
        return repository, address, str(constants.HF_HUB_CACHE)
    url = config.get("url", "")
    return os.path.basename(url), url, os.path.expanduser(CLIP_CACHE)


def announce(line: str) -> None:
    """Print a note on a download, once for all processes of a run."""
    if rank_of()[0] == 0:
        console.note(line)


def require_connection(spec: str, address: str, remedy: str) -> None:
    """Raise ModelError at once when the host of an address cannot be reached.

    The hub's client tries each file several times, which takes a minute without a network.
    """
    if constants.HF_HUB_OFFLINE:
        raise ModelError(
            f"{spec}: is not on this machine, and HF_HUB_OFFLINE forbids downloads. Fix: {remedy}"
        )
    parts = urllib.parse.urlsplit(address)
    if parts.scheme in urllib.request.getproxies():
        return  # the proxy knows
    host = parts.hostname or ""
    reason = _why_unreachable(host, parts.port or 443)
    if reason:
        raise ModelError(f"{spec}: cannot be downloaded: {host}: {reason}. Fix: {remedy}")


def _why_unreachable(host: str, port: int) -> str:
    """Return why no connection can be made within seconds, "" when one can."""
    reasons = [f"no answer in {CONNECT_SECONDS} seconds"]

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
            reasons.append("")
        except OSError as error:
            reasons.append(error.strerror or str(error) or type(error).__name__)

    thread = threading.Thread(target=connect, daemon=True)  # looking up a name has no time limit
    thread.start()
    thread.join(CONNECT_SECONDS)
    return reasons[-1]


def local_folder(repository: str, config: str, weights: Sequence[str]) -> Path | None:
    """Return the folder of a model that was downloaded before, None when a part is missing.

    The parts are the file ``config`` and one of the files ``weights``.
    """
    try:
        with offline():
            folder = Path(snapshot_download(repository, local_files_only=True))
    except Exception:  # the hub's client has several errors for what is not there
        return None
    has_weights = any((folder / name).is_file() for name in weights)
    return folder if has_weights and (folder / config).is_file() else None


def _download(repository: str) -> Path:
    """Download a model: first its small files, which say whether the rest is worth it."""
    folder = Path(snapshot_download(repository, allow_patterns=list(SMALL_FILES)))
    if not (folder / CONFIG).is_file():
        raise ModelError(
            f"hf-hub:{repository}: has no {CONFIG}, so it is no model of open_clip. Fix: name"
            " another repository"
        )
    config, _ = config_check.read_model_file(folder / CONFIG)
    require_transformers(f"hf-hub:{repository}", config["text_cfg"])
    for name in WEIGHTS:
        try:
            return Path(hf_hub_download(repository, name)).parent
        except LocalEntryNotFoundError:  # the network failed
            raise
        except EntryNotFoundError:
            continue
    raise ModelError(
        f"hf-hub:{repository}: has neither {' nor '.join(WEIGHTS)}. Fix: name another repository"
    )


def failed(spec: str, error: Exception, remedy: str) -> ModelError:
    """Return what is wrong with a download that ended in an error."""
    reason = str(error).rpartition("Last error: ")[2] or type(error).__name__
    return ModelError(f"{spec}: cannot be downloaded: {shortened(reason, 160)}. Fix: {remedy}")
