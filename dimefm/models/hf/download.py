"""``hf:ORG/NAME``: a model of transformers in the cache of the Hugging Face hub, fetched once."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from dimefm.errors import ModelError
from dimefm.models.download import (
    REPOSITORY,
    announce,
    failed,
    local_folder,
    require_connection,
)
from dimefm.models.folder_tokenizer import VOCABULARIES
from dimefm.models.hf.config import read_config
from dimefm.models.hf.families import CONFIG
from dimefm.models.hf.loading import require_transformers
from dimefm.models.hf.weights import INDEXES, WEIGHTS, parts_of, weights_of

SMALL_FILES = (
    CONFIG,
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    *VOCABULARIES,
)


def fetch_folder(spec: str, repository: str, may_download: bool = True) -> Path:
    """Return the folder of a model on the hub, with config, weights and tokenizer.

    Raises ModelError when the name is none, or the model cannot be had. ``may_download`` is False
    for a name that came with data.
    """
    if not REPOSITORY.fullmatch(repository):
        raise ModelError(f"{spec}: expected hf:ORG/MODEL. Fix: correct the name")
    require_transformers(spec)
    folder = _whole_folder(repository)
    if folder is not None:
        return folder
    if not may_download:
        raise ModelError(
            f"{spec} is not on this machine, and a name that comes with data downloads nothing."
            f" Fix: name {spec} yourself, with --teacher, --text-model or --eval-text-model"
        )
    remedy = (
        f"fetch {constants.ENDPOINT}/{repository} where there is a network, and name its folder"
    )
    announce(f"downloading {spec} to {constants.HF_HUB_CACHE}")
    require_connection(spec, constants.ENDPOINT, remedy)
    try:
        return _download(spec, repository)
    except ModelError:
        raise
    except Exception as error:  # the hub raises whatever the network raises
        raise failed(spec, error, remedy) from error


def _whole_folder(repository: str) -> Path | None:
    """Return the folder of a model that was downloaded before, None when a part is missing."""
    folder = local_folder(repository, CONFIG, (*WEIGHTS, *INDEXES))
    if folder is None:
        return None
    try:
        weights_of(folder)
    except ModelError:  # an interrupted download has the index, and not each of its files
        return None
    return folder


def _download(spec: str, repository: str) -> Path:
    """Download a model: first its small files, which say whether the rest is worth it."""
    folder = Path(snapshot_download(repository, allow_patterns=list(SMALL_FILES)))
    if not (folder / CONFIG).is_file():
        raise ModelError(
            f"{spec}: has no {CONFIG}, so it is no model of transformers. Fix: name another"
            " repository, or hf-hub:ORG/MODEL for a model of open_clip"
        )
    read_config(folder)
    for name, index in zip(WEIGHTS, INDEXES, strict=True):
        try:
            return Path(hf_hub_download(repository, name)).parent
        except LocalEntryNotFoundError:  # the network failed
            raise
        except EntryNotFoundError:
            pass
        try:
            index_file = Path(hf_hub_download(repository, index))
        except LocalEntryNotFoundError:  # the network failed
            raise
        except EntryNotFoundError:
            continue
        for part in parts_of(index_file):
            hf_hub_download(repository, part)
        return index_file.parent
    raise ModelError(f"{spec}: has neither {' nor '.join(WEIGHTS)}. Fix: name another repository")
