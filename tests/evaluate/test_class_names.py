"""Names of classes that are alike: told apart by letter, place or number, or else refused."""

import pytest

from dimefm.errors import DataError
from dimefm.evaluate.datasets.class_names import numbers
from dimefm.evaluate.datasets.layouts import find
from tests.evaluate.datasets import image, parquet, write


def matched(names, classes, aliases=None, positional=False):
    return numbers(names, classes, aliases or {}, "here", positional=positional).tolist()


@pytest.mark.parametrize(
    ("names", "classes", "expected"),
    [
        (["a", "A"], ["A", "a"], [1, 0]),
        (["C", "C#", "C++"], ["C++", "C#", "C"], [2, 1, 0]),
        (["c", "c#", "c++"], ["C++", "C#", "C"], [2, 1, 0]),
        (["Sea_side", "sea side"], ["sea side", "Sea side"], [1, 0]),
        (["straße", "strasse"], ["Strasse", "Straße"], [1, 0]),
        (["missile", "missile", "cat"], ["missile", "missile", "cat"], [0, 1, 2]),
        (["polka_dotted"], ["Polka-dotted", "dotted"], [0]),
        (["car"], ["automobile", "cat"], [0]),
        (["1", "2"], ["cat", "dog"], [0, 1]),
        (["1", "2"], ["2", "1"], [1, 0]),
    ],
)
def test_names_that_can_be_told_apart(names, classes, expected):
    assert matched(names, classes, {"car": "automobile"}) == expected


@pytest.mark.parametrize(
    ("names", "classes", "words"),
    [
        (["missile"], ["missile", "missile", "cat"], "'missile' may be any of the classes 0, 1"),
        (["missile", "cat", "missile"], ["missile", "missile", "cat"], "may be any of"),
        (["a"], ["A", "Á", "a.", "a!"], None),
        (["A-B"], ["a_b", "a b"], "may be any of the classes 0, 1"),
        (["cat", "Cat"], ["cat", "dog"], "'cat' is not the only name of its class"),
        (["car", "automobile"], ["automobile", "dog"], "not the only name"),
        (["zebra"], ["cat", "dog"], "1 class names are not among the 2 known: 'zebra'"),
        (["1" * 5_000], ["cat", "dog"], "a label has 5,000 digits"),
        (["\x1b[2J" * 99], ["cat", "dog"], r"\\u001b\[2J"),
    ],
)
def test_names_that_cannot_be_told_apart_are_refused(names, classes, words):
    if words is None:
        assert matched(names, classes) == [0]
        return
    with pytest.raises(DataError, match=words) as caught:
        matched(names, classes, {"car": "automobile"})
    assert len(str(caught.value)) <= 500
    assert str(caught.value).isprintable()


def test_a_list_that_says_what_the_numbers_mean_may_hold_a_name_twice():
    classes = ["missile", "missile", "tabby cat", "sunglasses", "sunglasses"]
    stated = ["missile", "projectile, missile", "tabby", "sunglass", "sunglasses, dark glasses"]
    assert matched(stated, classes, positional=True) == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="not among the 5 known"):
        matched(stated, classes)
    with pytest.raises(DataError):
        matched([*stated[2:], *stated[:2]], classes, positional=True)


def test_many_names_are_matched_in_one_pass():
    classes = [f"Thing {number}" for number in range(50_000)]
    names = [f"thing_{number}" for number in reversed(range(50_000))]
    assert matched(names, classes) == list(reversed(range(50_000)))


def test_class_folders_are_the_classes_of_a_folder_of_ones_own(tmp_path):
    for split, name in (
        ("test", "sea_side"),
        ("test", "Old town"),
        ("train", "harbor"),
        ("test", ".ipynb_checkpoints"),
        ("test", "@eaDir"),
        ("train", "__MACOSX"),
        ("test", "empty"),
    ):
        (tmp_path / "trip" / split / name).mkdir(parents=True)
        if name != "empty":
            write(tmp_path / f"trip/{split}/{name}/1.png", image(9))
    write(tmp_path / "trip/test/sea_side/._1.png", b"\0\5\x16\7")
    dataset = find(tmp_path, ["trip"])[0][0]
    assert len(dataset.rows()[1]) == 2
    assert dataset.benchmark.classes == ("Old town", "harbor", "sea side")
    assert "class names are those of the folders" in dataset.note


@pytest.mark.parametrize("pair", [("sea_side", "sea side"), ("Sea_side", "sea side"), ("a", "A")])
def test_folders_that_differ_by_a_mark_or_case_are_two_classes(tmp_path, pair):
    for number, name in enumerate(pair):
        write(tmp_path / f"trip/test/{name}/{number}.png", image(10 * number))
    dataset = find(tmp_path, ["trip"])[0][0]
    assert sorted(dataset.rows()[1].tolist()) == [0, 1]


def test_labels_of_text_tell_classes_apart_by_letter(tmp_path):
    write(tmp_path / "code/classnames.txt", "C++\nC#\nC\nGo\n")
    labels = ["Go", "C", "C#", "C++"]
    parquet(tmp_path / "code/test.parquet", {"image": [image(0)] * 4, "label": labels})
    assert find(tmp_path, ["code"])[0][0].rows()[1].tolist() == [3, 2, 1, 0]
