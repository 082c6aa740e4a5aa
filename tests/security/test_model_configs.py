"""No key of a model config that came with data runs code, opens another file or downloads.

Each key is planted in each way in: the folder of a teacher, a weights file in it, the folder of a
run, the teacher that a run names, a student's JSON, and a recipe that names one. The hostile files
would write a canary, and a tripwire stops network, programs and planted files.
"""

import copy
import functools
import json
import os
import resource
import socket
import struct
import subprocess
import time
import zipfile

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

from dimefm.errors import DimefmError, ModelError
from dimefm.models import open_clip, student
from dimefm.models.loading import load_encoder
from dimefm.models.offline import offline
from dimefm.recipe import read
from dimefm.runs import folder as runs
from dimefm.runs.record import RunRecord
from tests.security.conftest import ARCH, Stopped, run_code, write_config

HOSTILE = {
    "trust_remote_code": ("text_cfg.tokenizer_kwargs.trust_remote_code", True),
    "a hub tokenizer": ("text_cfg.hf_tokenizer_name", "evil/tokenizer"),
    "a tokenizer elsewhere": ("text_cfg.hf_tokenizer_name", "OUTSIDE"),
    "a hub text model": ("text_cfg.hf_model_name", "evil/model"),
    "a text model in the folder": ("text_cfg.hf_model_name", "FOLDER"),
    "pretrained text": ("text_cfg.hf_model_pretrained", True),
    "text projection": ("text_cfg.hf_proj_type", "mlp"),
    "text pooler": ("text_cfg.hf_pooler_type", "mean_pooler"),
    "auto_map": ("text_cfg.tokenizer_kwargs.auto_map", {"AutoTokenizer": ["modeling_own.X", None]}),
    "vocabulary elsewhere": ("text_cfg.tokenizer_kwargs.bpe_path", "OUTSIDE/vocab.bpe.gz"),
    "vocabulary by dots": ("text_cfg.tokenizer_kwargs.bpe_path", "../outside/vocab.bpe.gz"),
    "syntax masks": ("text_cfg.tokenizer_kwargs.reduction_mask", "syntax"),
    "patterns": ("text_cfg.tokenizer_kwargs.additional_special_tokens", ["(a+)+$"]),
    "gguf": ("text_cfg.tokenizer_kwargs.gguf_file", "OUTSIDE/weights.pt"),
    "tokenizer cache": ("text_cfg.tokenizer_kwargs.cache_dir", "OUTSIDE"),
    "tokenizer revision": ("text_cfg.tokenizer_kwargs.revision", "main"),
    "tokenizer subfolder": ("text_cfg.tokenizer_kwargs.subfolder", "../outside"),
    "a decoder of the hub": ("multimodal_cfg.hf_model_name", "evil/model"),
    "timm pretrained": ("vision_cfg.timm_model_pretrained", True),
    "timm hub": ("vision_cfg.timm_model_name", "hf-hub:evil/model"),
    "timm hub, older": ("vision_cfg.timm_model_name", "hf_hub:evil/model"),
    "timm folder": ("vision_cfg.timm_model_name", "local-dir:OUTSIDE"),
    "timm in capitals": ("vision_cfg.timm_model_name", "HF-HUB:evil/model"),
    "timm by path": ("vision_cfg.timm_model_name", "evil/resnet18"),
    "timm checkpoint": ("vision_cfg.checkpoint_path", "OUTSIDE/weights.pt"),
    "timm settings": ("vision_cfg.pretrained_cfg", {"file": "OUTSIDE/weights.pt"}),
    "image weights": ("vision_cfg.pretrained", "OUTSIDE/weights.pt"),
    "image weights of the model": ("pretrained_image_path", "OUTSIDE/weights.pt"),
    "text weights of the model": ("pretrained_text_path", "OUTSIDE/weights.pt"),
    "weights of the model": ("pretrained", "openai"),
    "hub of the model": ("hf_hub_id", "evil/model"),
    "url of the model": ("url", "https://example.org/weights.pt"),
    "cache of the model": ("cache_dir", "OUTSIDE"),
    "device of the model": ("cast_dtype", "float16"),
    "dictionaries": ("output_dict", True),
    "code of the model": ("auto_map", {"AutoModel": "modeling_own.X"}),
    "an activation": ("text_cfg.act_kwargs.factory", "os.system"),
    "a norm": ("vision_cfg.norm_kwargs.device", "cuda"),
}
"""What is planted: a key below ``model_cfg``, and its value."""


