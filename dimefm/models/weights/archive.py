"""Read the tensors of a torch archive without unpickling it: nothing in the file is executed.

Two kinds of published files hold more than torch's loader of plain tensors takes:

* TorchScript programs, as OpenAI's ``.pt`` files are: modules with their weights as attributes.
* Checkpoints of training with numbers of NumPy, e.g. the learning rate in CLIP-KD's optimizers.

Both are zip files with ``data.pkl`` and the numbers of each tensor in a file of its own. The former
holds steps for a small machine with a stack, and Python's own loader follows them, whatever they
do. :class:`_Reader` is such a machine without the dangerous parts: a class or function is a mere
name, and to call one gives a :class:`Node`. Tensors are made where a step has the names that torch
uses for them. Any name outside ``ALLOWED`` is refused: the file holds something else than weights.

Source: torch/csrc/jit/serialization/pickler.cpp and torch/_utils.py:_rebuild_tensor_v2, torch 2.
"""

from __future__ import annotations

import pickletools
import re
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dimefm.errors import ModelError
from dimefm.runtime.printable import shown

STEPS = "/data.pkl"
MOST_BYTES = 64 << 20  # of data.pkl
MOST_STEPS = 20_000_000
MOST_MODULES = 100_000
LONGEST_NAME = 1000  # characters
DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
ALLOWED = re.compile(
    r"__torch__\..+|torch\.\w+Storage|torch\._utils\._rebuild_(tensor_v2|parameter)"
    r"|torch\.(Size|device)|torch\.jit\._pickle\.(build_\w+list|restore_type_tag)"
    r"|collections\.OrderedDict|numpy\.(_?core\.multiarray\.scalar|dtype)|_codecs\.encode"
)


class Unreadable(ValueError):
    """Why an archive cannot be read; whoever catches it names the file."""


@dataclass(frozen=True)
class Name:
    """The name of a class or function in ``data.pkl``."""

    text: str


@dataclass
class Node:
    """What ``data.pkl`` would have made by calling ``name``, with the state of that object."""

    name: str
    state: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Storage:
    """The numbers of tensors: their dtype, and the file of the archive that holds them."""

    dtype: torch.dtype
    key: str


class _Mark:
    """A place on the stack to which several values belong."""


