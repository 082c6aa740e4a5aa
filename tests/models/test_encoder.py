"""Encoders from everything that ``load_encoder`` understands, and students under the teacher's dimension."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dimefm.cache import CacheWriter, Manifest
from dimefm.cache.manifest import strangers
from dimefm.data import open_rows
from dimefm.errors import ModelError
from dimefm.models import open_clip, student
from dimefm.models.encoder import load_encoder, pick_device, weights_sha256
from dimefm.models.towers import ImageTower
from dimefm.recipe import read
from dimefm.train import train

ARCH = "ResNet-mini-64"
SPEC = f"{ARCH}/random:0"
SENTENCES = ["a red square", "two dogs on a lawn, seen from above"]


def refused(spec, **options):
    """Return the one line with which ``load_encoder`` refuses ``spec``."""
    with pytest.raises(ModelError) as error:
        load_encoder(spec, "cpu", **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def same(ours, theirs):
    """Tell whether two encoders give the same rows for images and sentences, and say so about themselves."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    pixels = [encoder.preprocess(image)[None] for encoder in (ours, theirs)]
    rows = [encoder.encode_image(p) for encoder, p in zip((ours, theirs), pixels, strict=True)]
    texts = [encoder.encode_text(encoder.tokenize(SENTENCES)[0]) for encoder in (ours, theirs)]
    return torch.equal(*pixels) and torch.equal(*rows) and torch.equal(*texts)


@pytest.fixture(scope="module")
def teacher():
    return load_encoder(SPEC, "cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory, teacher):
    """The teacher's weights as .pt, .safetensors and an open_clip folder."""
    root, state = tmp_path_factory.mktemp("files"), teacher.image_model.state_dict()
    torch.save(state, root / "weights.pt")
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, root / "trained.pt")
    save_file(state, root / "weights.safetensors")
    folder = root / "folder"
    folder.mkdir()
    config = {"model_cfg": open_clip.config_of(ARCH), "preprocess_cfg": {}}
    (folder / open_clip.CONFIG).write_text(json.dumps(config))
    shutil.copy(root / "weights.safetensors", folder / open_clip.WEIGHTS)
    shutil.copy(root / "weights.pt", folder / "other.pt")
    return root


@pytest.mark.parametrize("name", ["weights.pt", "trained.pt", "weights.safetensors"])
def test_an_architecture_and_a_file(teacher, files, name):
    found = load_encoder(f"{ARCH}/{files / name}", "cpu")
    assert same(found, teacher)
    assert found.card.weights_sha256 == teacher.card.weights_sha256
    assert found.card.identity() == teacher.card.identity()
    assert found.card.name == f"{ARCH}/{files / name}"


@pytest.mark.parametrize("name", ["folder", "folder/open_clip_model.safetensors", "folder/other.pt"])
def test_a_folder_and_a_file_beside_its_config(teacher, files, name):
    found = load_encoder(str(files / name), "cpu")
    assert same(found, teacher)
    assert found.card.identity() == teacher.card.identity()


def test_a_relative_folder(teacher, files, monkeypatch):
    monkeypatch.chdir(files)
    assert load_encoder("folder", "cpu").card.identity() == teacher.card.identity()
    assert load_encoder(f"{ARCH}/weights.pt", "cpu").card.identity() == teacher.card.identity()


def test_random_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone(teacher):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again, other = load_encoder(SPEC, "cpu"), load_encoder(f"{ARCH}/random:1", "cpu")
    assert torch.equal(torch.rand(3), expected)
    assert again.card == teacher.card
    assert other.card.weights_sha256 != teacher.card.weights_sha256
    assert again.card.name == SPEC


def test_the_card_says_what_the_encoder_is(teacher):
    card = teacher.card
    assert (card.dim, card.context_length, card.logit_bias) == (128, 32, None)
    assert card.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    assert card.preprocess["size"] == [64, 64]
    assert "SimpleTokenizer" in card.tokenizer
    assert teacher.image_parameters + teacher.text_parameters == sum(p.numel() for p in teacher.image_model.parameters())
    assert teacher.image_parameters == sum(p.numel() for p in teacher.image_model.visual.parameters())