def planted_config(name, folder):
    """Return the config of ARCH with a hostile key in it, and the key."""
    key, value = HOSTILE[name]
    text = json.dumps(value).replace("OUTSIDE", str(folder.parent / "outside"))
    value = json.loads(text.replace("FOLDER", str(folder)))
    config = copy.deepcopy(open_clip.config_of(ARCH))
    table = config
    *parents, last = key.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
    table[last] = value
    return config, last


@functools.cache
def weights_of(kind):
    """Return the bytes of the weights of a tower of ARCH."""
    tower = student.new_tower(open_clip.config_of(ARCH), text=kind == "text-tower")
    return save(tower.state_dict())


@functools.cache
def card():
    """Return the fields of the card of ARCH with random weights."""
    return load_encoder(f"{ARCH}/random:0", "cpu").card.fields()


def write_run(folder, kind, config, teacher=None, **fields):
    """Write a run with this model config; its weights are those of ARCH."""
    if kind != "clip":
        (folder / runs.KINDS[kind]).write_bytes(weights_of(kind))
    preprocess = open_clip.default_preprocess(64)
    record = RunRecord(kind, config, preprocess, card() | (teacher or {}), **fields)
    (folder / runs.FILE).write_text(record.to_json())


def teacher_folder(folder, config):
    write_config(folder, config)
    load_encoder(str(folder), "cpu")


def weights_in_the_folder(folder, config):
    write_config(folder, config)
    load_encoder(str(folder / "open_clip_model.safetensors"), "cpu")


def run_of_a_clip(folder, config):
    write_config(folder, config)
    write_run(folder, "clip", config)
    load_encoder(str(folder), "cpu")


def run_of_an_image_tower(folder, config):
    write_run(folder, "image-tower", config)
    load_encoder(str(folder), "cpu")


def run_of_a_text_tower(folder, config):
    write_run(folder, "text-tower", config)
    load_encoder(str(folder), "cpu")


def teacher_of_a_run(folder, config):
    run = folder.parent / "run"
    run.mkdir()
    write_config(folder, config)
    write_run(run, "image-tower", open_clip.config_of(ARCH), teacher_at="../model")
    load_encoder(str(run), "cpu")


def name_of_a_teacher_of_a_run(folder, config):
    run = folder.parent / "run"
    run.mkdir()
    write_config(folder, config)
    write_run(run, "image-tower", open_clip.config_of(ARCH), teacher={"name": str(folder)})
    load_encoder(str(run), "cpu")


def students_json(folder, config):
    path = folder / "student.json"
    path.write_text(json.dumps(config))
    spec = student.resolve(str(path), 64)
    student.build(spec, True, 0)
    open_clip.tokenizer_for(spec.config)


def recipe_with_a_student(folder, config):
    (folder / "student.json").write_text(json.dumps(config))
    recipe = folder / "recipe.toml"
    recipe.write_text(f'student = "{folder}/student.json"\nimages = ["photos"]\n')
    spec = student.resolve(read(recipe).student, 64)
    student.build(spec, True, 0)
    open_clip.tokenizer_for(spec.config)


def recipe_with_a_text_student(folder, config):
    (folder / "student.json").write_text(json.dumps(config))
    recipe = folder / "recipe.toml"
    recipe.write_text(f'text = "student:{folder}/student.json"\ntexts = ["a.txt"]\n')
    spec = student.resolve_text(read(recipe, image_cache="x").text_student, 64)
    student.build_text(spec, 0)
    open_clip.tokenizer_for(spec.config)


WAYS = (
    teacher_folder,
    weights_in_the_folder,
    run_of_a_clip,
    run_of_an_image_tower,
    run_of_a_text_tower,
    teacher_of_a_run,
    name_of_a_teacher_of_a_run,
    students_json,
    recipe_with_a_student,
    recipe_with_a_text_student,
)


