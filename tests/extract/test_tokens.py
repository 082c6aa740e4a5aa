"""Caches of tokens: what extraction stores is what the towers give, item by item, and nobody takes
them for rows.
"""

import base64
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional as F

from dimefm.cache import CacheWriter, FeatureCache
from dimefm.cli import main
from dimefm.data import open_rows
from dimefm.data.alignment import align, align_caches, align_pairs
from dimefm.data.pairing import Pairs
from dimefm.data.views.patch_tokens import TokenPolicy, TokenRows
from dimefm.errors import CacheError, ModelError, RecipeError
from dimefm.evaluate.retrieval import check_same_encoder
from dimefm.extract.extract import extract, extract_several, sample, stage_of
from dimefm.extract.stages.base import Settings
from dimefm.extract.verify import against_teacher
from dimefm.models import intermediate, open_clip
from dimefm.models.inference.text_batches import encode_sentences
from dimefm.models.loading import load_encoder
from dimefm.models.patch_tokens import check, chosen, image_tokens, projected, text_tokens
from dimefm.models.preprocess import decoder
from dimefm.models.towers import ImageTower
from dimefm.recipe import Recipe
from dimefm.train.inputs.sources import open_sources

COUNT = 5  # more than the teacher has patches, or the shortest sentence words
TOKENS = TokenPolicy(COUNT)
SENTENCES = [
    "a red square",
    "a dog",
    "two dogs on a lawn, seen from above",
    "a red square",
    " ",
    "!",
    "a cat on a mat",
]


def settings(**given):
    return Settings(batch_size=3, progress=False, tokens=TOKENS, **given)


@pytest.fixture(scope="module")
def sources(tmp_path_factory, picture):
    """Return a folder of two folders of pictures, one file of them broken, and two files of
    sentences, one of them empty.
    """
    root = tmp_path_factory.mktemp("sources")
    for part in ("a", "b"):
        (root / "images" / part).mkdir(parents=True)
        for i in range(5):
            (root / "images" / part / f"{i}.png").write_bytes(picture(i + 10 * (part == "b")))
    (root / "images" / "a" / "2.png").write_bytes(b"no picture")
    (root / "one.txt").write_text("\n".join(SENTENCES) + "\n")
    (root / "two.txt").write_text("\n".join(reversed(SENTENCES)) + "\n")
    return root


def images_of(root):
    return open_rows(
        [str(root / "images" / "a"), str(root / "images" / "b")], "image", dataroot=str(root)
    )


def texts_of(root):
    return open_rows([str(root / "one.txt"), str(root / "two.txt")], "text", dataroot=str(root))


@pytest.fixture(scope="module")
def caches(sources, tiny_teacher, tmp_path_factory):
    """Return the caches of rows and of tokens of images, then of sentences."""
    found, out = [], tmp_path_factory.mktemp("caches")
    for kind, rows in (("image", images_of(sources)), ("text", texts_of(sources))):
        extract(tiny_teacher, rows, kind, out / kind, Settings(batch_size=3, progress=False))
        extract(tiny_teacher, rows, kind, out / f"{kind}-tokens", settings())
        found += [FeatureCache(out / kind), FeatureCache(out / f"{kind}-tokens")]
    return found


def test_the_manifest_says_what_the_rows_are(caches):
    _, images, _, texts = caches
    for cache in (images, texts):
        assert cache.manifest.how["tokens"] == {"count": COUNT, "rule": "pooled", "version": 1}
        assert cache.manifest.views == COUNT
        assert len(cache.manifest.shards) == 2
    assert [info.source_rows for info in images.manifest.shards] == [5 * COUNT] * 2
    assert images.manifest.shards[0].bad == tuple(range(2 * COUNT, 3 * COUNT))  # the broken picture
    keys, _ = images.read(images.manifest.shards[0])
    assert keys[: COUNT + 1] == [f"{keys[0].removesuffix('#0')}#{t}" for t in range(COUNT)] + [
        keys[COUNT]
    ]
    assert keys[COUNT].endswith("#0")


