"""Sentences on the places that count: equal rows from cut tokens, batches by length, repeats
recognised.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import open_clip as upstream
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dimefm.models import open_clip, trimmed_text
from dimefm.models.inference import text_batches as sentences_of
from dimefm.models.inference.precision import computing
from dimefm.models.inference.text_batches import (
    CPU_PLACES,
    PooledEncode,
    SeenSentences,
    digests,
    encode_sentences,
    plan,
)
from dimefm.models.loading import load_encoder

EXACT = 1e-5
SENTENCES = [
    "a dog",
    "two dogs on a lawn, seen from above",
    "",
    "!",
    "a dog",
    "word " * 200,
    "<end_of_text> and on",
    "A  DOG",
]


SIZES = (
    "width",
    "heads",
    "layers",
    "mlp_ratio",
    "vocab_size",
    "hf_tokenizer_name",
    "tokenizer_kwargs",
)
TOP = ("custom_text", "quick_gelu", "init_logit_bias")


def small(config: dict) -> dict:
    """Return a config of a few thousand weights that builds its text tower in the same way."""
    text = {key: value for key, value in config["text_cfg"].items() if key not in SIZES}
    found = {
        "embed_dim": 64 if text.get("proj_type") == "none" else 24,
        **{key: config[key] for key in TOP if key in config},
        "vision_cfg": {"image_size": 8, "patch_size": 8, "layers": 1, "width": 16, "head_width": 8},
        "text_cfg": {**text, "width": 64, "heads": 4, "layers": 3, "vocab_size": 300},
    }
    if "multimodal_cfg" in config:
        found["multimodal_cfg"] = {"width": 64, "heads": 4, "layers": 1, "context_length": 76}
        found["vision_cfg"] |= {
            "attentional_pool": True,
            "attn_pooler_heads": 4,
            "output_tokens": True,
        }
    return found


def families() -> dict[str, dict]:
    """Return each way in which open_clip's architectures build a text tower of their own: name of
    the first -> config.
    """
    configs = {name: open_clip.config_of(name) for name in sorted(upstream.list_models())}
    found: dict[str, dict] = {}
    for name, config in configs.items():
        if "hf_model_name" not in config["text_cfg"] and small(config) not in found.values():
            found[name] = small(config)
    return found


FAMILIES, BASIC = families(), small(open_clip.config_of("ViT-B-32"))


def built(config: dict):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.from_config(config).eval()
        for parameter in model.parameters():  # norms and biases too, which start as ones and zeros
            parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def tokens_for(config: dict, n: int = 12) -> torch.Tensor:
    """Return tokens [n, L] that end at random places, the first row at the last, and are padded
    with zeros.
    """
    text = config["text_cfg"]
    length, random = text.get("context_length", 77), np.random.default_rng(1)
    end = text.get("eos_id", 2) if text.get("pool_type") == "eos" else 299
    tokens = random.integers(3, 299, (n, length))
    for row, last in enumerate([length - 1, *random.integers(1, length // 2, n - 1)]):
        tokens[row, last], tokens[row, last + 1 :] = end, 0
    return torch.from_numpy(tokens)


@torch.inference_mode()
def both(model, tower, tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit rows from whole tokens, and from tokens cut for each row alone."""
    cut = [tower.encode_text(row[None, : int(tower.lengths(row[None]))]) for row in tokens]
    return F.normalize(model.encode_text(tokens).float(), dim=-1), F.normalize(
        torch.cat(cut).float(), dim=-1
    )


def allowed(config: dict) -> bool:
    """Say by a config alone whether padding is without influence."""
    text = config["text_cfg"]
    whole = text.get("no_causal_mask") or text.get("embed_cls") or "multimodal_cfg" in config
    return not whole and text.get("pool_type", "argmax") in ("argmax", "eos")


@pytest.mark.parametrize("name", FAMILIES)
def test_cut_tokens_give_the_rows_of_whole_ones_or_are_not_used(name):
    config = FAMILIES[name]
    model = built(config)
    tower = trimmed_text.trimmed(model)
    assert (tower is not None) == allowed(config)
    if tower is not None:
        whole, cut = both(model, tower, tokens_for(config))
        assert float((whole - cut).abs().max()) <= EXACT


@pytest.mark.parametrize("name", FAMILIES)
def test_a_masked_tower_has_its_places_first_and_the_rows_of_one_with_sentences_first(name):
    config = FAMILIES[name]
    model = built(config)
    text = getattr(model, "text", model)
    layers = [text.transformer, *(block.attn for block in text.transformer.resblocks)]
    assert {layer.batch_first for layer in layers} == {text.attn_mask is None}
    tokens = tokens_for(config)
    with torch.inference_mode():
        found = model.encode_text(tokens)
        for layer in layers:
            layer.batch_first = True
        assert torch.allclose(found, model.encode_text(tokens), rtol=0, atol=1e-5)


