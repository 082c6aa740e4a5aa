"""Several views and captions of a pair in a step, hidden words, neighbours: what is shown belongs
to what a teacher saw.
"""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch

from dimefm.cache import FeatureCache
from dimefm.curate.neighbours import Rule, build
from dimefm.data import open_rows
from dimefm.data.views.image_views import ViewPolicy
from dimefm.data.views.patch_tokens import TokenPolicy
from dimefm.data.views.text_views import TextPolicy
from dimefm.errors import CacheError, DataError, RecipeError
from dimefm.extract.extract import extract
from dimefm.extract.stages.base import Settings
from dimefm.losses import Features, LossConfig, Objective, clip_kd
from dimefm.train.inputs.pair_sentences import Sentences
from dimefm.train.trainer import Trainer, train
from tests.train.conftest import TINY

VIEWS = ViewPolicy(4, scale=(0.3, 1.0))
CROPS = {
    "crop_scale": VIEWS.scale,
    "crop_ratio": VIEWS.ratio,
    "flip": VIEWS.flip,
    "crops": "replay",
}
DECLIP = {
    "clip.contrastive": {"weight": 0.4},
    "declip.simsiam": {"weight": 0.2, "width": 16},
    "declip.mlm": {"weight": 0.2},
    "declip.nns": {"weight": 0.2, "size": 64},
    "declip.filip": {"weight": 0.2, "width": 8, "tokens": 2},
}


def quiet(line):
    """Take a line of progress and say nothing."""


def declip_recipe(world, **over):
    captions = [f"number {n} of the photographs of a dog" for n in range(12)]
    shown = {
        "views_per_step": 2,
        "captions_per_step": 2,
        "text_augment": "eda",
        "mask_words": 0.5,
        "batch_size": 6,
    }
    return world.clip_recipe(
        images=[str(world.pairs(captions))], **{"losses": DECLIP, **shown, **over}
    )


def run_of(recipe, world, name="run"):
    return Trainer(recipe, world.root / name, False, quiet)


def test_each_epoch_shows_the_next_cached_views_beside_the_rows_of_the_same_crops(world):
    world.images("views", views=VIEWS)
    run = run_of(
        world.recipe(
            image_cache=str(world.root / "views"), views_per_step=2, batch_size=17, **CROPS
        ),
        world,
    )
    for epoch in range(3):
        batch = run.task.batches(epoch)
        assert batch.pixels.shape == (17, 2, 16, 16, 3)
        images = world.numbers_of_pixels(batch.pixels[:, 0])
        assert world.numbers_of_pixels(batch.pixels[:, 1]) == images
        for place in (0, 1):
            shown = [4 * n + (2 * epoch + place) % 4 for n in images]
            assert world.numbers_of_features(batch.same_modality[0][:, place]) == shown
            row = run.sources.raw[images[3]]
            number = (2 * epoch + place) % 4
            np.testing.assert_array_equal(
                batch.pixels[3, place], run.task.batches.view(row.image, row.key, number, 0)
            )


def test_free_views_of_a_step_differ_and_the_first_is_that_of_a_step_with_one(world):
    one = run_of(world.recipe(crop_scale=(0.1, 0.4)), world, "one").task.batches
    three = run_of(
        world.recipe(crop_scale=(0.1, 0.4), views_per_step=3), world, "three"
    ).task.batches
    cuts = []
    for batches in (one, three):
        cuts.append([])
        cut = batches.view.crop_spec
        batches.view.crop_spec = lambda *words, cut=cut, into=cuts[-1]: (
            into.append(cut(*words)) or into[-1]
        )
        batches(0)
    assert [cut.box for cut in cuts[1][::3]] == [cut.box for cut in cuts[0]]
    assert len({cut.box for cut in cuts[1]}) > len(cuts[0])


def test_captions_of_a_text_cache_are_replayed_beside_their_rows(world):
    policy = TextPolicy.parse(3, {"augment": "eda", "seed": 5})
    recipe = world.distilled_recipe(captions_per_step=2, batch_size=12)
    world.cache("several", "text", [("paired.csv", 12)], dim=6, views=policy)
    run = run_of(recipe.replace(text_cache=(str(world.root / "several"),)), world)
    for epoch in range(3):
        batch = run.task.batches(epoch)
        numbers = world.numbers_of_pixels(batch.pixels)
        views = [(2 * epoch + place) % 3 for place in (0, 1)]
        wanted = [[policy.draw(f"k{n}", view, [f"number {n}"]) for view in views] for n in numbers]
        tokens = torch.stack([run.task.batches.sentences.tokenize(each) for each in wanted])
        assert torch.equal(batch.tokens, tokens)
        for place, view in enumerate(views):
            assert world.numbers_of_features(batch.other_modality[0][:, place]) == [
                3 * n + view for n in numbers
            ]


