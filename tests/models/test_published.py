"""Weights of an architecture see images as the published weights of that architecture do.

Nothing is downloaded: open_clip's table of tags says what each tag needs.
"""

import dataclasses
import json

import open_clip as upstream
import pytest
import torch
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from dimefm.errors import ModelError
from dimefm.models import open_clip, published
from dimefm.models.loading import load_encoder
from tests.models.conftest import ARCH, refused

TAGS = upstream.list_pretrained()
ARCHITECTURES = sorted({architecture for architecture, _ in TAGS})
DIFFERENT = ("ViT-L-14", "ViT-H-14", "ViT-H-14-quickgelu")
SQUASH = {
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.5, 0.75),
    "interpolation": "bilinear",
    "resize_mode": "squash",
    "quick_gelu": False,
}


def needed(architecture, tag):
    """Return what open_clip itself uses for a tag, without the size."""
    fields = merge_preprocess_dict(
        dataclasses.asdict(PreprocessCfg()), upstream.get_pretrained_cfg(architecture, tag)
    )
    del fields["size"]
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()
    }


@pytest.fixture
def tags(monkeypatch):
    """Return a function that gives the small architecture published weights of these tags."""
    return lambda **table: monkeypatch.setitem(upstream.pretrained._PRETRAINED, ARCH, table)


def test_every_tag_is_prepared_as_open_clip_prepares_it(tmp_path):
    unlike_openai = 0
    for architecture, tag in TAGS:
        expected = needed(architecture, tag)
        unlike_openai += expected != needed("ViT-B-32", "openai")
        named = published.preparation_of(architecture, tmp_path, tag)
        assert named.preprocess == expected, (architecture, tag)
        assert named.quick_gelu == open_clip.trained_with_quick_gelu(architecture, tag)
        if architecture not in DIFFERENT:
            by_itself = published.preparation_of(architecture, tmp_path, None)
            assert by_itself.preprocess == expected, (architecture, tag)
    assert unlike_openai > 50


@pytest.mark.parametrize("architecture", DIFFERENT)
def test_architectures_whose_tags_differ_are_refused_with_a_choice(architecture, tmp_path):
    with pytest.raises(ModelError) as error:
        published.preparation_of(architecture, tmp_path / ("long" * 20), None)
    message = str(error.value)
    assert "Fix: name the tag that the file holds with --preprocess TAG" in message
    assert len(message) <= 500
    assert {"ViT-L-14": "mean 0.5, std 0.5", "ViT-H-14": "squash"}[architecture[:8]] in message


def test_a_file_is_prepared_as_the_tags_of_its_architecture(files, tags):
    tags(first=SQUASH, second=SQUASH)
    encoder = load_encoder(f"{ARCH}/{files / 'weights.pt'}", "cpu")
    expected = {"mode": "RGB", "fill_color": 0, "size": encoder.card.preprocess["size"]}
    expected |= {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.5, 0.75],
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    assert encoder.card.preprocess == expected
    assert encoder.notes == (
        "images: 64 pixels, squash, bilinear, mean 0.5, std 0.25/0.5/0.75"
        f" (as all 2 tags of {ARCH})",
    )


def test_a_choice_is_a_tag_or_a_json_file(files, tags, tmp_path):
    tags(first=SQUASH, second={**SQUASH, "mean": (0.0, 0.0, 0.0), "quick_gelu": True})
    spec = f"{ARCH}/{files / 'weights.pt'}"
    assert "(first: mean 0.5; second: mean 0)" in refused(spec)

    first = load_encoder(spec, "cpu", preprocess="first").card
    second = load_encoder(spec, "cpu", preprocess=f"{ARCH}/second").card
    assert first.preprocess["mean"] == [0.5, 0.5, 0.5]
    assert second.preprocess["mean"] == [0.0, 0.0, 0.0]
    assert (first.activation, second.activation) == ("standard", "quick_gelu")

    stated = {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "resize_mode": "longest"}
    whole = tmp_path / open_clip.CONFIG
    whole.write_text(json.dumps({"model_cfg": {}, "preprocess_cfg": stated}))
    alone = tmp_path / "preprocess_cfg.json"
    alone.write_text(json.dumps(stated))
    for choice in (whole, alone, tmp_path):
        card = load_encoder(spec, "cpu", preprocess=str(choice)).card
        assert {name: card.preprocess[name] for name in stated} == stated
        assert card.preprocess["interpolation"] == "bicubic"


@pytest.mark.parametrize(
    ("choice", "content", "words"),
    [
        ("third", None, "neither a tag of ResNet-mini-64 nor a file"),
        ("empty.json", "{}", "states no 'mean' and 'std'"),
        ("list.json", "[]", "states no 'mean' and 'std'"),
        ("nested.json", "[" * 100_000, "Fix: restore the file"),
        ("binary.json", "\0\1", "Fix: restore the file"),
        ("null.json", '{"preprocess_cfg": null}', "states no 'mean' and 'std'"),
        ("hub.json", '{"image_mean": [0, 0, 0]}', "states no 'mean' and 'std'"),
    ],
)
def test_a_choice_that_says_nothing_is_refused(files, tmp_path, choice, content, words):
    path = tmp_path / choice
    if content is not None:
        path.write_text(content)
    chosen = choice if content is None else str(path)
    message = refused(f"{ARCH}/{files / 'weights.pt'}", preprocess=chosen)
    assert words in message
    assert f"--preprocess {chosen}" in message


def test_only_a_weights_file_takes_a_choice(files):
    for spec in (str(files / "folder"), f"{ARCH}/random:0"):
        assert f"{spec} states its own preprocessing" in refused(spec, preprocess="openai")


def test_what_a_cache_or_run_recorded_is_used_again(files, tags):
    tags(first=SQUASH)
    spec = f"{ARCH}/{files / 'weights.pt'}"
    card = load_encoder(spec, "cpu").card
    older = dataclasses.replace(
        card, preprocess=open_clip.default_preprocess(64), activation="quick_gelu"
    )
    again = load_encoder(spec, "cpu", recorded=older)
    assert again.card.preprocess["mean"] == older.preprocess["mean"]
    assert again.card.activation == "quick_gelu"
    for partial in ({}, {"size": 64}):
        unknown = dataclasses.replace(card, preprocess=partial)
        assert load_encoder(spec, "cpu", recorded=unknown).card.preprocess == card.preprocess


def test_a_file_of_either_activation_is_named_doubtful(files, tags):
    tags(first=SQUASH, second={**SQUASH, "quick_gelu": True})
    encoder = load_encoder(f"{ARCH}/{files / 'weights.pt'}", "cpu")
    assert encoder.card.activation == "standard"
    assert "the weights of second need QuickGELU" in encoder.notes[1]


def test_an_encoder_is_printed_in_one_line(tiny_teacher):
    assert repr(tiny_teacher) == f"Encoder('{ARCH}/random:0', dim=128, device='cpu')"
    assert torch.nn.Module.__repr__(tiny_teacher.image_model).count("\n") > 20
