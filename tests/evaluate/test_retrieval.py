"""Retrieval against a slow plain twin, its rules on ties and pairs, and real features with known
recalls.
"""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest
from dimefm.cache.manifest import FILE
from dimefm.data import Columns, open_rows
from dimefm.data.pairing import pair
from dimefm.errors import CacheError, DataError
from dimefm.evaluate.retrieval import markdown, ranks, retrieval, retrieval_scores, terminal
from dimefm.extract.extract import Settings, extract
from dimefm.models.loading import load_encoder

CARD = EncoderCard("CLIP", "ab" * 32, 4, 100.0)


def cache(folder, kind, keys, rows, card=CARD, shards=1, **how):
    """Write a cache of ``rows`` in ``shards`` parts."""
    rows = np.asarray(rows, dtype=np.float32)
    parts = np.array_split(np.arange(len(rows)), shards)
    head = Manifest(kind, "hdf5", "float32", rows.shape[1], False, card, how, {})
    writer = CacheWriter(folder, head, [(f"{i}.tar", len(part)) for i, part in enumerate(parts)])
    for i, part in enumerate(parts):
        writer.write(f"{i}.tar", [keys[row] for row in part], rows[part])
    writer.seal()
    return FeatureCache(folder)


def scored(images, texts, **options):
    """Return the scores of two caches, and what scores.json holds of them."""
    scores = retrieval_scores(images, retrieval(images, texts, **options))
    return scores, scores.to_json()


def slow_ranks(queries, groups, candidates, candidate_groups):
    """The rule in words: wrong candidates with a cosine at least that of the best right one."""
    found = []
    for query, group in zip(queries.astype(np.float64), groups, strict=True):
        cosines = [
            float(query @ c) / max(np.linalg.norm(query) * np.linalg.norm(c), 1e-300)
            for c in candidates.astype(np.float64)
        ]
        best = max(
            cosine
            for cosine, there in zip(cosines, candidate_groups, strict=True)
            if there == group
        )
        wrong = [
            cosine
            for cosine, there in zip(cosines, candidate_groups, strict=True)
            if there != group
        ]
        found.append(sum(cosine >= best - 1e-6 for cosine in wrong))
    return found


@st.composite
def searches(draw):
    """Small whole numbers as coordinates, so that ties are many and exact; every query has a right
    candidate.
    """
    dim, q, n = draw(st.integers(1, 4)), draw(st.integers(1, 12)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    candidate_groups = rng.integers(0, draw(st.integers(1, 6)), n)
    return (
        rng.integers(-2, 3, (q, dim)).astype(np.float32),
        rng.choice(candidate_groups, q),
        rng.integers(-2, 3, (n, dim)).astype(np.float16),
        candidate_groups,
    )


@given(searches(), st.integers(1, 13))
def test_ranks_are_those_of_the_plain_twin_for_any_block(search, block):
    assert ranks(*search, block=block).tolist() == slow_ranks(*search)


@given(st.integers(0, 10_000), st.sampled_from([3, 16, 64]))
def test_ranks_of_random_rows_do_not_depend_on_the_block_or_the_order(seed, block):
    rng = np.random.default_rng(seed)
    queries, candidates = rng.standard_normal((20, 16)), rng.standard_normal((30, 16))
    candidate_groups = rng.integers(0, 8, 30)
    groups = rng.choice(candidate_groups, 20)
    found = ranks(queries, groups, candidates, candidate_groups)
    assert found.tolist() == slow_ranks(queries, groups, candidates, candidate_groups)
    order = rng.permutation(30)
    np.testing.assert_array_equal(
        ranks(queries, groups, candidates[order], candidate_groups[order], block), found
    )
    np.testing.assert_array_equal(
        ranks(3 * queries, groups, candidates / 7, candidate_groups, block), found
    )


def test_ties_never_help():
    same = np.ones((6, 8))
    assert ranks(same, np.arange(6), same, np.arange(6)).tolist() == [5] * 6
    doubled = np.eye(3)[[0, 0, 1, 2]]
    assert ranks(np.eye(3), np.array([0, 2, 3]), doubled, np.arange(4)).tolist() == [1, 0, 0]


def test_a_tie_in_another_block_counts_as_one_in_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 512)).astype(np.float32)
    twice = np.concatenate([rows, rows])
    for block in (1, 7, 33, 100):
        found = ranks(rows + 0.01, np.arange(50), twice, np.arange(100), block)
        assert found.tolist() == [1] * 50


