"""Retrieval from a model: recalls against clip-benchmark's definition, unreadable images and long
captions counted, embeddings kept, and examples that are true.
"""

import json

import numpy as np
import pytest
import torch

from dimefm.data import Row, Rows, Shard
from dimefm.errors import BadRow, DataError
from dimefm.evaluate import retrieval_model
from dimefm.evaluate.datasets.captions import PairSet
from dimefm.evaluate.retrieval_model import Compared, compare, evaluate_retrieval, result_of
from dimefm.extract.extract import Settings
from dimefm.runs.scores import read_results

SETTINGS = Settings(dtype="float32", batch_size=8, progress=False)


class Pictures(Shard):
    """Images in memory; None cannot be read."""

    def __init__(self, path, pictures):
        super().__init__(path, "pictures")
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        if self.pictures[index] is None:
            raise BadRow("is damaged")
        return Row(str(index), image=self.pictures[index])

    def keys(self):
        return [f"key {number}" for number in range(len(self))]

    def digest(self):
        return str(len(self.pictures))


@pytest.fixture
def pair_set(tmp_path, picture):
    pictures = [picture(seed) for seed in range(12)]
    pictures[5] = None
    captions = [[f"image {n} from {side}" for side in ("left", "right")] for n in range(12)]
    captions[3] = ["word " * 100]
    captions[7] = []
    return PairSet("mini", Rows([Pictures(tmp_path, pictures)]), captions)


def recalls_of_clip_benchmark(images, texts, image_of, k):
    """Recall at k as clip-benchmark 1.6.2 defines it: at least one positive in torch's top k."""
    scores = torch.from_numpy(texts) @ torch.from_numpy(images).T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), torch.from_numpy(image_of)] = True
    found = []
    for matrix, right in ((scores, positive), (scores.T, positive.T)):
        top = matrix.topk(k, dim=1).indices
        found.append(right.gather(1, top).any(dim=1).float().mean().item())
    return found


@pytest.mark.parametrize("per_image", [1, 5])
@pytest.mark.parametrize("seed", range(3))
def test_recalls_are_those_of_clip_benchmark(per_image, seed):
    random = np.random.default_rng(seed)
    images = retrieval_model.unit(random.normal(size=(40, 16)).astype(np.float32))
    image_of = np.repeat(np.arange(40), per_image)
    noise = random.normal(size=(len(image_of), 16)).astype(np.float32)
    texts = retrieval_model.unit(images[image_of] + 0.6 * noise)
    captions = [f"text {number}" for number in range(len(texts))]
    pairs = PairSet("x", [None] * 40, [[]] * 40)
    result = result_of(Compared(pairs, images, np.arange(40), texts, captions, image_of, 0), "all")
    for k in (1, 5, 10):
        expected = recalls_of_clip_benchmark(images, texts, image_of, k)
        found = [result.metrics[f"text to image R@{k}"], result.metrics[f"image to text R@{k}"]]
        assert found == pytest.approx(expected, abs=1e-6)
        assert 0 < found[0] < 1
    assert retrieval_model.mean_recall(result) == pytest.approx(np.mean([*result.metrics.values()]))


def test_equal_captions_of_several_images_are_ties_and_said_to_be(tmp_path):
    images = np.eye(4, dtype=np.float32)
    pairs = PairSet("x", [None] * 4, [[]] * 4)
    captions = ["the same", "the same", "third", "fourth"]
    texts = images[[0, 0, 2, 3]]
    compared = Compared(pairs, images, np.arange(4), texts, captions, np.arange(4), 0)
    result = result_of(compared, "all")
    assert result.metrics["image to text R@1"] == 0.5
    assert result.details["ties_in_favor"]["image to text R@1"] == 1
    assert result.metrics["text to image R@1"] == 0.75
    assert "2 captions stand with several images" in result.note
    assert "image to text R@1 100.00" in result.note


def test_unreadable_images_long_and_absent_captions_are_counted(tiny_teacher, pair_set, tmp_path):
    result = evaluate_retrieval(tiny_teacher, pair_set, tmp_path / "features", SETTINGS)
    assert (result.samples, result.unreadable) == (11, 1)
    assert result.details["unreadable_as_wrong"] == pytest.approx(result.value * 19 / 21)
    sizes = result.details["directions"]
    assert sizes["text to image"]["queries"] == 2 * 9 + 1
    assert sizes["text to image"]["candidates"] == 11
    assert sizes["image to text"] | {"queries": 10, "candidates": 19} == sizes["image to text"]
    assert "2 captions of unreadable images left out" in result.note
    assert "1 images without a caption are candidates" in result.note
    assert "1 of 19 captions are longer" in result.note


