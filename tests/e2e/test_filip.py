"""A student that learns by tokens alone is scored by tokens: from pairs to a score, against
open_clip and plain numpy.
"""

import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from dimefm.cli import main
from dimefm.data.rows import Rows
from dimefm.errors import DataError
from dimefm.evaluate.datasets.layouts import find
from dimefm.evaluate.zero_shot_tokens import probabilities
from dimefm.extract.stages.base import Settings
from dimefm.models import filip, intermediate
from dimefm.models.loading import load_encoder
from dimefm.train.trainer import train
from tests.train.conftest import DistributedContext

FILIP = {"declip.filip": {"weight": 1.0, "width": 12, "tokens": 3}}
CLASSES, TEMPLATES = ("red", "green", "blue"), ("a {}", "a photo of a {} thing", "{}")
BROKEN = "test/green/1.png"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a run that learnt by tokens alone (``filip``), one by rows (``clip``),
    and a dataset.
    """
    root = tmp_path_factory.mktemp("filip")
    world = DistributedContext(root)
    pairs = {
        "images": [str(world.pairs([f"picture {n}" for n in range(12)]))],
        "steps": 3,
        "save_every": 100,
    }
    for name, more in (
        ("filip", {"losses": FILIP, "ema": 0.9, "mask_words": 0.15, "mlm_caption": "contrastive"}),
        ("clip", {}),
    ):
        train(world.clip_recipe(**pairs, **more), root / name, echo=lambda line: None)
    draw, sets = np.random.default_rng(0), root / "sets/shades"
    for name in CLASSES:
        (sets / "test" / name).mkdir(parents=True)
        for n in range(4):
            Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
                sets / f"test/{name}/{n}.png"
            )
    (sets / BROKEN).write_bytes(b"no image")
    (sets / "classnames.txt").write_text("\n".join(CLASSES))
    (sets / "templates.txt").write_text("\n".join(TEMPLATES))
    return root


def evaluate(place, out, *more, model="filip"):
    words = [
        "--model",
        place / model,
        "--root",
        place / "sets",
        "--datasets",
        "shades",
        "--out",
        out,
        "--device",
        "cpu",
    ]
    return CliRunner().invoke(main, ["eval", "elevater", *map(str, [*words, *more])])


def scored(place, out, *more, model="filip"):
    """Return what scores.json holds, and what was said."""
    result = evaluate(place, out, *more, model=model)
    assert result.exit_code == 0, result.output
    return json.loads((out / "scores.json").read_text()), result.stdout


def refusal(place, tmp_path, *more, model="filip"):
    result = evaluate(place, tmp_path / "scores", "--by", "tokens", *more, model=model)
    assert (result.exit_code, "Traceback" in result.output) == (1, False)
    assert not (tmp_path / "scores/scores.json").exists()
    return result.stderr.rstrip("\n").split("\n")[-1]


@torch.inference_mode()
def by_hand(run, pictures):
    """Return scores [n, C] of images as open_clip alone, the file of maps and numpy give them."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{run}")
    model.eval()
    maps = {
        name: weights.numpy().astype(float)
        for name, weights in load_file(run / "token_maps.safetensors").items()
    }

    def mapped(states, side):
        found = (
            states.numpy().astype(float) @ maps[f"{side}_mapping.weight"].T
            + maps[f"{side}_mapping.bias"]
        )
        return found / np.linalg.norm(found, axis=-1, keepdims=True)

    pixels = torch.stack([transform(Image.open(path).convert("RGB")) for path in pictures])
    patches = mapped(model.visual.transformer(model.visual._embeds(pixels))[:, 1:], "image")
    scores = np.zeros((len(pictures), len(CLASSES)))
    for number, name in enumerate(CLASSES):
        tokens = open_clip.get_tokenizer(f"local-dir:{run}")(
            [template.format(name) for template in TEMPLATES]
        )
        mean = mapped(intermediate.text(model, tokens).states, "text").mean(axis=0)
        scores[:, number] = (
            np.einsum("npe,le->npl", patches, mean / np.linalg.norm(mean)).max(axis=2).mean(axis=1)
        )
    return scores


def softmax(scores):
    found = np.exp(scores)
    return found / found.sum(axis=1, keepdims=True)


@pytest.fixture
def opened(place):
    """Return (encoder, its maps, the dataset's benchmark, its test rows, paths of those that can be
    read, their numbers).
    """
    encoder = load_encoder(str(place / "filip"), "cpu")
    (dataset,), _ = find(place / "sets", ["shades"])
    rows, _, _ = dataset.rows("test")
    paths = [dataset.folder / "test" / key for key in rows.shards[0].keys()]
    good = [number for number, path in enumerate(paths) if path != dataset.folder / BROKEN]
    return (
        encoder,
        filip.load(str(place / "filip"), encoder),
        dataset.benchmark,
        rows,
        [paths[n] for n in good],
        good,
    )


def test_scores_by_tokens_are_those_of_open_clip_and_numpy(place, opened):
    *what, rows, paths, good = opened
    found, numbers = probabilities(
        *what, rows, Settings(batch_size=5, decoder="pil", progress=False)
    )
    assert numbers.tolist() == good
    expected = softmax(by_hand(place / "filip", paths))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.ptp(found, axis=0).min() > 1e-4, "images differ by more than the tolerance"