def is_archive(path: Path) -> bool:
    """Tell whether a file is a zip file with ``data.pkl``, as torch writes it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(STEPS) for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False


def read(path: Path) -> Any:
    """Return the content of an archive: tables, lists, numbers and tensors.

    A TorchScript program is a table of its tensors, named as a state dict names them. Raises
    ModelError when the file is damaged or holds other things than weights.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _content(archive)
    except Unreadable as error:
        raise ModelError(
            f"{path}: cannot be loaded: {error}, expected plain tensors. Fix: fetch it again, or"
            " save its state_dict as .safetensors"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # zipfile, zlib and pickletools raise freely on damaged files
        reason = shown(error, 200)
        raise ModelError(
            f"{path}: cannot be loaded: the file is damaged ({reason}). Fix: fetch it again"
        ) from error


def _content(archive: zipfile.ZipFile) -> Any:
    names = [name for name in archive.namelist() if name.endswith(STEPS)]
    if len(names) != 1:
        raise Unreadable(f"it has {len(names)} files data.pkl, not one")
    folder = names[0].removesuffix(STEPS)
    if archive.getinfo(names[0]).file_size > MOST_BYTES:
        raise Unreadable(f"its data.pkl has more than {MOST_BYTES:,} bytes")
    _check_byte_order(archive, folder)
    content = _Reader(archive, folder).run(archive.read(names[0]))
    if not isinstance(content, Node):
        return content
    return _tensors_of(content)


def _check_byte_order(archive: zipfile.ZipFile, folder: str) -> None:
    name = f"{folder}/byteorder"
    if name in archive.namelist() and archive.read(name).decode("ascii") != sys.byteorder:
        raise Unreadable("its numbers have the other byte order")


def _tensors_of(program: Node) -> dict[str, Tensor]:
    """Return the tensors of a module and of the modules in it, by their names."""
    tensors: dict[str, Tensor] = {}
    modules = [("", program)]
    visited = 0
    while modules:
        prefix, module = modules.pop()
        visited += 1
        if visited > MOST_MODULES:
            raise Unreadable(f"it has more than {MOST_MODULES:,} modules")
        if not isinstance(module.state, dict):
            continue
        for key, value in module.state.items():
            name = f"{prefix}{key}"
            if isinstance(value, Tensor):
                tensors[name] = value
            elif isinstance(value, Node) and len(name) < LONGEST_NAME:
                modules.append((f"{name}.", value))
    return tensors


class _Reader:
    """Follows the steps of ``data.pkl`` with tables, lists, numbers, texts, tensors and nodes."""

    def __init__(self, archive: zipfile.ZipFile, folder: str):
        self.archive = archive
        self.folder = folder
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.numbers: dict[Storage, Tensor] = {}

    def run(self, data: bytes) -> Any:
        """Return the value that the steps describe."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > MOST_STEPS:
                raise Unreadable(f"its data.pkl has more than {MOST_STEPS:,} steps")
            if opcode.name == "STOP":
                return self._pop()
            self._step(opcode.name, argument)
        raise Unreadable("its data.pkl has no end")

    def _step(self, name: str, argument: Any) -> None:
        """Follow one step."""
        if name in VALUES:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name in PUTS:
            self.memo[len(self.memo) if argument is None else argument] = self._top()
        elif name in GETS:
            self.stack.append(self.memo[argument])
        elif name in ACTIONS:
            ACTIONS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise Unreadable(f"its data.pkl has the step {name}")

    def _pop(self) -> Any:
        if not self.stack:
            raise Unreadable("its data.pkl takes more than there is")
        return self.stack.pop()

    def _top(self) -> Any:
        if not self.stack:
            raise Unreadable("its data.pkl takes more than there is")
        return self.stack[-1]

    def _since_mark(self) -> list[Any]:
        """Take the values above the last mark off the stack, and the mark."""
        values: list[Any] = []
        while True:
            value = self._pop()
            if isinstance(value, _Mark):
                values.reverse()
                return values
            values.append(value)

    def mark(self, _: Any) -> None:
        """Put a mark onto the stack."""
        self.stack.append(_Mark())

    def pop(self, _: Any) -> None:
        """Take a value off the stack."""
        self._pop()

    def named(self, argument: Any) -> None:
        """Put a name onto the stack; raise Unreadable unless it is one of weights."""
        self._push_name(str(argument).replace(" ", ".", 1))

    def named_by_stack(self, _: Any) -> None:
        """Put the name that the stack holds in two parts."""
        last = self._pop()
        self._push_name(f"{self._pop()}.{last}")

    def _push_name(self, text: str) -> None:
        if not ALLOWED.fullmatch(text):
            raise Unreadable(f"it holds '{shown(text)}'")
        self.stack.append(Name(text))

    def tuple_of_marked(self, _: Any) -> None:
        """Make a tuple of the values above the last mark."""
        self.stack.append(tuple(self._since_mark()))

    def tuple_of(self, count: int) -> None:
        """Make a tuple of the last values."""
        values = [self._pop() for _ in range(count)]
        self.stack.append(tuple(reversed(values)))

    def append(self, _: Any) -> None:
        """Put the last value into the list below it."""
        value = self._pop()
        self._extend([value])

    def append_marked(self, _: Any) -> None:
        """Put the values above the last mark into the list below it."""
        self._extend(self._since_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise Unreadable("its data.pkl appends to what is no list")
        target += values

    def set_item(self, _: Any) -> None:
        """Put the last key and value into the table below them."""
        value = self._pop()
        self._update([self._pop(), value])

    def set_marked(self, _: Any) -> None:
        """Put the keys and values above the last mark into the table below it."""
        self._update(self._since_mark())

    def _update(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(values) % 2:
            raise Unreadable("its data.pkl fills what is no table")
        for place in range(0, len(values), 2):
            key = values[place]
            if not isinstance(key, str | int | float | bool | None | tuple):
                raise Unreadable("its data.pkl has a table with an odd key")
            target[key] = values[place + 1]

    def build(self, _: Any) -> None:
        """Give a node its state; what torch notes beside a state dict is dropped."""
        state = self._pop()
        target = self._top()
        if isinstance(target, Node):
            target.state = state

    def call(self, _: Any) -> None:
        """Make a tensor, a table or a node in place of a call."""
        arguments = self._pop()
        function = self._pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise Unreadable("its data.pkl calls what is no name")
        self.stack.append(self._called(function.text, arguments))

    def _called(self, name: str, arguments: tuple) -> Any:
        if name == "torch._utils._rebuild_tensor_v2":
            return self._tensor(*arguments[:4])
        if name == "torch._utils._rebuild_parameter":
            return arguments[0]
        if name == "collections.OrderedDict":
            return {}
        if name.startswith("torch.jit._pickle.") and arguments:
            return arguments[0]
        return Node(name)

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
        """Return a tensor; raise Unreadable when it reaches beyond its numbers."""
        if not isinstance(storage, Storage):
            raise Unreadable("it has a tensor without numbers")
        numbers = self._numbers(storage)
        sides = [offset, *shape, *strides]
        if len(shape) != len(strides) or not all(type(side) is int and side >= 0 for side in sides):
            raise Unreadable("it has a tensor of an impossible shape")
        last = offset
        for side, stride in zip(shape, strides, strict=True):
            last += (side - 1) * stride
        if 0 not in shape and last >= len(numbers):
            raise Unreadable("it has a tensor that is larger than its numbers")
        if 0 in shape:
            return numbers.new_empty(shape)
        return numbers.as_strided(shape, strides, offset)

    def stored(self, _: Any) -> None:
        """Put the storage that the last tuple describes onto the stack."""
        described = self._pop()
        is_known = isinstance(described, tuple) and len(described) >= 3
        if not is_known or described[0] != "storage" or not isinstance(described[1], Name):
            raise Unreadable("its data.pkl names something outside")
        dtype = DTYPES.get(described[1].text.removeprefix("torch."))
        if dtype is None:
            raise Unreadable(f"it has numbers of the kind '{shown(described[1].text)}'")
        self.stack.append(Storage(dtype, str(described[2])))

    def _numbers(self, storage: Storage) -> Tensor:
        """Return all numbers of a storage."""
        if storage not in self.numbers:
            data = bytearray(self.archive.read(f"{self.folder}/data/{storage.key}"))
            if len(data) % storage.dtype.itemsize:
                raise Unreadable("it has numbers that are cut off")
            empty = torch.empty(0, dtype=storage.dtype)
            self.numbers[storage] = torch.frombuffer(data, dtype=storage.dtype) if data else empty
        return self.numbers[storage]


VALUES = frozenset(
    "BININT BININT1 BININT2 INT LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE BINUNICODE BINUNICODE8"
    " SHORT_BINUNICODE STRING BINSTRING SHORT_BINSTRING BINBYTES BINBYTES8 SHORT_BINBYTES".split()
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
PUTS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
GETS = ("GET", "BINGET", "LONG_BINGET")
ACTIONS = {
    "MARK": _Reader.mark,
    "POP": _Reader.pop,
    "GLOBAL": _Reader.named,
    "STACK_GLOBAL": _Reader.named_by_stack,
    "TUPLE": _Reader.tuple_of_marked,
    "TUPLE1": lambda reader, _: reader.tuple_of(1),
    "TUPLE2": lambda reader, _: reader.tuple_of(2),
    "TUPLE3": lambda reader, _: reader.tuple_of(3),
    "APPEND": _Reader.append,
    "APPENDS": _Reader.append_marked,
    "SETITEM": _Reader.set_item,
    "SETITEMS": _Reader.set_marked,
    "BUILD": _Reader.build,
    "REDUCE": _Reader.call,
    "NEWOBJ": _Reader.call,
    "BINPERSID": _Reader.stored,
}