def test_the_first_caption_alone(tiny_teacher, pair_set, tmp_path):
    firsts = [captions[:1] for captions in pair_set.captions]
    alone = PairSet(pair_set.name, pair_set.rows, firsts)
    store = tmp_path / "features"
    expected = evaluate_retrieval(tiny_teacher, alone, store, SETTINGS)
    result = evaluate_retrieval(tiny_teacher, pair_set, store, SETTINGS, captions="first")
    assert result.metrics == expected.metrics
    assert (expected.task, result.task) == ("retrieval", "retrieval, first caption")
    assert "1 captions of unreadable images" in result.note
    assert result.details["directions"]["text to image"]["queries"] == 10
    with pytest.raises(DataError, match="unknown --captions"):
        evaluate_retrieval(tiny_teacher, pair_set, store, SETTINGS, captions="frist")


def test_embeddings_are_kept_and_checked(tiny_teacher, pair_set, tmp_path):
    store = tmp_path / "features"
    before = compare(tiny_teacher, pair_set, store, SETTINGS)
    (kept,) = store.glob("*/captions-*.npy")
    written = kept.stat().st_mtime_ns
    again = compare(tiny_teacher, pair_set, store, SETTINGS)
    assert kept.stat().st_mtime_ns == written
    assert again.n_cut == before.n_cut == 1
    np.testing.assert_array_equal(again.texts, before.texts)

    damaged = bytearray(kept.read_bytes())
    damaged[200] ^= 1
    kept.write_bytes(damaged)
    mended = compare(tiny_teacher, pair_set, store, SETTINGS)
    np.testing.assert_allclose(mended.texts, before.texts, atol=1e-6)

    pair_set.captions[0] = ["another caption"]
    compare(tiny_teacher, pair_set, store, SETTINGS)
    assert len(list(store.glob("*/captions-*.npy"))) == 2


def test_captions_are_encoded_in_their_order(tiny_teacher, pair_set, tmp_path):
    compared = compare(tiny_teacher, pair_set, tmp_path / "features", SETTINGS)
    for number in (0, 7, 18):
        tokens, _ = tiny_teacher.tokenize([compared.captions[number]])
        alone = tiny_teacher.encode_text(tokens).numpy()[0]
        np.testing.assert_allclose(compared.texts[number], alone, atol=1e-5)


@pytest.mark.parametrize(
    "captions", [[[]] * 12, [["only of the damaged"] * (n == 5) for n in range(12)]]
)
def test_no_caption_at_all_is_refused(captions, tiny_teacher, pair_set, tmp_path):
    pairs = PairSet("mini", pair_set.rows, captions)
    with pytest.raises(DataError, match="has a caption"):
        evaluate_retrieval(tiny_teacher, pairs, tmp_path / "features", SETTINGS)


def test_scores_and_examples_are_written(tiny_teacher, pair_set, tmp_path):
    scores = retrieval_model.score(tiny_teacher, pair_set, tmp_path, SETTINGS)
    (result,) = read_results(tmp_path / "scores.json")
    assert result == scores.results[0]
    assert (result.task, result.dataset) == ("retrieval", "mini")
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["weights_sha256"] == tiny_teacher.card.weights_sha256
    assert content["summary"]["mean recall"] == pytest.approx(np.mean([*result.metrics.values()]))
    assert "## mini" in (tmp_path / "report.md").read_text()
    assert "mean recall:" in retrieval_model.terminal(scores)


def test_examples_say_what_the_ranks_say(tiny_teacher, pair_set, tmp_path):
    retrieval_model.score(tiny_teacher, pair_set, tmp_path, SETTINGS)
    (result,) = read_results(tmp_path / "scores.json")
    lines = (tmp_path / "retrieved.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    for direction, sizes in result.details["directions"].items():
        of_direction = [entry for entry in entries if entry["direction"] == direction]
        assert len(of_direction) == sizes["queries"]  # fewer than are drawn
        ranks = np.array([entry["rank"] for entry in of_direction])
        assert (ranks <= 5).mean() == pytest.approx(result.metrics[f"{direction} R@5"])
        assert ranks.mean() == pytest.approx(sizes["mean_rank"], abs=1e-3)
        for entry in of_direction:
            assert len(entry["candidates"]) == 5
            cosines = [candidate["cosine"] for candidate in entry["candidates"]]
            assert cosines == sorted(cosines, reverse=True)
            keys = {right["key"] for right in entry["right"]}
            assert keys == {entry["query"]["key"]}
            for candidate in entry["candidates"]:
                assert candidate["is_right"] == (candidate["key"] in keys)
