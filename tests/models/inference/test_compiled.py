"""Compiled image towers give the rows of the eager ones, whatever the size of a batch, and say
clearly when they cannot.
"""

import json

import pytest
import torch
from safetensors.torch import save_file

from dimefm.errors import ModelError
from dimefm.models import open_clip
from dimefm.models.encoder import BorrowedTower
from dimefm.models.inference import compiled as compiler
from dimefm.models.loading import load_encoder

VIT = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def working():
    """Skip when nothing can be compiled here."""
    try:
        compiler.check(CPU)
    except ModelError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """Return a folder with a tiny ViT."""
    folder = tmp_path_factory.mktemp("vit")
    (folder / open_clip.CONFIG).write_text(json.dumps({"model_cfg": VIT, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    save_file(open_clip.from_config(VIT).state_dict(), folder / "open_clip_model.safetensors")
    return str(folder)


@pytest.fixture(scope="module", params=["a ViT that is loaded late", "ResNet-mini-32/random:0"])
def encoder(request, vit, working):
    """Return an encoder for tests that compile it for four images and no other number, so that it
    is compiled once.
    """
    if request.param.startswith("ResNet"):
        return load_encoder(request.param, "cpu")
    late = load_encoder(vit, "cpu")
    teacher = load_encoder(vit, "cpu")
    late.image_model = BorrowedTower(lambda: teacher)
    return late


@pytest.fixture(scope="module")
def compiled(encoder):
    return encoder.compiled(4)


def pixels(n: int) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_rows_are_those_of_the_eager_tower_and_short_batches_compile_nothing(encoder, compiled):
    inputs = pixels(11)
    eager = encoder.encode_image(inputs)
    rows = compiled.encode_image(inputs)  # 4, 4, and 3 that are filled up
    assert rows.shape == eager.shape and (rows * eager).sum(1).min() > 0.999999
    with torch.compiler.set_stance("fail_on_recompile"):
        for n in (1, 3, 4, 8):
            assert torch.equal(compiled.encode_image(inputs[:n]), rows[:n])
        assert torch.equal(compiled.encode_image(inputs[8:]), rows[8:])
        assert torch.equal(
            encoder.compiled(4).encode_image(inputs), rows
        )  # the compiled tower is kept
    assert torch.equal(encoder.encode_image(inputs), eager)  # the encoder itself stays eager
    assert compiled.image_parameters == encoder.image_parameters


def test_what_fills_a_batch_does_not_matter(compiled):
    alone = compiled.encode_image(pixels(1))
    for filling in (
        torch.zeros(3, 3, 32, 32),
        torch.full((3, 3, 32, 32), 1e3),
        torch.full((3, 3, 32, 32), float("nan")),
    ):
        assert torch.equal(compiled.encode_image(torch.cat([pixels(1), filling]))[:1], alone)


def test_another_precision(vit, working):
    eager = load_encoder(vit, "cpu", "bf16")
    compiled, inputs = eager.compiled(4), pixels(4)
    rows = compiled.encode_image(inputs)
    assert (rows * eager.encode_image(inputs)).sum(1).min() > 0.999
    with torch.compiler.set_stance(
        "fail_on_recompile"
    ):  # also beside code that multiplies in another precision
        assert torch.equal(compiled.encode_image(inputs), rows)


def test_a_batch_on_a_cpu_is_bounded(vit):
    encoder = load_encoder(vit, "cpu")
    assert (encoder.compiled(256).image_pieces.most, encoder.compiled(5).image_pieces.most) == (
        compiler.CPU_ROWS,
        5,
    )


def test_less_memory_compiles_for_fewer_rows(vit, working, monkeypatch, capfd):
    encoder = load_encoder(vit, "cpu")
    compiled, run = encoder.compiled(4), compiler.Compiled.encode_image

    def short_of_memory(self, inputs):
        if len(inputs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return run(self, inputs)

    monkeypatch.setattr(compiler.Compiled, "encode_image", short_of_memory)
    rows = compiled.encode_image(pixels(5))
    assert (rows * encoder.encode_image(pixels(5))).sum(1).min() > 0.999999
    assert (
        capfd.readouterr().err == "note: out of memory with 4 rows at once; going on with fewer\n"
    )


def test_a_tower_that_cannot_be_compiled_is_refused(vit, working):
    encoder = load_encoder(vit, "cpu")
    encoder.image_model.visual.forward = lambda pixels: torch._dynamo.graph_break() or pixels
    with pytest.raises(ModelError) as error:
        encoder.compiled(2).encode_image(pixels(2))
    line = str(error.value)
    assert line.startswith("--compile: the image tower cannot be compiled (") and line.endswith(
        ". Fix: leave it out"
    )
    assert "\n" not in line
