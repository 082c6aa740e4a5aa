"""Folders of transformers with small random models, each made once."""

import functools
import os

import pytest

pytest.importorskip("transformers", reason="needs the extra 'hf'")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """Return ``folder_of(kind)``: (folder, model) of a kind of tests/models/hf/folders.py."""
    from tests.models.hf import folders

    root = tmp_path_factory.mktemp("hf")

    @functools.cache
    def made(kind):
        return root / kind, folders.make(kind, root / kind)

    return made


@pytest.fixture
def copy_of(folder_of, tmp_path):
    """Return ``copy_of(kind)``: a copy of such a folder that a test may change."""
    import shutil

    def copied(kind):
        return shutil.copytree(folder_of(kind)[0], tmp_path / kind)

    return copied
