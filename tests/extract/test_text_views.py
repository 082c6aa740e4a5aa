"""Text views in a cache: each row is the teacher's feature of the sentence that the policy draws,
however it was made.
"""

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner

from dimefm.cache import FeatureCache, Manifest
from dimefm.cache.compare import compare
from dimefm.cache.convert import convert
from dimefm.cache.quarantine import quarantined
from dimefm.cli import main
from dimefm.data import open_rows
from dimefm.data.alignment import align
from dimefm.data.views.text_views import TextPolicy
from dimefm.errors import CacheError, RecipeError
from dimefm.evaluate.retrieval import check_same_encoder
from dimefm.extract.extract import Settings, extract, extract_several
from dimefm.extract.stages.texts import Texts
from dimefm.extract.verify import against_teacher
from dimefm.models.loading import load_encoder

EDA = TextPolicy.parse(3, {"augment": "eda", "seed": 2})
CAPTIONS = TextPolicy.parse(2, {})
LONG = "word " * 40
ROWS = [
    ["a small dog runs on the beach", "the dog"],
    ["sunset"],
    ["  two  people near a river ", "", "a bike"],
    [""],
    ["a red car, parked in a street", LONG, "a car"],
    [LONG, "a truck"],
    ["caf\u00e9 by the sea \U0001f30a"],
]


def quiet(policy, **over):
    return Settings(progress=False, batch_size=2, text_views=policy, **over)


