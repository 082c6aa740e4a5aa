"""Equal sentences of a shard are encoded once, wherever they stand; the cache has a row of each,
whoever made it.
"""

import dataclasses
import threading

import numpy as np
import pytest
import torch

from dimefm import plugins
from dimefm.cache import CacheWriter, EncoderCard, FeatureCache, Manifest
from dimefm.cache.int8 import QuantizerFitter
from dimefm.cache.quarantine import quarantined
from dimefm.data import open_rows
from dimefm.errors import CacheError
from dimefm.extract.extract import Settings, extract, extract_several
from dimefm.extract.sharding import Share
from dimefm.models.inference import text_batches as sentences_of
from dimefm.runtime.threads import encode_thread_count

QUIET = Settings(progress=False, batch_size=2)  # 64 sentences are made ready together
BASE = [f"a {'very ' * (n % 7)}red thing of number {n}" for n in range(200)]
SENTENCES = BASE * 3  # repeats stand further apart than a portion is long
LONG = " ".join(["word"] * 40)


class Counted:
    """An encoder that keeps every row of tokens it encodes; vectors of ``broken`` sentences are no
    numbers.
    """

    def __init__(self, encoder, broken=()):
        self.encoder, self.seen, self.lock = encoder, [], threading.Lock()
        self.broken = [encoder.tokenize([sentence])[0][0] for sentence in broken]

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def encode_text(self, tokens):
        with self.lock:
            self.seen += map(tuple, tokens.tolist())
        found = self.encoder.encode_text(tokens).clone()
        for row in self.broken:
            found[(tokens == row).all(1)] = float("nan")
        return found