def test_stored_tokens_of_images_are_those_of_the_tower(caches, sources, tiny_teacher):
    rows, cache = images_of(sources), caches[1]
    read = decoder("turbo", tiny_teacher.image_preprocess)
    for shard, start in zip(rows.shards, cache.starts[:2], strict=True):
        good = [i for i in range(5) if (shard.name[-1], i) != ("a", 2)]
        pixels = torch.stack([read.whole(read.open(shard[i].image)) for i in good])
        pixels = read.finish(pixels, tiny_teacher.device)
        found = np.stack([cache[int(start) + i] for i in range(len(good) * COUNT)]).reshape(
            len(good), COUNT, -1
        )
        with torch.inference_mode():
            model = tiny_teacher.image_model
            patches = intermediate.image(model, pixels).patches
            places = F.normalize(
                model.visual.head(patches), dim=-1
            )  # of this tower the head is a projection
            cosines = (places @ F.normalize(model.encode_image(pixels), dim=-1)[..., None])[..., 0]
            order = cosines.argsort(dim=1, descending=True)[:, [0, 1, 2, 3, 3]]
        expected = torch.take_along_dim(places, order[..., None], 1)
        np.testing.assert_allclose(found.astype(np.float32), expected.numpy(), atol=2e-3)


def test_stored_tokens_of_sentences_are_those_of_the_tower(caches, sources, tiny_teacher):
    rows, cache = texts_of(sources), caches[3]
    tokens = TokenRows(cache)
    assert tokens.count == COUNT
    for shard, start in zip(rows.shards, cache.starts[:2], strict=True):
        sentences = [shard[i].texts[0] for i in range(len(shard)) if shard[i].texts[0].strip()]
        ids, lengths = tiny_teacher.tokenize(sentences)
        found = tokens[int(start) + COUNT * np.arange(len(sentences))].astype(np.float32)
        with torch.inference_mode():
            states = (
                intermediate.text(tiny_teacher.text_model, ids).states
                @ tiny_teacher.text_model.text_projection
            )
        for item, length, of_all in zip(found, lengths, F.normalize(states, dim=-1), strict=True):
            cosines = (
                of_all[:length] @ of_all[length - 1]
            )  # the end of the text is where this tower pools
            order = cosines.argsort(descending=True)[:COUNT]
            expected = of_all[torch.cat([order, order[-1:].expand(COUNT - len(order))])]
            np.testing.assert_allclose(item, expected.numpy(), atol=2e-3)


def test_the_most_similar_come_first_and_the_last_is_repeated():
    tokens = torch.tensor([[[0.0, 2.0], [3.0, 0.1], [1.0, 1.0], [9.0, 0.0]]]).repeat(2, 1, 1)
    found = chosen(tokens, torch.tensor([[5.0, 0.0], [5.0, 0.0]]), 4, torch.tensor([4, 2]))
    expected = F.normalize(tokens[0], dim=-1)
    assert torch.equal(found[0], expected[[3, 1, 2, 0]])
    assert torch.equal(found[1], expected[[1, 0, 0, 0]])
    assert torch.equal(
        chosen(tokens, torch.tensor([[5.0, 0.0]] * 2), 6)[0, 3:], expected[[0, 0, 0]]
    )


def test_an_item_with_a_token_without_length_is_unusable_as_a_whole():
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    found = chosen(tokens, torch.ones(2, 2), 2)
    assert found[0].isnan().all()
    assert torch.isfinite(found[1]).all()


class Interrupt(Exception):
    pass


def test_an_interrupted_extraction_goes_on_to_the_same_bytes(
    caches, sources, tiny_teacher, tmp_path, monkeypatch
):
    write, calls = CacheWriter.write, []

    def second_fails(self, *args):
        calls.append(args[0])
        if len(calls) == 2:
            raise Interrupt
        return write(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "write", second_fails)
        with pytest.raises(Interrupt):
            extract(tiny_teacher, texts_of(sources), "text", tmp_path, settings())
    report = extract(tiny_teacher, texts_of(sources), "text", tmp_path, settings())
    assert report.resumed == 1
    whole, again = caches[3].manifest.shards, FeatureCache(tmp_path).manifest.shards
    assert [info.sha256 for info in again] == [info.sha256 for info in whole]