def test_the_families_hold_towers_of_both_kinds():
    kinds = [allowed(config) for config in FAMILIES.values()]
    assert kinds.count(True) >= 4 and kinds.count(False) >= 4
    assert any(config["text_cfg"].get("pool_type") == "eos" for config in FAMILIES.values())
    assert any(config.get("custom_text") and allowed(config) for config in FAMILIES.values())


@pytest.mark.parametrize(
    "how",
    [
        {"proj_bias": True},
        {"proj_type": "none", "width": 24},
        {"ls_init_value": 0.1},
        {
            "qk_norm": True,
            "scale_attn": True,
            "scale_fc": True,
            "scale_attn_inner": True,
            "scale_heads": True,
        },
        {"pool_type": "eos", "eos_id": 7},
        {"norm_kwargs": {"eps": 1e-3}},
    ],
)
@pytest.mark.parametrize("custom", [False, True])
def test_options_of_a_tower_that_is_trimmed(how, custom):
    config = {**BASIC, "custom_text": custom}
    config["text_cfg"] = {**config["text_cfg"], **how}
    model = built(config)
    whole, cut = both(model, trimmed_text.trimmed(model), tokens_for(config))
    assert float((whole - cut).abs().max()) <= EXACT


@pytest.mark.parametrize(
    "how",
    [{"pool_type": "last"}, {"pool_type": "first"}, {"embed_cls": True}, {"no_causal_mask": True}],
)
def test_towers_that_look_at_padding_are_encoded_whole(how):
    config = {**BASIC, "custom_text": True}
    config["text_cfg"] = {**config["text_cfg"], **how}
    assert trimmed_text.trimmed(built(config)) is None


def test_a_mask_that_lets_one_place_look_ahead_is_not_causal():
    model = built(BASIC)
    assert trimmed_text.trimmed(model) is not None
    model.attn_mask[3, 5] = 0.0
    assert trimmed_text.trimmed(model) is None


def test_a_tower_of_another_make_is_encoded_whole():
    class Other(upstream.CLIP):
        def encode_text(self, text, normalize=False):
            return super().encode_text(text, normalize).flip(-1)

    model = built(BASIC)
    model.__class__ = Other
    assert trimmed_text.trimmed(model) is None


def test_a_tower_that_computes_something_else_is_found_out(monkeypatch):
    model = built(BASIC)
    honest = upstream.CLIP.encode_text
    monkeypatch.setattr(upstream.CLIP, "encode_text", lambda self, text: honest(self, text.flip(0)))
    with pytest.warns(
        RuntimeWarning, match="encoded at full length.*rows of cut tokens differ by"
    ) as caught:
        assert trimmed_text.trimmed(model) is None
    assert "\n" not in str(caught[0].message)


@pytest.fixture(scope="module")
def clip():
    """The whole text tower of ViT-B-32, untrained."""
    return load_encoder("ViT-B-32/random:0", "cpu")


@torch.inference_mode()
def reference(encoder, sentences) -> torch.Tensor:
    """Return unit rows as open_clip computes them, by its tokenizer and at full length."""
    return F.normalize(encoder.text_model.encode_text(encoder.tokenizer(sentences)), dim=-1)


@pytest.mark.parametrize("quick", [False, True])
def test_an_encoder_of_full_depth_gives_open_clips_rows(clip, quick):
    encoder = load_encoder("ViT-B-32-quickgelu/random:0", "cpu") if quick else clip
    tokens, _ = encoder.tokenize(SENTENCES)
    expected = reference(encoder, SENTENCES)
    assert float((encoder.encode_text(tokens) - expected).abs().max()) <= EXACT
    assert float((encoder.encode_text(tokens[:2]) - expected[:2]).abs().max()) <= EXACT
    assert float((encode_sentences(encoder, tokens, 2) - expected).abs().max()) <= EXACT
    assert encoder.lengths_read(tokens).tolist() == [4, 11, 2, 3, 4, 77, 2, 4]