def test_of_several_right_candidates_the_best_counts_and_the_others_do_not_stand_before_it():
    candidates = np.array([[1, 0], [0.9, 0.1], [0.5, 0.5], [0, 1]])
    assert ranks(
        np.array([[1, 0]]), np.array([7]), candidates, np.array([7, 7, 1, 7])
    ).tolist() == [0]
    assert ranks(
        np.array([[0.4, 0.6]]), np.array([7]), candidates, np.array([7, 7, 1, 7])
    ).tolist() == [1]


def test_a_query_without_a_right_candidate_is_refused():
    with pytest.raises(ValueError, match="no right candidate"):
        ranks(np.eye(2), np.array([0, 1]), np.eye(2), np.array([0, 0]))


def test_texts_belong_to_images_by_key_or_by_key_and_number():
    images, texts = pair(
        ["a.jpg", "b#2", "c", "c"],
        ["a.jpg#0", "a.jpg", "a.jpg#11", "b#2", "b#2#0", "b", "c#x", "c", "#1"],
    )
    assert images.tolist() == [0, 1, 2, 2]
    assert texts.tolist() == [0, 0, 0, 1, 1, -1, -1, 2, -1]


@pytest.fixture
def photos(tmp_path):
    """Four photos, of which one has no text, and six texts, of which two have no photo; they lie in
    several shards.
    """
    images = cache(tmp_path / "images", "image", list("abcd"), np.eye(4), shards=2)
    rows = [[5, 1, 0, 0], [0, 1, 0, 0], [1, 0, 3, 2], [0, 0, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    texts = cache(
        tmp_path / "texts", "text", ["a#0", "a#1", "c#0", "c#1", "z#0", "y"], rows, shards=4
    )
    return images, texts


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_both_directions_and_what_is_left_out(photos, block):
    scores, result = scored(*photos, block=block)
    text_to_image, image_to_text = result["scores"]
    assert text_to_image == {
        "direction": "text to image",
        "recall": (0.75, 1.0, 1.0),
        "queries": 4,
        "candidates": 4,
    }
    assert image_to_text == {
        "direction": "image to text",
        "recall": (1.0, 1.0, 1.0),
        "queries": 2,
        "candidates": 4,
    }
    assert result["texts"]["without_image"] == 2 and result["images"]["without_text"] == 2
    assert json.loads(json.dumps(result))["model"] == "CLIP"
    for text in (terminal(scores), markdown(scores)):
        assert "2 of 6 texts have no image here and were left out." in text
        assert "2 of 4 images have no text here: they are candidates, not queries." in text
        assert "75.00" in text and "not proven" not in text


def test_an_image_without_a_text_is_a_distractor(tmp_path):
    images = cache(tmp_path / "images", "image", ["a", "b"], np.eye(4)[[0, 1]])
    texts = cache(tmp_path / "texts", "text", ["a"], [[0.1, 1, 0, 0]])
    _, result = scored(images, texts)
    assert [score["recall"][0] for score in result["scores"]] == [0.0, 1.0]


def test_unknown_weights_are_spoken_of(tmp_path):
    card = EncoderCard("unknown", None, 4, 100.0)
    images = cache(tmp_path / "images", "image", ["a"], np.eye(4)[:1], card)
    texts = cache(tmp_path / "texts", "text", ["a"], np.eye(4)[:1], card)
    scores, _ = scored(images, texts)
    assert "is not proven" in terminal(scores) and "weights unknown" in markdown(scores)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (
            EncoderCard("CLIP", "cd" * 32, 4, 100.0),
            "different encoders .weights_sha256: 'ab.*against 'cd",
        ),
        (
            EncoderCard("CLIP", "ab" * 32, 4, 10.0),
            "different encoders .logit_scale: 100.0 against 10.0",
        ),
        (EncoderCard("CLIP", "ab" * 32, 3, 100.0), "different encoders .dim: 4 against 3"),
        (EncoderCard("CLIP", None, 4, 100.0), "different encoders .weights_sha256"),
    ],
)
def test_caches_of_two_encoders_are_refused(tmp_path, photos, card, message):
    texts = cache(tmp_path / "other", "text", ["a"], np.eye(card.dim)[:1], card)
    with pytest.raises(CacheError, match=message):
        retrieval(photos[0], texts)


