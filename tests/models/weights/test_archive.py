"""Archives of torch are read without unpickling: programs, numbers of NumPy, hostile files."""

import io
import os
import pickle
import pickletools
import zipfile

import numpy as np
import pytest
import torch

from dimefm.errors import ModelError
from dimefm.models import weights_check
from dimefm.models.loading import load_encoder
from dimefm.models.weights import archive
from dimefm.models.weights.importing import import_checkpoint
from tests.models.weights.layouts import VIT, dime_vit, model_of, openai, tensors_of

SCRIPTS = (
    "ignore:.*torch.jit:FutureWarning",
    "ignore:.*torch.jit:DeprecationWarning",
    "ignore::torch.jit.TracerWarning",
)


class Published(torch.nn.Module):
    """What OpenAI traced: a CLIP in half precision with three numbers beside its weights."""

    def __init__(self, model):
        super().__init__()
        self.visual = model.visual
        self.transformer = model.transformer
        self.token_embedding = model.token_embedding
        self.ln_final = model.ln_final
        self.positional_embedding = model.positional_embedding
        self.text_projection = model.text_projection
        self.logit_scale = model.logit_scale
        numbers = {"input_resolution": 32, "context_length": 77, "vocab_size": 49_408}
        for name, number in numbers.items():
            self.register_buffer(name, torch.tensor(number))

    def forward(self, pixels, tokens):
        image = self.visual(pixels)
        text = self.ln_final(self.transformer(self.token_embedding(tokens))) @ self.text_projection
        return self.logit_scale.exp() * image @ text[:, -1].T


@pytest.fixture
def program(tmp_path):
    """Return the original model, and the path of its traced program in half precision."""
    model = model_of(VIT, quick_gelu=True)
    inputs = (torch.zeros(1, 3, 32, 32), torch.zeros(1, 77, dtype=torch.long))
    with torch.no_grad():
        traced = torch.jit.trace(Published(model), inputs, check_trace=False)
    path = tmp_path / "ViT.pt"
    traced.half().save(str(path))  # also halves the model's own weights
    return model.float(), path


@pytest.mark.filterwarnings(*SCRIPTS)
def test_a_program_of_openai_is_imported_with_the_same_features(program, tmp_path):
    model, path = program
    imported = import_checkpoint(path, tmp_path / "run")
    assert imported.family == "openai"
    encoder = load_encoder(str(tmp_path / "run"), "cpu")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens, _ = encoder.tokenize(["a dog", "two dogs"])
    with torch.inference_mode():
        images = torch.nn.functional.normalize(model.encode_image(pixels), dim=-1)
        texts = torch.nn.functional.normalize(model.encode_text(tokens), dim=-1)
    torch.testing.assert_close(encoder.encode_image(pixels), images, rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder.encode_text(tokens), texts, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings(*SCRIPTS)
def test_a_large_program_may_unpack_to_more_than_its_size(program, tmp_path, monkeypatch):
    """Its code is packed; without the allowance for small files the bound is that of large ones."""
    monkeypatch.setattr(weights_check, "OTHER_BYTES", 0)
    import_checkpoint(program[1], tmp_path / "run")


@pytest.mark.filterwarnings(*SCRIPTS)
def test_a_scripted_program_has_the_names_of_its_state_dict(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4))
    torch.jit.script(module).save(str(tmp_path / "x.pt"))
    tensors = archive.read(tmp_path / "x.pt")
    state = module.state_dict()
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]
)
def test_plain_content_is_what_torch_reads(dtype, tmp_path):
    base = torch.arange(24).reshape(4, 6).to(dtype)
    content = {
        "epoch": 3,
        "name": "x",
        "nested": {"list": [1, 2.5, None, True], "tuple": (1, "two")},
        "state_dict": {
            "whole": base,
            "transposed": base.T,
            "part": base[1:3, ::2],
            "empty": base[:0],
            "scalar": base[1, 1],
            "parameter": torch.nn.Parameter(base.float()),
        },
    }
    torch.save(content, tmp_path / "x.pt")
    expected = torch.load(tmp_path / "x.pt", weights_only=True)
    found = archive.read(tmp_path / "x.pt")
    tensors = expected.pop("state_dict")
    found_tensors = found.pop("state_dict")
    assert found == expected
    assert found_tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found_tensors[name].dtype == tensor.dtype
        assert torch.equal(found_tensors[name], tensor.data), name


def test_numbers_of_numpy_in_an_optimizer_are_no_hindrance(tmp_path, teacher):
    _, state = dime_vit(tmp_path)
    state["optimizer"] = {"param_groups": [{"lr": np.float64(1e-3), "betas": (0.9, 0.98)}]}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "x.pt", weights_only=True)
    imported = import_checkpoint(tmp_path / "x.pt", tmp_path / "run", teacher=teacher)
    assert imported.kind == "image-tower"


class Command:
    """Something that runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_command_is_refused_by_name_and_not_run(tmp_path):
    state = {**openai(tmp_path)[1], "args": Command(tmp_path / "was_run")}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(ModelError, match=r"it holds '(posix|nt)\.system', expected plain tensors"):
        import_checkpoint(tmp_path / "x.pt", tmp_path / "run")
    assert not (tmp_path / "was_run").exists() and not (tmp_path / "run").exists()


def packed(path, data, members=()):
    """Write an archive with this pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", data)
        for name, content in members:
            file.writestr(f"x/{name}", content)


