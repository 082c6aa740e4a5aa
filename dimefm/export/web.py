"""Export to a static folder: a page that classifies pictures in the browser.

The folder holds the page (from ``page/`` beside this module), the graphs of the towers, and the
runtime of onnxruntime-web. Any web server serves it, and nothing is fetched from elsewhere. With
labels it holds their embeddings in place of the text tower. ``dimefm.load`` takes the folder, too.
"""

from __future__ import annotations

import json
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer

from dimefm.errors import ModelError
from dimefm.export import bpe_files, onnx
from dimefm.export.formats import Options, Variant
from dimefm.export.whole import WholeClip
from dimefm.models import onnx_folder
from dimefm.models.onnx_folder import IMAGE, TEXT, VARIANTS, graph_file
from dimefm.storage.files import to_json

TAGS = {"library_name": "onnxruntime-web", "pipeline_tag": "zero-shot-image-classification"}
USAGE = "web.md"
SETTINGS = ("opset", "weights", "ort_web")

PAGE = Path(__file__).parent / "page"
FILES = (
    "index.html",
    "style.css",
    "icon.svg",
    "app.js",
    "model.js",
    "resize.js",
    "tokenizer.js",
)
PAGE_FACTS = "page.json"
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError)
MERGES = "merges.txt"
WEIGHTS = "fp16"
"""Default set of graphs: half the bytes of fp32, and the same scores to five digits."""

RUNTIME = "ort"
RUNTIME_FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
RUNTIME_VERSION = "1.30.0"
RUNTIME_FIX = (
    f"npm pack onnxruntime-web@{RUNTIME_VERSION} (or download https://registry.npmjs.org/"
    f"onnxruntime-web/-/onnxruntime-web-{RUNTIME_VERSION}.tgz), then pass --ort-web"
    f" onnxruntime-web-{RUNTIME_VERSION}.tgz"
)
MOST_RUNTIME_BYTES = 128 << 20  # of one file

LABELS = ("a cat", "a dog", "a bird", "a person", "a car", "a tree", "a building", "food", "text")
TEMPLATE = "a photo of {}."
"""What the page begins with where the labels can be edited."""


def check(whole: WholeClip, options: Options) -> None:
    """Raise an error for a model that cannot be written, or a runtime that cannot be copied."""
    onnx.check_packages(options)
    _weights(options)
    with_runtime(_runtime(options), lambda name, data: None)
    if not options.has_labels:
        _clip_tokenizer(whole)
    if whole.preprocess.get("resize_to") is not None:
        raise ModelError(
            f"{whole.name}: cannot be exported to web: its images are resized to other sides than"
            " they are cropped to. Fix: name a model without 'resize_to' in its preprocessing"
        )


def write(whole: WholeClip, folder: Path, options: Options) -> dict[str, Any]:
    """Write the page, the graphs and the runtime into an empty folder; return facts about them."""
    weights = _weights(options)
    has_text = not options.has_labels
    (folder / onnx_folder.GRAPHS).mkdir()
    cut = onnx.write_graphs(whole, folder, onnx.opset_of(options), has_text)
    kinds = (IMAGE, TEXT) if has_text else (IMAGE,)
    if weights != "fp32":
        onnx.write_variant(folder, weights, kinds)
        for kind in kinds:
            (folder / graph_file(kind, "fp32")).unlink()
    for name in FILES:
        shutil.copyfile(PAGE / name, folder / name)
    if has_text:
        merges = bpe_files.merges_of(_clip_tokenizer(whole))
        (folder / MERGES).write_text(merges, encoding="utf-8")
    config = onnx.config(whole, cut, has_text)
    (folder / onnx_folder.CONFIG).write_text(to_json(config), encoding="utf-8")
    page = _page(whole, weights, has_text)
    (folder / PAGE_FACTS).write_text(to_json(page), encoding="utf-8")
    (folder / RUNTIME).mkdir()
    version = with_runtime(
        _runtime(options), lambda name, data: (folder / RUNTIME / name).write_bytes(data)
    )
    return {"weights": weights, "onnxruntime_web": version, "text_tower": has_text}