def test_the_loss_of_a_grid_is_the_mean_over_its_views_and_captions(world):
    recipe = declip_recipe(world, losses={"clip.contrastive": {"weight": 1.0}}, mask_words=0.0)
    run = run_of(recipe, world)
    outputs = run.student(*(getattr(run.task.batches(0), name) for name in ("pixels", "tokens")))
    image = torch.randn_like(outputs["image"])  # views of an image of one colour are alike
    text = outputs["text"]
    outputs["image"] = image
    assert image.shape[:2] == text.shape[:2] == (6, 2)
    (features,) = run.student.features(outputs, [])
    objective = Objective([LossConfig("clip.contrastive", 1.0)], frozenset({"pairs"}))
    found = []
    for view in range(2):
        for caption in range(2):
            cell = {"image": image[:, view], "text": text[:, caption], "scale": outputs["scale"]}
            found.append(objective(run.student.features(cell, [])[0], None)["total"])
    assert len({round(float(value.detach()), 5) for value in found}) == 4
    torch.testing.assert_close(objective(features, None)["total"], sum(found) / 4)


def test_several_teachers_views_and_captions_make_one_mean(world):
    """What MobileCLIP trains with: a mean over teachers, views and captions of one term."""
    views, captions = ViewPolicy(2, scale=(0.3, 1.0)), TextPolicy.parse(2, {})
    recipe = world.distilled_recipe({"clip_kd.crd": {"weight": 1.0}}, views=views, **CROPS)
    caches = {"image_cache": [], "text_cache": []}
    for name, scale in (("a", 20.0), ("b", 35.0)):
        card = {"teacher": name, "dim": 6, "scale": scale}
        world.cache(f"images {name}", "image", [("paired.csv", 12)], views=views, **card)
        world.cache(f"texts {name}", "text", [("paired.csv", 12)], views=captions, **card)
        caches["image_cache"].append(str(world.root / f"images {name}"))
        caches["text_cache"].append(str(world.root / f"texts {name}"))
    shown = {"views_per_step": 2, "captions_per_step": 2, "batch_size": 8}
    run = run_of(
        recipe.replace(**shown, **{name: tuple(found) for name, found in caches.items()}),
        world,
    )
    batch = run.task.batches(0)
    found, _ = run.backward(0, [batch])
    outputs = run.student(batch.pixels, batch.tokens)
    values = []
    for own, other, scale in zip(
        batch.same_modality, batch.other_modality, (20.0, 35.0), strict=True
    ):
        for view, caption in itertools.product(range(2), repeat=2):
            ours = Features.from_rows(
                outputs["image"][:, view], outputs["text"][:, caption], outputs["scale"]
            )
            values.append(
                clip_kd.crd(ours, Features.from_rows(own[:, view], other[:, caption], scale))
            )
    assert len({round(float(value.detach()), 6) for value in values}) > 2
    torch.testing.assert_close(found["clip_kd.crd"], torch.stack(values).mean())


@pytest.mark.parametrize("mlm_caption", ["extra", "contrastive"])
def test_hidden_words_are_told_of_the_first_caption(world, mlm_caption):
    run = run_of(declip_recipe(world, mlm_caption=mlm_caption), world)
    plain = run_of(
        declip_recipe(world, mask_words=0.0, losses={"clip.contrastive": {"weight": 1.0}}),
        world,
        "plain",
    )
    batch, clean = run.task.batches(1), plain.task.batches(1).tokens
    hidden = batch.hidden >= 0
    assert 0.2 < hidden.float().mean() * batch.hidden.numel() / (clean[:, 0] > 0).sum() < 0.7
    assert torch.equal(batch.hidden[hidden], clean[:, 0][hidden])
    shown = batch.tokens[:, -1 if mlm_caption == "extra" else 0]
    assert torch.equal(shown[~hidden], clean[:, 0][~hidden]) and not torch.equal(shown, clean[:, 0])
    others = (
        (batch.tokens[:, :2], clean)
        if mlm_caption == "extra"
        else (batch.tokens[:, 1:], clean[:, 1:])
    )
    assert torch.equal(*others)
    outputs = run.student(batch.pixels, batch.tokens, batch.hidden)
    assert outputs["text"].shape == (6, 2, 8) and outputs["words"].shape == (6, 16, 16)
    alone = run.student.captions(shown[:, None].expand(-1, 3 if mlm_caption == "extra" else 2, -1))
    torch.testing.assert_close(alone["words"], outputs["words"])


