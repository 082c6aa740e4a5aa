"""The file that knows open_clip: architectures, weights, preprocessing and tokenizers.

Two more stand next to it: ``trimmed_text`` knows how its text towers compute, ``fast_tokenizer``
how its own tokenizer splits.

Written against open_clip_torch 3.x. Nothing is downloaded unless a pretrained tag is named.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import open_clip
import timm
import torch
from open_clip.model import CLIPTextCfg, _build_text_tower, _build_vision_tower
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import QuickGELU
from torch import nn
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from dimefm import plugins
from dimefm.errors import ModelError, did_you_mean
from dimefm.models import config_check, long_words, pruned, weights_file
from dimefm.models.folder_tokenizer import check_vocabulary, has_vocabulary, safe_copy
from dimefm.models.offline import offline
from dimefm.models.spec_paths import LOCAL_DIR
from dimefm.models.trimmed_text import places_first
from dimefm.models.weights_check import check_length, check_unpacked, count, weights_of
from dimefm.runtime.text import shortened

CONFIG = "open_clip_config.json"
FOLDER = LOCAL_DIR
LAST_STEPS = 3  # of open_clip's transform: to RGB, to numbers, normalized
MOST_REASON = 300  # characters of another library's reason

KEPT_TOKENIZERS = 4
"""How many tokenizers are kept before all are forgotten: one takes a tenth of a second to make and
20 MiB to keep.
"""
_TOKENIZERS: dict[str, SimpleTokenizer] = {}


@functools.cache
def _register() -> None:
    """Make ``models/students/*.json`` known to open_clip under their file names."""
    open_clip.add_model_config(plugins.ROOT / plugins.FOLDERS["students"][0])


def config_of(arch: str) -> dict:
    """Return a copy of the open_clip model config of ``arch``; raise ModelError with the nearest
    name.
    """
    _register()
    config = open_clip.get_model_config(arch)
    if config is None:
        raise ModelError(unknown(arch))
    return copy.deepcopy(config)


def whole_config(name: str, model: nn.Module) -> dict:
    """Return the config from which :func:`create` made ``model``, its activation included.

    ``name`` is an architecture or a ``local-dir:`` folder.
    """
    if name.startswith(FOLDER):
        config, _ = config_check.read_model_file(Path(name.removeprefix(FOLDER)) / CONFIG)
        return config
    config = config_of(name)
    if activation_of(model) == "quick_gelu":
        config["quick_gelu"] = True
    return config


def knows(arch: str) -> bool:
    """Tell whether ``arch`` is a known architecture."""
    _register()
    return open_clip.get_model_config(arch) is not None


def known() -> list[str]:
    """Return the names of all known architectures."""
    _register()
    return open_clip.list_models()


def unknown(arch: str) -> str:
    """Return the complaint about an architecture that is not known, with the nearest name."""
    return f"unknown architecture '{arch}': {did_you_mean(arch, open_clip.list_models())}"


def tags_of(arch: str) -> list[str]:
    """Return the pretrained tags that open_clip knows for ``arch``."""
    return list(open_clip.list_pretrained_tags_by_model(arch))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep open_clip, timm, transformers and exporters from logging and warning."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def create(arch: str, weights: str | Path | None = None, *, quick_gelu: bool = False) -> nn.Module:
    """Return a model of a known architecture or ``local-dir:`` folder.

    ``weights`` is a pretrained tag (downloaded by open_clip), a file, or None: a folder's own
    weights, else random ones. A tag has its own activation; ``quick_gelu`` says that other weights
    belong to OpenAI's. Raises ModelError with open_clip's reason when it cannot be loaded.
    """
    if arch.startswith(FOLDER):
        file = None if weights is None else Path(weights)
        return _create_from_folder(Path(arch.removeprefix(FOLDER)), file)
    config_of(arch)
    try:
        with quiet():
            tag = weights if isinstance(weights, str) else None
            named = tag is not None
            quick = quick_gelu or (tag is not None and trained_with_quick_gelu(arch, tag))
            model = open_clip.create_model(
                arch,
                tag,
                require_pretrained=named,
                force_quick_gelu=quick,
                pretrained_text=False,
            )
            if isinstance(weights, Path):
                check_unpacked(weights, count(model))
                weights_file.load(model, weights)
            return places_first(model.eval())
    except ModelError:
        raise
    except Exception as error:  # open_clip raises whatever its download and torch.load raise
        raise ModelError(
            f"{arch}{f'/{weights}' if weights else ''}: cannot be loaded: {reason_of(error)}"
        ) from error


def reason_of(error: Exception) -> str:
    """Return in one line of bearable length why a foreign library failed, without its advice to
    unpack any object.
    """
    reason = " ".join(str(error).split()) or type(error).__name__
    if "weights_only" in reason:
        return (
            "the file is damaged, or holds other things than plain tensors. Fix: fetch it again, or"
            " save its state_dict as .safetensors"
        )
    return shortened(reason, MOST_REASON)


def _create_from_folder(folder: Path, weights: Path | None) -> nn.Module:
    """Return the model of a folder in open_clip's layout, which may have come with data.

    open_clip builds it from a checked copy of its config. ``weights`` is None for the folder's own.
    """
    config, preprocess = config_check.read_model_file(folder / CONFIG)
    path = weights or weights_of(folder)
    parameters = config_check.parameters(config)
    check_length(path, parameters)
    check_unpacked(path, parameters)
    try:
        with quiet(), _written(pruned.plain(config), preprocess) as name:
            model = open_clip.create_model(name, load_weights=False)
            pruned.install(model, config)
            weights_file.load(model, path)
            return places_first(model.eval())
    except ModelError:
        raise
    except Exception as error:  # open_clip raises whatever torch.load and an odd config raise
        raise ModelError(f"{path}: cannot be loaded: {reason_of(error)}") from error


@contextmanager
def _written(
    config: dict, preprocess: dict | None = None, folder: Path | None = None
) -> Iterator[str]:
    """Write a config into ``folder``, or a new one for the block's time; return its name for
    open_clip.
    """
    with tempfile.TemporaryDirectory() as made:
        place = folder or Path(made)
        settings = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
        (place / CONFIG).write_text(json.dumps(settings), encoding="utf-8")
        yield folder_config(place)


def trained_with_quick_gelu(arch: str, tag: str) -> bool:
    """Tell whether the weights of a tag belong to OpenAI's QuickGELU activation, whatever the
    architecture's name says.

    open_clip only warns when name and tag differ (``ViT-L-14/openai`` is one of 27 such pairs) and
    computes other features.
    """
    return bool((open_clip.get_pretrained_cfg(arch, tag) or {}).get("quick_gelu", False))


def activation_of(model: nn.Module) -> str:
    """Return ``"quick_gelu"`` when any part of the model uses that activation, else
    ``"standard"``.
    """
    return (
        "quick_gelu"
        if any(isinstance(module, QuickGELU) for module in model.modules())
        else "standard"
    )


def from_config(config: dict) -> nn.Module:
    """Build a whole CLIP from an open_clip model config with random weights."""
    for tower, kind in (("vision_cfg", "image"), ("text_cfg", "text")):
        if config.get(tower) is None:
            raise ModelError(
                f"this student has no {kind} tower ('{tower}'). Fix: choose an open_clip"
                " architecture to train both towers"
            )
    _check_timm(config["vision_cfg"])
    try:
        with quiet(), _written(pruned.plain(config)) as name:
            model = open_clip.create_model(name, load_weights=False)
            return places_first(pruned.install(model, config))
    except Exception as error:  # open_clip and timm raise freely on impossible configs
        raise ModelError(
            f"model cannot be built from its config: {reason_of(error)}. Fix: correct the config"
        ) from error


def _check_timm(vision: dict) -> None:
    """Raise ModelError with the nearest name when the image tower is a timm model that timm does
    not know.
    """
    name = vision.get("timm_model_name")
    if name and not timm.is_model(str(name)):
        raise ModelError(
            f"unknown timm model '{name}': {did_you_mean(str(name), timm.list_models())}"
        )


def random(arch: str, seed: int) -> nn.Module:
    """Return ``arch`` with random weights drawn from ``seed``; the global random state is left as
    it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create(arch)


def tokenizer_of(arch: str, near: Path | None = None, may_download: bool = True) -> Callable:
    """Return open_clip's tokenizer of an architecture or ``local-dir:`` folder; its own one is made
    once for a config.

    Where an architecture has a tokenizer of Hugging Face and nothing may be downloaded, it comes
    from the folder ``near`` the weights, or was downloaded before. Raises ModelError when it
    cannot be had, e.g. SigLIP's without the package transformers, or when a folder's config asks
    for more than the folder has.
    """
    if arch.startswith(FOLDER):
        folder = Path(arch.removeprefix(FOLDER))
        config, _ = config_check.read_model_file(folder / CONFIG)
        return _tokenizer(config, folder)
    _register()
    config = config_of(arch)
    if may_download or not config["text_cfg"].get("hf_tokenizer_name"):
        return _kept_tokenizer(arch, arch, lambda: open_clip.get_tokenizer(arch))
    if near is not None and has_vocabulary(near):
        return _tokenizer(config, near)
    return _kept_tokenizer(arch, arch, lambda: open_clip.get_tokenizer(arch, local_files_only=True))


def tokenizer_for(config: dict, folder: Path | None = None) -> Callable:
    """Return the tokenizer of a model config that has no name of its own.

    A tokenizer of Hugging Face comes from the files in ``folder``.
    """
    config = config_check.model_config(config, "the model", config_check.TEXT_KEYS)
    return _tokenizer(config, folder)


def _tokenizer(config: dict, folder: Path | None) -> Callable:
    """Return the tokenizer of a checked config; ``folder`` has the files of Hugging Face's."""
    text = config["text_cfg"]
    name = text.get("hf_tokenizer_name")
    settings = json.dumps({key: text.get(key) for key in ("context_length", "tokenizer_kwargs")})
    if not name:
        check_vocabulary(text.get("tokenizer_kwargs") or {})
        tokenizer = _kept_tokenizer(settings, str(folder or "the model"), lambda: _simple(config))
        _check_vocabulary_size(text, tokenizer)
        return tokenizer
    place = folder or Path("the model")
    with safe_copy(place, name) as copy, _written(config, None, copy) as source:
        tokenizer = _kept_tokenizer(
            "",
            str(place),
            lambda: open_clip.get_tokenizer(source, trust_remote_code=False, local_files_only=True),
        )
    tokenizer.tokenizer.name_or_path = str(place)  # type: ignore[attr-defined]
    return tokenizer


def _check_vocabulary_size(text: dict, tokenizer: SimpleTokenizer) -> None:
    """Raise ModelError when a tokenizer has tokens that a text tower has no embeddings for."""
    size = text.get("vocab_size", CLIPTextCfg.vocab_size)
    if size < tokenizer.vocab_size:
        raise ModelError(
            f"'model_cfg.text_cfg.vocab_size' is {size:,}, but the tokenizer has"
            f" {tokenizer.vocab_size:,} tokens. Fix: correct it"
        )


def _simple(config: dict) -> Callable:
    with _written(config) as name:
        return open_clip.get_tokenizer(name)


def _kept_tokenizer(key: str, name: str, make: Callable[[], Callable]) -> Callable:
    """Return what ``make`` makes or made for this key before; raise ModelError when it fails."""
    if key in _TOKENIZERS:
        return _TOKENIZERS[key]
    try:
        with quiet():
            tokenizer = make()
    except ModuleNotFoundError as error:
        package = "'dimefm[transformers]'" if error.name == "transformers" else error.name
        raise ModelError(
            f"{name}: its tokenizer needs the package {error.name}, which is not installed. Fix:"
            f" pip install {package}"
        ) from error
    except Exception as error:  # open_clip and transformers raise whatever their download raises
        raise ModelError(f"{name}: its tokenizer cannot be loaded: {reason_of(error)}") from error
    if type(tokenizer) is SimpleTokenizer:  # another class may be made of more than its config
        reduction = getattr(tokenizer, "reduction_fn", None)
        if reduction is not None:  # the fast tokenizer does not serve it
            long_words.install(tokenizer)
        if len(_TOKENIZERS) >= KEPT_TOKENIZERS:
            _TOKENIZERS.clear()
        _TOKENIZERS[key] = tokenizer
    return tokenizer


def transform_of(preprocess: dict) -> Callable:
    """Return open_clip's evaluation transform (PIL image -> float32 [3, S, S]) for a preprocessing
    dict.

    open_clip resizes to what it crops; ``resize_to`` names other sides, as in transformers and
    timm.
    """
    settings = without_resize(preprocess)
    transform = image_transform_v2(PreprocessCfg(**settings), is_train=False)
    sides = preprocess.get("resize_to")
    if sides is None:
        return transform
    size = preprocess["size"]
    interpolation = InterpolationMode(preprocess["interpolation"])
    first = [Resize(sides, interpolation=interpolation), CenterCrop(size)]
    return Compose([*first, *transform.transforms[-LAST_STEPS:]])


def without_resize(preprocess: dict) -> dict:
    """Return a preprocessing that resizes to what it crops."""
    return {name: value for name, value in preprocess.items() if name != "resize_to"}


def preprocess_of(model: nn.Module) -> dict:
    """Return the preprocessing of a model as plain JSON values."""
    return plain(dataclasses.asdict(PreprocessCfg(**model.visual.preprocess_cfg)))


def default_preprocess(size: int) -> dict:
    """Return open_clip's default preprocessing (CLIP mean and std, bicubic, shortest side) at
    ``size`` pixels.
    """
    return plain(dataclasses.asdict(PreprocessCfg(size=size)))


def plain(preprocess: dict) -> dict:
    """Return a preprocessing as JSON values: its tuples are lists."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in preprocess.items()
    }


def image_tower(config: dict, pretrained: bool = False) -> nn.Module:
    """Build the image tower of a model config with random weights, projecting to
    ``config['embed_dim']``; ``pretrained`` loads timm's weights into its trunk.
    """
    vision = {**pruned.plain(config)["vision_cfg"], "timm_model_pretrained": pretrained}
    _check_timm(vision)
    try:
        with quiet():
            tower = _build_vision_tower(
                config["embed_dim"], vision, config.get("quick_gelu", False)
            )
            if "timm_model_name" in vision and hasattr(tower, "set_input_size"):
                tower.set_input_size(vision.get("image_size", 224))
            pruned.install(tower, {"vision_cfg": config["vision_cfg"]})
    except Exception as error:  # timm and open_clip raise freely on impossible configs
        raise ModelError(
            f"image tower cannot be built from {vision}: {reason_of(error)}. Fix: correct the"
            " config"
        ) from error
    return tower


def text_tower(config: dict) -> nn.Module:
    """Build the text tower of a model config with random weights, projecting to
    ``config['embed_dim']``.
    """
    try:
        with quiet():
            text = dict(pruned.plain(config)["text_cfg"])
            tower = _build_text_tower(config["embed_dim"], text, config.get("quick_gelu", False))
            pruned.install(tower, {"text_cfg": config["text_cfg"]})
            return places_first(tower)
    except Exception as error:  # open_clip raises freely on impossible configs
        raise ModelError(
            f"text tower cannot be built from {config['text_cfg']}: {reason_of(error)}. Fix:"
            " correct the config"
        ) from error


def as_users_load(folder: Path) -> tuple[nn.Module, Callable, Callable]:
    """Return (model, transform of images, tokenizer) of a folder as open_clip itself loads them.

    Raises ModelError with open_clip's reason.
    """
    name = folder_config(folder)
    try:
        with quiet(), offline():
            model, _, transform = open_clip.create_model_and_transforms(name)
            return model.eval(), transform, open_clip.get_tokenizer(name)
    except Exception as error:  # open_clip raises whatever torch.load and an odd config raise
        raise ModelError(
            f"{folder}: open_clip does not load it: {reason_of(error)}. Fix: use another format"
        ) from error


def folder_config(folder: Path) -> str:
    """Return the ``local-dir:`` name of a folder in open_clip's layout."""
    return f"{FOLDER}{folder}"
