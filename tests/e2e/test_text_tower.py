"""A text tower for the image features of a real CLIP: learnt from captions, scored on photos that
it never met.
"""

import json

import pytest
from click.testing import CliRunner

from dimefm.cli import main

STUDENT = {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}


def dimefm(*words):
    """Run the command line in this process; return its output, and fail with it when it did not end
    well.
    """
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, f"{' '.join(map(str, words))}\n{result.output}"
    return result.output


@pytest.fixture(scope="module")
def photos(shared_data, tmp_path_factory):
    """Return the folder of real features, and a cache that adopts those of its photos."""
    source, out = shared_data / "features/flickr8k_clip_vitb32", tmp_path_factory.mktemp("photos")
    known = ("--encoder-name", "ViT-B-32/openai", "--logit-scale", 100)
    keys = ("--keys", source / "image_keys.txt")
    dimefm(
        "cache",
        "adopt",
        source / "image_features.npy",
        "--kind",
        "image",
        *keys,
        *known,
        "--out",
        out,
    )
    return source, out


def scores(run, source, images, out):
    """Return the recall in percent of the captions and photos that were not learnt from."""
    dimefm(
        "extract-features",
        "--teacher",
        run,
        "--texts",
        source / "captions.tsv",
        "--split",
        "0.8:1",
        "--out",
        out,
    )
    dimefm(
        "eval",
        "retrieval",
        "--images",
        images,
        "--texts",
        out / "texts",
        "--split",
        "0.8:1",
        "--out",
        out / "scores",
    )
    return json.loads((out / "scores/scores.json").read_text())


def test_captions_of_real_photos_teach_a_text_tower_to_find_others(photos, tmp_path):
    source, images = photos
    config = {
        "embed_dim": 512,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16},
        "text_cfg": STUDENT,
    }
    (tmp_path / "small.json").write_text(json.dumps(config))
    recipe = (
        "--text",
        f"student:{tmp_path / 'small.json'}",
        "--no-vl-loss",
        "--use-pvl-loss",
        "--lr",
        5e-3,
        "--warmup",
        1,
    )
    learn = (
        "--texts",
        source / "captions.tsv",
        "--split",
        "0:0.8",
        "--image-cache",
        images,
        *recipe,
    )
    for name, steps in (("early", 1), ("late", 60)):
        dimefm(
            "train",
            *learn,
            "--steps",
            steps,
            "--batch-size",
            128,
            "--device",
            "cpu",
            "--out",
            tmp_path / name,
        )
    early, late = (
        scores(tmp_path / name, source, images, tmp_path / f"of {name}")
        for name in ("early", "late")
    )
    assert early["split"] == [0.8, 1.0]
    assert late["scores"][0]["direction"] == "text to image"
    assert late["scores"][0]["recall"][2] > 5 * early["scores"][0]["recall"][2]
