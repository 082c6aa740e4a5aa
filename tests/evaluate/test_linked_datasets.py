"""A dataset's folder may be a link, as on clusters; what lies in it may not lead out of it."""

import io
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dimefm.errors import BadRow, DataError
from dimefm.evaluate.benchmark import load
from dimefm.evaluate.datasets.layouts import find

CIFAR = load("cifar-10").classes


def image(value: int) -> bytes:
    """Return an encoded image whose gray level tells which row it is."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def folders(place: Path) -> None:
    for number, name in enumerate(CIFAR):
        (place / "test" / name).mkdir(parents=True)
        (place / "test" / name / "x.png").write_bytes(image(number))


def table(place: Path) -> None:
    place.mkdir(parents=True)
    pq.write_table(
        pa.table({"image": [image(number) for number in range(10)], "label": CIFAR}),
        place / "test.parquet",
    )


def index(place: Path) -> None:
    place.mkdir(parents=True)
    (place / "labels.txt").write_text("\n".join(CIFAR))
    with zipfile.ZipFile(place / "test.zip", "w") as file:
        for number in range(10):
            file.writestr(f"{number}.png", image(number))
    (place / "test.txt").write_text(
        "".join(f"test.zip@{number}.png {number}\n" for number in range(10))
    )


@pytest.mark.parametrize("layout", [folders, table, index])
@pytest.mark.parametrize("inner", ["", "classification/"])
def test_a_link_to_a_dataset_is_the_dataset(tmp_path, layout, inner):
    layout(tmp_path / "big/set")
    (tmp_path / f"datasets/{inner}").mkdir(parents=True)
    (tmp_path / f"datasets/{inner}cifar-10").symlink_to(tmp_path / "big/set")
    (dataset,), _ = find(tmp_path / "datasets")
    rows, labels, names = dataset.rows()
    found = {
        names[label]: Image.open(io.BytesIO(row.image)).getpixel((4, 4))[0]
        for row, label in zip(rows, labels, strict=True)
    }
    assert found == {name: number for number, name in enumerate(CIFAR)}


def test_the_folder_of_all_datasets_may_be_a_link_too(tmp_path):
    folders(tmp_path / "big/cifar-10")
    (tmp_path / "datasets").symlink_to(tmp_path / "big")
    assert [each.benchmark.name for each in find(tmp_path / "datasets")[0]] == ["cifar-10"]


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("which", ["test", "test.parquet", "test/cat"])
def test_a_link_inside_a_dataset_that_leads_out_is_refused(tmp_path, linked, which):
    (table if which == "test.parquet" else folders)(tmp_path / "elsewhere")
    (tmp_path / "datasets").mkdir()
    place = tmp_path / ("big/set" if linked else "datasets/cifar-10")
    if linked:
        (tmp_path / "datasets/cifar-10").symlink_to(place)
    (place / which).parent.mkdir(parents=True)
    (place / which).symlink_to(tmp_path / "elsewhere" / which)
    says = (
        "is a link to a folder, which is not followed"
        if which == "test/cat"
        else "is a link that leads outside"
    )
    with pytest.raises(DataError, match=says):
        find(tmp_path / "datasets")


@pytest.mark.parametrize("linked", [False, True])
def test_a_linked_image_and_a_path_in_an_index_that_lead_out_are_refused(tmp_path, linked):
    (tmp_path / "secret.png").write_bytes(image(99))
    big, root = tmp_path / "big", tmp_path / "datasets"
    root.mkdir()
    if linked:
        (root / "cifar-10").symlink_to(big / "folders")
        (root / "mnist").symlink_to(big / "index")
    else:
        big.symlink_to(root)
    places = [big / "folders", big / "index"] if linked else [root / "cifar-10", root / "mnist"]
    folders(places[0])
    (places[0] / "test/cat/x.png").unlink()
    (places[0] / "test/cat/x.png").symlink_to(tmp_path / "secret.png")
    (dataset,), _ = find(root, ["cifar-10"])
    rows, labels, names = dataset.rows()
    with pytest.raises(BadRow, match="is a link that leads outside"):
        rows[[names[label] for label in labels].index("cat")]
    places[1].mkdir()
    (places[1] / "labels.txt").write_text("\n".join(load("mnist").classes))
    (places[1] / "test.txt").write_text("../../secret.png 0\n")
    with pytest.raises(DataError, match="leads outside"):
        find(root, ["mnist"])[0][0].rows()[0][0]
