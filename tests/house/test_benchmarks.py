"""The benchmarks run end to end on little, and write down every item; no figure is judged here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CACHES = ("hdf5", "parquet", "tsv", "40 shards", "many shards", "int8")
ITEMS = {
    *(f"gather {name} / {other}" for name in CACHES for other in ("numpy map", "DIME-FM")),
    *(f"sequential {name} / readinto" for name in CACHES),
    *(f"streaming {name} / readinto" for name in CACHES),
    *(f"block shuffle {name} / numpy map" for name in CACHES),
    *(f"write {name} / raw files" for name in ("hdf5", "spool", "parquet", "tsv", "raw int8")),
    *(
        f"open {which} {what}"
        for which in ("none bad", "1 % bad")
        for what in ("seconds", "memory")
    ),
    *(f"memory read 2000 {part}" for part in ("peak", "anonymous", "files", "gathers")),
    *(
        f"memory write {size} {part}"
        for size in ("small", "large")
        for part in ("anonymous", "mapped files")
    ),
    *("memory read growth", "memory read growth anonymous"),
    *(
        "gather hdf5 / DIME-FM without gc",
        "one row / numpy map",
        "flat copy parquet",
        "flat copy tsv",
    ),
    *(
        "pitfall list / binary",
        "pitfall ours / binary",
        "pitfall flat / random list",
        "pitfall flat / random binary",
    ),
    *("pitfall hdf5 / h5 contiguous", "pitfall hdf5 / h5 gzip"),
}
FORMS = (
    ("hdf5", "float16"),
    ("hdf5", "int8"),
    ("parquet", "float16"),
    ("parquet", "int8"),
    ("tsv", "float32"),
)
DTYPES = (
    "float16",
    "int8, fitted on every row (cache convert)",
    "int8, with the extraction's margin",
    "int8, one scale a row (as others do)",
)
REAL = {
    *(
        f"bytes images {name} {dtype}, {part}"
        for name, dtype in FORMS
        for part in ("rows alone", "whole shard with keys")
    ),
    *(f"bytes {name} keys" for name in ("images", "paired images", "paired texts", "lvis", "coco")),
    *(f"{what} {name}" for what in ("cosine", "KL") for name in DTYPES),
}


EXTRACTS = {
    *(
        f"images ResNet-mini-64 {what}"
        for what in ("eager / bare", "eager / script", "cosine", "busy")
    ),
    *(f"images ResNet-mini-64 auto{what}" for what in (" / bare", " / script", " cosine")),
    *(f"light / {other}" for other in ("script", "clip-retrieval", "clip-retrieval tars", "bare")),
    *("light cosine", "light busy", "null / script", "null / clip-retrieval"),
    *(
        f"decode {what}, {threads}"
        for what in ("turbo / pil", "pixels")
        for threads in ("one", "all")
    ),
    *(f"sentences ResNet-mini-64 {what}" for what in ("/ loop", "ideal", "difference")),
    *("tokenizer / open_clip", "tokenizer mismatches"),
    *(
        f"resume {kind}{part}"
        for kind in ("texts", "images")
        for part in ("", " command", " first")
    ),
    *(
        f"memory {kind} {when}"
        for kind in ("texts", "images")
        for when in ("before", "early", "late", "growth", "peak")
    ),
}
TRAIN_SIZES = {
    "batch": 8,
    "live": 4,
    "rows": 100,
    "pairs": 128,
    "blocks": 2000,
    "images": 64,
    "steps": 1,
    "repeats": 1,
}
TRAINS = {
    *(f"step ResNet-mini-32 {what}" for what in ("cached / plain", "cached / plain CPU")),
    *(
        f"step ResNet-mini-32 live RN-mini-32{what}"
        for what in ("", " CPU", " bound", " bound timed")
    ),
    *(f"accumulation ResNet-mini-32{what}" for what in ("", " memory")),
    *(
        f"loader {rows} {what}"
        for rows in (10, 100)
        for what in ("/ DIME-FM", "/ DIME-FM without gc", "features / DIME-FM")
    ),
    *(f"loss {what}{pairs}" for what in ("", "memory ") for pairs in (64, 128)),
    *(
        f"order {how} {rows}"
        for how in ("rows", "blocks", "mix")
        for rows in (10_000, 160_000, 2_560_000, 10_240_000)
    ),
    *("loader growth", f"order rows {4**11 + 1}", "order parquet blocks / rows"),
    *(
        f"views {what} / pil, {threads}"
        for what in ("turbo", "packed")
        for threads in ("one thread", "two threads")
    ),
    *(
        "views difference pil",
        "views difference packed",
        "pack",
        "pack bytes",
        "step data share",
        "step images/s",
    ),
}


def run(*options: str) -> tuple[str, list[dict]]:
    return started(
        "benchmarks.cache", "--quick", "--rows", "2000", "--dim", "64", "--repeats", "1", *options
    )


def started(module: str, *options: str) -> tuple[str, list[dict]]:
    out = Path(options[options.index("--out") + 1])
    command = [sys.executable, "-m", module, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return (table, lines) of all that needs no real data."""
    folder = tmp_path_factory.mktemp("bench")
    parts = "read,write,memory,open,pitfalls"
    return run("--parts", parts, "--folder", str(folder), "--out", str(folder / "results.jsonl"))


