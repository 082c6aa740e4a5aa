"""dimefm extract-features --batch-size, --precision and --compile: what each changes, and what it
does not.
"""

import pytest
import torch

from dimefm.cache import FeatureCache
from tests.cli.conftest import refused, run


def test_a_batch_size_that_is_measured(raw):
    assert (
        run(
            "--images",
            raw / "photos",
            "--texts",
            raw / "s.txt",
            "--out",
            raw / "auto",
            "--batch-size",
            "auto",
        )[0]
        == 0
    )
    assert run("--images", raw / "photos", "--out", raw / "plain")[0] == 0
    measured, plain = FeatureCache(raw / "auto/images"), FeatureCache(raw / "plain/images")
    assert abs(measured[:].astype("f4") - plain[:].astype("f4")).max() < 1e-3
    assert measured.manifest.how == plain.manifest.how and "compiled" not in plain.manifest.how


@pytest.mark.slow
def test_compiled_rows_do_not_mix_with_eager_ones(raw):
    from dimefm.errors import ModelError
    from dimefm.models.inference import compiled as compiler

    try:
        compiler.check(torch.device("cpu"))
    except ModelError as error:
        pytest.skip(str(error))
    assert run("--images", raw / "photos", "--out", raw / "eager")[0] == 0
    assert run("--images", raw / "photos", "--out", raw / "compiled", "--compile")[0] == 0
    eager, compiled = FeatureCache(raw / "eager/images"), FeatureCache(raw / "compiled/images")
    assert compiled.manifest.how == {**eager.manifest.how, "compiled": True}
    assert abs(compiled[:].astype("f4") - eager[:].astype("f4")).max() < 1e-3
    assert "how.compiled: True against None" in refused(
        "--images", raw / "photos", "--out", raw / "eager", "--compile"
    )


def test_without_a_compiler_nothing_is_written(raw, monkeypatch):
    from dimefm.errors import ModelError
    from dimefm.models.inference import compiled as compiler

    def fail(device):
        raise ModelError(
            "--compile: the image tower cannot be compiled (no C++ compiler). Fix: leave it out"
        )

    monkeypatch.setattr(compiler, "check", fail)
    assert "leave it out" in refused("--images", raw / "photos", "--out", raw / "out", "--compile")
    assert not (raw / "out").exists()


@pytest.fixture
def machine(monkeypatch):
    """Return ``machine(times)``: from then on this CPU takes so many times as long in fp32-fast as
    in fp32.
    """
    from dimefm.models.inference import precision

    def takes(times):
        precision.chosen.cache_clear()
        monkeypatch.setattr(
            precision, "seconds_of_product", lambda name: 1.0 if name == "fp32" else times
        )

    yield takes
    precision.chosen.cache_clear()


def test_a_precision_that_gains_nothing_is_named(raw, machine):
    arguments = ("--images", raw / "photos", "--precision")
    note = (
        "note: --precision bf16 is no quicker than fp32 on a CPU, and may be much slower; auto"
        " takes fp32-fast"
    )
    assert note in run(*arguments, "bf16", "--out", raw / "bf16")[1]
    machine(1.0)
    slow = run(*arguments, "fp32-fast", "--out", raw / "slow")[1]
    assert "note: --precision fp32-fast is no quicker than fp32 here: on this CPU a product" in slow
    machine(0.3)
    assert "note:" not in run(*arguments, "fp32-fast", "--out", raw / "quick")[1]


def test_a_precision_that_the_machine_chooses_and_the_next_one_takes_over(raw, machine, digests):
    arguments = (
        "--images",
        raw / "photos",
        "--texts",
        raw / "s.txt",
        "--out",
        raw / "out",
        "--precision",
    )
    machine(0.3)
    code, output = run(*arguments, "auto")
    assert code == 0
    reason = (
        "--precision auto is fp32-fast, on this CPU a product of matrices takes 0.3 times as long"
        " in fp32-fast"
    )
    assert [line for line in output.splitlines() if "note:" in line] == [
        f"note: {raw}/out/{kind}: {reason}" for kind in ("images", "texts")
    ]
    assert {
        FeatureCache(raw / "out" / kind).manifest.how["precision"] for kind in ("images", "texts")
    } == {"fp32-fast"}
    before = digests(raw / "out")
    machine(4.2)
    output = run(*arguments, "auto")[1]
    assert (
        "auto is fp32-fast, as the cache there says" in output
        and output.count("finished already") == 2
    )
    assert digests(raw / "out") == before
    assert "how.precision: 'fp32' against 'fp32-fast'" in refused(*arguments, "fp32")
    (raw / "t.txt").write_text("one more\n")
    assert (
        run("--texts", raw / "t.txt", "--out", raw / "out", "--precision", "auto", "--append")[0]
        == 0
    )
    assert FeatureCache(raw / "out/texts").manifest.how["precision"] == "fp32-fast"


def test_where_nothing_is_gained_an_automatic_precision_is_fp32(raw, machine, digests):
    machine(1.0)
    for precision in ("auto", "fp32"):
        run("--images", raw / "photos", "--out", raw / precision, "--precision", precision)
    assert digests(raw / "auto") == digests(raw / "fp32")
    output = run(
        "--images", raw / "photos", "--out", raw / "new", "--precision", "auto", "--estimate"
    )[1]
    assert "auto is fp32" in output and not (raw / "new").exists()