def variants(whole: WholeClip, folder: Path, options: Options) -> list[Variant]:
    """Load the graphs again, for the gate."""
    weights = _weights(options)
    has_text = not options.has_labels
    cpu = torch.device("cpu")
    encoder = onnx_folder.load(str(folder), folder, weights, cpu, "fp32")
    return [Variant(weights, encoder, onnx.LEAST_COSINE[weights], has_text)]


def _clip_tokenizer(whole: WholeClip) -> SimpleTokenizer:
    remedy = "pass --labels FILE, which needs no tokenizer"
    return bpe_files.require_clip_bpe(whole.tokenizer, "web", remedy)


def with_runtime(source: Path, use: Callable[[str, bytes], Any]) -> str:
    """Call ``use(name, data)`` for each file of onnxruntime-web that the page needs.

    ``source`` is the package's folder, its ``dist``, or the tarball of npm. Returns the version.
    Raises ModelError when a file is missing.
    """
    read = _reader(source)
    version = _version(read("package.json"), source)
    for name in RUNTIME_FILES:
        data = read(f"dist/{name}")
        if data is None:
            raise ModelError(
                f"{source}: has no dist/{name}, expected the npm package onnxruntime-web. Fix:"
                f" {RUNTIME_FIX}"
            )
        use(name, data)
    return version


def _version(package: bytes | None, source: Path) -> str:
    """Return the version that a ``package.json`` states, "" without one."""
    if package is None:
        return ""
    try:
        return str(json.loads(package).get("version", ""))
    except (ValueError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{source}: its package.json is damaged, expected that of onnxruntime-web. Fix:"
            f" {RUNTIME_FIX}"
        ) from error


def _reader(source: Path) -> Callable[[str], bytes | None]:
    """Return what reads a file of the package by its path in it, None for a missing file."""
    if source.is_dir():
        return lambda name: _from_folder(source, name)
    if source.is_file():
        return lambda name: _from_tarball(source, name)
    raise ModelError(f"{source}: no such file or folder. Fix: {RUNTIME_FIX}")


def _from_folder(source: Path, name: str) -> bytes | None:
    for path in (source / name, source / Path(name).name):
        if path.is_file():
            return path.read_bytes()
    return None


def _from_tarball(source: Path, name: str) -> bytes | None:
    try:
        with tarfile.open(source) as tar:
            member = tar.getmember(f"package/{name}")
            file = tar.extractfile(member)
            if file is None or member.size > MOST_RUNTIME_BYTES:
                return None
            return file.read()
    except KeyError:
        return None
    except DAMAGED as error:
        raise ModelError(
            f"{source}: cannot be read as the tarball of an npm package ({error}). Fix:"
            f" {RUNTIME_FIX}"
        ) from error


def _runtime(options: Options) -> Path:
    source = options.settings.get("ort_web")
    if not source:
        raise ModelError(
            "an export to web copies the runtime of onnxruntime-web into the folder, and does not"
            f" download it. Fix: {RUNTIME_FIX}"
        )
    return Path(source)


def _weights(options: Options) -> str:
    weights = str(options.settings.get("weights") or WEIGHTS)
    if weights not in VARIANTS:
        raise ModelError(
            f"--weights {weights}: expected one of {', '.join(VARIANTS)}. Fix: choose one"
        )
    return weights


def _page(whole: WholeClip, weights: str, has_text: bool) -> dict[str, Any]:
    """Return the content of ``page.json``."""
    height, width = whole.encoder.image_size
    name = Path(whole.name).name
    return {
        "description": f"Model {name}: it sees {width} × {height} pixels. Weights: {weights}.",
        "image_graph": graph_file(IMAGE, weights),
        "text_graph": graph_file(TEXT, weights) if has_text else None,
        "labels": list(LABELS) if has_text else [],
        "template": TEMPLATE,
    }