def test_rows_are_float32_and_of_unit_length(teacher):
    image = teacher.encode_image(torch.randn(3, 3, 64, 64))
    text = teacher.encode_text(teacher.tokenize(SENTENCES)[0])
    for rows, n in ((image, 3), (text, 2)):
        assert rows.shape == (n, 128)
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(n))


def test_half_precision_is_near(teacher):
    low, pixels = load_encoder(SPEC, "cpu", "bf16"), torch.randn(2, 3, 64, 64)
    rows = low.encode_image(pixels)
    assert rows.dtype == torch.float32
    assert (rows * teacher.encode_image(pixels)).sum(1).min() > 0.99
    assert not torch.equal(rows, teacher.encode_image(pixels))


def test_the_digest_is_of_names_types_shapes_and_values():
    layer = torch.nn.Linear(2, 2)
    digest = weights_sha256(layer)
    assert weights_sha256(layer) == digest
    assert weights_sha256(torch.nn.Sequential(layer)) != digest
    assert weights_sha256(layer.double()) != digest
    layer = layer.float()
    with torch.no_grad():
        layer.bias[0] += 1e-6
    assert weights_sha256(layer) != digest


def test_lengths_of_sentences_are_those_before_truncation(teacher):
    words = ["", "dog", "dog " * 30, "dog " * 31, "dog " * 50, "!", "!(" * 25]
    tokens, lengths = teacher.tokenize(words)
    assert tokens.shape == (len(words), 32)
    assert lengths[:5] == [2, 3, 32, 33, 52]
    assert lengths[6] > 32  # id 0 is both the padding and a token of punctuation
    assert lengths[5] <= 32


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (ARCH, f"an architecture without weights; say {ARCH}/TAG"),
        ("ViT-B-32", "ViT-B-32/random:SEED"),
        ("ResNet-mini-46/random:0", "unknown architecture 'ResNet-mini-46': did you mean 'ResNet-mini-64'?"),
        ("ResNet-mini-46", "unknown architecture"),
        ("ResNet-mini-46/none.pt", "unknown architecture"),
        (f"{ARCH}/random:x", "with a whole number"),
        (f"{ARCH}/random:-1", "with a whole number"),
        (f"{ARCH}/no/such/file.pt", "'no/such/file.pt' is neither a tag"),
        ("ViT-B-32/opnai", "'opnai' is neither a tag of ViT-B-32"),
    ],
)
def test_specs_that_name_nothing_are_refused(spec, words):
    assert words in refused(spec)


def test_folders_and_files_that_are_no_encoder_are_refused(files, tmp_path):
    assert "neither the folder of a finished run (run.json) nor of open_clip" in refused(str(tmp_path))
    assert "does not say its architecture; write ARCH/" in refused(str(files / "weights.pt"))
    (tmp_path / "run.json").write_text("{")
    assert "cannot be read" in refused(str(tmp_path))
    (tmp_path / "run.json").write_text('{"kind": "sculpture"}')
    assert "kind 'sculpture'" in refused(str(tmp_path))


def test_weights_that_do_not_fit_are_refused(files, tmp_path):
    assert "cannot be loaded" in refused(f"ConvNeXt-mini-64/{files / 'weights.pt'}")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((files / "weights.safetensors").read_bytes()[:5000])
    assert "cannot be loaded" in refused(f"{ARCH}/{cut}")
    shutil.copytree(files / "folder", tmp_path / "bare")
    for name in (open_clip.WEIGHTS, "other.pt"):
        (tmp_path / "bare" / name).unlink()
    assert "cannot be loaded" in refused(str(tmp_path / "bare"))
    (tmp_path / "bare" / open_clip.CONFIG).write_text("{}")
    assert "\n" not in refused(str(tmp_path / "bare"))


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_not_executed(tmp_path):
    for name in ("hostile.pt", "plain.pt"):
        payload = {"state_dict": Hostile(tmp_path / "owned")}
        if name == "hostile.pt":
            torch.save(payload, tmp_path / name)
        else:
            (tmp_path / name).write_bytes(pickle.dumps(payload))
        assert "cannot be loaded" in refused(f"{ARCH}/{tmp_path / name}")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["cuda:99", "tpu9", "meta", "cuda:x", ""])