def looks_at(way, key):
    """Tell whether a way in reads the table of a key at all."""
    if way is run_of_an_image_tower:
        return key.startswith("vision_cfg")
    if way is run_of_a_text_tower:
        return key.startswith("text_cfg")
    return True


EACH = []
for name, (key, _) in HOSTILE.items():
    for way in WAYS:
        if looks_at(way, key):
            EACH.append(pytest.param(name, way, id=f"{name}, {way.__name__}"))


@pytest.mark.parametrize(("name", "way"), EACH)
def test_a_hostile_key_is_refused_by_its_name(planted, transformers, wire, name, way):
    folder, canary = planted
    config, last = planted_config(name, folder)
    with pytest.raises(DimefmError) as caught:
        way(folder, config)
    assert last in str(caught.value)
    assert "Fix: " in str(caught.value) and "\n" not in str(caught.value)
    assert not canary.exists()


@pytest.mark.parametrize("way", [run_of_an_image_tower, run_of_a_text_tower])
def test_hostile_keys_of_a_tower_that_is_not_built_do_nothing(planted, transformers, way):
    folder, canary = planted
    for name, (key, _) in HOSTILE.items():
        config, _ = planted_config(name, folder)
        if not looks_at(way, key):
            way(folder, config)
    assert not canary.exists()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_same_folder_without_a_hostile_key_loads(planted, transformers, way):
    folder, canary = planted
    way(folder, open_clip.config_of(ARCH))
    assert not canary.exists()


def test_the_canary_sings_where_code_is_run(planted):
    folder, canary = planted
    run_code(folder)
    assert canary.exists()


def test_the_wire_sees_network_programs_and_planted_files(planted, wire):
    folder, _ = planted
    for attempt in (
        lambda: socket.getaddrinfo("example.org", 80),
        lambda: socket.create_connection(("127.0.0.1", 9)),
        lambda: subprocess.run(["true"], check=False),
        lambda: os.system("true"),
        lambda: (folder.parent / "outside/weights.pt").read_bytes(),
    ):
        with pytest.raises(Stopped):
            attempt()
    assert len(wire.seen) == 5
    wire.seen.clear()


BOUNDS = {
    "deep image tower": ("vision_cfg", {"layers": 10_000_000}),
    "deep text tower": ("text_cfg", {"layers": 10_000_000}),
    "deep ResNet": ("vision_cfg", {"layers": [3, 4, 10_000_000, 3]}),
    "wide image tower": ("vision_cfg", {"layers": 12, "width": 1_000_000}),
    "wide text tower": ("text_cfg", {"width": 16_000, "layers": 256}),
    "wide perceptron": ("text_cfg", {"mlp_ratio": 1e12}),
    "long texts": ("text_cfg", {"context_length": 10**9}),
    "many tokens": ("text_cfg", {"vocab_size": 10**12}),
    "large images": ("vision_cfg", {"image_size": 10**6}),
    "oblong images": ("vision_cfg", {"image_size": [10**6, 16]}),
    "many patches": ("vision_cfg", {"layers": 2, "image_size": 2048, "patch_size": 1}),
    "large patches": ("vision_cfg", {"layers": 2, "width": 16_000, "patch_size": 2048}),
    "many queries": ("vision_cfg", {"attentional_pool": True, "attn_pooler_queries": 10**9}),
    "many heads": ("text_cfg", {"heads": 10**9}),
    "a larger model of timm": ("vision_cfg", {"timm_model_name": "vit_7b_patch16_dinov3"}),
    "wide embeddings": ("embed_dim", 10**9),
    "an infinite number": ("init_logit_scale", float("inf")),
}


@pytest.mark.parametrize("way", [teacher_folder, run_of_a_clip, students_json])
@pytest.mark.parametrize("name", BOUNDS)
def test_a_model_beyond_all_bounds_is_refused_before_it_is_allocated(planted, wire, name, way):
    folder, _ = planted
    config = open_clip.config_of(ARCH)
    key, value = BOUNDS[name]
    if isinstance(value, dict):
        native = {} if "timm_model_name" in value else {"timm_model_name": None}
        config[key] = {**config[key], **(native if key == "vision_cfg" else {}), **value}
    else:
        config[key] = value
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    with pytest.raises(ModelError, match="expected"):
        way(folder, config)
    assert time.monotonic() - started < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