def test_every_item_is_written_down(made):
    _, (head, *lines) = made
    assert {"cpu", "cores", "memory", "folder", "python", "numpy", "h5py", "pyarrow"} <= head[
        "machine"
    ].keys()
    assert head["settings"]["rows"] == 2000
    assert {line["item"] for line in lines} == ITEMS
    assert {line["run"] for line in lines} == {head["run"]}


def test_ratios_stand_beside_their_goals(made):
    text, (_, *lines) = made
    assert text.splitlines()[1].split() == ["what", "ours", "against", "ratio", "goal", "met"]
    for line in lines:
        assert line["ours"] >= 0 or "growth" in line["item"]
        assert (line["ratio"] is None) == (line["against"] is None) and (line["goal"] is None) == (
            line["met"] is None
        )
        assert line["what"] in text


def test_nothing_is_left_in_the_folder(made, tmp_path):
    run("--parts", "pitfalls", "--folder", str(tmp_path), "--out", str(tmp_path / "out.jsonl"))
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_real_features_are_weighed(shared_data, tmp_path):
    _, (_, *lines) = run(
        "--parts", "bytes", "--data", str(shared_data), "--out", str(tmp_path / "out.jsonl")
    )
    assert {line["item"] for line in lines} >= REAL
    alone = {line["item"]: line["ratio"] for line in lines}
    assert alone["bytes images hdf5 float16, rows alone"] == 1.0
    assert alone["bytes images hdf5 int8, rows alone"] == 0.5


