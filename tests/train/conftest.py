"""A tiny world in which every row tells its own number: in the colour of its image and in the angle
of its feature.
"""

import base64
import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest
from dimefm.cache.writer import Bad
from dimefm.recipe import Recipe, read

DIM, TEXTS = 8, 9
TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
NOISY = {  # running statistics and random dropout: what a careless resume gets wrong
    "embed_dim": 8,
    "vision_cfg": {
        "timm_model_name": "test_resnet",
        "timm_pool": "",
        "timm_drop": 0.5,
        "image_size": 32,
    },
}


def png(number, size=(24, 20)):
    """Return an image of one colour that names ``number``."""
    file = io.BytesIO()
    Image.new("RGB", size, (number, 255 - number, 7)).save(file, "png")
    return file.getvalue()


class DistributedContext:
    """Two TSV shards of images, their features, features of sentences, and small students, in one
    folder.
    """

    def __init__(self, root, shards=(10, 7)):
        self.root, self.shards = root, shards
        self.names = [f"image_{i}.tsv" for i in range(len(shards))]
        self.tiny, self.noisy = root / "tiny.json", root / "noisy.json"
        self.tiny.write_text(json.dumps(TINY))
        self.noisy.write_text(json.dumps(NOISY))
        self.write_images()
        self.images()
        self.texts()

    def write_images(self, broken=()):
        """Write the image shards; rows numbered in ``broken`` keep their key but hold no image."""
        start = 0
        for name, rows in zip(self.names, self.shards, strict=True):
            lines = []
            for number in range(start, start + rows):
                image = b"no image" if number in broken else png(number)
                lines.append(f"k{number}\t{base64.b64encode(image).decode()}\n")
            (self.root / name).write_text("".join(lines))
            start += rows

    def cache(
        self, folder, kind, sources, quarantined=(), teacher="a", dim=DIM, scale=20.0, views=None
    ):
        """Write a cache whose row n, counted with its views and without holes, is the unit vector
        at an angle of (n + 1) / 50."""
        card = EncoderCard(f"teacher-{teacher}", teacher * 64, dim, scale)
        held = views and views.how()
        how = (
            {"decoder": "pil", "views": held}
            if kind == "image"
            else {"text_views": held}
            if held
            else {}
        )
        header = Manifest(kind, "hdf5", "float32", dim, True, card, how, {})
        per_image = 1 if views is None else views.count
        sources = [(name, rows * per_image) for name, rows in sources]
        writer, start = CacheWriter(self.root / folder, header, sources), 0

        def key(n):
            return f"k{n}" if views is None else f"k{n // per_image}#{n % per_image}"

        for name, rows in sources:
            kept = [n for n in range(start, start + rows) if n not in quarantined]
            bad = [
                Bad(n - start, key(n), "left out")
                for n in range(start, start + rows)
                if n in quarantined
            ]
            angles = (np.array(kept) + 1) / 50
            vectors = np.zeros((len(kept), dim), dtype=np.float32)
            vectors[:, 0], vectors[:, 1] = np.cos(angles), np.sin(angles)
            writer.write(name, [key(n) for n in kept], vectors, bad)
            start += rows
        writer.seal()
        return FeatureCache(self.root / folder)

    def images(self, folder="images", **options):
        """Write a cache of the images; see :meth:`cache`."""
        return self.cache(
            folder, "image", list(zip(self.names, self.shards, strict=True)), **options
        )

    def texts(self, folder="texts", **options):
        """Write a cache of the sentences; see :meth:`cache`."""
        return self.cache(folder, "text", [("sentences.txt", TEXTS)], **options)

    def second_teacher(self, images=(), texts=()):
        """Write caches of another teacher, of 6 dimensions and another scale, that lacks these
        rows; return what a recipe of both teachers says."""
        other = {"teacher": "b", "dim": 6, "scale": 35.0}
        self.images("images_b", quarantined=images, **other)
        self.texts("texts_b", quarantined=texts, **other)
        names = {"image_cache": ("images", "images_b"), "text_cache": ("texts", "texts_b")}
        return {
            name: [str(self.root / folder) for folder in folders] for name, folders in names.items()
        }

    def pairs(self, captions):
        """Write a table of images with one caption each; return its path."""
        for number in range(len(captions)):
            (self.root / f"{number}.png").write_bytes(png(number))
        path = self.root / "pairs.csv"
        path.write_text(
            "filepath,title\n" + "".join(f"{n}.png,{text}\n" for n, text in enumerate(captions))
        )
        return path

    def recipe(self, **over):
        """Return a recipe for this world: a few steps of DIME-FM's losses with the tiny student."""
        base = {
            "images": [str(self.root / "image_*.tsv")],
            "image_cache": str(self.root / "images"),
            "text_cache": str(self.root / "texts"),
            "student": str(self.tiny),
            "losses": {"dime.vl": {"weight": 0.7}, "dime.pvl": {"weight": 0.3}},
            "steps": 6,
            "batch_size": 5,
            "warmup": 0.5,
            "crops": "free",
            "resize": 0,
            "log_every": 1,
            "device": "cpu",
        }
        return read(None, **{**base, **over})

    def clip_recipe(self, **over):
        """Return a recipe that trains both towers on pairs."""
        both = {
            "text": "student",
            "losses": {"clip.contrastive": {"weight": 1.0}},
            "image_cache": (),
            "text_cache": (),
        }
        return self.recipe(**{**both, **over})

    def distilled_recipe(self, losses=None, count=12, quarantined=((), ()), views=None, **over):
        """Return a recipe that trains both towers on ``count`` pairs against cached features of
        another dimension.

        Image rows ``quarantined[0]`` and sentences ``quarantined[1]`` have no features. Sentence n
        says ``number n``.
        """
        for number in range(count):
            (self.root / f"{number}.png").write_bytes(png(number))
        table = self.root / "paired.csv"
        table.write_text(
            "key,filepath,title\n" + "".join(f"k{n},{n}.png,number {n}\n" for n in range(count))
        )
        source = [(table.name, count)]
        self.cache("paired_images", "image", source, quarantined[0], dim=6, views=views)
        self.cache("paired_texts", "text", source, quarantined[1], dim=6)
        caches = {
            "image_cache": str(self.root / "paired_images"),
            "text_cache": str(self.root / "paired_texts"),
        }
        mix = {
            "clip.contrastive": 1.0,
            "clip_kd.crd": 1.0,
            "clip_kd.icl": 1.0,
            "clip_kd.fd": 2000.0,
        }
        losses = losses or {name: {"weight": weight} for name, weight in mix.items()}
        return self.recipe(
            **{"images": [str(table)], "text": "student", "losses": losses, **caches, **over}
        )

    def sentences(self, per_row=0):
        """Write a table of the sentences ``row n``, or of ``per_row`` of each image with the keys
        of the images; return its path."""
        name, lines = "sentences.tsv", [f"k{n}\trow {n}\n" for n in range(TEXTS)]
        if per_row:
            name = "captions.tsv"
            lines = [
                f"k{n}#{j}\trow {n} again {j}\n"
                for n in range(sum(self.shards))
                for j in range(per_row)
            ]
        (self.root / name).write_text("".join(lines))
        return self.root / name

    def text_recipe(self, per_row=0, **over):
        """Return a recipe that trains the tiny text tower on its own features and any images, or
        with ``per_row`` on as many sentences of each image."""
        base = {
            "images": (),
            "texts": [str(self.sentences(per_row))],
            "text": f"student:{self.tiny}",
            "steps": 6,
        }
        base["student"] = Recipe().student
        if per_row:
            return self.recipe(
                **{
                    **base,
                    "text_cache": (),
                    "losses": {"clip.contrastive": {"weight": 1.0}},
                    **over,
                }
            )
        self.cache("tsv", "text", [("sentences.tsv", TEXTS)])
        return self.recipe(
            **{**base, "text_cache": str(self.root / "tsv"), "texts_per_step": 7, **over}
        )

    @staticmethod
    def numbers_of_pixels(pixels):
        """Return the row numbers that uint8 pixels [B, S, S, 3] tell, checking that each view is of
        one colour.
        """
        flat = np.asarray(pixels).reshape(len(pixels), -1, 3)
        assert (flat == flat[:, :1]).all()
        assert (flat[:, 0, 0].astype(int) + flat[:, 0, 1] == 255).all()
        return flat[:, 0, 0].tolist()

    @staticmethod
    def numbers_of_features(rows):
        """Return the row numbers that features [B, D] tell."""
        return [round(math.atan2(y, x) * 50) - 1 for x, y in np.asarray(rows)[:, :2]]


@pytest.fixture
def world(tmp_path):
    return DistributedContext(tmp_path)


@pytest.fixture(scope="session")
def make_world():
    return DistributedContext
