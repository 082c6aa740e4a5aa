"""Names that come with data reach the terminal and the reports without control characters, and a
message is at most 500 characters long.
"""

import json
import unicodedata

import numpy as np
import pytest
from click.testing import CliRunner

from dimefm.cache import CacheWriter, EncoderCard, Manifest
from dimefm.cache.writer import Bad
from dimefm.cli import main

EVIL = "a\x1b[2J\x1b]0;owned\x07\x9b31m\u202eb\x7f"
LONG = "n" * 5000
NAMES = {"control characters": EVIL, "a long name": LONG, "a forged line": "a\nError: b. Fix: c"}


def cache(folder, name, key="k"):
    """Write a cache of two rows by an encoder of this name, one of them quarantined."""
    card = EncoderCard(name, None, 4, 10.0)
    header = Manifest("text", "hdf5", "float32", 4, False, card, {name: 1}, {})
    writer = CacheWriter(folder, header, [("a.txt", 2)])
    writer.write("a.txt", [key], np.ones((1, 4), np.float32), [Bad(1, key, f"bad {name}")])
    writer.seal()
    return str(folder)


def encoder_in_a_manifest(root, name):
    return ["cache", "info", cache(root / "c", name)]


def teacher_in_a_manifest(root, name):
    (root / "a.txt").write_text("one\ntwo\n")
    words = ["--against-teacher", "1", "--texts", str(root / "a.txt")]
    return ["cache", "verify", cache(root / "c", name), *words]


def quarantined_key(root, name):
    return ["cache", "quarantine", cache(root / "c", name, name)]


def kind_of_a_run(root, name):
    (root / "run.json").write_text(json.dumps({"kind": name}))
    return ["eval", "elevater", "--model", str(root), "--root", str(root), "--out", str(root / "o")]


def config_of_a_model(root, name):
    (root / "open_clip_config.json").write_text(json.dumps({name: 1, "model_cfg": {name: 2}}))
    (root / "a.txt").write_text("one\n")
    words = ["--texts", str(root / "a.txt"), "--out", str(root / "o")]
    return ["extract-features", "--teacher", str(root), *words]


def key_of_a_recipe(root, name):
    (root / "r.toml").write_text(f"{json.dumps(name)} = 1\n".replace("\x7f", "\\u007f"))
    return ["train", "--recipe", str(root / "r.toml"), "--out", str(root / "o")]


def value_of_a_recipe(root, name):
    (root / "r.toml").write_text(f"crops = {json.dumps(name)}\n".replace("\x7f", "\\u007f"))
    return ["train", "--recipe", str(root / "r.toml"), "--out", str(root / "o")]


def loss_of_a_recipe(root, name):
    text = f"[losses]\n{json.dumps(name)} = {{weight = 1}}\n".replace("\x7f", "\\u007f")
    (root / "r.toml").write_text(text)
    return ["train", "--recipe", str(root / "r.toml"), "--out", str(root / "o")]


def column_of_a_table(root, name):
    row = '"' + name.replace('"', '""') + '",x\n'
    (root / "t.csv").write_text(row + "1,2\n")
    return ["extract-features", "--teacher", "ResNet-mini-64/random:0", "--images",
            str(root / "t.csv"), "--out", str(root / "o"), "--device", "cpu"]  # fmt: skip


def entry_of_a_list(root, name):
    (root / "a.list").write_text(name + "\n")
    return ["extract-features", "--teacher", "ResNet-mini-64/random:0", "--images",
            str(root / "a.list"), "--out", str(root / "o"), "--device", "cpu"]  # fmt: skip


WAYS = (
    encoder_in_a_manifest,
    teacher_in_a_manifest,
    quarantined_key,
    kind_of_a_run,
    config_of_a_model,
    key_of_a_recipe,
    value_of_a_recipe,
    loss_of_a_recipe,
    column_of_a_table,
    entry_of_a_list,
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_came_with_data_is_printed_harmlessly(tmp_path, way, name):
    words = way(tmp_path, NAMES[name])
    result = CliRunner().invoke(main, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    shown = result.stdout + result.stderr
    controls = {one for one in shown if unicodedata.category(one) in ("Cc", "Cs")}
    assert controls <= {"\n", "\t"}
    assert "\u202e" not in shown
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == (1 if result.exit_code else 0)
    assert NAMES[name][0] in shown
    assert all(len(line) <= 507 for line in errors)
