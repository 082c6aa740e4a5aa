"""Values of wrong types, for each key of a run's record, a model config and a recipe: one line."""

import copy
import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dimefm.errors import DimefmError
from dimefm.models import config_check, filip, open_clip
from dimefm.models.loading import load_encoder
from dimefm.recipe import read
from dimefm.recipe.schema import KEYS
from dimefm.runs import folder as runs
from tests.security.test_model_configs import card, run_of_an_image_tower

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 10**9, 10**18, -(10**18), 1e300, 0.5, float("inf"), float("nan")]),
    st.sampled_from(["", "x", "../../x", "/etc/passwd", "a\x1b[31m", "\x00", "x" * 999]),
    st.lists(st.integers(-2, 9), max_size=4),
    st.dictionaries(st.sampled_from(["a", "eps", "clean"]), st.integers(-2, 9), max_size=2),
    st.just([[[1]]]),
    st.just({"a": {"b": [1]}}),
)
QUICK = settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


def places(value, above=()):
    """Yield the path of every key in a value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*above, key)
            yield from places(inner, (*above, key))


def replaced(value, path, new):
    changed = copy.deepcopy(value)
    table = changed
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = new
    return changed


def one_line(use, *arguments):
    """Let ``use`` succeed, or fail with an error of ours in one line."""
    try:
        use(*arguments)
    except DimefmError as error:
        assert "\n" not in str(error)


VIT = {
    "embed_dim": 8,
    "quick_gelu": False,
    "custom_text": False,
    "init_logit_scale": 1.0,
    "init_logit_bias": None,
    "vision_cfg": {
        "layers": 1,
        "width": 16,
        "head_width": 8,
        "mlp_ratio": 4.0,
        "patch_size": 8,
        "image_size": 16,
        "ls_init_value": None,
        "attentional_pool": False,
        "pool_type": "tok",
        "norm_kwargs": {"eps": 1e-5},
        "timm_model_name": None,
    },
    "text_cfg": {
        "context_length": 8,
        "vocab_size": 49_408,
        "width": 8,
        "heads": 2,
        "layers": 1,
        "pool_type": "argmax",
        "proj_type": "linear",
        "act_kwargs": {"approximate": "tanh"},
        "tokenizer_kwargs": {"clean": "lower"},
    },
}
CONFIG_PLACES = list(places(VIT))


@QUICK
@example(("vision_cfg",), None)
@example(("text_cfg",), None)
@given(st.sampled_from(CONFIG_PLACES), ODD)
def test_a_model_config_is_built_or_refused(path, value):
    def use(config):
        checked = config_check.model_config(config, "x.json", most=10**6)
        open_clip.from_config(checked)

    one_line(use, replaced(VIT, path, value))


PREPROCESS = open_clip.default_preprocess(16)


@QUICK
@given(st.sampled_from(list(PREPROCESS)), ODD)
def test_a_preprocessing_is_used_or_refused(key, value):
    def use(settings):
        open_clip.transform_of(config_check.preprocessing(settings, "x.json"))

    one_line(use, replaced(PREPROCESS, (key,), value))


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """Return the folder of a run of an image tower, and its record."""
    folder = tmp_path_factory.mktemp("record")
    run_of_an_image_tower(folder, open_clip.config_of("ResNet-mini-64"))
    fields = json.loads((folder / runs.FILE).read_text())
    fields |= {"teachers": [card()], "steps": 3, "libraries": {"torch": "2"}, "best": {"step": 1}}
    return folder, fields | {"token_maps": {"width": 4, "padding": "zero"}, "image_cache": ["a"]}


@settings(QUICK, max_examples=40)
@given(st.data(), ODD)
def test_a_run_is_loaded_or_refused(record, data, value):
    folder, fields = record
    path = data.draw(st.sampled_from(list(places(fields))))
    (folder / runs.FILE).write_text(json.dumps(replaced(fields, path, value)))
    one_line(load_encoder, str(folder), "cpu")


@pytest.mark.parametrize("width", [1e300, -1, 10**12, "x", None, [1]])
def test_maps_of_tokens_of_an_odd_width_are_refused(record, width):
    folder, fields = record
    (folder / runs.FILE).write_text(
        json.dumps(fields | {"token_maps": {"width": width, "padding": "counted"}})
    )
    with pytest.raises(DimefmError, match="'token_maps' cannot be read"):
        filip.load(str(folder), load_encoder(str(folder), "cpu"))


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 10_000, "\x00", "[]", "3", '{"kind": []}'])
def test_a_run_whose_record_is_none_is_refused_in_one_line(tmp_path, text):
    (tmp_path / runs.FILE).write_text(text)
    with pytest.raises(DimefmError) as caught:
        load_encoder(str(tmp_path), "cpu")
    assert "run.json" in str(caught.value) and "\n" not in str(caught.value)


TOML = ["10000000000000000000000", "9223372036854775807", "-1", "inf", "nan", "1e308", "true"]
TOML += ['"x"', '""', '"\\u001b"', "[]", "[1]", "[[]]", "{}", "{a = {b = [1]}}", "1979-05-27"]
TOML += ["[" * 100 + "]" * 100, "[" * 100_000 + "]" * 100_000, "9" * 10_000, "07:32:00"]


@QUICK
@given(st.sampled_from([*KEYS, "base", "small", "train", "no_key", 'losses."dime.vl"']), st.data())
def test_a_recipe_is_read_or_refused(tmp_path, key, data):
    value = data.draw(st.sampled_from(TOML))
    (tmp_path / "r.toml").write_text(f"{key} = {value}\n")
    one_line(read, tmp_path / "r.toml")


@pytest.mark.parametrize("key", ["steps", "epochs", "batch_size", "workers", "views_per_step"])
def test_a_number_that_nothing_could_hold_is_refused_by_its_key(tmp_path, key):
    for value in ("10000000000000000", "1" + "0" * 22):
        (tmp_path / "r.toml").write_text(f"{key} = {value}\n")
        with pytest.raises(DimefmError, match=f"'{key}' is|too large"):
            read(tmp_path / "r.toml")