def test_a_model_that_its_weights_cannot_hold_is_refused_before_it_is_allocated(planted):
    folder, _ = planted
    config = open_clip.config_of("ViT-B-32")
    write_config(folder, config)
    with pytest.raises(ModelError, match=r"bytes, but its config describes a model of 151,"):
        load_encoder(str(folder), "cpu")


@pytest.mark.parametrize("kind, count", [("image-tower", "87,"), ("text-tower", "63,")])
def test_a_tower_that_its_weights_cannot_hold_is_refused_before_it_is_built(
    planted, monkeypatch, kind, count
):
    folder, _ = planted
    write_run(folder, kind, open_clip.config_of("ViT-B-32"))
    monkeypatch.setattr(open_clip, "image_tower", None)
    monkeypatch.setattr(open_clip, "text_tower", None)
    with pytest.raises(ModelError, match=f"bytes, but its config describes a model of {count}"):
        load_encoder(str(folder), "cpu")


@pytest.mark.parametrize("name", ["weights.pt", "weights.npz"])
def test_weights_that_unpack_to_far_more_are_refused(planted, monkeypatch, name):
    folder, _ = planted
    monkeypatch.setattr("dimefm.models.weights_check.OTHER_BYTES", 0)
    monkeypatch.setattr("dimefm.models.weights_check.BYTES_OF_A_WEIGHT", 1)
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data/0", b"\0" * (9 << 20))
    with pytest.raises(ModelError, match="it unpacks to 9,437,184 bytes, expected at most 3"):
        load_encoder(f"{ARCH}/{folder / name}", "cpu")
    with pytest.raises(ModelError, match="bytes, but its config describes a model of"):
        load_encoder(str(folder / name), "cpu")


@pytest.mark.parametrize("places, width", [(101, 10**9), (10**9 + 1, 64)])
def test_weights_of_one_number_used_many_times_are_refused(planted, places, width):
    folder, _ = planted
    tensors = open_clip.create(ARCH).state_dict()
    tensors["visual.positional_embedding"] = torch.zeros(1).expand(places, width)
    write_config(folder, open_clip.config_of(ARCH))
    path = folder / "weights.pt"
    torch.save(tensors, path)
    for spec in (str(path), f"{ARCH}/{path}"):
        with pytest.raises(ModelError, match=r"it unpacks to \d+,.* bytes, expected at most"):
            load_encoder(spec, "cpu")


