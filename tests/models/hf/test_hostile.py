"""A folder that came with data runs nothing, reaches nothing, takes no memory beyond bounds, and is
refused in one line that names the file.
"""

import json
import os
import pickle
import shutil
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file

from dimefm.models.hf import config as hf_config
from dimefm.models.loading import load_encoder
from tests.models.conftest import refused
from tests.models.hf.folders import edit

MOST_LETTERS = 500
CANARY = "import os\nopen(os.environ['CANARY'], 'w').close()\n"


@pytest.fixture(autouse=True)
def canary(tmp_path, monkeypatch):
    """Fail a test in which code of a folder ran, or a connection was made."""
    file = tmp_path / "canary"
    monkeypatch.setenv("CANARY", str(file))

    def connect(*args):
        raise AssertionError(f"a connection to {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    yield file
    assert not file.exists()


def complaint(folder, **options):
    message = refused(str(folder), **options)
    assert len(message) <= MOST_LETTERS
    assert ". Fix: " in message
    return message


class Runs:
    """An object that runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch $CANARY",)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_folder_is_not_run(copy_of, file):
    folder = copy_of("siglip")
    for name in ("modeling_mine", "configuration_mine", "tokenization_mine", "mine"):
        (folder / f"{name}.py").write_text(CANARY)
    code = {"AutoConfig": "configuration_mine.Mine", "AutoModel": "modeling_mine.Mine"}
    edit(folder, file, auto_map=code | {"AutoTokenizer": ["tokenization_mine.Mine", None]})
    assert "'auto_map'" in complaint(folder)


def test_code_of_an_image_processor_is_not_run(copy_of):
    folder = copy_of("siglip")
    (folder / "image_processing_mine.py").write_text(CANARY)
    edit(
        folder,
        "preprocessor_config.json",
        image_processor_type="Mine",
        auto_map={"AutoImageProcessor": "image_processing_mine.Mine"},
    )
    assert "'image_processor_type' is 'Mine'" in complaint(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_pickled_objects_are_not_unpacked(copy_of, name):
    folder = copy_of("siglip")
    (folder / "model.safetensors").unlink()
    torch.save({"a": Runs()}, folder / name)
    assert str(folder / name) in complaint(folder)
    (folder / name).write_bytes(pickle.dumps(Runs()) + b"\0" * 100_000)
    assert str(folder / name) in complaint(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_size": 10**9}, "'vision_config.hidden_size' is 1000000000"),
        ({"num_hidden_layers": 10**6}, "'vision_config.num_hidden_layers' is 1000000"),
        ({"hidden_size": 16_000, "intermediate_size": 64_000, "num_hidden_layers": 200}, "param"),
        ({"hidden_size": "wide"}, "config"),
        ({"hidden_size": -8}, "config"),
        ({"hidden_size": [32]}, "config"),
        ({"hidden_size": {"a": 1}}, "config"),
        ({"hidden_size": None}, "config"),
        ({"num_attention_heads": 0}, "config"),
        ({"num_attention_heads": 7}, "config"),
        ({"patch_size": 0}, "config"),
        ({"patch_size": 64}, "config"),
        ({"image_size": 10**6, "patch_size": 1}, "parameters"),
        ({"hidden_act": "os.system"}, "config"),
        ({"layer_norm_eps": "x" * 5000}, "'vision_config.layer_norm_eps' is"),
        ({"hidden_size": 40, "num_attention_heads": 4}, "does not fit its config.json"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 1}, "of no part of the model"),
    ],
)
def test_odd_configs_are_refused_before_memory_is_taken(copy_of, changes, told):
    folder = copy_of("siglip")
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    edit(folder, vision_config=vision | changes)
    assert told in complaint(folder)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '"a"', "{}", '{"model_type": 7}', "[" * 200_000, '{"model_type": "x'],
    ids=["empty", "list", "open", "text", "nothing", "number", "deep", "cut"],
)
def test_a_config_that_is_none_is_refused(copy_of, content):
    folder = copy_of("siglip")
    (folder / "config.json").write_text(content)
    assert str(folder / "config.json") in complaint(folder)


def test_a_model_of_another_type_is_refused_with_the_types_that_work(copy_of):
    folder = copy_of("siglip")
    edit(folder, model_type="llama")
    message = complaint(folder)
    assert "'model_type' is 'llama'" in message and "siglip" in message


@pytest.mark.parametrize("key", ["quantization_config", "custom_pipelines"])
def test_weights_of_another_form_are_refused(copy_of, key):
    folder = copy_of("siglip")
    edit(folder, **{key: {"quant_method": "bitsandbytes"}})
    assert f"'{key}'" in complaint(folder)


def test_other_keys_of_transformers_do_nothing(copy_of, folder_of):
    """Some of them name kernels, devices, or files on the hub."""
    folder = copy_of("siglip")
    odd = {
        "_attn_implementation": "evil/kernels",
        "attn_implementation": "evil/kernels",
        "_name_or_path": "evil/model",
        "transformers_weights": "evil.safetensors",
        "dtype": "float16",
        "torch_dtype": "float16",
        "base_model_tp_plan": {"a": "b"},
        "fusion_config": {"patch_embeddings": True},
        "id2label": {str(number): "x" for number in range(5000)},
    }
    edit(folder, **odd)
    cards = [load_encoder(str(path), "cpu").card for path in (folder, folder_of("siglip")[0])]
    assert cards[0].identity() == cards[1].identity()


@pytest.mark.parametrize(
    ("tower", "changes", "told"),
    [
        ("vision_config", {"model_type": "llava"}, "'vision_config.model_type' is 'llava'"),
        ("text_config", {"model_type": "gpt2"}, "'text_config.model_type' is 'gpt2'"),
        ("vision_config", {"architecture": "hf-hub:evil/model"}, "no model of timm"),
        ("vision_config", {"architecture": "local-dir:/tmp"}, "no model of timm"),
        ("vision_config", {"architecture": "resnet18.no_such_tag/../x"}, "no model of timm"),
        ("vision_config", {"architecture": 7}, "no model of timm"),
        ("vision_config", {"model_args": {"checkpoint_path": "/etc/x"}}, "checkpoint_path"),
        ("vision_config", {"model_args": {"pretrained": True}}, "model_args.pretrained"),
        ("vision_config", {"model_args": 7}, "'vision_config.model_args' is no table"),
        ("vision_config", {"model_args": [["a"]]}, "'vision_config.model_args' is no table"),
    ],
)
def test_towers_of_a_dual_encoder_are_of_known_types(copy_of, tower, changes, told):
    folder = copy_of("dual-encoder-timm")
    content = json.loads((folder / "config.json").read_text())
    edit(folder, **{tower: content[tower] | changes})
    assert told in complaint(folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/b.bin", "x.py", ""])
def test_an_index_names_files_of_its_own_folder_alone(copy_of, name):
    folder = copy_of("siglip")
    shutil.move(folder / "model.safetensors", folder.parent / "outside.safetensors")
    index = {"weight_map": {"logit_scale": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "expected the name of a weights file" in complaint(folder)


@pytest.mark.parametrize("index", ["{}", "[]", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_without_files_is_refused(copy_of, index):
    folder = copy_of("siglip")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    assert "'weight_map'" in complaint(folder)


def test_a_file_of_an_index_that_is_not_there_is_named(copy_of):
    folder = copy_of("siglip")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"logit_scale": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-1.safetensors" in complaint(folder)


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("model.safetensors", "it has no weights"),
        ("preprocessor_config.json", "does not say how images are prepared"),
        ("tokenizer.json", "tokenizer"),
    ],
)
def test_a_file_that_is_missing_is_named(copy_of, file, told):
    folder = copy_of("siglip")
    (folder / file).unlink()
    assert told in complaint(folder)


def test_an_empty_tokenizer_is_refused(copy_of):
    """transformers makes one of a folder without a vocabulary, and says nothing."""
    folder = copy_of("clip")
    (folder / "tokenizer.json").unlink()
    (folder / "special_tokens_map.json").write_text("{}")
    assert "tokenizer" in complaint(folder)


def test_a_tokenizer_of_another_model_is_refused(copy_of, folder_of):
    folder = copy_of("siglip")
    shutil.copy(folder_of("clip")[0] / "tokenizer.json", folder)
    assert "'text_config.vocab_size'" in complaint(folder)


@pytest.mark.parametrize("fault", ["cut", "garbage", "missing", "further", "shape"])
def test_weights_that_do_not_fit_are_refused_by_name(copy_of, fault):
    folder = copy_of("siglip")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-5000])
    elif fault == "garbage":
        path.write_bytes(os.urandom(200_000))
    else:
        if fault == "missing":
            del tensors["logit_scale"]
        elif fault == "further":
            tensors["classifier.weight"] = torch.zeros(4, 4)
        else:
            tensors["text_model.head.bias"] = torch.zeros(7)
        save_file(tensors, path, {"format": "pt"})
    message = complaint(folder)
    assert str(path) in message
    names = {"missing": "logit_scale", "further": "classifier.weight", "shape": "head.bias"}
    assert names.get(fault, "") in message


def test_numbers_without_end_are_refused(copy_of):
    folder = copy_of("siglip")
    (folder / "model.safetensors").unlink()
    endless = torch.zeros(1).expand(1 << 40)
    torch.save({"logit_scale": endless, "pad": torch.zeros(200_000)}, folder / "pytorch_model.bin")
    assert "it unpacks to" in complaint(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"resample": 0}, "resample is 0"),
        ({"do_resize": False}, "do_resize is false"),
        ({"do_rescale": False}, "do_rescale is false"),
        ({"do_pad": True}, "do_pad is true"),
        ({"size": {"shortest_edge": 40}}, "not cropped"),
        ({"size": {"shortest_edge": 40, "longest_edge": 80}}, "longest_edge"),
        ({"size": "large"}, "'size' is 'large'"),
        ({"size": {"height": -3, "width": 8}}, "'size'"),
        ({"size": {"height": 10**6, "width": 10**6}}, "'preprocess_cfg.size'"),
        ({"image_mean": [0.5]}, "'image_mean'"),
        ({"image_mean": "x"}, "'image_mean'"),
        ({"image_std": [0, 0, 0]}, "'preprocess_cfg.std.0'"),
        ({"rescale_factor": 0}, "'rescale_factor'"),
        ({"image_processor_type": "LlavaImageProcessor"}, "'LlavaImageProcessor'"),
        ({"image_processor_type": 7}, "expected one of"),
    ],
)
def test_a_preprocessing_that_is_not_ours_is_refused_with_the_reason(copy_of, changes, told):
    folder = copy_of("siglip")
    edit(folder, "preprocessor_config.json", **changes)
    assert told in complaint(folder)


def test_the_bound_on_parameters_is_that_of_open_clip_folders():
    from dimefm.models import config_check

    assert hf_config.MOST_PARAMETERS == config_check.MOST_PARAMETERS