@pytest.fixture
def source(tmp_path):
    """A folder of two TSV shards of captions; one row of the first holds no JSON of captions."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for name, rows in (("a", ROWS), ("b", ROWS[:3])):
        lines = [f"{name}{n}\t{json.dumps({'captions': row})}\n" for n, row in enumerate(rows)]
        (folder / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
    with (folder / "a.tsv").open("a") as file:
        file.write('broken\t{"nothing": 1}\n')
    return folder


def shards(source):
    return open_rows(sorted(source.glob("*.tsv")), "text")


def run(encoder, source, out, policy, **how):
    extract(encoder, shards(source), "text", out, quiet(policy), **how)
    return FeatureCache(out)


def drawn(policy):
    """Return (shard, row number, key, sentence) of every view that the cache should have: not
    empty, 32 tokens at most.
    """
    found = []
    for name, rows in (("a", ROWS), ("b", ROWS[:3])):
        for number, texts in enumerate(rows):
            for view in range(policy.count):
                key, text = f"{name}{number}", texts[policy.place(view, len(texts))]
                if text.strip() and len((text := policy.draw(key, view, texts)).split()) <= 30:
                    found.append((name, number * policy.count + view, f"{key}#{view}", text))
    return found


@pytest.mark.parametrize(
    "policy", [CAPTIONS, EDA, TextPolicy.parse(1, {}), dataclasses.replace(EDA, clean=False)]
)
def test_cached_rows_are_features_of_the_drawn_sentences(tiny_teacher, source, tmp_path, policy):
    cache = run(tiny_teacher, source, tmp_path / "out", policy)
    wanted = drawn(policy)
    assert [key for info in cache.manifest.shards for key in cache.read(info)[0]] == [
        key for _, _, key, _ in wanted
    ]
    features = tiny_teacher.encode_text(
        tiny_teacher.tokenize([text for *_, text in wanted])[0]
    ).numpy()
    np.testing.assert_allclose(cache[:], features, atol=1e-3)
    assert [info.source_rows for info in cache.manifest.shards] == [
        8 * policy.count,
        3 * policy.count,
    ]
    for info, name in zip(cache.manifest.shards, "ab", strict=True):
        there = {number for shard, number, *_ in wanted if shard == name}
        assert set(info.bad) == set(range(info.source_rows)) - there
    reasons = {row.key: row.reason for _, row in quarantined(cache.store, cache.manifest)}
    assert len(reasons) == sum(len(info.bad) for info in cache.manifest.shards)
    assert reasons["a3#0"] == "sentence is empty"
    assert "is a JSON object without captions" in reasons["broken#0"]
    assert "sentence has 42 tokens" in reasons["a5#0"]


def test_the_manifest_states_the_policy_and_nothing_without_one(tiny_teacher, source, tmp_path):
    cache = run(tiny_teacher, source, tmp_path / "views", EDA)
    assert cache.manifest.how["text_views"] == EDA.how()
    assert TextPolicy.from_manifest(cache.manifest.how, cache.store) == EDA
    assert cache.manifest.views == 3
    assert "text_views={count=3, augment=eda" in cache.manifest.describe()
    plain = run(tiny_teacher, source, tmp_path / "plain", None)
    assert plain.manifest.how == {
        "precision": "fp32",
        "captions": "first",
        "long_texts": "quarantine",
    }
    assert plain.manifest.views == 1


@pytest.mark.parametrize("policy", [CAPTIONS, EDA])
def test_usable_rows_find_their_views(tiny_teacher, source, tmp_path, policy):
    cache = run(tiny_teacher, source, tmp_path / "out", policy)
    rows = shards(source)
    aligned = align(rows, cache)
    keys = [key for info in cache.manifest.shards for key in cache.read(info)[0]]
    for view in range(policy.count):
        raw, (cached,) = aligned.locate(np.arange(len(aligned)), view)
        assert [keys[row] for row in cached] == [f"{rows[number].key}#{view}" for number in raw]
    whole = (
        [0, 1, 4, 6] if policy is EDA else [0, 1, 6]
    )  # where no view is missing; of captions, row 2 lacks the second
    assert [number for number in raw.tolist() if number in (0, 1, 4, 6)] == whole


def test_interrupted_it_goes_on_to_the_same_bytes(
    tiny_teacher, source, tmp_path, digests, monkeypatch
):
    run(tiny_teacher, source, tmp_path / "whole", EDA)
    real, seen = Texts.prepare, []

    def stop_in_the_second_shard(self, index, numbers):
        if index.shard.name == "b.tsv":
            raise KeyboardInterrupt
        seen.append(index.shard.name)
        return real(self, index, numbers)

    monkeypatch.setattr(Texts, "prepare", stop_in_the_second_shard)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_teacher, source, tmp_path / "cut", EDA)
    assert seen
    assert not (tmp_path / "cut/manifest.json").exists()
    monkeypatch.undo()
    with pytest.raises(CacheError, match=r"text_views.seed: 4 against 2"):
        run(tiny_teacher, source, tmp_path / "cut", dataclasses.replace(EDA, seed=4))
    run(tiny_teacher, source, tmp_path / "cut", EDA)
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


def test_append_adds_shards_and_a_mended_row_gets_its_views(tiny_teacher, source, tmp_path):
    late = (source / "b.tsv").rename(tmp_path / "b.tsv")
    run(tiny_teacher, source, tmp_path / "out", CAPTIONS)
    late.rename(source / "b.tsv")
    cache = run(tiny_teacher, source, tmp_path / "out", CAPTIONS, mode="append")
    np.testing.assert_array_equal(
        cache[:], run(tiny_teacher, source, tmp_path / "at_once", CAPTIONS)[:]
    )
    with pytest.raises(CacheError, match="text_views"):
        run(tiny_teacher, source, tmp_path / "out", None, mode="append")
    (source / "a.tsv").write_text(
        (source / "a.tsv").read_text("utf-8").replace('{"nothing": 1}', "a mended dog"), "utf-8"
    )
    mended = run(tiny_teacher, source, tmp_path / "out", CAPTIONS, mode="retry")
    assert {"broken#0", "broken#1"} <= set(mended.read(mended.manifest.shards[0])[0])


def test_several_teachers_have_the_sentences_that_each_has_alone(tiny_teacher, source, tmp_path):
    other = load_encoder("RN-mini-32/random:1", "cpu")
    caches = [(tiny_teacher, tmp_path / "a"), (other, tmp_path / "b")]
    extract_several(caches, shards(source), "text", quiet(EDA))
    for encoder, out in caches:
        np.testing.assert_array_equal(
            FeatureCache(out)[:], run(encoder, source, tmp_path / f"{out}_alone", EDA)[:]
        )


def test_every_sentence_and_views_exclude_each_other(tiny_teacher):
    with pytest.raises(
        RecipeError, match="captions 'all' makes a row of every sentence, .* leave one out"
    ):
        Texts(tiny_teacher, quiet(EDA, captions="all"))


def test_captions_that_no_view_shows_are_counted(tiny_teacher, source, tmp_path):
    reports = [
        extract(tiny_teacher, shards(source), "text", tmp_path / str(n), quiet(policy))
        for n, policy in enumerate((None, EDA, CAPTIONS, TextPolicy.parse(9, {})))
    ]
    unused = [report.unused_captions for report in reports]
    assert unused[0] == unused[1] > unused[2] > unused[3] == 0
    remedies = (
        "--captions all encodes them",
        "variants are of the first",
        "a larger --text-views takes more",
        "",
    )
    for report, remedy in zip(reports, remedies, strict=True):
        assert ("further captions" in report.describe()) == bool(remedy)
        assert remedy in report.describe()


def test_it_is_verified_against_the_teacher_converted_and_compared(tiny_teacher, source, tmp_path):
    table = tmp_path / "table.tsv"
    table.write_text("dog\thound\npeople\tfolk\n")
    policy = TextPolicy.parse(3, {"augment": "eda", "synonyms": str(table)})
    cache = run(tiny_teacher, source, tmp_path / "out", policy)
    table.unlink()
    assert against_teacher(cache, tiny_teacher, shards(source), 20).min_cosine > 0.999
    convert(cache, tmp_path / "converted", "parquet")
    moved = FeatureCache(tmp_path / "converted")
    assert TextPolicy.from_manifest(moved.manifest.how, moved.store).table == policy.table
    assert against_teacher(moved, tiny_teacher, shards(source), 20).min_cosine > 0.999
    assert compare(cache, moved).same
    other = run(tiny_teacher, source, tmp_path / "other", EDA)
    assert any("text_views.synonyms" in line for line in compare(cache, other).fields)


def test_retrieval_refuses_variants(tiny_teacher, source, tmp_path, picture):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(picture(1))
    extract(
        tiny_teacher,
        open_rows([tmp_path / "photos"], "image"),
        "image",
        tmp_path / "images",
        quiet(None),
    )
    texts = run(tiny_teacher, source, tmp_path / "texts", CAPTIONS)
    with pytest.raises(
        CacheError, match="holds 2 views of each row's sentences, .* --captions all"
    ):
        check_same_encoder(FeatureCache(tmp_path / "images"), texts)


def test_the_command_line(source, tmp_path):
    def call(*options):
        return CliRunner().invoke(
            main,
            [
                "extract-features",
                "--teacher",
                "ResNet-mini-64/random:0",
                "--device",
                "cpu",
                "--out",
                str(tmp_path / "cache"),
                "--texts",
                str(source),
                *options,
            ],
        )

    refused = call("--text-views", "2", "--captions", "all")
    assert refused.exit_code == 2
    assert refused.output.strip().endswith("leave one out")
    assert "say how many with --text-views K" in call("--text-recipe", "seed=1").output
    done = call("--text-views", "2", "--text-recipe", "augment='eda'", "seed=7")
    assert done.exit_code == 0, done.output
    how = Manifest.read(tmp_path / "cache/texts").how
    assert how["text_views"] == TextPolicy.parse(2, {"augment": "eda", "seed": 7}).how()
    info = CliRunner().invoke(main, ["cache", "info", str(tmp_path / "cache/texts")])
    assert "augment=eda, seed=7" in info.output