def test_the_peer_reads_what_was_written(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks._cache_data import header, made, names, write
    from benchmarks._dime_fm_tsv import Composite

    rows = made(20, 8)
    shard = write(tmp_path / "cache", header("tsv", 8), rows, names(0, 20)).shards[0]
    peer = Composite(tmp_path / "cache" / shard.file)
    assert [peer[i].tolist() for i in (0, 7, 19)] == rows[[0, 7, 19]].astype("float32").tolist()


LITTLE = {
    "images": 8,
    "heavy": 4,
    "batch": 4,
    "sentences": 40,
    "slow": 10,
    "shards": 4,
    "repeats": 1,
}


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """Return (table, lines) of the extraction's benchmark on a tiny tower and made photos."""
    folder = tmp_path_factory.mktemp("bench-extract")
    numbers = [text for name, value in LITTLE.items() for text in (f"--{name}", str(value))]
    towers = [
        "--towers",
        "ResNet-mini-64",
        "--text-tower",
        "ResNet-mini-64",
        "--no-compile",
        "--data",
        "none",
    ]
    return started(
        "benchmarks.extract",
        *numbers,
        *towers,
        "--folder",
        str(folder),
        "--out",
        str(folder / "results.jsonl"),
    )


@pytest.mark.slow
def test_every_item_of_extraction_is_written_down(extracted):
    text, (head, *lines) = extracted
    assert {line["item"] for line in lines} == EXTRACTS
    assert {"cpu", "cores", "load", "torch", "open_clip_torch", "threads"} <= head["machine"].keys()
    assert "no real pictures and sentences" in text
    for line in lines:
        assert (line["ratio"] is None) == (line["against"] is None) and (line["goal"] is None) == (
            line["met"] is None
        )
        assert line["what"] in text


@pytest.mark.slow
def test_what_is_compared_does_the_same_work(extracted):
    _, (_, *lines) = extracted
    seen = {line["item"]: line for line in lines}
    for item in (
        "images ResNet-mini-64 cosine",
        "light cosine",
        "sentences ResNet-mini-64 difference",
        "tokenizer mismatches",
    ):
        assert seen[item]["met"], seen[item]


def test_the_peer_keeps_every_row_of_a_folder_and_of_tars(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import numpy as np
    import torch

    from benchmarks._extract_data import Sizes, photos
    from benchmarks._extract_models import LIGHT_PREPROCESS, Constant
    from benchmarks._extract_peers import clip_retrieval
    from dimefm.models.open_clip import transform_of

    made = photos(Sizes(6, 2, 2, 0, 0, 0, 1, tmp_path, None))
    for folder in (made.every, made.tars):
        clip_retrieval(Constant(4), transform_of(LIGHT_PREPROCESS), folder, 4, tmp_path / "out")
        assert np.load(tmp_path / "out.npy").tolist() == torch.full((6, 4), 0.5).tolist()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return (table, lines) of training's benchmark on tiny towers and made photos."""
    folder = tmp_path_factory.mktemp("bench-train")
    numbers = [text for name, value in TRAIN_SIZES.items() for text in (f"--{name}", str(value))]
    towers = ["--students", "ResNet-mini-32", "--teachers", "RN-mini-32", "--data", "none"]
    return started(
        "benchmarks.train",
        *numbers,
        *towers,
        "--folder",
        str(folder),
        "--out",
        str(folder / "results.jsonl"),
    )


@pytest.mark.slow
def test_every_item_of_training_is_written_down(trained):
    text, (head, *lines) = trained
    assert {line["item"] for line in lines} == TRAINS
    assert {"cpu", "cores", "load", "torch", "open_clip_torch", "threads"} <= head["machine"].keys()
    for line in lines:
        assert (line["ratio"] is None) == (line["against"] is None) and (line["goal"] is None) == (
            line["met"] is None
        )
        assert line["what"] in text


@pytest.mark.slow
def test_a_live_teacher_costs_what_its_arithmetic_says(trained):
    _, (_, *lines) = trained
    seen = {
        line["item"].removeprefix("step ResNet-mini-32 live RN-mini-32"): line for line in lines
    }
    assert seen[" bound"]["ours"] > 1
    assert seen[""]["goal"] == f">= {0.9 * seen[' bound']['ours']}"


def test_both_loaders_give_the_same_views_and_features(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import numpy as np

    from benchmarks._train_loader import PIXELS, Ways, tsvs
    from dimefm.runtime.seeding import seed_of

    ways = Ways.on(tsvs(tmp_path / "data", 6, 8), tmp_path / "run", 4)
    batch, rows = ways.batches(0), ways.batches.order.take(0, 4)[0].tolist()
    theirs = ways.released(rows, collect=False)
    assert batch.pixels.shape == (4, PIXELS, PIXELS, 3)
    np.testing.assert_array_equal(batch.same_modality[0], [feature for _, feature in theirs])
    for place, (row, (view, _)) in enumerate(zip(rows, theirs, strict=True)):
        assert view.shape == (PIXELS, PIXELS, 3)
        raw = ways.batches.sources.raw[row]
        again = ways.batches.view(raw.image, raw.key, 0, seed_of(0, "view", place))
        np.testing.assert_array_equal(batch.pixels[place], again)
        np.testing.assert_array_equal(view, ways.batches.view(raw.image, raw.key, 0, row))


def test_every_step_that_is_timed_learns(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import torch

    from benchmarks._train_steps import Cached, Live, Plain

    cached = Cached.of(tmp_path, "ResNet-mini-32", 128, 4)
    for step in (cached, Plain(cached), Live.of(cached, "RN-mini-32")):
        before = [weights.detach().clone() for weights in cached.run.student.parameters()]
        step()
        changed = [
            not torch.equal(a, b)
            for a, b in zip(before, cached.run.student.parameters(), strict=True)
        ]
        assert sum(changed) > len(changed) / 2, type(step).__name__


@pytest.fixture
def of_a_device(monkeypatch):
    """Return what runs the benchmark of a device with options, in this process, and returns its
    exit status.
    """
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import gpu_extract

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["gpu_extract", *map(str, options)])
        return gpu_extract.main()

    return run


def test_a_machine_without_cuda_is_told_so(of_a_device, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    assert of_a_device() == 2
    assert capsys.readouterr().err.startswith("no CUDA device")


def test_the_benchmark_of_a_device_runs_on_a_cpu(of_a_device, tmp_path):
    out = tmp_path / "out.jsonl"
    options = (
        "--device cpu --arch ResNet-mini-64 --images 8 --sentences 40 --batch 4 --precision fp32"
        " --repeats 1 --data none"
    )
    assert of_a_device(*options.split(), "--folder", tmp_path, "--out", out) == 0
    head, *lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert head["machine"]["device"] == "cpu"
    shown = (
        "images / bare",
        "images rate",
        "images bare rate",
        "images busy",
        "sentences / bare",
        "sentences busy",
    )
    assert {line["item"] for line in lines} == {f"gpu {item}" for item in (*shown, "matrix rate")}
    assert all(line["ours"] > 0 for line in lines)


WAYS = ("cold", "warm")


@pytest.mark.slow
def test_the_search_for_a_probe_is_timed_beside_single_runs(tmp_path):
    sizes = ["--images", "120", "--classes", "4", "--dim", "8", "--single", "1", "--repeats", "1"]
    text, (head, *lines) = started("benchmarks.probe", *sizes, "--out", str(tmp_path / "out.jsonl"))
    names = {"loader", "tensor", "products"}
    items = {f"probe search / {name}" for name in names}
    items |= {f"logistic {what} / {name}" for what in ("path", "objective") for name in WAYS}
    assert {line["item"] for line in lines} == items
    assert head["settings"]["classes"] == 4
    assert "90 runs" in text