def test_a_device_that_is_not_there_is_one_line(name):
    with pytest.raises(ModelError, match=f"--device {name}: ") as error:
        pick_device(name)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_one_line_with_a_remedy():
    with pytest.raises(ModelError, match="this machine has 0 CUDA devices.*use --device cpu"):
        pick_device("cuda")
    assert pick_device("auto").type == "cpu"


def test_an_unknown_precision_is_refused():
    assert "expected one of fp32, fp32-fast, bf16, fp16" in refused(SPEC, precision="int4")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, files, teacher):
    """Two run folders: a CLIP from pairs, and an image tower distilled from the open_clip folder."""
    root = tmp_path_factory.mktemp("runs")
    for n in range(6):
        Image.new("RGB", (40, 30), (40 * n, 9, 200)).save(root / f"{n}.png")
    (root / "pairs.csv").write_text("filepath,title\n" + "".join(f"{n}.png,picture {n}\n" for n in range(6)))
    small = {"steps": 2, "batch_size": 4, "resize": 0, "device": "cpu"}
    clip = {"images": [str(root / "pairs.csv")], "text": "student", "losses": {"clip.contrastive": {"weight": 1.0}}}
    train(read(None, student=ARCH, **clip, **small), root / "clip", echo=lambda line: None)

    shutil.copytree(files / "folder", root / "teacher")
    card = load_encoder(str(root / "teacher"), "cpu").card
    (root / "photos").mkdir()
    for n in range(6):
        shutil.copy(root / f"{n}.png", root / "photos")
    for kind, source, keys in (
        ("image", "photos", [f"{n}.png" for n in range(6)]),
        ("text", "words.txt", [f"w{n}" for n in range(5)]),
    ):
        rows = np.random.default_rng(0).normal(size=(len(keys), card.dim)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        writer = CacheWriter(
            root / kind, Manifest(kind, "hdf5", "float32", card.dim, True, card, {}, {}), [(source, len(keys))]
        )
        writer.write(source, keys, rows)
        writer.seal()
    caches = {"image_cache": str(root / "image"), "text_cache": str(root / "text"), "images": [str(root / "photos")]}
    recipe = read(None, student="ConvNeXt-mini-64", losses={"dime.vl": {"weight": 1.0}}, view="free", **caches, **small)
    train(recipe, root / "tower", echo=lambda line: None)
    (root / "words.txt").write_text("".join(f"some words about {n}\n" for n in range(5)))
    text = {"texts": [str(root / "words.txt")], "text": f"student:{ARCH}", "losses": {"dime.vl": {"weight": 1.0}}, **small}
    text_cache(root, card)
    caches = {"image_cache": str(root / "image"), "text_cache": str(root / "words")}
    train(read(None, **text, **caches), root / "text", echo=lambda line: None)
    return root


def text_cache(root, card):
    """Write a cache of the sentences with the keys that their rows have."""
    keys = [row.key for row in open_rows([str(root / "words.txt")], "text")]
    rows = np.random.default_rng(1).normal(size=(len(keys), card.dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    header = Manifest("text", "hdf5", "float32", card.dim, True, card, {}, {})
    writer = CacheWriter(root / "words", header, [("words.txt", len(keys))])
    writer.write("words.txt", keys, rows)
    writer.seal()


def test_a_run_folder_of_a_clip_is_also_an_open_clip_folder(trained):
    run = load_encoder(str(trained / "clip"), "cpu")
    record = json.loads((trained / "clip" / "run.json").read_text())
    assert record["kind"] == "clip"
    assert run.image_parameters == record["image_parameters"]
    (trained / "clip" / "run.json").rename(trained / "clip" / "other.json")
    try:
        plain = load_encoder(str(trained / "clip"), "cpu")
    finally:
        (trained / "clip" / "other.json").rename(trained / "clip" / "run.json")
    assert same(run, plain)
    assert plain.card == run.card


def test_a_run_folder_of_a_tower_takes_the_text_tower_of_its_teacher(trained, teacher):
    run = load_encoder(str(trained / "tower"), "cpu")
    tokens = teacher.tokenize(SENTENCES)[0]
    assert torch.equal(run.encode_text(tokens), teacher.encode_text(tokens))
    assert run.card.dim == teacher.card.dim == run.encode_image(torch.randn(2, 3, 64, 64)).shape[1]
    assert run.card.weights_sha256 != teacher.card.weights_sha256
    assert run.card.logit_scale == teacher.card.logit_scale
    record = json.loads((trained / "tower" / "run.json").read_text())
    assert run.image_parameters == record["image_parameters"] == record["parameters"]
    assert run.text_parameters == teacher.text_parameters
    weights = load_file(trained / "tower" / "image_tower.safetensors")
    assert all(name.startswith("visual.") for name in weights)


def test_a_run_folder_of_a_text_tower_takes_the_image_tower_of_its_teacher(trained, teacher):
    run = load_encoder(str(trained / "text"), "cpu")
    pixels = torch.randn(2, 3, 64, 64)
    assert torch.equal(run.encode_image(pixels), teacher.encode_image(pixels))
    assert run.image_parameters == teacher.image_parameters
    tokens = teacher.tokenize(SENTENCES)[0]
    assert not torch.allclose(run.encode_text(tokens), teacher.encode_text(tokens), atol=0.1)
    assert run.card.weights_sha256 != teacher.card.weights_sha256
    assert strangers(teacher.card, run.card) == []


def test_two_towers_of_one_teacher_make_one_encoder(trained):
    image, text = (load_encoder(str(trained / name), "cpu") for name in ("tower", "text"))
    both = load_encoder(str(trained / "tower"), "cpu", text_model=str(trained / "text"))
    pixels, tokens = torch.randn(2, 3, 64, 64), text.tokenize(SENTENCES)[0]
    assert torch.equal(both.encode_image(pixels), image.encode_image(pixels))
    assert torch.equal(both.encode_text(tokens), text.encode_text(tokens))
    assert both.card.weights_sha256 not in (image.card.weights_sha256, text.card.weights_sha256)
    assert both.card.borrows == {}


def test_towers_of_different_teachers_make_none(trained, tmp_path):
    shutil.copytree(trained / "text", tmp_path / "text")
    record = json.loads((tmp_path / "text/run.json").read_text())
    record["teacher"]["weights_sha256"] = "0" * 64
    (tmp_path / "text/run.json").write_text(json.dumps(record))
    wrong = refused(str(trained / "tower"), text_model=str(tmp_path / "text"))
    assert "learnt from different teachers (weights_sha256: '0000" in wrong


def test_the_text_tower_must_be_the_one_trained_against(trained, teacher):
    wrong = refused(str(trained / "tower"), text_model=f"{ARCH}/random:1")
    assert f"was distilled from weights {teacher.card.weights_sha256[:12]}" in wrong
    assert "--text-model" in wrong


def test_a_teacher_that_has_moved_is_named_anew(trained):
    before = load_encoder(str(trained / "tower"), "cpu")
    (trained / "teacher").rename(trained / "moved")
    try:
        gone = refused(str(trained / "tower"))
        assert str(trained / "teacher") in gone
        assert "--text-model" in gone
        found = load_encoder(str(trained / "tower"), "cpu", text_model=str(trained / "moved"))
    finally:
        (trained / "moved").rename(trained / "teacher")
    assert same(found, before)
    assert found.card == before.card


def test_a_run_folder_that_has_moved_still_loads(trained, tmp_path):
    shutil.copytree(trained / "tower", tmp_path / "elsewhere")
    found = load_encoder(str(tmp_path / "elsewhere"), "cpu")
    assert found.card.identity() == load_encoder(str(trained / "tower"), "cpu").card.identity()


def test_a_tower_whose_weights_are_cut_short_is_refused(trained, tmp_path):
    shutil.copytree(trained / "tower", tmp_path / "cut")
    weights = tmp_path / "cut" / "image_tower.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "the weights do not load" in refused(str(tmp_path / "cut"))


def test_weights_of_a_student_are_a_function_of_the_seed():
    spec = student.resolve("ConvNeXt-mini-64", None, 16)
    one, again, other = (weights_sha256(student.build(spec, False, seed)[0]) for seed in (0, 0, 1))
    assert one == again != other


def tower(name, size=None, dim=16):
    """Build a student and return the shape of its rows for two images."""
    spec = student.resolve(name, size, dim)
    model, _ = student.build(spec, False, 0)
    assert isinstance(model, ImageTower)
    with torch.inference_mode():
        return spec.image_size, tuple(model.eval().encode_image(torch.randn(2, 3, spec.image_size, spec.image_size)).shape)


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit", "timm/test_convnext"])
def test_any_timm_model_is_a_student(name):
    assert tower(name, 64) == (64, (2, 16))


@pytest.mark.parametrize(("name", "size"), [("ResNet-mini-64", 50), ("ConvNeXt-mini-64", 70), ("timm/test_vit", 48)])
def test_image_sizes_that_nobody_thought_of(name, size):
    assert tower(name, size) == (size, (2, 16))


def json_student(folder, **vision):
    path = folder / "mine.json"
    path.write_text(json.dumps({"embed_dim": 4, "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, **vision}}))
    return str(path)


def test_a_json_file_is_a_student(tmp_path):
    assert tower(json_student(tmp_path, image_size=20, patch_size=8)) == (20, (2, 16))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm/test_rsnet", "unknown timm model 'test_rsnet': did you mean 'test_resnet'?"),
        ("ConvNeXt-mni-64", "did you mean 'ConvNeXt-mini-64'?"),
        ("none.json", "none.json: cannot be read as an open_clip config"),
    ],
)
def test_unknown_students_are_refused_in_one_line(name, words):
    with pytest.raises(ModelError) as error:
        tower(name)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_impossible_configs_are_refused_in_one_line(tmp_path):
    for vision in ({"image_size": [32, 64], "patch_size": 8}, {"image_size": 32, "patch_size": "eight"}, {"tower": 9}):
        with pytest.raises(ModelError) as error:
            tower(json_student(tmp_path, **vision))
        assert "\n" not in str(error.value)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ModelError, match="no table 'vision_cfg'"):
        tower(str(tmp_path / "list.json"))


def test_a_student_without_text_tower_cannot_train_both():
    with pytest.raises(ModelError, match="no text tower"):
        student.build(student.resolve("timm/test_resnet", 64, 16), True, 0)


@pytest.mark.parametrize(("tag", "activation"), [("openai", "quick_gelu"), ("laion2b_s34b_b79k", "standard")])
def test_the_activation_is_the_one_that_a_tag_was_trained_with(tag, activation, monkeypatch):
    import open_clip as upstream

    monkeypatch.setattr(upstream.factory, "download_pretrained", lambda *args, **options: "weights")  # no network
    monkeypatch.setattr(upstream.factory, "load_checkpoint", lambda *args, **options: {})
    assert open_clip.activation_of(open_clip.create("ViT-B-32", tag)) == activation


def test_a_run_finds_a_teacher_that_was_named_by_a_relative_path(trained, tmp_path):
    for folder in ("tower", "teacher"):
        shutil.copytree(trained / folder, tmp_path / folder)
    record = json.loads((tmp_path / "tower" / "run.json").read_text())
    assert record["teacher_at"] == "../teacher"
    record["teacher"]["name"] = "some/where/else"
    (tmp_path / "tower" / "run.json").write_text(json.dumps(record))
    assert same(load_encoder(str(tmp_path / "tower"), "cpu"), load_encoder(str(trained / "tower"), "cpu"))


@pytest.mark.parametrize("spec", ["/no/such/teacher", "./teachr", "runs/first"])
def test_a_mistyped_path_is_called_one(spec):
    assert "no such file or folder" in refused(spec)


@pytest.mark.parametrize(("rank", "device"), [(None, "cuda:0"), ("1", "cuda:1")])
def test_each_process_of_torchrun_has_its_own_gpu(monkeypatch, rank, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert pick_device("auto") == torch.device(device)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ModelError, match="cuda:2: this machine has 2 CUDA devices"):
        pick_device("auto")