def test_rows_are_counted_through_all_shards(opened):
    *what, rows, _, good = opened
    settings = Settings(batch_size=5, progress=False)
    once, twice = (
        probabilities(*what, rows, settings),
        probabilities(*what, Rows(rows.shards * 2), settings),
    )
    np.testing.assert_allclose(twice[0], np.concatenate([once[0], once[0]]), atol=1e-6)
    assert twice[1].tolist() == good + [len(rows) + number for number in good]


def test_scores_that_are_not_finite_are_no_scores(opened):
    encoder, maps, benchmark, rows, *_ = opened
    torch.nn.init.constant_(maps.image.bias, torch.nan)
    with pytest.raises(
        DataError, match=r"none of the 12 rows could be used; .* row \d+: its scores are not finite"
    ):
        probabilities(
            encoder, maps, benchmark, Rows(rows.shards), Settings(batch_size=1, progress=False)
        )


def test_the_command_scores_by_tokens_and_keeps_nothing(place, tmp_path, opened):
    *_, rows, paths, _ = opened
    found, said = scored(place, tmp_path, "--by", "tokens")
    labels = np.array([CLASSES.index(path.parent.name) for path in paths])
    (score,) = found["scores"]
    assert score["value"] == (by_hand(place / "filip", paths).argmax(axis=1) == labels).mean()
    assert (score["images"], score["unreadable"]) == (11, 1)
    assert (
        found["by"] == "tokens"
        and "FILIP zero-shot" in found["protocol"]
        and "padding counted" in found["protocol"]
    )
    assert "by tokens" in said and "FILIP zero-shot" in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "features").exists()


def test_scores_by_rows_and_by_tokens_do_not_mix(place, tmp_path, digests):
    alone, _ = scored(place, tmp_path / "alone")
    tokens, _ = scored(place, tmp_path / "both", "--by", "tokens")
    rows, _ = scored(place, tmp_path / "both")
    assert rows["by"] == alone["by"] == "rows" and "ELEVATER" in rows["protocol"]
    assert rows["scores"] == alone["scores"]
    kept = digests(tmp_path / "both/features")
    again, _ = scored(place, tmp_path / "both", "--by", "tokens")
    assert again["scores"] == tokens["scores"]
    assert digests(tmp_path / "both/features") == kept


def test_a_run_keeps_the_maps_of_its_averaged_weights_and_others_none(place):
    record = json.loads((place / "filip/run.json").read_text())
    assert record["token_maps"] == {"width": 12, "padding": "counted"}
    kept = load_file(place / "filip/token_maps.safetensors")
    average = load_file(place / "filip/checkpoints/00000003/ema.safetensors")
    assert len(kept) == 4
    for name, weights in kept.items():
        assert torch.equal(weights, average[f"module.loss_modules.0.{name}"])
    assert "token_maps" not in json.loads((place / "clip/run.json").read_text())
    assert not (place / "clip/token_maps.safetensors").exists()


def test_runs_are_compared_with_scores_by_tokens_on_a_line_of_their_own(place):
    scored(place, place / "filip/scores", "--by", "tokens")
    scored(place, place / "clip/scores", model="clip")
    result = CliRunner().invoke(
        main, ["runs", "compare", str(place / "filip"), str(place / "clip")]
    )
    assert [line.split("  ")[0] for line in result.stdout.splitlines() if "shades" in line] == [
        "scores: shades, by tokens",
        "scores: shades",
    ]


def test_a_run_that_learnt_by_rows_is_refused(place, tmp_path):
    line = refusal(place, tmp_path, model="clip")
    assert line.startswith(f"Error: {place / 'clip'}: keeps no maps of tokens")
    assert "leave --by tokens out" in line


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("token_maps.safetensors", b"no maps", "token_maps.safetensors: the weights do not load"),
        ("token_maps.safetensors", None, "token_maps.safetensors: the weights do not load"),
        (
            "run.json",
            b'{"kind": "clip", "token_maps": {"width": 12}}',
            "'token_maps' cannot be read (KeyError('padding'))",
        ),
        (
            "run.json",
            b'{"kind": "clip", "token_maps": {"width": 0, "padding": "counted"}}',
            "'token_maps' cannot be read",
        ),
        (
            "run.json",
            b'{"kind": "clip", "token_maps": {"width": 9, "padding": "counted"}}',
            "the weights do not load",
        ),
    ],
)
def test_damaged_maps_are_refused(place, tmp_path, name, content, message):
    run = shutil.copytree(place / "filip", tmp_path / "run")
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content)
    assert message in refusal(place, tmp_path, model=run)


def test_a_dataset_without_a_readable_image_is_listed_as_failed(place, tmp_path):
    sets = shutil.copytree(place / "sets", tmp_path / "sets")
    for path in sets.rglob("*.png"):
        path.write_bytes(b"no image")
    line = refusal(place, tmp_path, "--root", sets)
    assert "none of the 12 rows could be used; the first, " in line
    assert "not an image" in line