def test_real_captions_give_open_clips_rows(clip, shared_data):
    sentences = pq.read_table(shared_data / "sentences/multi30k_en.parquet")["text"].to_pylist()[
        :64
    ]
    found = encode_sentences(clip, clip.tokenize(sentences)[0], 16)
    assert float((found - reference(clip, sentences)).abs().max()) <= EXACT


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision_cut_rows_are_as_near_as_whole_ones(clip, precision):
    low = load_encoder("ViT-B-32/random:0", "cpu", precision)
    tokens, _ = low.tokenize(SENTENCES)
    exact = clip.encode_text(tokens)
    with torch.inference_mode(), computing(precision, low.device):
        whole = F.normalize(low.text_model.encode_text(tokens).float(), dim=-1)
    error = [float((rows - exact).abs().max()) for rows in (whole, low.encode_text(tokens))]
    assert low._trimmed is not None
    assert error[1] <= 1.5 * error[0] + 1e-4


def test_a_tower_that_is_not_trimmed_reads_every_place():
    encoder = load_encoder("MobileCLIP-S1/random:0", "cpu")
    tokens = torch.zeros(5, 77, dtype=torch.long)
    tokens[:, :3] = torch.tensor([49406, 320, 49407])
    tokens[:, 1] = torch.arange(5) + 320
    with torch.inference_mode():
        expected = F.normalize(encoder.text_model.encode_text(tokens), dim=-1)
    assert encoder.lengths_read(tokens).tolist() == [77] * 5
    torch.testing.assert_close(encoder.encode_text(tokens), expected, rtol=0, atol=0)
    torch.testing.assert_close(encode_sentences(encoder, tokens, 2), expected, rtol=0, atol=EXACT)


def test_no_sentences_give_no_rows(tiny_teacher):
    tokens, lengths = tiny_teacher.tokenize([])
    assert (tuple(tokens.shape), lengths) == ((0, 32), [])
    assert tiny_teacher.encode_text(tokens).shape == (0, 128)
    assert encode_sentences(tiny_teacher, tokens, 4).shape == (0, 128)


class Counted:
    """An encoder that keeps the shape of what it encodes."""

    def __init__(self, encoder):
        self.encoder, self.shapes = encoder, []

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def encode_text(self, tokens):
        self.shapes.append((len(tokens), int(self.lengths_read(tokens).max())))
        return self.encoder.encode_text(tokens)


def test_batches_are_bounded_and_lanes_give_the_same_rows(tiny_teacher):
    sentences = [f"{'long ' * (n % 9)}word {n % 50}" for n in range(450)]
    encoder = Counted(tiny_teacher)
    tokens, _ = encoder.tokenize(sentences)
    rows = encode_sentences(encoder, tokens, 3)
    assert sum(n for n, _ in encoder.shapes) == 450
    assert max(n for n, _ in encoder.shapes) == 3
    encoder.shapes.clear()
    torch.testing.assert_close(encode_sentences(encoder, tokens, 10**6), rows, rtol=0, atol=EXACT)
    assert max(n * length for n, length in encoder.shapes) <= CPU_PLACES
    torch.testing.assert_close(rows, reference(tiny_teacher, sentences), rtol=0, atol=EXACT)
    assert torch.equal(encode_sentences(tiny_teacher, tokens, 3), rows)
    with ThreadPoolExecutor(3) as encode_threads:
        found = PooledEncode(tiny_teacher, tokens, 3, encode_threads)
        assert found.pieces == 150
        np.testing.assert_array_equal(found.fetch()[0], rows)


@given(st.lists(st.integers(1, 77), max_size=200), st.integers(1, 50), st.integers(1, 1000))
def test_a_plan_holds_every_row_once_and_no_batch_is_too_large(lengths, batch_size, places):
    lengths = np.array(lengths, np.int64)
    batches = plan(lengths, batch_size, places)
    order = np.concatenate([*batches, np.array([], np.int64)])
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert (np.diff(lengths[order]) <= 0).all()
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= places
    assert [len(batch) for batch in plan(np.full(10, 7), 4, 10**6)] == [4, 4, 2]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=50),
    st.integers(1, 20),
)
def test_sentences_met_before_are_recognised_in_any_portion(rows, size):
    tokens, met, encoded = torch.tensor(rows), SeenSentences(), []
    for start in range(0, len(rows), size):
        part = tokens[start : start + size]
        fresh, which = met.deduplicate(digests(part))
        encoded += [tuple(row) for row in part[fresh].tolist()]
        assert [encoded[number] for number in which.tolist()] == rows[start : start + size]
    assert len(encoded) == len(set(rows)) and set(encoded) == set(rows)


def test_memory_for_sentences_met_is_bounded(monkeypatch):
    monkeypatch.setattr(sentences_of, "REMEMBERED", 2)
    met = SeenSentences()
    fresh, which = met.deduplicate([b"a", b"b", b"c", b"a", b"c"])
    assert (fresh, which.tolist()) == ([0, 1, 2, 4], [0, 1, 2, 0, 3])
    assert met.deduplicate([b"b", b"c"])[0] == [1]
