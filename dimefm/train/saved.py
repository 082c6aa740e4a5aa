"""Read a checkpoint: all of it is checked before anything of a run is changed.

:mod:`dimefm.train.checkpoint` writes them.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dimefm.errors import ModelError
from dimefm.storage.small_files import parse_json
from dimefm.train.checkpoint_folders import STATE
from dimefm.train.early_stopping import EarlyStopping
from dimefm.train.ema import Ema

MODEL, OPTIMIZER, AVERAGE, SEAL = (
    "model.safetensors",
    "optimizer.safetensors",
    "ema.safetensors",
    "SHA256SUMS",
)
VERSION = 2  # of sealed checkpoints; those before have no version

FORMER_NAMES = (
    (re.compile(r"^(module\.)?learn[t]\."), r"\1loss_modules."),
    (re.compile(r"^(module\.)?bridge\."), r"\1projection."),
)
"""What parts of the student were called in checkpoints of 0.1.0's first builds, and are called
now.
"""

SQUARES = "exp_avg_sq"  # the moment that is never negative
MOMENTS = ("exp_avg", SQUARES)
LARGEST_EXACT_STEP = 1 << 24  # the optimizer counts its steps in float32
SEAL_LINE = re.compile(r"([0-9a-f]{64})  ([^/\n]+)")


class Damaged(ValueError):
    """A checkpoint is not what was saved; the message says why."""


@dataclass
class Saved:
    """A checkpoint in memory: ``state`` is its JSON, ``files`` the tensors of each file."""

    folder: Path
    state: dict
    files: dict[str, dict[str, Tensor]]

    @property
    def step(self) -> int:
        """The number of optimizer steps before the checkpoint."""
        return self.state["step"]

    @property
    def caches(self) -> dict[str, list[str]]:
        """The fingerprints of what the run was trained on."""
        return self.state["caches"]


def load(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None = None,
    watch: EarlyStopping | None = None,
) -> tuple[int, dict[str, list[str]]]:
    """Restore what is given; return (steps done, fingerprints of the caches).

    Raises ModelError when the checkpoint is damaged; nothing is restored then.
    """
    try:
        saved = read(folder, averaged=ema is not None)
        restore(saved, model, optimizer, ema, watch)
    except Damaged as error:
        raise ModelError(
            f"{folder}: the checkpoint is damaged ({error}). Fix: remove it to resume from the one"
            " before"
        ) from error
    return saved.step, saved.caches


def restore(
    saved: Saved,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None = None,
    watch: EarlyStopping | None = None,
    most: int | None = None,
) -> None:
    """Restore what is given from a checkpoint; ``most`` is the run's last step.

    Raises Damaged when the checkpoint is not of such a run; nothing is restored then.
    """
    if most is not None and saved.step > most:
        raise Damaged(f"{STATE} is of step {saved.step}, the run has {most}")
    _check_weights(saved, MODEL, model)
    if ema is not None:
        _check_weights(saved, AVERAGE, ema)
    moments = _moments(saved, model)
    restored_watch = _restored_watch(saved, watch)
    model.load_state_dict(saved.files[MODEL])
    if ema is not None:
        ema.load_state_dict(saved.files[AVERAGE])
    optimizer.state.clear()
    optimizer.state.update(moments)
    if watch is not None:
        watch.restore(restored_watch)


def read(folder: Path, averaged: bool = False) -> Saved:
    """Return a checkpoint whose files fit its seal and belong to one step.

    ``averaged`` reads the averaged weights too. Raises Damaged when the checkpoint is not what was
    saved. An error of the machine, as of a failing disk, is raised as it is.
    """
    names = [STATE, MODEL, OPTIMIZER]
    if averaged:
        names.append(AVERAGE)
    digests = _read_seal(folder)
    contents = {}
    for name in names:
        contents[name] = _read_file(folder, name)
    if digests is not None:
        _check_seal(folder, digests, contents)
    state = _state_of(contents.pop(STATE), folder)
    if "version" in state and digests is None:
        raise Damaged(f"its seal, {SEAL}, is missing")
    files = {}
    while contents:
        name, content = contents.popitem()
        files[name] = _tensors_of(name, content, state["step"])
    return Saved(folder, state, files)


def recorded_fact(folder: Path, name: str) -> dict | None:
    """Return a fact that a checkpoint records, {} when it records none, without its tensors.

    None when its state is not what was saved.
    """
    try:
        content = _read_file(folder, STATE)
        digests = _read_seal(folder)
        if digests is not None and digests.get(STATE) != hashlib.sha256(content).hexdigest():
            return None
        fact = _state_of(content, folder).get(name, {})
    except Damaged:
        return None
    return fact if isinstance(fact, dict) else None


def _read_file(folder: Path, name: str) -> bytes:
    _refuse_pipe(folder / name)
    try:
        return (folder / name).read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        if name == AVERAGE:
            raise Damaged(f"{name}: the weights do not load, {error.strerror}") from error
        raise Damaged(f"{name} is missing") from error


def _refuse_pipe(path: Path) -> None:
    """Raise Damaged for a pipe or a device: reading it would not end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise Damaged(f"{path.name} is no regular file")


