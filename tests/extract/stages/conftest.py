"""Small sources for the stages of extraction."""

import json

import pytest

from dimefm.data import open_rows


@pytest.fixture
def write_captions(tmp_path):
    """Return ``write(captions_of_rows)``, which makes a shard with these captions in each row."""

    def write(captions_of_rows):
        lines = []
        for number, captions in enumerate(captions_of_rows):
            lines.append(json.dumps({"key": f"k{number}", "captions": captions}) + "\n")
        path = tmp_path / "captions.jsonl"
        path.write_text("".join(lines))
        (shard,) = open_rows([path], "text").shards
        return shard

    return write


@pytest.fixture
def photo_shard(tmp_path, picture):
    """Return a shard of five photos, of which number 2 is damaged."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        data = picture(number, (40 + 10 * number, 90 - 10 * number))
        if number == 2:
            data = data[:60]
        (folder / f"{number}.png").write_bytes(data)
    (shard,) = open_rows([folder], "image").shards
    return shard
