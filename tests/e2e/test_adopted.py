"""Features that another program left as .npy files: adopted, proven against their teacher, and
trained on.
"""

import json

import numpy as np
from click.testing import CliRunner

from dimefm.cache import FeatureCache
from dimefm.cli import main

TEACHER = "ResNet-mini-64/random:0"


def dimefm(*words):
    """Run the command line in this process; return its output, and fail with it when it did not end
    well.
    """
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, f"{' '.join(map(str, words))}\n{result.output}"
    return result.output


def test_adopted_features_are_verified_and_trained_on(tmp_path, picture):
    (tmp_path / "photos").mkdir()
    for i in range(24):
        (tmp_path / f"photos/{i:02d}.png").write_bytes(picture(i))
    (tmp_path / "sentences.txt").write_text("".join(f"picture number {i}\n" for i in range(20)))
    raw = {"image": tmp_path / "photos", "text": tmp_path / "sentences.txt"}
    dimefm(
        "extract-features",
        "--teacher",
        TEACHER,
        "--images",
        raw["image"],
        "--texts",
        raw["text"],
        "--out",
        tmp_path / "own",
    )
    for kind, source in raw.items():
        rows = FeatureCache(tmp_path / f"own/{kind}s")[:].astype(np.float32)
        np.save(tmp_path / f"{kind}.npy", 3 * rows)
        out = tmp_path / f"adopted/{kind}s"
        said = dimefm(
            "cache",
            "adopt",
            tmp_path / f"{kind}.npy",
            "--kind",
            kind,
            "--rows-of",
            source,
            "--teacher",
            TEACHER,
            "--out",
            out,
        )
        assert "not unit length" in said
        said = dimefm(
            "cache", "verify", out, "--sha256", "--against-teacher", 8, f"--{kind}s", source
        )
        assert (
            "8 rows encoded again: cosine at least 1.0000" in said
            or "cosine at least 0.9999" in said
        )
    caches = (
        "--image-cache",
        tmp_path / "adopted/images",
        "--text-cache",
        tmp_path / "adopted/texts",
    )
    small = (
        "--student",
        "ResNet-mini-32",
        "--batch-size",
        8,
        "--steps",
        2,
        "--log-every",
        1,
        "--device",
        "cpu",
    )
    dimefm(
        "train",
        "--images",
        raw["image"],
        *caches,
        *small,
        "--crops",
        "center",
        "--out",
        tmp_path / "run",
    )
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert (
        record["teacher"]["weights_sha256"]
        == FeatureCache(tmp_path / "own/images").manifest.encoder.weights_sha256
    )
    assert record["rows"] == 24
