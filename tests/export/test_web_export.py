"""The page of a web export classifies in a real browser as Python does; it asks no other server."""

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import dimefm
from dimefm.cli import main
from dimefm.errors import ModelError
from dimefm.export import web
from dimefm.export.formats import Options
from dimefm.export.whole import WholeClip
from dimefm.models.loading import load_encoder

for name in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(name)

from tests.export.browser import page_of, served  # noqa: E402

MODEL = str(Path(__file__).parents[1] / "data/teacher")
LABELS = ["cat", "dog", "ship", "airplane", "red car", "the number three", "forest"]
TEMPLATE = "a photo of a {}."
NEAR = 1e-2
IMAGES = 20
SENTENCES = [
    "a photo of a cat.",
    "",
    "  Two   SPACES\tand a tab ",
    "I'll, don't; we've — it's 3.50 €",
    "naïve façade, “curly” ‘quotes’ …",
    "fish &amp; chips &#233;",
    "日本語 テスト ＡＢＣ ﬁne",
    "🙂 x² ½ Ωσς İstanbul ǅ",
    "don't stop <end_of_text> here",
    "word " * 60,
]


@pytest.fixture(scope="session")
def runtime(tmp_path_factory):
    """Return the npm package onnxruntime-web: of $ORT_WEB, else fetched by npm."""
    given = os.environ.get("ORT_WEB")
    if given:
        return Path(given)
    if shutil.which("npm") is None:
        pytest.skip("no onnxruntime-web: $ORT_WEB is not set, and there is no npm")
    folder = tmp_path_factory.mktemp("npm")
    command = ["npm", "pack", "--silent", f"onnxruntime-web@{web.RUNTIME_VERSION}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=300)
    packed = list(folder.glob("*.tgz"))
    if done.returncode or not packed:
        pytest.skip("no onnxruntime-web: $ORT_WEB is not set, and npm cannot fetch it")
    return packed[0]


@pytest.fixture(scope="module")
def site(runtime, tmp_path_factory):
    """Return a web export whose labels can be edited."""
    out = tmp_path_factory.mktemp("site") / "out"
    return dimefm.export(MODEL, "web", out, ort_web=runtime)


@pytest.fixture(scope="module")
def fixed(runtime, tmp_path_factory):
    """Return a web export with fixed labels, and no text tower."""
    folder = tmp_path_factory.mktemp("fixed")
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    return dimefm.export(
        MODEL, "web", folder / "out", labels=folder / "labels.txt", ort_web=runtime
    )


def real_images(folder):
    """Return the bytes of real pictures, a few of each size and kind, where they are."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "classification/caltech101/test.parquet", columns=["image"])
    return [table["image"][40 * number].as_py() for number in range(IMAGES)]


def drawn_images():
    pictures = []
    for number in range(IMAGES):
        noise = np.random.default_rng(number).integers(0, 256, (6, 7, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize((50 + 11 * number, 90), Image.Resampling.BICUBIC).save(
            file, "PNG"
        )
        pictures.append(file.getvalue())
    return pictures


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Return the paths of twenty pictures: real ones beside the checkout, else drawn ones."""
    folder = tmp_path_factory.mktemp("images")
    data = (Path(__file__).parents[2] / "../shared/data").resolve()
    pictures = real_images(data) if data.is_dir() else drawn_images()
    paths = []
    for number, content in enumerate(pictures):
        path = folder / f"{number:02}.jpg"
        path.write_bytes(content)
        paths.append(path)
    return paths


def scores_of(page, path):
    """Return {label: score} that the page shows for a picture."""
    page.set_input_files("#file", path)
    page.wait_for_selector(f'#bars[data-picture="{path.name}"]')
    bars = page.locator("#bars li").all()
    return {bar.get_attribute("data-label"): float(bar.get_attribute("data-score")) for bar in bars}


def ready(page):
    page.wait_for_selector("#choose:enabled")
    assert page.inner_text("#status") == "Ready."


def edit(page, labels, template=TEMPLATE):
    page.fill("#template", template)
    page.fill("#names", "\n".join(labels))
    wanted = json.dumps("\n".join(labels)).replace("\\n", "\\a ")
    page.wait_for_selector(f"#labels[data-used={wanted}]", state="attached")


def check_page(page, address, model, images):
    """Compare the page's scores with Python's, and look whom it asked."""
    worst = 0.0
    for path in images:
        shown = scores_of(page, path)
        expected = model.classify(path, LABELS, TEMPLATE)
        assert list(shown.values()) == sorted(shown.values(), reverse=True)
        assert set(shown) == set(LABELS)
        for label, score in expected.items():
            worst = max(worst, abs(shown[label] - score))
    assert worst < NEAR
    places = {urlsplit(request).netloc for request in page.requested}
    schemes = {urlsplit(request).scheme for request in page.requested}
    assert places <= {urlsplit(address).netloc, ""} and schemes <= {"http", "blob"}
    assert page.complaints == []
    return worst


def test_the_page_scores_as_python_does(site, images):
    model = dimefm.load(MODEL, "cpu")
    with served(site.folder) as address, page_of(address) as page:
        ready(page)
        edit(page, LABELS)
        check_page(page, address, model, images)
        assert re.fullmatch(r"\d+ ms per picture", page.inner_text("#time"))


def test_fixed_labels_need_no_text_tower(fixed, images):
    files = set(fixed.files)
    assert not any("text_model" in name or "merges" in name for name in files)
    assert "labels.json" in files
    with served(fixed.folder) as address, page_of(address) as page:
        ready(page)
        assert page.is_hidden("#labels")
        check_page(page, address, dimefm.load(MODEL, "cpu"), images)


def test_the_page_makes_pythons_tokens(site):
    encoder = dimefm.load(MODEL, "cpu").encoder
    tokens, lengths = encoder.tokenize(SENTENCES)
    context = tokens.shape[1]
    make = f"""async (sentences) => {{
        const {{ Tokenizer }} = await import('./tokenizer.js');
        const merges = await (await fetch('merges.txt')).text();
        const tokenizer = new Tokenizer(merges, {context});
        return sentences.map((sentence) => tokenizer.encode(sentence));
    }}"""
    with served(site.folder) as address, page_of(address) as page:
        ready(page)
        made = page.evaluate(make, SENTENCES)
    for row, sentence in enumerate(SENTENCES):
        expected = tokens[row, : min(lengths[row], context)].tolist()
        assert made[row] == expected, sentence


def test_a_file_that_is_no_picture_and_labels_that_are_none_are_told(site, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    with served(site.folder) as address, page_of(address) as page:
        ready(page)
        page.set_input_files("#file", broken)
        page.get_by_text("broken.jpg: this browser cannot read it as an image.").wait_for()
        page.fill("#names", "\n \n")
        page.get_by_text("Write at least one label.").wait_for()
        page.fill("#names", "cat")
        page.fill("#template", "a photo")
        page.get_by_text("The sentence needs {} where the label goes.").wait_for()


def test_the_camera_is_classified(site):
    with served(site.folder) as address, page_of(address) as page:
        ready(page)
        page.click("#webcam")
        page.wait_for_selector("#bars li")
        assert page.get_attribute("#webcam", "aria-pressed") == "true"
        page.click("#webcam")
        page.get_by_text("The camera is off.").wait_for()
        assert page.complaints == []


def test_the_page_is_used_by_keyboard_and_fits_a_phone(site):
    phone = {"width": 390, "height": 844}
    with served(site.folder) as address, page_of(address, viewport=phone) as page:
        ready(page)
        reached = []
        for _ in range(4):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id"))
        assert reached == ["choose", "webcam", "names", "template"]
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_page_may_ask_its_own_folder_only(site):
    html = (site.folder / "index.html").read_text(encoding="utf-8")
    policy = re.search(r'content="(default-src[^"]*)"', html)[1]
    allowed = {part.strip() for part in policy.split(";")}
    assert "default-src 'none'" in allowed
    assert not re.search(r"https?:|\*|unsafe-inline|'unsafe-eval'", policy)
    for path in site.folder.glob("*.[jch][sst]*"):
        assert not re.search(r"""(src|href)=["']https?:|from ['"]https?:""", path.read_text())
    attempt = "() => fetch('https://example.com/').then(() => 'sent', () => 'refused')"
    with served(site.folder) as address, page_of(address) as page:
        ready(page)
        assert page.evaluate(attempt) == "refused"
        assert "Content Security Policy" in " ".join(page.complaints)


def test_a_web_folder_is_a_model_again(site, fixed, images):
    model = dimefm.load(MODEL, "cpu")
    for folder in (site.folder, fixed.folder):
        again = dimefm.load(folder, "cpu")
        assert again.encode_image(images[0]) @ model.encode_image(images[0]) > 0.9999
    with pytest.raises(ModelError, match="has no text tower"):
        dimefm.load(fixed.folder, "cpu").encode_text("a cat")


@pytest.mark.parametrize("weights", ["fp32", "uint8"])
def test_weights_are_chosen(weights, runtime, tmp_path):
    spec = "ResNet-mini-64/random:0"
    exported = dimefm.export(spec, "web", tmp_path / "out", ort_web=runtime, weights=weights)
    graphs = [name for name in exported.files if name.endswith(".onnx")]
    ending = {"fp32": "", "uint8": "_quantized"}[weights]
    assert graphs == [f"onnx/text_model{ending}.onnx", f"onnx/vision_model{ending}.onnx"]


def package(folder, names, form):
    """Write a small stand-in for the npm package, as a tarball or a folder."""
    root = folder / "package"
    (root / "dist").mkdir(parents=True)
    (root / "package.json").write_text('{"name": "onnxruntime-web", "version": "1.2.3"}')
    for name in names:
        (root / "dist" / name).write_text(name)
    if form == "folder":
        return root
    if form == "dist":
        return root / "dist"
    with tarfile.open(folder / "web.tgz", "w:gz") as tar:
        tar.add(root, "package")
    return folder / "web.tgz"


def test_pictures_that_the_page_cannot_prepare_are_refused(tmp_path):
    whole = WholeClip.from_encoder(load_encoder(MODEL, "cpu"))
    other = dataclasses.replace(whole, preprocess={**whole.preprocess, "resize_to": 40})
    folder = package(tmp_path, web.RUNTIME_FILES, "folder")
    options = Options(None, {"ort_web": folder})
    web.check(whole, options)
    with pytest.raises(ModelError, match="resized to other sides than they are cropped to"):
        web.check(other, options)


@pytest.mark.parametrize("form", ["tarball", "folder", "dist"])
def test_the_runtime_is_taken_from_any_form_of_the_package(form, tmp_path):
    copied = {}
    version = web.with_runtime(package(tmp_path, web.RUNTIME_FILES, form), copied.__setitem__)
    assert copied == {name: name.encode() for name in web.RUNTIME_FILES}
    assert version == ("" if form == "dist" else "1.2.3")


@pytest.mark.parametrize(
    "fault", ["absent", "no tarball", "half", "not given", "no JSON", "damaged"]
)
def test_a_runtime_that_cannot_be_copied_is_told_with_the_command(fault, tmp_path):
    options = ["export", MODEL, "--to", "web", "--out", str(tmp_path / "out")]
    if fault == "absent":
        options += ["--ort-web", str(tmp_path / "absent.tgz")]
    elif fault == "no tarball":
        (tmp_path / "other.tgz").write_bytes(b"nothing of the kind")
        options += ["--ort-web", str(tmp_path / "other.tgz")]
    elif fault == "half":
        options += ["--ort-web", str(package(tmp_path, web.RUNTIME_FILES[:1], "tarball"))]
    elif fault == "no JSON":
        folder = package(tmp_path, web.RUNTIME_FILES, "folder")
        (folder / "package.json").write_text("[1]")
        options += ["--ort-web", str(folder)]
    elif fault == "damaged":
        tarball = package(tmp_path, web.RUNTIME_FILES, "tarball")
        content = bytearray(tarball.read_bytes())
        content[20:60] = bytes(40)
        tarball.write_bytes(content)
        options += ["--ort-web", str(tarball)]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 1
    line = result.output.splitlines()[-1]
    assert f"npm pack onnxruntime-web@{web.RUNTIME_VERSION}" in line and len(line) <= 520
    assert not (tmp_path / "out").exists()