def test_neighbours_are_drawn_from_the_graph_of_the_text_cache(world):
    recipe = world.distilled_recipe(
        {"declip.nns_graph": {"weight": 1.0}}, quarantined=((), (3,)), batch_size=8
    )

    cache = FeatureCache(world.root / "paired_texts")
    graph = build(cache, world.root / "graph", Rule(k=3))
    recipe = recipe.replace(neighbours=(str(world.root / "graph"),), neighbours_among=2)
    run = run_of(recipe, world)
    seen = set()
    for number in range(8):
        batch = run.task.batches(number)
        for own, near in zip(
            batch.other_modality[0], batch.teacher_extras["neighbor_text"][0], strict=True
        ):
            rows = [int(np.abs(cache[:] - np.asarray(row)).sum(1).argmin()) for row in (own, near)]
            assert rows[1] in graph.ids[rows[0], :2]
            seen.add(rows[1] == graph.ids[rows[0], 0])
    assert seen == {True, False}
    losses, _ = run.backward(0, [run.task.batches(0)])
    assert torch.isfinite(losses["total"])


def test_cached_tokens_are_those_of_the_pairs_of_a_step(world, tiny_teacher):
    table = str(world.pairs([f"number {n} of the photographs" for n in range(12)]))
    root = world.root
    for kind in ("image", "text"):
        rows = open_rows([table], kind, dataroot=str(root))
        extract(tiny_teacher, rows, kind, root / f"rows-{kind}", Settings(progress=False))
        extract(
            tiny_teacher,
            rows,
            kind,
            root / f"tokens-{kind}",
            Settings(progress=False, tokens=TokenPolicy(3)),
        )
    recipe = world.clip_recipe(
        images=["pairs.csv"],
        dataroot=str(root),
        losses={"declip.filip_tokens": {"weight": 1.0}, "declip.filip_pooled": {"weight": 1.0}},
        **{f"{kind}_cache": str(root / f"rows-{kind}") for kind in ("image", "text")},
        **{f"{kind}_tokens": (str(root / f"tokens-{kind}"),) for kind in ("image", "text")},
    )
    run = run_of(recipe, world)
    batch = run.task.batches(1)
    cache = FeatureCache(root / "tokens-image")
    for place, number in enumerate(world.numbers_of_pixels(batch.pixels)):
        np.testing.assert_array_equal(
            batch.teacher_extras["patches"][0][place], cache[np.arange(3 * number, 3 * number + 3)]
        )
    assert batch.teacher_extras["words"][0].shape == (5, 3, cache.dim)
    losses, _ = run.backward(0, [batch])
    assert torch.isfinite(losses["total"]) and losses["declip.filip_tokens"] > 0
    with pytest.raises(
        CacheError, match="tokens-image: holds 3 tokens of each image, expected its one row"
    ):
        run_of(
            recipe.replace(image_cache=(str(root / "tokens-image"),)),
            world,
            "tokens as rows",
        )
    with pytest.raises(
        CacheError, match="rows-image: holds one row of each image, expected tokens"
    ):
        run_of(
            recipe.replace(image_tokens=(str(root / "rows-image"),)),
            world,
            "rows as tokens",
        )
    with pytest.raises(
        RecipeError, match="needs tokens, .*name token caches with image_tokens and text_tokens"
    ):
        run_of(recipe.replace(text_tokens=()), world, "one kind")


def test_declip_goes_on_where_it_was_to_the_bit(world):
    """Its ring of rows and its heads are in the checkpoint, its words are hidden by the step."""
    recipe = declip_recipe(world, save_every=2, steps=5)
    whole, weights = train(recipe, world.root / "whole", echo=quiet), "open_clip_model.safetensors"
    half = world.root / "half"
    shutil.copytree(whole, half)
    (half / "run.json").unlink()
    shutil.rmtree(half / "checkpoints" / "00000005")
    (half / weights).unlink()
    train(recipe, half, resume=True, echo=quiet)
    assert (whole / weights).read_bytes() == (half / weights).read_bytes()