@pytest.fixture
def several_lanes():
    """Give torch three threads, which are three lanes on a CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def written(path, sentences):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{sentence}\n" for sentence in sentences), encoding="utf-8")
    return path


def run(encoder, folder, out, settings=QUIET, **how):
    """Extract every text file of ``folder`` as a shard; return the cache."""
    extract(encoder, open_rows(sorted(folder.glob("*.txt")), "text"), "text", out, settings, **how)
    return FeatureCache(out)


@pytest.mark.parametrize("format_", plugins.names("caches"))
def test_repeats_that_lie_far_apart_are_encoded_once_a_shard(tiny_teacher, tmp_path, format_):
    written(tmp_path / "raw/a.txt", SENTENCES)
    written(
        tmp_path / "raw/b.txt", [*BASE[:3], "  " + BASE[0].upper()]
    )  # another shard; first = last
    encoder = Counted(tiny_teacher)
    cache = run(
        encoder, tmp_path / "raw", tmp_path / "out", dataclasses.replace(QUIET, format=format_)
    )
    assert len(encoder.seen) == len(BASE) + 3
    rows, alone = cache[:], tiny_teacher.encode_text(tiny_teacher.tokenize(BASE)[0]).numpy()
    np.testing.assert_allclose(rows[: len(BASE)], alone, atol=1e-3)
    np.testing.assert_array_equal(rows[: len(SENTENCES)], np.tile(rows[: len(BASE)], (3, 1)))
    np.testing.assert_array_equal(rows[-1], rows[-4])
    assert cache.read(cache.manifest.shards[0])[0] == [str(n) for n in range(len(SENTENCES))]
    assert cache.verify(sha256=True)


def test_a_shard_without_repeats_reads_as_with_them_taken_out(tiny_teacher, tmp_path):
    written(tmp_path / "once/a.txt", BASE)
    written(tmp_path / "again/a.txt", BASE + BASE)
    once, again = (
        run(tiny_teacher, tmp_path / name, tmp_path / "out" / name) for name in ("once", "again")
    )
    np.testing.assert_array_equal(again[: len(BASE)], again[len(BASE) :])
    np.testing.assert_allclose(again[: len(BASE)], once[:], atol=1e-3)


@pytest.fixture
def raw(tmp_path):
    """Return a folder of shards: repeats near and far, bad rows among them, one sentence, only bad
    ones, none.
    """
    odd = [sentence if n % 11 else ("", LONG)[n % 2] for n, sentence in enumerate(SENTENCES)]
    shards = {
        "a": odd,
        "b": ["a cat"] * 150,
        "c": ["", LONG] * 70,
        "d": [],
        "e": odd[::-1],
        "f": ["a cat", "a dog"],
    }
    for name, sentences in shards.items():
        written(tmp_path / f"raw/{name}.txt", sentences)
    return tmp_path / "raw"


@pytest.mark.parametrize("dtype", ["float16", pytest.param("int8", marks=pytest.mark.slow)])
def test_bytes_do_not_depend_on_lanes_workers_parts_teachers_and_interruptions(
    tiny_teacher, raw, tmp_path, dtype, digests, several_lanes
):
    settings = dataclasses.replace(QUIET, dtype=dtype)
    assert encode_thread_count(tiny_teacher.device) == 3
    run(tiny_teacher, raw, tmp_path / "lanes", settings)
    torch.set_num_threads(1)
    run(tiny_teacher, raw, tmp_path / "one", dataclasses.replace(settings, workers=1))
    rows = open_rows(sorted(raw.glob("*.txt")), "text")
    for part in (1, 0):
        extract(
            tiny_teacher,
            rows,
            "text",
            tmp_path / "parts",
            settings,
            share=Share(part=part, parts=2),
        )
    caches = [(tiny_teacher, tmp_path / "first"), (tiny_teacher, tmp_path / "second")]
    extract_several(caches, rows, "text", settings)
    whole = digests(tmp_path / "lanes")
    for name in ("one", "parts", "first", "second"):
        assert digests(tmp_path / name) == whole, name


def test_an_interrupted_shard_is_made_again_with_the_same_bytes(
    tiny_teacher, raw, tmp_path, digests
):
    class Cut(Counted):
        def encode_text(self, tokens):
            if len(self.seen) > 250:
                raise KeyboardInterrupt
            return super().encode_text(tokens)

    run(tiny_teacher, raw, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(Cut(tiny_teacher), raw, tmp_path / "cut")
    run(tiny_teacher, raw, tmp_path / "cut")
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


def test_shards_that_are_added_have_the_bytes_that_they_have_from_the_start(
    tiny_teacher, raw, tmp_path, digests
):
    run(tiny_teacher, raw, tmp_path / "whole")
    for part, mode in (("[a-c].txt", "create"), ("*.txt", "append")):
        extract(
            tiny_teacher,
            open_rows(sorted(raw.glob(part)), "text"),
            "text",
            tmp_path / "grown",
            QUIET,
            mode=mode,
        )
    assert digests(tmp_path / "grown") == digests(tmp_path / "whole")


def test_every_repeat_of_a_bad_sentence_is_quarantined(tiny_teacher, tmp_path):
    bad = {5: LONG, 7: "", 9: BASE[9]}
    sentences = [bad.get(n % 200, sentence) for n, sentence in enumerate(SENTENCES)]
    written(tmp_path / "raw/a.txt", sentences)
    encoder = Counted(tiny_teacher, broken=[BASE[9]])
    cache = run(encoder, tmp_path / "raw", tmp_path / "out")
    expected = sorted(n + 200 * turn for n in bad for turn in range(3))
    assert cache.manifest.shards[0].bad == tuple(expected)
    reasons = {bad.row: bad.reason for _, bad in quarantined(cache.store, cache.manifest)}
    for number, words in (
        (5, "has 42 tokens"),
        (7, "is empty"),
        (9, "is not finite or has no length"),
    ):
        assert all(words in reasons[number + 200 * turn] for turn in range(3))
    assert len(encoder.seen) == 198 and len(cache) == 3 * 197
    np.testing.assert_array_equal(cache[:], np.tile(cache[:197], (3, 1)))


def test_quarantined_repeats_are_recovered(tiny_teacher, tmp_path):
    written(tmp_path / "raw/a.txt", SENTENCES)
    whole = run(tiny_teacher, tmp_path / "raw", tmp_path / "whole")
    cache = run(Counted(tiny_teacher, broken=BASE[3:90]), tmp_path / "raw", tmp_path / "out")
    assert len(cache.manifest.shards[0].bad) == 3 * 87
    cache = run(tiny_teacher, tmp_path / "raw", tmp_path / "out", mode="retry")
    assert cache.manifest.shards[0].bad == ()
    np.testing.assert_allclose(cache[:], whole[:], atol=1e-3)


def test_what_is_past_the_memory_for_sentences_is_encoded_again(
    tiny_teacher, tmp_path, monkeypatch
):
    written(tmp_path / "raw/a.txt", SENTENCES)
    whole = run(tiny_teacher, tmp_path / "raw", tmp_path / "whole")
    monkeypatch.setattr(sentences_of, "REMEMBERED", 50)
    encoder = Counted(tiny_teacher)
    cache = run(encoder, tmp_path / "raw", tmp_path / "out")
    assert len(encoder.seen) == 50 + 3 * 150
    np.testing.assert_allclose(cache[:], whole[:], atol=1e-3)


def test_an_error_in_a_lane_ends_the_run_without_encoding_what_waits(tiny_teacher, tmp_path):
    class Failing(Counted):
        def encode_text(self, tokens):
            super().encode_text(tokens)
            raise RuntimeError("the device is gone")

    written(tmp_path / "raw/a.txt", BASE)
    encoder = Failing(tiny_teacher)
    with pytest.raises(RuntimeError, match="the device is gone"):
        run(encoder, tmp_path / "raw", tmp_path / "out")
    assert len(encoder.seen) < len(BASE) / 2


@pytest.mark.parametrize(
    "order", [[0, 1, 2, 0, 3, 4, 1, 5, 5, 0], [0] * 8, [0, 1, 2], [0, 1, 1, 0, 2]]
)
def test_a_spool_gives_each_key_its_row(tmp_path, order):
    vectors = np.arange(3 * (max(order) + 1), dtype=np.float32).reshape(-1, 3)
    writer = CacheWriter(tmp_path, header("float32"), [("a", len(order))])
    for size in (1, 2, 100):
        with writer.row_buffer("a") as spool:
            for start in range(0, len(order), size):
                part = np.array(order[start : start + size])
                spool.add(
                    [str(i) for i in part],
                    vectors[spool.count : max(spool.count, part.max() + 1)],
                    part,
                )
            rows = spool.rows()
            assert rows.shape == (len(order), 3) and spool.path.stat().st_size == vectors.nbytes
            for start in range(len(order) + 1):
                for end in range(start, len(order) + 1):
                    np.testing.assert_array_equal(rows[start:end], vectors[order[start:end]])
            np.testing.assert_array_equal(rows[len(order) - 1], vectors[order[-1]])


def header(dtype, **fields):
    return Manifest(
        "text", "hdf5", dtype, 3, False, EncoderCard("test", None, 3, 100.0), {}, {}, **fields
    )


def test_a_row_that_cannot_be_stored_is_numbered_by_its_first_key(tmp_path):
    fit = QuantizerFitter(4)
    fit.add(np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32))
    writer = CacheWriter(tmp_path, header("int8", code=fit.code().fields()), [("a", 9)])
    rows = np.zeros((3, 3), np.float32)
    with writer.row_buffer("a") as spool:
        spool.add(["0", "1"], rows[:1], np.array([0, 0]))
        rows[2, 1] = 1e6
        with pytest.raises(CacheError, match="a, stored row 6, dimension 1"):
            spool.add(["2", "3", "4", "5", "6"], rows, np.array([1, 0, 2, 1, 3]))