def test_a_mended_picture_is_taken_up_later(sources, tiny_teacher, picture, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes(picture(i))
    (folder / "1.png").write_bytes(b"no picture")

    def cache(mode):
        rows = open_rows([str(folder)], "image", dataroot=str(tmp_path))
        extract(tiny_teacher, rows, "image", tmp_path / "out", settings(), mode=mode)
        return FeatureCache(tmp_path / "out")

    assert len(cache("create")) == 3 * COUNT
    (folder / "1.png").write_bytes(picture(1))
    mended = cache("retry")
    assert len(mended) == 4 * COUNT
    rows = open_rows([str(folder)], "image", dataroot=str(tmp_path))
    extract(tiny_teacher, rows, "image", tmp_path / "anew", settings())
    np.testing.assert_array_equal(mended[:], FeatureCache(tmp_path / "anew")[:])


def test_tokens_of_pairs_stand_beside_rows_of_the_same_items(tiny_teacher, picture, tmp_path):
    """The first of five pictures is broken."""
    lines = [
        f"k{i}\t{base64.b64encode(picture(i) if i else b'no picture').decode()}" for i in range(5)
    ]
    (tmp_path / "images.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "texts.txt").write_text("\n".join(f"sentence {i}" for i in range(5)) + "\n")
    images, texts = (
        open_rows([str(tmp_path / "images.tsv")], "image"),
        open_rows([str(tmp_path / "texts.txt")], "text"),
    )
    caches = {}
    for kind, rows in (("image", images), ("text", texts)):
        for name, given in (("rows", Settings(progress=False)), ("tokens", settings())):
            extract(tiny_teacher, rows, kind, tmp_path / kind / name, given)
            caches[kind, name] = [FeatureCache(tmp_path / kind / name)]
    found = align_pairs(
        images,
        texts,
        caches["image", "rows"],
        caches["text", "rows"],
        image_tokens=caches["image", "tokens"],
        text_tokens=caches["text", "tokens"],
    )
    for view in (0, 2):  # whatever view of an item is asked for, its tokens are the same
        raw, columns = found.locate(np.array([3, 1]), view)
        assert [raw.tolist(), *(column.tolist() for column in columns[:2])] == [
            [4, 2],
            [3, 1],
            [4, 2],
        ]
        assert [column.tolist() for column in columns[2:]] == [
            [3 * COUNT, COUNT],
            [4 * COUNT, 2 * COUNT],
        ]
    rows, stored = caches["text", "rows"][0], TokenRows(caches["text", "tokens"][0])
    vectors, chosen_ = rows[columns[1]].astype(np.float32), stored[columns[3]].astype(np.float32)
    cosines = np.einsum("nd,nkd->nk", vectors, chosen_)
    np.testing.assert_allclose(
        cosines[:, 0], 1, atol=2e-3
    )  # the end of a text is its own most similar word
    assert (np.diff(cosines, axis=1) <= 2e-3).all()


def test_a_sample_of_fewer_rows_than_an_item_has_is_one_item(sources, tiny_teacher):
    stage = stage_of("text", tiny_teacher, settings())
    indexes = [stage.index(shard) for shard in texts_of(sources).shards]
    assert [len(rows) for rows in sample(stage, indexes, 2, 2)] == [COUNT]


def test_tokens_of_other_sentences_are_refused(caches, tiny_teacher, tmp_path):
    (tmp_path / "one.txt").write_text("another sentence\n" * len(SENTENCES))
    (tmp_path / "two.txt").write_text("another sentence\n" * len(SENTENCES))
    rows = texts_of(tmp_path)
    extract(tiny_teacher, rows, "text", tmp_path / "out", Settings(progress=False))
    with pytest.raises(
        CacheError, match=r"one\.txt: its content has digest .*text-tokens were made from"
    ):
        align_pairs(rows, rows, [], [FeatureCache(tmp_path / "out")], text_tokens=[caches[3]])


def line_of(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_tokens_are_refused_where_rows_are_expected(caches, sources):
    images, image_tokens_, texts, text_tokens_ = caches
    raw = images_of(sources), texts_of(sources)
    for call in (
        lambda: align(raw[0], image_tokens_),
        lambda: align_caches(text_tokens_),
        lambda: align_caches(texts, text_tokens_),
        lambda: align_pairs(*raw, [images], [text_tokens_]),
        lambda: check_same_encoder(image_tokens_, texts),
        lambda: check_same_encoder(images, text_tokens_),
        lambda: Pairs.from_cache(image_tokens_, []),
    ):
        with pytest.raises(
            CacheError,
            match=f"holds {COUNT} tokens of each .*, expected its one row. Fix: name a cache",
        ) as error:
            call()
        line_of(error)
    for call in (
        lambda: align_pairs(*raw, [images], [], image_tokens=[images]),
        lambda: TokenRows(texts),
    ):
        with pytest.raises(
            CacheError,
            match="holds one row of each (image|text), expected tokens. Fix: extract them",
        ) as error:
            call()
        line_of(error)


def test_training_refuses_tokens_for_rows(caches, sources, tmp_path):
    images, image_tokens_, texts, text_tokens_ = (str(cache.root) for cache in caches)
    pictures = (str(sources / "images" / "a"), str(sources / "images" / "b"))
    given = {"images": pictures, "dataroot": str(sources)}
    for image_cache, text_cache in ((image_tokens_, texts), (images, text_tokens_)):
        recipe = Recipe(image_cache=(image_cache,), text_cache=(text_cache,), crops="free", **given)
        with pytest.raises(CacheError, match=f"holds {COUNT} tokens of each"):
            open_sources(recipe, tmp_path)


def test_tokens_of_another_version_are_refused(caches):
    how = {"tokens": {**caches[1].manifest.how["tokens"], "version": 2}}
    with pytest.raises(
        CacheError, match="version 2; this dimefm has 'pooled', version 1. Fix: extract them again"
    ):
        TokenPolicy.from_manifest(how)


def test_stored_tokens_agree_with_their_teacher_again(caches, sources, tiny_teacher):
    found = against_teacher(caches[3], tiny_teacher, texts_of(sources), 7)
    assert found.rows == 7
    assert found.min_cosine > 0.99999


def test_several_teachers_make_what_each_makes_alone(caches, sources, tiny_teacher, tmp_path):
    other = load_encoder("RN-mini-32/random:0", "cpu")
    teachers = [(other, tmp_path / "other"), (tiny_teacher, tmp_path / "same")]
    extract_several(teachers, images_of(sources), "image", settings())
    extract(other, images_of(sources), "image", tmp_path / "alone", settings())
    for found, expected in (("same", caches[1]), ("other", FeatureCache(tmp_path / "alone"))):
        assert [s.sha256 for s in FeatureCache(tmp_path / found).manifest.shards] == [
            s.sha256 for s in expected.manifest.shards
        ]


def run(*arguments):
    return CliRunner().invoke(main, ["extract-features", *map(str, arguments)])


def test_the_command_makes_them(sources, tmp_path):
    common = (
        "--teacher",
        "ResNet-mini-64/random:0",
        "--texts",
        sources / "one.txt",
        "--tokens",
        16,
    )
    result = run(*common, "--out", tmp_path, "--dtype", "int8")
    assert result.exit_code == 0, result.output
    manifest = json.loads((tmp_path / "texts" / "manifest.json").read_text())
    assert manifest["how"]["tokens"]["count"] == 16
    tokens = TokenRows(FeatureCache(tmp_path / "texts"))[np.array([16])]
    assert tokens.shape == (1, 16, 128)
    np.testing.assert_allclose(np.linalg.norm(tokens, axis=2), 1, atol=0.02)
    estimate = run(*common, "--out", tmp_path / "none", "--estimate")
    assert estimate.exit_code == 0 and f"{16 * len(SENTENCES)} rows" in estimate.output


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (("--views", 2), "--views"),
        (("--text-views", 2), "--text-views"),
        (("--compile",), "--compile"),
    ],
)
def test_what_excludes_tokens_is_said_in_one_line(flags, name, sources, tmp_path):
    result = run(
        "--teacher",
        "no/such",
        "--texts",
        sources / "one.txt",
        "--tokens",
        2,
        "--out",
        tmp_path,
        *flags,
    )
    assert result.exit_code != 0
    assert (
        f"--tokens and {name} exclude each other. Fix: leave one of them out"
        in result.output + result.stderr
    )


def test_the_library_refuses_them_too(sources, tiny_teacher, tmp_path):
    with pytest.raises(RecipeError, match="exclude each other"):
        extract(tiny_teacher, texts_of(sources), "text", tmp_path, settings(compile=True))


def test_one_cache_does_not_go_on_as_the_other(caches, sources, tiny_teacher):
    with pytest.raises(CacheError, match="tokens"):
        extract(tiny_teacher, texts_of(sources), "text", caches[2].root, settings())


FAMILIES = [
    *("RN-mini-32", "ConvNeXt-mini-64"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("MobileNetV3-S", "Swin-T", "ViT-T-16")
    ),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_of_every_family_have_the_dimension_of_the_rows(name):
    encoder = load_encoder(f"{name}/random:0", "cpu")
    check(encoder, "image")
    side = encoder.image_size[0]
    found = image_tokens(encoder, torch.randn(2, 3, side, side), 2)
    assert found.shape == (2, 2, encoder.card.dim)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2, 2))


