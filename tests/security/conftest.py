"""A tripwire: an audit hook of Python that sees and stops network, programs and planted files."""

import json
import shutil
import sys
import types

import pytest
from safetensors.torch import save_file

from dimefm.models import open_clip

NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn")
ARCH = "ResNet-mini-64"


class Stopped(BaseException):
    """What the wire raises: no ``except Exception`` hides it."""


class Wire:
    """What happened while the wire was taut; ``planted`` are files that nobody may open."""

    def __init__(self):
        self.taut = False
        self.planted = set()
        self.seen = []

    def __call__(self, event, arguments):
        if not self.taut:
            return
        if event in NETWORK or event in PROGRAMS:
            self._stop(event, arguments)
        if event == "open" and str(arguments[0]) in self.planted:
            self._stop(event, arguments)

    def _stop(self, event, arguments):
        self.seen.append(f"{event}{arguments}")
        raise Stopped(self.seen[-1])


_WIRE = Wire()
sys.addaudithook(_WIRE)


@pytest.fixture
def wire():
    """Return the tripwire, taut for one test."""
    _WIRE.planted, _WIRE.seen, _WIRE.taut = set(), [], True
    yield _WIRE
    _WIRE.taut = False
    assert _WIRE.seen == []


def run_code(folder):
    """Do what transformers does with code that comes with a model."""
    for path in sorted(folder.glob("*.py")):
        exec(compile(path.read_text(), str(path), "exec"), {})


class Auto:
    """The worst that transformers may do with what a config asks for."""

    @classmethod
    def from_pretrained(cls, name, *arguments, trust_remote_code=False, **options):
        import socket
        from pathlib import Path

        if not Path(name).is_dir():
            socket.getaddrinfo("huggingface.co", 443)
        if trust_remote_code:
            run_code(Path(name))
        return types.SimpleNamespace(name_or_path=str(name), model_type="roberta")

    from_config = from_pretrained


@pytest.fixture
def transformers(monkeypatch):
    """Put the worst of transformers in its place, whether it is installed or not."""
    import open_clip.hf_model

    module = types.ModuleType("transformers")
    for name in ("AutoConfig", "AutoModel", "AutoTokenizer", "T5TokenizerFast"):
        setattr(module, name, Auto)
    monkeypatch.setitem(sys.modules, "transformers", module)
    monkeypatch.setattr(open_clip.hf_model, "transformers", module)
    for name in ("AutoConfig", "AutoModel", "AutoTokenizer"):
        monkeypatch.setattr(open_clip.hf_model, name, Auto, raising=False)


@pytest.fixture(scope="session")
def good_folder(tmp_path_factory, tiny_teacher):
    """Return an open_clip folder that loads."""
    folder = tmp_path_factory.mktemp("good")
    save_file(tiny_teacher.image_model.state_dict(), folder / "open_clip_model.safetensors")
    write_config(folder, open_clip.config_of(ARCH))
    return folder


def write_config(folder, model, preprocess=None):
    settings = {"model_cfg": model, "preprocess_cfg": preprocess or {}}
    (folder / open_clip.CONFIG).write_text(json.dumps(settings))


@pytest.fixture
def planted(tmp_path, good_folder, wire):
    """Return (folder, canary): a model folder with hostile files in it, and their mark."""
    folder = tmp_path / "model"
    shutil.copytree(good_folder, folder)
    canary = tmp_path / "canary"
    sings = f"from pathlib import Path\nPath({str(canary)!r}).write_text('sings')\n"
    for name in ("tokenization_own.py", "modeling_own.py", "conftest.py", "__init__.py"):
        (folder / name).write_text(sings)
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("vocab.bpe.gz", "weights.pt", "tokenizer.json"):
        (outside / name).write_bytes(b"secret")
        wire.planted.add(str(outside / name))
    index = {"weight_map": {"logit_scale": "../outside/weights.pt"}}
    for name in ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin"):
        (folder / f"{name}.index.json").write_text(json.dumps(index))
    return folder, canary