GLOBAL_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ"
END = b"\x89ccollections\nOrderedDict\n)RtR."


def tensor_of(offset, shape, strides):
    """Return the pickle of a tensor over four numbers."""
    return b"\x80\x02" + GLOBAL_TENSOR + b"(" + STORAGE + offset + shape + strides + END


NUMBERS = [("data/0", np.arange(4, dtype="<f4").tobytes())]


def test_the_handmade_pickle_of_the_hostile_cases_is_a_tensor(tmp_path):
    packed(tmp_path / "x.pt", tensor_of(b"K\0", b"K\x02K\x02\x86", b"K\x02K\x01\x86"), NUMBERS)
    assert archive.read(tmp_path / "x.pt").tolist() == [[0, 1], [2, 3]]


def modules_of_modules():
    """Return the pickle of 64 modules, each of which holds the next one twice."""
    data = io.BytesIO()
    data.write(b"\x80\x02")
    name = b"c__torch__.m\nM\n)\x81"
    data.write(name + b"}bq\0")
    for place in range(1, 64):
        child = b"h" + bytes([place - 1])
        data.write(name + b"}(X\x01\0\0\0a" + child + b"X\x01\0\0\0b" + child + b"ubq")
        data.write(bytes([place]))
    data.write(b".")
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "members", "message"),
    [
        (tensor_of(b"K\0", b"K\x05\x85", b"K\x01\x85"), NUMBERS, "larger than its numbers"),
        (tensor_of(b"K\x04", b"K\x01\x85", b"K\x01\x85"), NUMBERS, "larger than its numbers"),
        (tensor_of(b"J\xff\xff\xff\xff", b"K\x01\x85", b"K\x01\x85"), NUMBERS, "impossible shape"),
        (tensor_of(b"K\0", b"K\x01\x85", b"K\x01K\x01\x86"), NUMBERS, "impossible shape"),
        (tensor_of(b"K\0", b"K\x01", b"K\x01"), NUMBERS, "is damaged"),
        (tensor_of(b"K\0", b"K\x01\x85", b"K\x01\x85"), [], "is damaged"),
        (tensor_of(b"K\0", b"K\x01\x85", b"K\x01\x85"), [("data/0", b"123")], "are cut off"),
        (b"\x80\x02X\x03\0\0\0abcQ.", [], "names something outside"),
        (b"\x80\x02cos\nsystem\n.", [], "it holds 'os.system'"),
        (b"\x80\x02cbuiltins\neval\n(X\x01\0\0\x001tR.", [], "it holds 'builtins.eval'"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", [], "it holds 'os.system'"),
        (b"\x80\x02(X\x02\0\0\0osX\x06\0\0\0systemi__main__\nX\n.", [], "has the step INST"),
        (b"\x80\x02K\x01K\x02a.", [], "appends to what is no list"),
        (b"\x80\x02}K\x01u.", [], "takes more than there is"),
        (b"\x80\x02}]K\x01s.", [], "a table with an odd key"),
        (b"\x80\x02K\x01", [], "damaged"),
        (b"", [], "damaged"),
        (b"\x80\x02h\x07.", [], "damaged"),
        (b"\x80\x02}.", [("byteorder", "big")], "other byte order"),
        (b"\x80\x02}.", [("more/data.pkl", b"\x80\x02}.")], "it has 2 files data.pkl"),
        (modules_of_modules(), [], "more than 100,000 modules"),
    ],
)
def test_a_hostile_pickle_is_refused_in_one_line(data, members, message, tmp_path):
    packed(tmp_path / "x.pt", data, members)
    with pytest.raises(ModelError) as error:
        archive.read(tmp_path / "x.pt")
    text = str(error.value)
    assert message in text and ". Fix: " in text
    assert "\n" not in text and len(text) < 500


@pytest.mark.parametrize("seed", range(40))
def test_damaged_bytes_never_run_anything_and_never_crash(seed, tmp_path):
    """Whatever a byte becomes, the archive is read or refused."""
    random = np.random.default_rng(seed)
    torch.save({"a": torch.ones(3), "b": [1, {"c": torch.zeros(2, 2)}]}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as file:
        folder = file.namelist()[0].partition("/")[0]
        data = bytearray(file.read(f"{folder}/data.pkl"))
    for _ in range(3):
        data[random.integers(len(data))] = random.integers(256)
    packed(tmp_path / "x.pt", bytes(data), [("data/0", bytes(12)), ("data/1", bytes(16))])
    try:
        archive.read(tmp_path / "x.pt")
    except ModelError as error:
        assert "\n" not in str(error)


def test_the_reader_knows_the_steps_that_torch_writes(tmp_path):
    """Each step of a checkpoint's pickle is one that is tested above, whatever torch's version."""
    torch.save(tensors_of(model_of(VIT)), tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as file:
        [name] = [name for name in file.namelist() if name.endswith("data.pkl")]
        steps = {opcode.name for opcode, _, _ in pickletools.genops(file.read(name))}
    known = {*archive.ACTIONS, *archive.VALUES, *archive.CONSTANTS, *archive.EMPTY}
    assert steps <= known | {*archive.PUTS, *archive.GETS, "PROTO", "STOP"}