def tower(**vision):
    """Return (tiny image tower, its patches [2, P, W])."""
    config = {"image_size": 32, **vision}
    model = ImageTower(open_clip.image_tower({"embed_dim": 24, "vision_cfg": config}))
    side = config["image_size"]
    return model.visual, intermediate.image(model.eval(), torch.randn(2, 3, side, side)).patches


def test_how_patches_reach_the_joint_space():
    visual, patches = tower(patch_size=8, layers=1, width=32, head_width=16)
    torch.testing.assert_close(projected(visual, patches), visual.ln_post(patches) @ visual.proj)
    visual, patches = tower(layers=[1, 1, 1, 1], width=8, head_width=8, image_size=64)
    pool = visual.attnpool
    torch.testing.assert_close(projected(visual, patches), pool.c_proj(pool.v_proj(patches)))
    timm = {"timm_proj": "linear", "image_size": 160}
    for pool in ("token", "avg"):  # their head looks for a class token
        visual, patches = tower(timm_model_name="test_vit", timm_pool=pool, **timm)
        expected = visual.head(visual.trunk.fc_norm(patches))
        torch.testing.assert_close(projected(visual, patches), expected, rtol=1e-4, atol=1e-5)


def test_a_map_of_one_place_through_the_head_is_the_row_itself():
    """The head of a timm tower with one place left gives the tower's own row: the token is that
    row.
    """
    encoder = load_encoder("ResNet-mini-32/random:0", "cpu")
    pixels = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(
        image_tokens(encoder, pixels, 1)[:, 0], encoder.encode_image(pixels), rtol=0, atol=1e-5
    )


def test_a_tower_whose_patches_lead_nowhere_is_refused():
    vision = {
        "image_size": 16,
        "patch_size": 8,
        "layers": 1,
        "width": 32,
        "head_width": 16,
        "attentional_pool": True,
    }
    text = {"context_length": 8, "vocab_size": 300, "width": 32, "heads": 2, "layers": 1}
    model = open_clip.from_config(
        {"embed_dim": 24, "vision_cfg": vision | {"attn_pooler_heads": 2}, "text_cfg": text}
    )
    encoder = load_encoder("RN-mini-32/random:0", "cpu")
    encoder.image_model = model
    encoder.card.preprocess["size"] = 16
    with pytest.raises(
        ModelError, match="its patches have no projection of their own. Fix: name another teacher"
    ):
        check(encoder, "image")


def test_short_and_long_sentences_together_give_what_each_gives_alone(tiny_teacher):
    ids, _ = tiny_teacher.tokenize(["a dog", "two dogs on a lawn, seen from above", "!"])
    together = encode_sentences(
        tiny_teacher, ids, 2, lambda part: text_tokens(tiny_teacher, part, 16)
    )
    alone = torch.cat([text_tokens(tiny_teacher, row[None], 16) for row in ids])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
