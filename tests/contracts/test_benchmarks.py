"""What every benchmark card keeps, and that the 20 of ELEVATER have the published counts."""

import itertools
import re
from collections import Counter

import pytest

from dimefm import plugins
from dimefm.evaluate.benchmark import card_for, load, prompts, suite
from dimefm.evaluate.datasets.class_names import normalize, numbers
from dimefm.evaluate.metrics import METRICS

# name: train images, test images, classes, prompts, metric (spec/dime_fm_elevater.md, 3.1)
ELEVATER = {
    "caltech-101": (3060, 6084, 102, 34, "mean_per_class"),
    "cifar-10": (50000, 10000, 10, 18, "accuracy"),
    "cifar-100": (50000, 10000, 100, 18, "accuracy"),
    "country211": (31650, 21100, 211, 5, "accuracy"),
    "dtd": (1880, 1880, 47, 8, "accuracy"),
    "eurosat_clip": (5000, 5000, 10, 3, "accuracy"),
    "fer-2013": (28709, 3589, 7, 6, "accuracy"),
    "fgvc-aircraft-2013b-variants102": (3334, 3333, 100, 2, "mean_per_class"),
    "food-101": (75750, 25250, 101, 1, "accuracy"),
    "gtsrb": (26640, 12630, 43, 3, "accuracy"),
    "hateful-memes": (8500, 500, 2, 1, "roc_auc"),
    "kitti-distance": (6347, 711, 4, 1, "accuracy"),
    "mnist": (60000, 10000, 10, 1, "accuracy"),
    "oxford-flower-102": (1020, 6149, 102, 1, "mean_per_class"),
    "oxford-iiit-pets": (3680, 3669, 37, 1, "mean_per_class"),
    "patch-camelyon": (262144, 32768, 2, 1, "accuracy"),
    "rendered-sst2": (6920, 1821, 2, 1, "accuracy"),
    "resisc45_clip": (3150, 25200, 45, 18, "accuracy"),
    "stanford-cars": (8144, 8041, 196, 8, "accuracy"),
    "voc-2007-classification": (2501, 4952, 20, 1, "map_11_point"),
}


@pytest.fixture(params=plugins.names("benchmarks"))
def benchmark(request):
    return load(request.param)


def names_that_stand_twice(benchmark):
    """Return how often a class name stands again: in OpenAI's list for ImageNet only."""
    again = Counter(benchmark.classes) - Counter(set(benchmark.classes))
    if len(benchmark.classes) == 1000:
        assert again == {"missile": 1, "sunglasses": 1}
    else:
        assert not again
    return again


def test_every_template_has_one_place_for_the_name(benchmark):
    assert benchmark.templates
    assert all(template.count("{}") == 1 for template in benchmark.templates)
    assert not any("{c}" in template for template in benchmark.templates)


def test_prompts_are_all_different_and_filled(benchmark):
    found = prompts(benchmark)
    assert [len(of_class) for of_class in found] == [len(benchmark.templates)] * len(
        benchmark.classes
    )
    everything = list(itertools.chain(*found))
    twice = sum(names_that_stand_twice(benchmark).values())
    assert len(set(everything)) == len(everything) - twice * len(benchmark.templates)
    assert not any("{}" in prompt for prompt in everything)


def test_class_names_stay_apart_when_normalised(benchmark):
    names = [normalize(name) for name in benchmark.classes]
    assert len(set(names)) == len(names) - sum(names_that_stand_twice(benchmark).values())
    assert numbers(
        benchmark.classes, benchmark.classes, benchmark.aliases, "card"
    ).tolist() == list(range(len(names)))


def test_aliases_lead_to_classes(benchmark):
    assert set(benchmark.aliases.values()) <= set(benchmark.classes)
    for alias, name in benchmark.aliases.items():
        assert numbers([alias], benchmark.classes, benchmark.aliases, "card") == [
            benchmark.classes.index(name)
        ]


def test_metric_exists_and_fits(benchmark):
    assert benchmark.metric in METRICS
    assert benchmark.multilabel == (benchmark.metric == "map_11_point")


def test_source_and_title_are_stated(benchmark):
    head = plugins.path("benchmarks", benchmark.name).read_text(encoding="utf-8").split("\n\n")[0]
    assert all(line.startswith("#") for line in head.split("\n"))
    assert names_source_and_licence(benchmark.source) and benchmark.title


def names_source_and_licence(source):
    """Say whether every part of ``PART; PART`` is a source, by address or name, and its licence."""
    pattern = r"[^()]*[A-Za-z][^()]* \([^()]*[A-Za-z][^()]*\)"
    return all(re.fullmatch(pattern, part) for part in source.split("; "))


@pytest.mark.parametrize(
    ("source", "enough"),
    [
        ("https://example.org/shapes (CC0)", True),
        ("Doe et al. 2024, Shapes, table 3 (no licence stated)", True),
        ("OpenAI CLIP data/prompts.md (MIT); splits: https://example.org (CC BY 4.0)", True),
        ("https://example.org/shapes", False),
        ("OpenAI CLIP data/prompts.md (MIT); splits: https://example.org", False),
        ("MIT", False),
        ("(MIT)", False),
        ("Doe et al. (2024)", False),
        ("", False),
    ],
)
def test_a_source_has_a_name_and_any_licence(source, enough):
    assert names_source_and_licence(source) == enough


def test_no_other_card_claims_the_same_folder(benchmark):
    for folder in (benchmark.name, *benchmark.folders):
        assert card_for(folder) == card_for(f"{folder}_20211007".upper()) == benchmark.name


def test_the_suite_has_the_published_counts():
    found = {
        name: (card.train, card.test, len(card.classes), len(card.templates), card.metric)
        for name, card in ((name, load(name)) for name in suite())
    }
    assert found == ELEVATER
    assert sum(counts[0] for counts in found.values()) == 638_429
    assert sum(counts[1] for counts in found.values()) == 192_677
    assert sum(counts[2] for counts in found.values()) == 1_151


def test_the_known_traps():
    caltech = load("caltech-101").classes
    assert (caltech[4], caltech[37], caltech[38]) == (
        "background",
        "centered face",
        "off-center face",
    )
    assert load("fer-2013").classes == (
        "angry",
        "disgusted",
        "fearful",
        "happy",
        "neutral",
        "sad",
        "surprised",
    )
    assert load("patch-camelyon").templates == ("this is a photo of {}",)
    assert load("cifar-100").classes[:3] == ("chimpanzee", "trout", "skunk")
    assert load("stanford-cars").classes[6] == "AM General Hummer SUV 2000"
    assert [name for name in suite() if not load(name).crop] == ["kitti-distance"]
    assert card_for("wds_voc2007") is None