def _read_seal(folder: Path) -> dict[str, str] | None:
    """Return file -> digest of a checkpoint's seal, None when it has no seal."""
    _refuse_pipe(folder / SEAL)
    try:
        text = (folder / SEAL).read_bytes().decode("ascii")
    except FileNotFoundError:
        return None
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise Damaged(f"{SEAL} cannot be read") from error
    digests = {}
    for line in text.removesuffix("\n").split("\n"):
        match = SEAL_LINE.fullmatch(line)
        if match is None:
            raise Damaged(f"{SEAL} has a line that is none")
        digests[match[2]] = match[1]
    return digests


def _check_seal(folder: Path, digests: dict[str, str], contents: dict[str, bytes]) -> None:
    """Raise Damaged unless every sealed file has its digest, and all files are sealed."""
    for name in sorted({*digests, *contents}):
        content = contents.get(name)
        if content is None:
            content = _read_file(folder, name)
        if name not in digests:
            raise Damaged(f"{name} is not in {SEAL}")
        if hashlib.sha256(content).hexdigest() != digests[name]:
            raise Damaged(f"{name} is not as {SEAL} says")


def _state_of(content: bytes, folder: Path) -> dict:
    """Return the state of a checkpoint, whose step is that of its folder's name."""
    try:
        state = parse_json(content.decode("utf-8"))
    except ValueError as error:
        raise Damaged(f"{STATE} cannot be read, {_short(error)}") from error
    if not isinstance(state, dict):
        raise Damaged(f"{STATE} is no JSON object")
    step = state.get("step")
    if type(step) is not int or step < 0:
        raise Damaged(f"{STATE} has the step {_short(step)}, expected a number of at least 0")
    if folder.name.isdecimal() and step != int(folder.name):
        raise Damaged(f"{STATE} is of step {step}, the folder of {int(folder.name)}")
    caches = state.get("caches")
    if not isinstance(caches, dict) or not all(isinstance(v, list) for v in caches.values()):
        raise Damaged(f"{STATE} has no fingerprints of caches")
    return state


def _tensors_of(name: str, content: bytes, step: int) -> dict[str, Tensor]:
    """Return the tensors of a file; raise Damaged when it says that it is of another step."""
    try:
        header_size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + header_size])
        marked = header.get("__metadata__", {}).get("step")
        tensors = safetensors.torch.load(content)
    except (SafetensorError, ValueError, AttributeError, RecursionError, KeyError) as error:
        raise Damaged(f"{name} cannot be read, {_short(error)}") from error
    if marked is not None and marked != str(step):
        raise Damaged(f"{name} is of step {_short(marked)}, {STATE} of {step}")
    return _with_present_names(tensors)