def test_the_same_encoder_under_another_name_is_taken(tmp_path, photos):
    texts = cache(
        tmp_path / "other", "text", ["a"], np.eye(4)[:1], EncoderCard("else", "ab" * 32, 4, 100.0)
    )
    _, result = scored(photos[0], texts)
    assert result["scores"][0]["recall"][0] == 1


def test_swapped_caches_views_and_keys_that_never_meet_are_refused(tmp_path, photos):
    images, texts = photos
    with pytest.raises(
        CacheError, match="images: holds image features, expected text features. Fix: swap the two"
    ):
        retrieval(images, images)
    with pytest.raises(
        CacheError, match="texts: holds text features, expected image features. Fix: swap the two"
    ):
        retrieval(texts, images)
    views = cache(tmp_path / "views", "image", list("aabb"), np.eye(4), views={"count": 2})
    with pytest.raises(
        CacheError, match="holds 2 random crops of each image, expected the centre view"
    ):
        retrieval(views, texts)
    encoder_mismatch = cache(tmp_path / "strangers", "image", ["p", "q"], np.eye(4)[:2])
    with pytest.raises(DataError, match=r"no text has the key of an image \('a#0' against 'p'"):
        retrieval(encoder_mismatch, texts)
    assert (tmp_path / "strangers" / FILE).exists()


def test_real_captions_find_their_photos_as_often_as_known(tmp_path, shared_data):
    """Captions of one repository search photos of another; the figures are those of the data's own
    description.
    """
    folder = shared_data / "features/flickr8k_clip_vitb32"
    card = EncoderCard("ViT-B-32/openai", None, 512, 100.0)
    names = (folder / "image_keys.txt").read_text(encoding="utf-8").splitlines()
    images = cache(
        tmp_path / "images",
        "image",
        names,
        np.load(folder / "image_features.npy", allow_pickle=False),
        card,
    )
    paired = [
        line.split("\t")[0]
        for line in (folder / "paired.tsv").read_text(encoding="utf-8").splitlines()
    ]
    texts = cache(
        tmp_path / "texts",
        "text",
        paired,
        np.load(folder / "paired_text_features.npy", allow_pickle=False),
        card,
    )
    _, result = scored(images, texts, block=500)
    score = result["scores"][0]
    assert (score["queries"], score["candidates"], result["texts"]["without_image"]) == (
        45,
        1213,
        380,
    )
    assert [round(100 * recall) for recall in score["recall"]] == [62, 87, 91]


def test_sentences_of_a_row_that_is_a_sentence_itself_belong_to_its_image():
    images, texts = pair(["a.jpg", "b#2"], ["a.jpg#3#0", "b#2#1#0", "b#3#0"])
    assert texts.tolist() == [images[0], images[1], -1]


@pytest.mark.parametrize("captions", ["first", "all"])
def test_quarantined_samples_are_spoken_of(tmp_path, captions):
    encoder = load_encoder("ResNet-mini-64/random:0", "cpu")
    for number in range(4):
        Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    lines = [f"{number}.png\ta picture of {number}" for number in range(4)]
    lines[1] = "1.png\t" + "word " * 200
    (tmp_path / "pairs.tsv").write_text("\n".join(["filepath\ttitle", *lines]) + "\n")
    columns = Columns(key="filepath")
    settings = Settings(captions=captions, progress=False)
    caches = []
    for kind in ("image", "text"):
        rows = open_rows([tmp_path / "pairs.tsv"], kind, columns=columns)
        extract(encoder, rows, kind, tmp_path / kind, settings)
        caches.append(FeatureCache(tmp_path / kind))
    scores, result = scored(*caches)
    assert (result["images"]["quarantined"], result["texts"]["quarantined"]) == (1, 1)
    for text in (terminal(scores), markdown(scores)):
        assert "1 of 4 images was quarantined when the cache was made: 3 are in it." in text
        assert "1 of 4 texts was quarantined when the cache was made: 3 are in it." in text
