"""Inputs that a user may download: models, runs, recipes, datasets and arrays with faults.

``INPUTS`` holds these and those of :mod:`tests.faults.wild.inputs`.
"""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import numpy as np

from tests.faults.wild.inputs import DEEP, DIGITS, TEACHER, nested, photo, photos, wild
from tests.faults.wild.inputs import INPUTS as INPUTS

# Models, runs and recipes


def teacher(folder: Path, **changes: object) -> list:
    """Write a folder with a model config of these changes, and return its extraction."""
    place = folder / "teacher"
    place.mkdir()
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    for name, value in changes.items():
        part, _, key = name.partition("__")
        if key:
            config[part][key] = value
        else:
            config[part] = value
    (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    (place / "open_clip_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    photos(folder)
    return ["extract-features", "--teacher", "teacher", "--images", "photos", "--out", "cache"]


@wild
def config_of_ten_million_layers(folder):
    return teacher(folder, vision_cfg__layers=10_000_000)


@wild
def config_of_a_huge_width(folder):
    return teacher(folder, text_cfg__width=10_000_000)


@wild
def config_of_a_huge_image(folder):
    return teacher(folder, vision_cfg__image_size=10_000_000)


@wild
def config_that_names_a_hub(folder):
    return teacher(folder, text_cfg__hf_tokenizer_name="somebody/model")


@wild
def config_that_trusts_remote_code(folder):
    return teacher(folder, text_cfg__tokenizer_kwargs={"trust_remote_code": True})


@wild
def config_that_is_nested(folder):
    words = teacher(folder)
    (folder / "teacher/open_clip_config.json").write_text(nested(DEEP))
    return words


@wild
def config_with_a_number_of_many_digits(folder):
    words = teacher(folder)
    text = '{"model_cfg": {"embed_dim": ' + "9" * DIGITS + "}}"
    (folder / "teacher/open_clip_config.json").write_text(text)
    return words


@wild
def run_that_is_nested(folder):
    place = folder / "run"
    place.mkdir()
    (place / "run.json").write_text(nested(DEEP))
    photos(folder)
    return ["extract-features", "--teacher", "run", "--images", "photos", "--out", "cache"]


@wild
def recipe_that_is_nested(folder):
    (folder / "deep.toml").write_text("images = " + nested(DEEP) + "\n")
    return ["train", "--recipe", "deep.toml", "--out", "out"]


@wild
def recipe_of_ten_to_the_22_steps(folder):
    (folder / "steps.toml").write_text(f"steps = 1{'0' * 22}\n")
    return ["train", "--recipe", "steps.toml", "--images", "photos", "--out", "out"]


@wild
def recipe_with_a_number_of_many_digits(folder):
    (folder / "digits.toml").write_text(f"steps = {'9' * DIGITS}\n")
    return ["train", "--recipe", "digits.toml", "--images", "photos", "--out", "out"]


@wild
def recipe_of_wrong_types(folder):
    (folder / "types.toml").write_text('steps = {a = 1}\nimages = 3\nlosses = "x"\nlr = []\n')
    return ["train", "--recipe", "types.toml", "--out", "out"]


# Evaluation


def evaluate(*words: object) -> list:
    """Return the words of an evaluation of the dataset ``sets/own``."""
    model = ["--model", TEACHER, "--root", "sets", "--out", "scores"]
    return ["eval", "elevater", *model, "--datasets", "own", *words]


def class_folders(folder: Path) -> Path:
    """Write a dataset of two class folders and their names."""
    place = folder / "sets/own"
    for number, name in enumerate(("cat", "dog")):
        (place / "test" / name).mkdir(parents=True)
        (place / "test" / name / "1.jpg").write_bytes(photo(number))
    (place / "classnames.txt").write_text("cat\ndog\n")
    return place


@wild
def class_names_by_the_ten_thousand(folder):
    place = class_folders(folder)
    names = ["cat", "dog"] + [f"class number {number}" for number in range(50_000)]
    (place / "classnames.txt").write_text("\n".join(names) + "\n")
    return evaluate()


@wild
def zip_bomb_of_a_dataset(folder):
    place = folder / "sets/own"
    place.mkdir(parents=True)
    with zipfile.ZipFile(place / "test.zip", "w", zipfile.ZIP_DEFLATED) as file:
        with file.open("1.jpg", "w", force_zip64=True) as member:
            for _ in range(160):
                member.write(bytes(1 << 24))
        file.writestr("2.jpg", photo())
    (place / "test.txt").write_text("test.zip@1.jpg 0\ntest.zip@2.jpg 1\n")
    (place / "classnames.txt").write_text("cat\ndog\n")
    return evaluate("--layout", "vision-datasets")


@wild
def index_with_labels_of_5_000_digits(folder):
    place = folder / "sets/own"
    place.mkdir(parents=True)
    with zipfile.ZipFile(place / "test.zip", "w") as file:
        file.writestr("1.jpg", photo())
    (place / "test.txt").write_text(f"test.zip@1.jpg {'9' * 5_000}\n")
    (place / "classnames.txt").write_text("cat\ndog\n")
    return evaluate("--layout", "vision-datasets")


@wild
def index_that_is_not_utf8(folder):
    place = folder / "sets/own"
    place.mkdir(parents=True)
    (place / "test.txt").write_bytes(b"test.zip@\xff\xfe.jpg 0\n\0")
    (place / "classnames.txt").write_text("cat\ndog\n")
    return evaluate("--layout", "vision-datasets")


# Feature files


@wild
def array_that_says_it_is_huge(folder):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 512), }"
    padded = header.ljust(117) + b"\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + bytes(4096)
    (folder / "huge.npy").write_bytes(data)
    return ["cache", "adopt", "huge.npy", "--kind", "image", "--out", "cache"]


@wild
def arrays_damaged_inside(folder):
    np.savez_compressed(folder / "a.npz", embeddings=np.ones((64, 16), np.float32))
    data = bytearray((folder / "a.npz").read_bytes())
    for place in range(60, 110):
        data[place] ^= 255
    (folder / "a.npz").write_bytes(bytes(data))
    return ["cache", "adopt", "a.npz", "--kind", "image", "--out", "cache"]