def _check_weights(saved: Saved, name: str, module: nn.Module) -> None:
    """Raise Damaged unless a file has each tensor of ``module`` in its shape and type."""
    tensors = saved.files[name]
    expected = module.state_dict()
    for tensor_name in sorted({*tensors, *expected}):
        if tensor_name not in expected:
            raise Damaged(f"{name} has {tensor_name}, which the student lacks")
        _check_like(name, tensor_name, tensors.get(tensor_name), expected[tensor_name])


def _check_like(file: str, name: str, tensor: Tensor | None, like: Tensor) -> None:
    if tensor is None:
        raise Damaged(f"{file} lacks {name}")
    if tensor.shape != like.shape or tensor.dtype != like.dtype:
        raise Damaged(
            f"{file}: {name} is {_form(tensor)}, expected {_form(like)}; the weights do not load"
        )
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise Damaged(f"{file}: {name} has numbers that are not finite")


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _moments(saved: Saved, model: nn.Module) -> dict[Tensor, dict[str, Tensor]]:
    """Return the optimizer's state of each parameter, laid out in memory as the parameter is.

    The optimizer has no state of a parameter that no step has used.
    """
    flat = dict(saved.files[OPTIMIZER])
    state: dict[Tensor, dict[str, Tensor]] = {}
    counted = 0
    for name, parameter in model.named_parameters():
        if not any(f"{name}/{field}" in flat for field in ("step", *MOMENTS)):
            continue
        step = flat.pop(f"{name}/step", None)
        _check_like(OPTIMIZER, f"{name}/step", step, torch.zeros(()))
        counted = max(counted, int(step))
        state[parameter] = {"step": step.to(parameter.device)}
        for field in MOMENTS:
            moment = flat.pop(f"{name}/{field}", None)
            _check_like(OPTIMIZER, f"{name}/{field}", moment, parameter)
            if field == SQUARES and bool((moment < 0).any()):
                raise Damaged(f"{OPTIMIZER}: {name}/{field} has negative numbers")
            state[parameter][field] = _laid_out_as(moment, parameter)
    if flat:
        raise Damaged(f"{OPTIMIZER} has {min(flat)}, which the student lacks")
    is_sealed = "version" in saved.state
    if not is_sealed and counted != saved.step and saved.step < LARGEST_EXACT_STEP:
        raise Damaged(f"{OPTIMIZER} is of step {counted}, {STATE} of {saved.step}")
    return state


def _laid_out_as(value: Tensor, parameter: Tensor) -> Tensor:
    """Return ``value`` laid out in memory as ``parameter``: the fused optimizer goes through both
    as they lie.
    """
    return torch.empty_like(parameter, requires_grad=False).copy_(value)


def _restored_watch(saved: Saved, watch: EarlyStopping | None) -> dict:
    """Return the state of the evaluations; raise Damaged when ``watch`` needs one that is none."""
    if watch is None:
        return {}
    state = saved.state.get("watch")
    if not isinstance(state, dict) or type(state.get("without")) is not int:
        raise Damaged(f"{STATE} has no evaluations")
    best = state.get("best")
    if best and not _is_evaluation(best):
        raise Damaged(f"{STATE} has no best evaluation")
    return state


def _is_evaluation(best: object) -> bool:
    """Tell whether a value is the record of an evaluation: a step, a mean and scores."""
    if not isinstance(best, dict) or not isinstance(best.get("scores"), dict):
        return False
    numbers = [best.get("mean"), *best["scores"].values()]
    return type(best.get("step")) is int and all(type(one) in (int, float) for one in numbers)


def _with_present_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under the names that the student's parts have now."""
    renamed = {}
    for name, value in tensors.items():
        for former, present in FORMER_NAMES:
            name = former.sub(present, name)
        renamed[name] = value
    return renamed


def _short(value: object) -> str:
    """Return a value of a damaged file in few letters, without control characters."""
    return " ".join(ascii(str(value)[:100])[1:-1].split())[:100]
