"""What is exported to ONNX computes the same in onnxruntime, and is an encoder again."""

import copy
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import dimefm
from dimefm.cli import main
from dimefm.errors import DimefmError, ModelError, RecipeError
from dimefm.models.loading import load_encoder
from tests.export.conftest import VIT, write_folder

for name in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(name)

import onnx  # noqa: E402
import onnxruntime  # noqa: E402

SPEC = "ResNet-mini-64/random:0"
TOLERANCE = 1e-4
PROMPTS = ["a red square", "two dogs on a lawn, seen from above", ""]


@pytest.fixture(scope="module")
def before():
    return load_encoder(SPEC, "cpu")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    out = tmp_path_factory.mktemp("onnx") / "out"
    return dimefm.export(SPEC, "onnx", out)


def session(folder, name):
    return onnxruntime.InferenceSession(str(folder / "onnx" / name))


def sentences(length, end):
    """Return tokens [3, length] with their end at the last place, or before it."""
    tokens = torch.randint(1, 400, (3, length), generator=torch.Generator().manual_seed(length))
    for row in range(3):
        tokens[row, length - 1 - row] = end
    return tokens


def test_the_layout_is_that_of_transformers_js(exported):
    settings = {
        "config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    graphs = set()
    for kind in ("vision_model", "text_model"):
        graphs |= {f"onnx/{kind}{ending}.onnx" for ending in ("", "_quantized", "_fp16")}
    files = {
        path.relative_to(exported.folder).as_posix()
        for path in exported.folder.rglob("*")
        if path.is_file()
    }
    assert files >= settings | graphs | {"README.md", "export.json"}
    config = json.loads((exported.folder / "config.json").read_text())
    assert config["model_type"] == "clip"


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_image_graph_computes_the_same_for_any_batch(batch, before, exported):
    pixels = torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch))
    with torch.inference_mode():
        expected = before.image_model.encode_image(pixels).numpy()
    graph = session(exported.folder, "vision_model.onnx")
    (rows,) = graph.run(["image_embeds"], {"pixel_values": pixels.numpy()})
    assert np.abs(rows - expected).max() < TOLERANCE


@pytest.mark.parametrize("length", [5, 20, 32])
def test_the_text_graph_computes_the_same_for_any_length(length, before, exported):
    cut = before._trimmed
    tokens = sentences(length, end=49407)
    with torch.inference_mode():
        expected = cut.encode_text(tokens).numpy()
    graph = session(exported.folder, "text_model.onnx")
    (rows,) = graph.run(["text_embeds"], {"input_ids": tokens.numpy()})
    assert np.abs(rows - expected).max() < TOLERANCE


def test_every_set_of_graphs_passed_the_gate(exported):
    assert [agreement.variant for agreement in exported.agreements] == ["fp32", "uint8", "fp16"]
    exact, small, half = exported.agreements
    assert exact.image_least > 0.99999 and exact.text_least > 0.99999
    assert half.image_least > 0.999 and half.text_least > 0.999
    assert 0.98 < small.image_least < 1 and 0.98 < small.text_least < 1
    sizes = exported.files
    for kind in ("vision_model", "text_model"):
        whole = sizes[f"onnx/{kind}.onnx"]
        assert sizes[f"onnx/{kind}_fp16.onnx"] < 0.6 * whole
        assert sizes[f"onnx/{kind}_quantized.onnx"] < 0.4 * whole


@pytest.mark.parametrize(
    "file", ["", "onnx/vision_model_quantized.onnx", "onnx/text_model_fp16.onnx"]
)
def test_a_folder_is_a_model_again(file, picture, before, exported, tmp_path):
    image = tmp_path / "image.png"
    image.write_bytes(picture(1, (90, 70)))
    original = dimefm.load(SPEC, "cpu")
    model = dimefm.load(exported.folder / file, "cpu")
    limit = 0.98 if file else 0.99999
    assert model.encode_image(str(image)) @ original.encode_image(str(image)) > limit
    cosines = (model.encode_text(PROMPTS) * original.encode_text(PROMPTS)).sum(axis=1)
    assert cosines.min() > limit
    assert model.logit_scale == pytest.approx(before.card.logit_scale)
    assert model.encoder.image_preprocess["mean"] == before.image_preprocess["mean"]
    weights = model.encoder.image_parameters
    assert abs(weights / before.image_parameters - 1) < 0.02


def test_padding_behind_the_end_is_not_computed(exported):
    encoder = load_encoder(str(exported.folder), "cpu")
    tokens, _ = encoder.tokenize(PROMPTS)
    assert encoder.lengths_read(tokens).tolist() == [5, 11, 2]


def test_the_tokenizer_of_transformers_gives_the_same_tokens(before, exported):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported.folder)
    sentences = [*PROMPTS, "Café 12 I'LL DON'T 日本 x²", "a  b\tc", "🙂 ..."]
    tokens, lengths = before.tokenize(sentences)
    for row, sentence in enumerate(sentences):
        expected = tokens[row, : lengths[row]].tolist()
        assert tokenizer(sentence)["input_ids"] == expected


def test_an_exported_folder_is_scored(exported, tmp_path, picture):
    root = tmp_path / "sets"
    for name in ("cats", "dog"):
        (root / "mine" / "test" / name).mkdir(parents=True)
        (root / "mine" / "test" / name / "1.png").write_bytes(picture(len(name)))
    (result,) = dimefm.evaluate(exported.folder, root, datasets=["mine"], device="cpu")
    assert 0 <= result.value <= 1


