"""Small data sets in every layout, whose class order is shuffled, so that only matching by name can
be right.
"""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dimefm.evaluate.benchmark import load
from dimefm.evaluate.datasets.layouts import find

CIFAR = load("cifar-10").classes
SHUFFLED = ["truck", "Cat", "air_plane", "ship", "bird", "deer", "DOG", "frog", "horse", "car"]
USUAL = ["truck", "cat", "airplane", "ship", "bird", "deer", "dog", "frog", "horse", "automobile"]


def image(value, kind="png"):
    """Return an encoded image whose gray level tells which row it is."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(
        file, "JPEG" if kind == "jpg" else kind.upper()
    )
    return file.getvalue()


def level(row):
    return Image.open(io.BytesIO(row.image)).getpixel((4, 4))[0]


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))


def parquet(path, columns, names=None, column="label"):
    table = pa.table(columns)
    if names is not None:
        feature = {"names": names, "_type": "ClassLabel"}
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": {column: feature}}})}
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def only(root, **options):
    datasets, _ = find(root, **options)
    (dataset,) = datasets
    return dataset


def truth(rows, labels, expected):
    """Check that the image with gray level 10 * i has class name ``expected[i]``, whatever order
    the rows come in.
    """
    found = {level(row) // 10: CIFAR[label] for row, label in zip(rows, labels, strict=True)}
    assert found == dict(enumerate(expected))