def packed_weights(path):
    """Write weights of ARCH as a zip file with deflated members, which torch reads; return it."""
    model = open_clip.create(ARCH)
    torch.save(model.state_dict(), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path.read_bytes()


def with_values(table, place, form, value):
    """Return a zip file's table with a value at a place of each of its entries."""
    table = bytearray(table)
    entry = table.find(b"PK\x01\x02")
    while entry >= 0:
        struct.pack_into(form, table, entry + place, value)
        entry = table.find(b"PK\x01\x02", entry + 46)
    return bytes(table)


def of_a_later_version(data):
    """Return a zip file that Python's reader refuses, since its entries ask for version 9.9."""
    start = int.from_bytes(data[-6:-2], "little")
    return data[:start] + with_values(data[start:-22], 6, "<H", 99) + data[-22:]


def with_a_broken_name(data):
    """Return a zip file in whose table names are said to be UTF-8 and are not."""
    start = int.from_bytes(data[-6:-2], "little")
    table = with_values(data[start:-22], 8, "<H", 0x800)
    return data[:start] + with_values(table, 46, "B", 0xFF) + data[-22:]


def with_a_second_table(data):
    """Return a zip file with small sizes in a second table: Python reads it, torch the first."""
    start = int.from_bytes(data[-6:-2], "little")
    table = data[start:-22]
    return data[:start] + table + with_values(table, 24, "<I", 1) + data[-22:]


def large_end(data, place, table_size, table_start):
    """Return the records at the end of a zip file of more than 4 GiB; ``place`` is the first's."""
    (count,) = struct.unpack("<H", data[-12:-10])
    sizes = (0, 0, count, count, table_size, table_start)
    record = struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, *sizes)
    pointer = struct.pack("<4sLQL", b"PK\x06\x07", 0, place, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    return record + pointer + end


def as_a_large_file(data):
    """Return a zip file with the end of a file of more than 4 GiB."""
    start = int.from_bytes(data[-6:-2], "little")
    return data[:-22] + large_end(data, len(data) - 22, len(data) - 22 - start, start)


def with_a_second_end(data):
    """Return a large zip file with two records of its table: Python reads the second one."""
    start = int.from_bytes(data[-6:-2], "little")
    small_sizes = with_values(data[start:-22], 24, "<I", 1)
    first = as_a_large_file(data)[:-42]
    records = large_end(data, len(data) - 22, len(small_sizes), len(first))
    return first + small_sizes + records


HIDDEN = {
    "a later version": (of_a_later_version, "zip file version 9.9"),
    "a broken name": (with_a_broken_name, "can't decode byte 0xff"),
    "a second table": (with_a_second_table, "not where the end of the file says"),
    "a second end": (with_a_second_end, "not where the end of the file says"),
}
"""Zip files that torch reads and whose sizes Python's reader does not tell."""


@pytest.mark.parametrize("name", HIDDEN)
def test_weights_whose_size_cannot_be_told_are_refused(planted, name):
    folder, _ = planted
    write_config(folder, open_clip.config_of(ARCH))
    path = folder / "weights.pt"
    change, reason = HIDDEN[name]
    path.write_bytes(change(packed_weights(path)))
    assert torch.load(path, weights_only=True)  # torch's own reader takes it
    for spec in (str(path), f"{ARCH}/{path}"):
        with pytest.raises(ModelError, match=f"table of contents cannot be read.*{reason}.*Fix: "):
            load_encoder(spec, "cpu")


@pytest.mark.parametrize("change", [bytes, as_a_large_file])
def test_packed_weights_whose_size_is_known_are_loaded(planted, change):
    folder, _ = planted
    write_config(folder, open_clip.config_of(ARCH))
    path = folder / "weights.pt"
    path.write_bytes(change(packed_weights(path)))
    assert load_encoder(str(path), "cpu").card.dim == open_clip.config_of(ARCH)["embed_dim"]


def test_a_run_whose_teacher_is_the_run_itself_is_refused(planted):
    folder, _ = planted
    write_run(folder, "image-tower", open_clip.config_of(ARCH), teacher_at=".")
    with pytest.raises(ModelError, match="its teacher leads back to this run"):
        load_encoder(str(folder), "cpu")


def test_the_teacher_of_a_run_is_compared_before_its_tokenizer_is_made(planted, monkeypatch):
    folder, _ = planted
    run = folder.parent / "run"
    run.mkdir()
    write_run(
        run,
        "image-tower",
        open_clip.config_of(ARCH),
        teacher_at="../model",
        teacher={"weights_sha256": "0" * 64},
    )
    monkeypatch.setattr(open_clip, "tokenizer_of", None)
    with pytest.raises(ModelError, match="was distilled from weights 000000000000"):
        load_encoder(str(run), "cpu")


@pytest.mark.parametrize(
    "tag",
    ["ViT-B-32/openai", "ViT-B-32/laion2b_s34b_b79k", "RN50/yfcc15m", "hf-hub:evil/model"],
)
def test_a_name_that_came_with_data_downloads_nothing(planted, wire, tmp_path, monkeypatch, tag):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder, _ = planted
    write_run(folder, "image-tower", open_clip.config_of(ARCH), teacher={"name": tag})
    with pytest.raises(ModelError, match=f"{tag} is not on this machine.*name {tag} yourself"):
        load_encoder(str(folder), "cpu")
    with pytest.raises(ModelError, match="is not on this machine"):
        load_encoder(tag, "cpu", may_download=False)


def test_the_hub_is_asked_again_after_a_name_that_came_with_data():
    before = constants.HF_HUB_OFFLINE
    with pytest.raises(KeyError), offline():
        assert constants.HF_HUB_OFFLINE
        raise KeyError
    assert constants.HF_HUB_OFFLINE is before
