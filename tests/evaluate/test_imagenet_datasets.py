"""ImageNet and its variants on disk: every published layout, small, with labels that sorting by
name would get wrong.
"""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from dimefm.errors import DataError
from dimefm.evaluate.benchmark import card_for, load, suite
from dimefm.evaluate.datasets import class_names
from dimefm.evaluate.datasets.layouts import find
from tests.evaluate.datasets import image, level, parquet, tar, write

NAMES = ["imagenet-1k", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-v2", "objectnet"]
IMAGENET = load("imagenet-1k")
WORDNET = {  # class -> the name that WordNet, and so Hugging Face, gives it
    0: "tench, Tinca tinca",
    7: "cock",
    134: "crane",
    263: "Pembroke, Pembroke Welsh corgi",
    264: "Cardigan, Cardigan Welsh corgi",
    474: "cardigan",
    494: "chime, bell, gong",
    517: "crane",
    577: "gong, tam-tam",
    657: "missile",
    744: "projectile, missile",
    836: "sunglass",
    837: "sunglasses, dark glasses, shades",
}


def scored(root, **options):
    """Return {gray level of the image: class number} of the one dataset in a folder, and it."""
    (dataset,), _ = find(root, suite("imagenet"), **options)
    rows, labels, _ = dataset.rows()
    numbers = {level(row) // 10: int(label) for row, label in zip(rows, labels, strict=True)}
    return numbers, dataset


def folders(root, *names):
    """Write an image, 10 times its place bright, to each class folder."""
    for place, name in enumerate(names):
        write(root / name / f"{place}.png", image(10 * place))


def test_the_suite_has_the_published_sets():
    assert suite("imagenet") == NAMES
    sizes = {name: (len(load(name).classes), load(name).test) for name in NAMES}
    assert sizes == {
        "imagenet-1k": (1000, 50_000),
        "imagenet-a": (200, 7_500),
        "imagenet-r": (200, 30_000),
        "imagenet-sketch": (1000, 50_889),
        "imagenet-v2": (1000, 10_000),
        "objectnet": (113, 18_574),
    }
    for name in NAMES:
        assert load(name).templates == IMAGENET.templates and len(IMAGENET.templates) == 80
        assert load(name).metric == "accuracy"


def test_ids_of_every_class_are_sorted_and_among_the_1000():
    ids = [identity for (identity,) in IMAGENET.wnids]
    assert ids == sorted(set(ids)) and len(ids) == 1000
    for name in ("imagenet-a", "imagenet-r"):
        own = [identity for (identity,) in load(name).wnids]
        assert own == sorted(set(own)) and set(own) < set(ids)
    of_objects = [identity for group in load("objectnet").wnids for identity in group]
    assert len(of_objects) == len(set(of_objects)) == 125 and set(of_objects) < set(ids)


def test_own_names_differ_from_the_1000_where_the_released_evaluation_differs():
    def folded(names):
        return {name.lower() for name in names}

    others = {}
    for name in ("imagenet-r", "imagenet-a", "objectnet"):
        others[name] = folded(load(name).classes) - folded(IMAGENET.classes)
    assert {name: len(names) for name, names in others.items()} == {
        "imagenet-r": 19,
        "imagenet-a": 10,
        "objectnet": 52,
    }
    assert "hammerhead" in others["imagenet-r"] and "nail" in others["imagenet-a"]


def test_names_open_clip_has_too():
    metadata = pytest.importorskip("open_clip.zero_shot_metadata")
    assert IMAGENET.classes == tuple(metadata.IMAGENET_CLASSNAMES)
    filled = [template.replace("{}", "cat") for template in IMAGENET.templates]
    assert filled == [template("cat") for template in metadata.OPENAI_IMAGENET_TEMPLATES]


@pytest.mark.parametrize("name", ["imagenet-v2", "imagenet-1k", "imagenet-sketch"])
def test_folders_that_are_numbers_are_taken_as_numbers(tmp_path, name):
    folders(tmp_path / name, "0", "1", "2", "10", "100", "999")
    numbers, dataset = scored(tmp_path)
    assert numbers == {0: 0, 1: 1, 2: 2, 3: 10, 4: 100, 5: 999}
    assert "labels taken by number in the card's order" in dataset.note
    assert dataset.note.startswith("6 of 1000 classes; 6 of")


def test_the_archive_of_imagenet_v2_is_read_as_it_is_unpacked(tmp_path):
    folders(tmp_path / "imagenetv2-matched-frequency-format-val", "0", "10", "2")
    folders(tmp_path / "other/imagenetv2/imagenetv2-matched-frequency-format-val", "0", "10", "2")
    for root in (tmp_path, tmp_path / "other"):
        assert scored(root)[0] == {0: 0, 1: 10, 2: 2}


@pytest.mark.parametrize("name", ["imagenet-r", "imagenet-a", "imagenet-sketch", "imagenet-1k"])
def test_wordnet_ids_name_the_folders(tmp_path, name):
    ids = [load(name).wnids[place][0] for place in (3, 0, 150)]
    folders(tmp_path / name, *ids)
    write(tmp_path / name / ".DS_Store", b"x")
    write(tmp_path / name / "__MACOSX/n00000000/x.png", image(0))
    write(tmp_path / name / "README.txt", "renditions")
    numbers, dataset = scored(tmp_path)
    assert numbers == {0: 3, 1: 0, 2: 150}
    assert "no split folders" not in dataset.note


def test_imagenet_as_torchvision_leaves_it_is_scored_on_its_validation_images(tmp_path):
    folders(tmp_path / "imagenet/train", "n01440764", "n01443537")
    folders(tmp_path / "imagenet/val", "n01443537", "n15075141")
    write(tmp_path / "imagenet/meta.bin", b"\x80\x02not to be read")
    numbers, dataset = scored(tmp_path)
    assert numbers == {0: 1, 1: 999} and dataset.layout == "imagefolder"
    train, labels, _ = dataset.rows("train")
    assert len(train) == 2 and labels.tolist() == [0, 1]


@pytest.mark.parametrize("inner", ["ILSVRC/Data/CLS-LOC", "Data/CLS-LOC"])
def test_imagenet_as_kaggle_packs_it(tmp_path, inner):
    folders(tmp_path / "ilsvrc" / inner / "val", "n01443537")
    write(tmp_path / "ilsvrc" / inner / "test/ILSVRC2012_test_00000001.JPEG", image(0, "jpg"))
    assert scored(tmp_path)[0] == {0: 1}


def test_the_archive_of_imagenet_sketch_has_a_folder_inside(tmp_path):
    folders(tmp_path / "imagenet-sketch/sketch", "n01443537", "n01440764")
    assert scored(tmp_path)[0] == {0: 1, 1: 0}


@pytest.mark.parametrize("name", ["imagenet-r", "imagenet-a"])
def test_class_names_of_either_convention_name_the_folders(tmp_path, name):
    card = load(name)
    renamed = [place for place, own in enumerate(card.classes) if own not in IMAGENET.classes][:4]
    long_names = [IMAGENET.classes[IMAGENET.wnids.index(card.wnids[place])] for place in renamed]
    for convention, names in (
        ("own", [card.classes[place] for place in renamed]),
        ("masked", long_names),
    ):
        folders(tmp_path / convention / name, *[title.replace(" ", "_") for title in names])
        assert scored(tmp_path / convention)[0] == dict(enumerate(renamed))


def wds(folder, labels, names, split="test"):
    members = {}
    for place, label in enumerate(labels):
        members[f"s{place}.jpg"] = image(10 * place, "jpg")
        members[f"s{place}.cls"] = str(label).encode()
    tar(folder / split / "0.tar", members)
    write(folder / "classnames.txt", "\n".join(names) + "\n")
    templates = [template.replace("{}", "{c}") for template in IMAGENET.templates]
    write(folder / "zeroshot_classification_templates.txt", "\n".join(templates))


@pytest.mark.parametrize("name", NAMES)
def test_webdatasets_of_clip_benchmark(tmp_path, name):
    card = load(name)
    names = card.classes
    if name in ("imagenet-r", "imagenet-a"):
        by_id = dict(zip(IMAGENET.wnids, IMAGENET.classes, strict=True))
        names = [by_id[ids] for ids in card.wnids]
    folder = {
        "imagenet-1k": "wds_imagenet1k",
        "imagenet-v2": "wds_imagenetv2",
        "imagenet-sketch": "wds_imagenet_sketch",
    }.get(name, f"wds_{name}")
    wds(tmp_path / folder, [7, 0, 112], names)
    numbers, dataset = scored(tmp_path)
    assert numbers == {0: 7, 1: 0, 2: 112} and dataset.benchmark.name == name
    assert dataset.benchmark.classes == card.classes and "by number" not in dataset.note


def test_class_names_in_another_order_are_followed(tmp_path):
    card = load("imagenet-a")
    wds(tmp_path / "wds_imagenet-a", [0, 1], card.classes[::-1])
    assert scored(tmp_path)[0] == {0: 199, 1: 198}


def test_a_list_of_other_classes_is_not_imagenet(tmp_path):
    wds(tmp_path / "imagenet", [0, 1], ["zebra finch", "tench"])
    _, dataset = scored(tmp_path)
    assert dataset.benchmark.classes == ("zebra finch", "tench") and not dataset.benchmark.wnids


def test_parquet_of_hugging_face_names_classes_as_wordnet_does(tmp_path):
    names = list(IMAGENET.classes)
    for place, title in WORDNET.items():
        names[place] = title
    for split, labels in (("validation", list(WORDNET)), ("test", [-1] * len(WORDNET))):
        images = [image(10 * place) for place in range(len(WORDNET))]
        path = tmp_path / f"imagenet-1k/data/{split}-00000-of-00001.parquet"
        parquet(path, {"image": images, "label": labels}, names)
    numbers, _ = scored(tmp_path)
    assert numbers == dict(enumerate(WORDNET))
    shifted = [*names[1:], names[0]]
    with pytest.raises(DataError, match="not among the 1000 known"):
        class_names.numbers(
            shifted, IMAGENET.classes, IMAGENET.aliases, "x", positional=True, ids=IMAGENET.wnids
        )


def bordered(value, size=12):
    """Return a PNG with a red border of 2 pixels around a gray square."""
    picture = Image.new("RGB", (size, size), (255, 0, 0))
    picture.paste((value, value, value), (2, 2, size - 2, size - 2))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


OBJECTS = {  # published folder -> class
    "full_sized_towel": "bath towel",
    "hand_towel_or_rag": "dishrag or hand towel",
    "drying_rack_for_dishes": "drying rack for plates",
    "coffee_french_press": "coffee / french press",
    "butchers_knife": "butcher's knife",
    "t-shirt": "t-shirt",
}


@pytest.mark.parametrize("place", ["objectnet/images", "objectnet-1.0/images"])
def test_objectnet_as_it_is_published(tmp_path, place):
    folder = tmp_path / place
    for number, name in enumerate(OBJECTS):
        write(folder / name / "x.png", bordered(10 * number))
    write(folder / "squeegee/x.png", bordered(200))
    write(folder / "rake/x.png", bordered(210))
    write(folder.parent / "mappings/folder_to_objectnet_label.json", "{}")
    numbers, dataset = scored(tmp_path)
    classes = dataset.benchmark.classes
    found = [classes[numbers[place]] for place in range(len(OBJECTS))]
    assert found == list(OBJECTS.values()) and len(numbers) == len(OBJECTS)
    assert "2 folders of other classes left out" in dataset.note
    assert "border of 2 pixels cropped from PNG files" in dataset.note
    for row in dataset.rows()[0]:
        pixels = np.asarray(Image.open(io.BytesIO(row.image)))
        assert pixels.shape == (8, 8, 3) and len(np.unique(pixels)) == 1


def test_objectnet_selected_before_keeps_its_borders_and_copies_have_none(tmp_path):
    write(tmp_path / "a/objectnet/images_in1k/wok/x.png", bordered(0))
    numbers, dataset = scored(tmp_path / "a")
    assert numbers == {0: 112} and "borders in images_in1k not cropped" in dataset.note
    write(tmp_path / "b/objectnet/images/wok/x.jpg", image(0, "jpg"))
    (row,) = scored(tmp_path / "b")[1].rows()[0]
    assert row.image == image(0, "jpg")


def test_a_crop_changes_what_kept_features_are_found_by(tmp_path):
    write(tmp_path / "a/objectnet/images/wok/x.png", bordered(0))
    write(tmp_path / "b/objectnet/images_in1k/wok/x.png", bordered(0))
    digests = [scored(tmp_path / root)[1].rows()[0].shards[0].digest() for root in "ab"]
    assert digests[0] != digests[1]


def test_an_image_that_is_all_border_is_unreadable(tmp_path):
    write(tmp_path / "objectnet/images/wok/x.png", bordered(0, size=4))
    (dataset,), _ = find(tmp_path, ["objectnet"])
    with pytest.raises(Exception, match="4 x 4 pixels, all of them in its border of 2"):
        dataset.rows()[0][0]


@pytest.mark.parametrize(
    ("name", "folder_names", "words"),
    [
        ("imagenet-r", ["n01443537", "n99999999"], "'n99999999'; expected names like"),
        ("imagenet-r", ["n01440764"], "'n01440764'; expected names like"),
        ("imagenet-1k", ["n01443537", "goldfish"], "is not the only name of its class"),
        ("imagenet-1k", ["missile"], "may be any of the classes 657, 744"),
        ("imagenet-v2", ["0", "1000"], "lies outside 0..999"),
        ("imagenet-a", ["0", "200", "5", "201"], "lies outside 0..199"),
        ("objectnet", ["squeegee", "rake"], "none of its 2 class folders is a class of objectnet"),
    ],
)
def test_extra_and_duplicate_classes_are_one_line(tmp_path, name, folder_names, words):
    folders(tmp_path / name, *folder_names)
    with pytest.raises(DataError) as error:
        find(tmp_path, [name])
    line = str(error.value)
    assert words in line and "\n" not in line and len(line) <= 500 and "Fix: " in line


def test_empty_splits_are_one_line(tmp_path):
    (tmp_path / "imagenet-r").mkdir()
    (tmp_path / "imagenet/val/n01440764").mkdir(parents=True)
    for name in ("imagenet-r", "imagenet-1k"):
        with pytest.raises(DataError, match="no dataset in a known layout; looked for"):
            find(tmp_path, [name])


def test_no_other_card_is_taken_for_a_variant():
    assert card_for("imagenet-v2_20200101") == card_for("ImageNetV2") == "imagenet-v2"
    assert card_for("imagenet") == card_for("ILSVRC2012") == "imagenet-1k"
    assert card_for("imagenet-100") is None and card_for("tiny-imagenet-200") is None


def flat(folder, count=3):
    """Write the first validation images, 10 times their place bright, into one folder."""
    for place in range(count):
        name = f"ILSVRC2012_val_{place + 1:08d}.JPEG"
        write(folder / name, image(10 * place, "jpg"))


def kit(folder, numbers=("3", "1", "2")):
    """Write the two files of a development kit whose classes are in no order."""
    folder.mkdir(parents=True, exist_ok=True)
    types = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    synsets = np.array(
        [
            (1, "n02119789", "kit fox", 0),
            (2, "n02100735", "English setter", 0),
            (3, "n01751748", "sea snake", 0),
            (1001, "n00001740", "entity", 2),
        ],
        dtype=types,
    )
    savemat(folder / "meta.mat", {"synsets": synsets.reshape(-1, 1)})
    write(folder / "ILSVRC2012_validation_ground_truth.txt", "\n".join(numbers) + "\n")


SNAKE, FOX, SETTER = (
    IMAGENET.wnids.index((identity,)) for identity in ("n01751748", "n02119789", "n02100735")
)


@pytest.mark.parametrize("place", ["data", "devkit/data", "ILSVRC2012_devkit_t12/data", "."])
def test_validation_images_without_class_folders_are_labelled_by_the_kit(tmp_path, place):
    flat(tmp_path / "imagenet/val")
    kit(tmp_path / "imagenet" / place)
    numbers, dataset = scored(tmp_path)
    assert numbers == {0: SNAKE, 1: FOX, 2: SETTER} and dataset.layout == "imagenet-val"
    assert "labels of ILSVRC2012_validation_ground_truth.txt" in dataset.note


def test_validation_images_of_kaggle_are_labelled_by_its_solution(tmp_path):
    folder = tmp_path / "imagenet-object-localization-challenge"
    flat(folder / "ILSVRC/Data/CLS-LOC/val")
    folders(folder / "ILSVRC/Data/CLS-LOC/train", "n02119789")
    lines = [
        "ImageId,PredictionString",
        "ILSVRC2012_val_00000002,n02119789 1 2 3 4 n02119789 5 6 7 8 ",
        "ILSVRC2012_val_00000001,n01751748 111 108 396 337 ",
        "ILSVRC2012_val_00000003,n02100735 0 0 10 10",
    ]
    write(folder / "LOC_val_solution.csv", "\n".join(lines))
    assert scored(tmp_path)[0] == {0: SNAKE, 1: FOX, 2: SETTER}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: None, "its images lie in no class folders, and there are no labels"),
        (lambda folder: kit(folder, ["3", "1"]), "00000003.JPEG: has no label"),
        (lambda folder: kit(folder, ["3", "1", "1002"]), "line 3: '1002' is no class"),
        (
            lambda folder: (kit(folder), (folder / "meta.mat").unlink()),
            "which is not next to it; expected both",
        ),
        (
            lambda folder: (kit(folder), write(folder / "meta.mat", b"\x80\x04pickle")),
            "meta.mat: cannot be read",
        ),
        (
            lambda folder: write(folder / "LOC_val_solution.csv", "ImageId\nILSVRC,3"),
            "line 2: expected 'ILSVRC2012_val_NUMBER,WORDNET_ID BOX'",
        ),
        (
            lambda folder: (kit(folder), write(folder / "val/cat.jpg", image(0, "jpg"))),
            "cat.jpg: has no label",
        ),
    ],
    ids=["none", "too few", "unknown", "no meta", "damaged meta", "damaged csv", "other image"],
)
def test_validation_images_without_usable_labels_are_one_line(tmp_path, spoil, words):
    flat(tmp_path / "imagenet/val")
    spoil(tmp_path / "imagenet")
    with pytest.raises(DataError) as error:
        find(tmp_path, ["imagenet-1k"])
    line = str(error.value)
    assert words in line and "\n" not in line and len(line) <= 500 and "Fix: " in line