@pytest.mark.parametrize("opset", [17, 24, 0, -1])
def test_an_opset_that_cannot_be_written_is_refused(opset, tmp_path):
    with pytest.raises(ModelError, match=rf"--opset {opset}: expected 18 to 23"):
        dimefm.export(SPEC, "onnx", tmp_path / "out", opset=opset)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    result = CliRunner().invoke(
        main, ["export", SPEC, "--to", "onnx", "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 1
    assert package in result.output and "pip install 'dimefm[export]'" in result.output
    assert list(tmp_path.iterdir()) == []


SIGLIP_TEXT = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}


@pytest.mark.parametrize("kind", ["ViT", "SigLIP's text tower"])
def test_transformers_leave_with_every_set_of_graphs(kind, tmp_path):
    config = copy.deepcopy(VIT)
    if kind != "ViT":
        config["text_cfg"].update(SIGLIP_TEXT, context_length=16)
        config.update(custom_text=True, init_logit_bias=-10)
    spec = write_folder(tmp_path / "model", config)
    exported = dimefm.export(spec, "onnx", tmp_path / "out")
    exact, small, half = exported.agreements
    assert min(exact.image_least, exact.text_least) > 0.99999
    assert min(half.image_least, half.text_least) > 0.999
    assert min(small.image_least, small.text_least) > 0.98
    encoder = load_encoder(str(tmp_path / "out"), "cpu")
    assert encoder.any_length == (kind == "ViT")
    assert encoder.card.logit_bias == (None if kind == "ViT" else -10)


def test_an_option_of_another_format_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="--opset: is no option of --to open_clip"):
        dimefm.export(SPEC, "open_clip", tmp_path / "out", opset=20)


def damage_graphs(folder, fault):
    """Damage a graph of a folder in one way."""
    image = folder / "onnx/vision_model.onnx"
    text = folder / "onnx/text_model.onnx"
    if fault == "no text graph":
        text.unlink()
    elif fault == "no ONNX":
        image.write_bytes(b"nothing of the kind" * 9)
    elif fault == "cut":
        image.write_bytes(image.read_bytes()[:50_000])
    elif fault == "empty":
        image.write_bytes(b"")
    elif fault == "exchanged":
        image.write_bytes(text.read_bytes())
    elif fault == "weights outside":
        model = onnx.load(image)
        onnx.save(model, image, save_as_external_data=True, size_threshold=0, location="w.bin")


def damage_config(folder, change):
    """Change the facts of a folder."""
    config = folder / "config.json"
    content = json.loads(config.read_text())
    change(content)
    config.write_text(json.dumps(content))


GRAPHS = {
    "no text graph": "text_model.onnx: cannot be read",
    "no ONNX": "vision_model.onnx: is no ONNX file",
    "cut": "vision_model.onnx: is no ONNX file",
    "empty": "vision_model.onnx: is no ONNX file",
    "exchanged": "vision_model.onnx: has input_ids, expected 'pixel_values'",
    "weights outside": "lie in another file",
}
FACTS = {
    "another size": (
        lambda config: config["dimefm"]["preprocess"].update(size=[32, 32]),
        "expected ['any', 3, 32, 32]",
    ),
    "another dimension": (
        lambda config: config["dimefm"].update(dim=64),
        "expected ['any', 64]",
    ),
    "not ours": (lambda config: config.pop("dimefm"), "has no table 'dimefm'"),
    "a wrong type": (
        lambda config: config["dimefm"].update(logit_scale="large"),
        "'dimefm.logit_scale' is 'large', expected a number",
    ),
    "an unknown key": (lambda config: config["dimefm"].update(run="rm -r /"), "'dimefm.run'"),
    "half a preprocessing": (
        lambda config: config["dimefm"]["preprocess"].pop("mean"),
        "has no mean",
    ),
    "a small vocabulary": (
        lambda config: config["dimefm"]["text_cfg"].update(vocab_size=10),
        "'model_cfg.text_cfg.vocab_size' is 10",
    ),
}


def refusal(folder):
    """Return the one line with which a folder is refused."""
    with pytest.raises(DimefmError) as caught:
        load_encoder(str(folder), "cpu")
    line = str(caught.value)
    assert "\n" not in line and len(line) <= 500 and "Fix:" in line
    return line


@pytest.fixture
def copied(exported, tmp_path):
    """Return a copy of the export."""
    return Path(shutil.copytree(exported.folder, tmp_path / "copy"))


@pytest.mark.parametrize("fault", GRAPHS)
def test_a_damaged_graph_is_refused_in_one_line(fault, copied):
    damage_graphs(copied, fault)
    assert GRAPHS[fault] in refusal(copied)


@pytest.mark.parametrize("fault", FACTS)
def test_damaged_facts_are_refused_in_one_line(fault, copied):
    change, expected = FACTS[fault]
    damage_config(copied, change)
    assert expected in refusal(copied)


def test_a_damaged_config_is_refused_in_one_line(copied):
    (copied / "config.json").write_text("{")
    assert "config.json: cannot be read" in refusal(copied)


def test_the_precision_of_graphs_is_in_their_files(exported):
    with pytest.raises(ModelError, match="vision_model_fp16.onnx"):
        load_encoder(str(exported.folder), "cpu", "bf16")


def test_a_run_leaves_with_the_tower_that_it_borrowed(quickstarted, tmp_path):
    student = quickstarted / "student"
    exported = dimefm.export(student, "onnx", tmp_path / "out")
    assert exported.agreements[0].text_least > 0.99999
    (quickstarted / "teacher").rename(quickstarted / "moved")
    try:
        model = dimefm.load(exported.folder, "cpu")
        assert model.encode_text(PROMPTS).shape == (3, model.dim)
    finally:
        (quickstarted / "moved").rename(quickstarted / "teacher")
