"""Models that the user named and that are not here: announced, refused at once without a network,
and not asked for again when they are here.
"""

import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

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


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a hub as its client asks for, with the files of one folder."""

    folder = Path()

    def log_message(self, *words):
        """Print nothing."""

    def do_GET(self):
        self.answer(with_body=True)

    def do_HEAD(self):
        self.answer(with_body=False)

    def answer(self, with_body):
        path = self.path.partition("?")[0]
        file = self.folder / path.rpartition("/")[2]
        if "/tree/" in path:
            sizes = {item.name: item.stat().st_size for item in self.folder.iterdir()}
            entries = [
                {"type": "file", "path": name, "size": size, "oid": "2" * 40}
                for name, size in sizes.items()
            ]
            body = json.dumps(entries).encode()
        elif path.startswith("/api/models/"):
            names = [{"rfilename": item.name} for item in self.folder.iterdir()]
            body = json.dumps({"id": REPOSITORY, "sha": "1" * 40, "siblings": names}).encode()
        elif file.is_file():
            body = file.read_bytes()
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", "1" * 40)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


DOWNLOAD = """
import sys
import open_clip
from dimefm.models.loading import load_encoder

open_clip.pretrained._PRETRAINED[sys.argv[1]] = {"mine": {"hf_hub": "org/model/"}}
for spec in sys.argv[2:]:
    print(load_encoder(spec, "cpu").card.weights_sha256)
"""


@pytest.mark.slow
def test_a_model_is_downloaded_once_from_a_hub(files, tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(Hub, "folder", files / "folder")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
    specs = [f"hf-hub:{REPOSITORY}", f"{ARCH}/mine"]
    try:
        for number, order in enumerate((specs, specs[::-1])):
            done = subprocess.run(
                [sys.executable, "-c", DOWNLOAD, ARCH, *order],
                env=environment | {"HF_HOME": str(tmp_path / str(number))},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            digests = done.stdout.split()
            assert digests == [tiny_teacher.card.weights_sha256] * 2, done.stderr
            assert f"downloading {order[0]} " in done.stderr
    finally:
        server.shutdown()
        server.server_close()


def test_a_tag_that_is_here_needs_no_network(
    hub, no_network, files, tiny_teacher, capsys, monkeypatch
):
    downloaded(hub, files / "folder")
    entry = {"hf_hub": f"{REPOSITORY}/"}
    monkeypatch.setitem(upstream.pretrained._PRETRAINED, ARCH, {"mine": entry})
    encoder = load_encoder(f"{ARCH}/mine", "cpu")
    assert encoder.card.weights_sha256 == tiny_teacher.card.weights_sha256
    assert capsys.readouterr().err == ""
