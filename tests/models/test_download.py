"""Models that the user named and that are not here: announced, refused at once without a network,
and not asked for again when they are here.
"""

import json
import re
import shutil
import time

import huggingface_hub
import open_clip as upstream
import pytest
from huggingface_hub import constants

from dimefm.models import download, open_clip
from dimefm.models.loading import load_encoder
from tests.models.conftest import ARCH, refused, same

GUARD = 30  # seconds; without a network each of these took a minute
REPOSITORY = "org/model"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return an empty cache of the hub, for this test alone."""
    cache = tmp_path / "hub"
    cache.mkdir()
    for module in (constants, huggingface_hub._snapshot_download.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HOME", str(tmp_path))
    return cache


@pytest.fixture
def no_network(monkeypatch):
    """Point the hub and all downloads at a port of this machine where nobody listens."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://127.0.0.1:9")


def downloaded(hub, folder, repository=REPOSITORY):
    """Put a folder into the cache of the hub, as a download leaves it."""
    place = hub / f"models--{repository.replace('/', '--')}"
    commit = "0" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(commit)
    shutil.copytree(folder, place / "snapshots" / commit)


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("RN50/openai", "downloading RN50/openai (timm/resnet50_clip.openai) to {hub}"),
        (f"hf-hub:{REPOSITORY}", f"downloading hf-hub:{REPOSITORY} to {{hub}}"),
    ],
)
def test_without_a_network_a_download_is_announced_and_refused_at_once(
    hub, no_network, capsys, spec, line
):
    started = time.monotonic()
    message = refused(spec)
    assert time.monotonic() - started < GUARD
    assert capsys.readouterr().err == line.format(hub=hub) + "\n"
    assert message.startswith(f"{spec}: cannot be downloaded: 127.0.0.1: ")
    assert len(message) <= 500
    remedy = message.partition(". Fix: ")[2]
    if spec == "RN50/openai":
        assert remedy.startswith("fetch https://127.0.0.1:9/timm/resnet50_clip.openai where")
        assert remedy.endswith("name RN50/FILE --preprocess openai")
    else:
        assert remedy.startswith(f"fetch https://127.0.0.1:9/{REPOSITORY} where")


@pytest.mark.parametrize("spec", ["RN50/openai", f"hf-hub:{REPOSITORY}"])
def test_offline_mode_is_named(hub, monkeypatch, spec):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "is not on this machine, and HF_HUB_OFFLINE forbids downloads" in refused(spec)


def test_a_tag_that_needs_an_address_says_where_it_goes(hub, no_network, capsys, monkeypatch):
    entry = {"url": "https://127.0.0.1:9/weights.pt"}
    monkeypatch.setitem(upstream.pretrained._PRETRAINED, ARCH, {"mine": entry})
    message = refused(f"{ARCH}/mine")
    assert "fetch https://127.0.0.1:9/weights.pt where there is a network" in message
    assert re.search(r"downloading .* \(weights.pt\) to .*/.cache/clip\n", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["org", "org/", "org/a/b", "", "../model", "org/..", "a b/c"])
def test_a_name_of_no_repository_is_refused(hub, no_network, name):
    assert "expected hf-hub:ORG/MODEL" in refused(f"hf-hub:{name}")


def test_a_model_of_the_hub_that_is_here_needs_no_network(
    hub, no_network, files, tiny_teacher, capsys
):
    downloaded(hub, files / "folder")
    spec = f"hf-hub:{REPOSITORY}"
    encoder = load_encoder(spec, "cpu")
    assert same(encoder, tiny_teacher)
    assert encoder.card.name == spec
    assert encoder.card.identity() == tiny_teacher.card.identity()
    assert capsys.readouterr().err == ""
    assert load_encoder(spec, "cpu", may_download=False).card == encoder.card


def test_a_name_that_came_with_data_downloads_nothing(hub, no_network, capsys):
    message = refused(f"hf-hub:{REPOSITORY}", may_download=False)
    assert "a name that comes with data downloads nothing" in message
    assert capsys.readouterr().err == ""


def test_a_local_dir_is_the_folder(files, tiny_teacher):
    spec = f"local-dir:{files / 'folder'}"
    assert load_encoder(spec, "cpu").card.identity() == tiny_teacher.card.identity()
    for missing in ("local-dir:", "local-dir:nowhere/at/all", f"local-dir:{files / 'weights.pt'}"):
        assert f"{missing}: there is no such folder" in refused(missing)


@pytest.mark.skipif(
    download.importlib.util.find_spec("transformers") is not None, reason="transformers is there"
)
@pytest.mark.parametrize("kind", ["tag", "file", "random", "folder"])
def test_a_missing_tokenizer_package_is_said_before_anything_is_loaded(
    hub, no_network, capsys, tmp_path, kind
):
    architecture = "ViT-B-16-SigLIP"
    (tmp_path / "weights.pt").write_bytes(b"never read")
    config = {"model_cfg": open_clip.config_of(architecture), "preprocess_cfg": {}}
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / open_clip.CONFIG).write_text(json.dumps(config))
    spec = {
        "tag": f"{architecture}/webli",
        "file": f"{architecture}/{tmp_path / 'weights.pt'}",
        "random": f"{architecture}/random:0",
        "folder": str(tmp_path / "folder"),
    }[kind]
    assert "Fix: pip install 'dimefm[transformers]'" in refused(spec)
    assert capsys.readouterr().err == ""
