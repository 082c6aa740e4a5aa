"""From raw pairs to a small CLIP: one source of pairs gives both caches, and both towers learn from
them; then it scores.
"""

import io
import json
import tarfile

import pytest
from click.testing import CliRunner
from PIL import Image

from dimefm.cli import main

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
TEACHER = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": TEXT,
}
STUDENT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": TEXT,
}
COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 200, 30),
    "blue": (20, 40, 230),
    "white": (245, 245, 245),
}


def dimefm(*words):
    """Run the command line in this process; return its output, and fail with it when it did not end
    well.
    """
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, f"{' '.join(map(str, words))}\n{result.output}"
    return result.output


def jpeg(colour):
    file = io.BytesIO()
    Image.new("RGB", (36, 40), colour).save(file, "png")
    return file.getvalue()


def tar(root):
    """Write 16 pairs, of which row 5 has no sentence and row 9 no readable image; return what to
    name.
    """
    with tarfile.open(root / "pairs.tar", "w") as file:
        for number in range(16):
            name = list(COLOURS)[number % 4]
            members = {"png": jpeg(COLOURS[name]), "txt": f"a {name} thing {number}".encode()}
            members |= {"txt": b""} if number == 5 else {}
            members |= {"png": b"no image"} if number == 9 else {}
            for ending, content in members.items():
                entry = tarfile.TarInfo(f"{number:03d}.{ending}")
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
    return "pairs.tar"


def table(root):
    """Write the same as a table of image files; return what to name."""
    lines = []
    for number in range(16):
        name = list(COLOURS)[number % 4]
        (root / f"{number}.png").write_bytes(b"no image" if number == 9 else jpeg(COLOURS[name]))
        lines.append(f"{number}.png,{'' if number == 5 else f'a {name} thing {number}'}\n")
    (root / "pairs.csv").write_text("filepath,title\n" + "".join(lines))
    return "pairs.csv"


@pytest.mark.parametrize("source", [tar, table])
def test_pairs_to_caches_to_a_small_clip_to_a_score(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = source(tmp_path)
    for name, config in (("teacher", TEACHER), ("student", STUDENT)):
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
    short = ("--steps", 4, "--batch-size", 8, "--device", "cpu", "--log-every", 1)
    losses = 'losses={"clip.contrastive"={weight=1.0}}'
    dimefm(
        "train",
        "--images",
        pairs,
        "--text",
        "student",
        "--student",
        "teacher.json",
        "--no-vl-loss",
        "--set",
        losses,
        *short,
        "--out",
        "teacher",
    )
    dimefm(
        "extract-features",
        "--teacher",
        "teacher",
        "--images",
        pairs,
        "--texts",
        pairs,
        "--device",
        "cpu",
        "--out",
        "cache",
    )
    losses = '"clip_kd.crd"={weight=1.0},"clip_kd.icl"={weight=1.0},"clip_kd.fd"={weight=2000}'
    dimefm(
        "train",
        "--images",
        pairs,
        "--image-cache",
        "cache/images",
        "--text-cache",
        "cache/texts",
        "--text",
        "student",
        "--student",
        "student.json",
        "--crops",
        "center",
        "--no-vl-loss",
        "--set",
        f"losses={{{losses}}}",
        *short,
        "--out",
        "small",
    )
    record = json.loads((tmp_path / "small/run.json").read_text())
    assert record["kind"] == "clip" and record["teacher"]["name"] == "teacher"
    assert record["rows"] == 14
    lines = [json.loads(line) for line in (tmp_path / "small/log.jsonl").read_text().splitlines()]
    assert lines[-1]["bad_rows"] == 0
    assert {"clip_kd.crd", "clip_kd.icl", "clip_kd.fd", "cosine", "text_cosine"} <= set(lines[-1])
    if (
        source is table
    ):  # its images have other keys than its sentences, so retrieval cannot pair them
        return
    dimefm(
        "extract-features",
        "--teacher",
        "small",
        "--images",
        pairs,
        "--texts",
        pairs,
        "--device",
        "cpu",
        "--out",
        "scored",
    )
    assert "R@1" in dimefm(
        "eval", "retrieval", "--images", "scored/images", "--texts", "scored/texts"
    )
