"""How float32 matrices are multiplied: rounded while a fast tower computes, and as the process has
it at all other times.
"""

import dataclasses
import json
import threading

import pytest
import torch
from safetensors.torch import save_file

from dimefm.cache import FeatureCache
from dimefm.data import open_rows
from dimefm.errors import RecipeError
from dimefm.extract.extract import Settings, extract
from dimefm.models import open_clip
from dimefm.models.inference.precision import FAST, check_compiled, chosen, computing
from dimefm.models.loading import load_encoder

CPU = torch.device("cpu")
VIT = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 256, "head_width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
now, flash = torch.get_float32_matmul_precision, torch.backends.cuda.flash_sdp_enabled
CAPTIONS = [
    "a dog",
    "two dogs on a lawn, seen from above",
    "",
    "a man rides a red bicycle over a bridge",
    "a dog on a bed",
]


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """Return a small ViT that computes in fp32-fast."""
    folder = tmp_path_factory.mktemp("vit")
    (folder / open_clip.CONFIG).write_text(json.dumps({"model_cfg": VIT, "preprocess_cfg": {}}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(open_clip.from_config(VIT).state_dict(), folder / "open_clip_model.safetensors")
    return load_encoder(str(folder), "cpu", FAST)


@pytest.fixture(params=["highest", "high"])
def before(request):
    """Let the process have a setting of its own."""
    found = now()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(found)


@pytest.mark.parametrize(
    ("precision", "inside"), [("fp32", None), ("bf16", None), (FAST, "medium")]
)
def test_the_setting_holds_inside_and_is_the_old_one_behind_also_after_an_error(
    before, precision, inside
):
    with pytest.raises(ValueError, match="broken"), computing(precision, CPU):
        assert now() == (inside or before) and flash() == (inside is None)
        raise ValueError("broken")
    assert now() == before and flash()


def test_it_holds_until_the_last_thread_has_left(before):
    entered, seen = threading.Barrier(2), []

    def other():
        with computing(FAST, CPU):
            entered.wait(10)
            leave.wait(10)
            seen.append(now())

    leave, thread = threading.Event(), threading.Thread(target=other)
    thread.start()
    with computing(FAST, CPU):
        entered.wait(10)
    assert now() == "medium"
    leave.set()
    thread.join(10)
    assert seen == ["medium"] and now() == before


@pytest.mark.parametrize(("first", "second"), [(FAST, "fp32"), ("fp32", FAST)])
def test_threads_that_want_another_setting_take_turns(before, first, second):
    seen = []

    def other():
        with computing(second, CPU):
            seen.append(now())

    thread = threading.Thread(target=other)
    with computing(first, CPU):
        thread.start()
        thread.join(0.2)
        assert not seen and thread.is_alive()
    thread.join(10)
    assert seen == ["medium" if second == FAST else before] and now() == before


def test_both_towers_compute_in_it(vit):
    seen, model, tokens = [], vit.image_model, vit.tokenize(["a cat"])[0]
    vit.encode_text(tokens)  # the first call tries the tower in fp32 as well
    hooks = [
        part.register_forward_hook(lambda *_: seen.append(now()))
        for part in (model.visual, model.transformer)
    ]
    vit.encode_image(torch.zeros(1, 3, 64, 64))
    vit.encode_text(tokens)
    for hook in hooks:
        hook.remove()
    assert seen == ["medium"] * 2 and now() == "highest"


def test_a_layer_for_sentences_multiplies_by_its_weights_at_once_and_all_heads_at_once(vit):
    tokens = vit.tokenize(CAPTIONS)[0]
    vit.encode_text(tokens)  # as above
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        vit.encode_text(tokens)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert (
        counts["aten::bmm"] == 2
    )  # queries by keys and shares by values, no projection by copies of its weights
    assert not any("flash" in name for name in counts)


@pytest.mark.parametrize(
    "change", [{"precision": "fp32"}, {"_trimmed": None}], ids=["in fp32", "at full length"]
)
def test_rows_of_sentences_are_near_those_that_are_computed_in_another_way(vit, change):
    tokens, other = vit.tokenize(CAPTIONS)[0], dataclasses.replace(vit)
    vars(other).update(change)
    found = vit.encode_text(tokens), other.encode_text(tokens)
    assert torch.nn.functional.cosine_similarity(*found).min() >= 0.9999


def test_rows_of_sentences_do_not_depend_on_threads(vit):
    tokens, threads, found = vit.tokenize(CAPTIONS)[0], torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(vit.encode_text(tokens))
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_rows_of_real_images_are_near_those_of_fp32(vit, shared_data, tmp_path):
    rows, settings = (
        open_rows([shared_data / "odd_images"], "image"),
        Settings(dtype="float32", progress=False),
    )
    found = []
    for encoder in (vit, dataclasses.replace(vit, precision="fp32")):
        out = tmp_path / encoder.precision
        extract(encoder, rows, "image", out, settings)
        found.append(torch.from_numpy(_rows(out)))
    assert len(found[0]) > 5 and torch.nn.functional.cosine_similarity(*found).min() >= 0.9999


def test_the_same_bytes_with_any_number_of_lanes(vit, shared_data, tmp_path):
    rows, threads, found = (
        open_rows([shared_data / "odd_images"], "image"),
        torch.get_num_threads(),
        [],
    )
    for encode_threads in (1, 2, 3):
        torch.set_num_threads(encode_threads)
        settings = Settings(dtype="float32", batch_size=4, workers=encode_threads, progress=False)
        extract(vit, rows, "image", tmp_path / str(encode_threads), settings)
        found.append(_rows(tmp_path / str(encode_threads)).tobytes())
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2] and now() == "highest"


def test_rows_do_not_depend_on_the_threads_of_a_lane(vit):
    pixels, threads, found = torch.rand(5, 3, 64, 64), torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(vit.encode_image(pixels))
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def _rows(folder):
    return FeatureCache(folder)[:]


def test_on_a_cpu_compiled_towers_do_not_round():
    device = torch.device("cpu")
    assert chosen(device, compiled=True)[0] == "fp32"
    check_compiled("fp32", device)
    with pytest.raises(
        RecipeError, match="--compile with --precision fp32-fast: .*. Fix: leave --compile out"
    ):
        check_compiled("fp32-fast", device)