@pytest.mark.parametrize(
    ("over", "why"),
    [
        ({"captions_per_step": 1}, "text_augment = 'eda' is for captions_per_step of 2 or more"),
        (
            {"views_per_step": 1},
            r"loss 'declip.simsiam' needs views, .*. Fix: leave it out, or set views_per_step = 2",
        ),
        ({"mask_words": 0.0}, "loss 'declip.mlm' needs masked, .*set mask_words"),
        (
            {
                "mask_words": 0.0,
                "mlm_caption": "contrastive",
                "losses": {"clip.contrastive": {"weight": 1.0}},
            },
            "mlm_caption = 'contrastive' is for mask_words",
        ),
        ({"crops": "center"}, "views_per_step is for random views, not for the centre"),
        ({"neighbours": ("somewhere",)}, "neighbours is for pairs with a --text-cache"),
        ({"losses": {"declip.nns_graph": {"weight": 1.0}}}, "needs neighbours and teacher"),
        (
            {"losses": {"clip.contrastive": {"weight": 1.0}}},
            "mask_words is for losses that need 'masked', and none",
        ),
    ],
)
def test_what_the_data_lack_is_refused_before_the_first_step(world, over, why):
    with pytest.raises(RecipeError, match=why) as error:
        run_of(declip_recipe(world, **over), world)
    assert "\n" not in str(error.value)


def test_words_are_hidden_in_captions_that_all_losses_see_without_a_loss_that_tells_them(world):
    recipe = declip_recipe(
        world, mlm_caption="contrastive", losses={"clip.contrastive": {"weight": 1.0}}
    )
    batch = run_of(recipe, world).task.batches(0)
    assert batch.tokens.shape[1] == 2 and (batch.hidden >= 0).any()


def test_tokens_without_the_end_of_a_sentence_are_refused_before_the_first_step(world):
    sentences = run_of(declip_recipe(world), world).task.batches.sentences

    def others(texts):
        return torch.ones(len(texts), 16, dtype=torch.long)

    with pytest.raises(DataError, match="have no end, id 49407; .*remove mask_words"):
        Sentences(sentences.sources, sentences.recipe, others)


def test_captions_are_varied_by_the_seed_of_the_run(world):
    found = [
        run_of(declip_recipe(world, seed=seed), world, str(seed)).task.batches.sentences
        for seed in (0, 1)
    ]
    row = found[0].sources.raw[0]
    first, again, other = (
        [each.choose(0, row, 0, epoch)[1] for epoch in range(8)] for each in (*found[:1], *found)
    )
    assert first == again != other


@pytest.mark.parametrize(("pool", "lengths"), [("argmax", [3, 2]), ("last", [16, 16])])
def test_words_are_counted_as_their_tower_reads_them(world, pool, lengths):
    text = {**TINY["text_cfg"], "pool_type": pool, "no_causal_mask": pool == "last"}
    config = {**TINY, "custom_text": True, "text_cfg": text}
    (world.root / "words.json").write_text(json.dumps(config))
    student = run_of(declip_recipe(world, student=str(world.root / "words.json")), world).student
    tokens = torch.zeros(2, 3, 16, dtype=torch.long)
    tokens[0, :, :3], tokens[1, :, :2] = (
        torch.tensor([49406, 320, 49407]),
        torch.tensor([49406, 49407]),
    )
    assert student.captions(tokens)["lengths"].tolist() == lengths


def test_a_run_does_not_go_on_with_another_graph(world):
    recipe = world.distilled_recipe({"declip.nns_graph": {"weight": 1.0}}, steps=3, save_every=2)
    cache, graph = FeatureCache(world.root / "paired_texts"), world.root / "graph"
    build(cache, graph, Rule(k=3))
    recipe = recipe.replace(neighbours=(str(graph),))
    folder = train(recipe, world.root / "run", echo=quiet)
    (folder / "run.json").unlink()
    shutil.rmtree(graph)
    build(cache, graph, Rule(k=3, max_cosine=0.99))
    with pytest.raises(CacheError, match="the run was trained on .*neighbours .*start a new run"):
        train(recipe, folder, resume=True, echo=quiet)


def test_more_views_or_captions_than_a_cache_holds_are_refused(world):
    world.images("views", views=VIEWS)
    with pytest.raises(RecipeError, match="views_per_step = 5, but .*views holds 4 of each image"):
        run_of(
            world.recipe(image_cache=str(world.root / "views"), views_per_step=5, **CROPS), world
        )
    with pytest.raises(
        RecipeError, match="captions_per_step = 2, but .*paired_texts holds 1 of each row"
    ):
        run_of(world.distilled_recipe(captions_per_step=2), world)
