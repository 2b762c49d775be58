"""PyTorch's files, read by a machine of our own that makes descriptions of tensors and nothing else.

A pickle is a program. The machine here knows the two dozen instructions that tensors and plain containers need, makes
no object of any other class, imports nothing, and stops after so many instructions; where each tensor's numbers lie in
the file is compared with the file before anybody reads one. So a file costs what its directory costs, whatever it says.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from .limits import short

# Bytes of a pickle and of an archive's directory: a checkpoint of 6 GB with its optimizer has 1 million of each.
MAX_DIRECTORY = 8 << 20
MAX_INSTRUCTIONS = 1_000_000  # a tensor takes about 25
MAX_DIMENSIONS = 8

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_HEADER = 3  # pickles before the contents: magic, protocol, the machine's byte order

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
}
_DTYPES = {
    f"torch.{name}": getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"),
        *("uint16", "uint32", "uint64", "complex64", "complex128"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
    )
}
# Tensors of other kinds than numbers in a row: nothing here uses them, and a file may hold them beside what is used.
_STRANGE_TENSORS = {
    "torch._utils._rebuild_sparse_tensor": "sparse tensor",
    "torch._utils._rebuild_qtensor": "quantised tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "tensor without numbers (meta)",
    "torch._utils._rebuild_nested_tensor": "nested tensor",
    "torch._utils._rebuild_wrapper_subclass": "tensor of a special class",
    "torch._utils._rebuild_device_tensor_from_numpy": "tensor of another device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "tensor of another device",
    "torch._tensor._rebuild_from_type_v2": "tensor of a special class",
}
# What trainers leave beside the weights: let through, and nothing made of it.
_BESIDE = {
    "builtins.bytearray",
    "builtins.complex",
    "builtins.set",
    "collections.Counter",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "torch.device",
    "torch.per_channel_affine",
    "torch.per_tensor_affine",
    "torch.serialization._get_layout",
    "_codecs.encode",
}


class PickleError(ValueError):
    """A PyTorch file that is damaged or is something else; the message is the reason, without the file's name."""


class CodeRefused(PickleError):
    """A pickle that asks for something else than tensors and containers. The message is what it asks for."""


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class StoredTensor(TensorSpec):
    """A tensor in a file. read: gives it on the CPU, as a view of mapped pages: do not write to it."""

    read: Callable[[], Tensor] = field(repr=False)


@dataclass(frozen=True)
class Unusable:
    """Something in a pickle of which nothing was made; `what` is what messages call it."""

    what: str


@dataclass(frozen=True)
class _Name:
    """What a pickle calls by module and name; nothing is imported."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """A row of numbers. key: which of the file; start: the first of them that belongs to a view."""

    key: str
    dtype: torch.dtype
    start: int = 0


@dataclass(frozen=True)
class _View:
    """A tensor as the pickle describes it: [shape] numbers of a storage, from an offset, so many apart."""

    storage: _Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Parameters(dict):
    """A `torch.nn.ParameterDict`, of which its parameters are kept."""


def read_contents(path: Path) -> Any:
    """The containers of a PyTorch file, with `StoredTensor` and `Unusable` for what is neither text nor number.

    Containers may hold themselves. Raises PickleError where the file is damaged, CodeRefused where it asks for code.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
            file.seek(0)
            contents, rows = _read_archive(file) if magic == b"PK\x03\x04" else _read_legacy(file)
        return _with_tensors(contents, _Numbers(path, rows))
    except PickleError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise PickleError("it is truncated or damaged") from error


# --------------------------------------------------------------------------------------------- containers


class _Sips:
    """A file of which a single read takes a directory's size at most."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.seek, self.tell, self.seekable = file, file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        found = self.file.read(size if 0 <= size <= MAX_DIRECTORY else MAX_DIRECTORY + 1)
        if len(found) > MAX_DIRECTORY:
            raise PickleError("its directory is absurdly large")
        return found


def _read_archive(file: IO[bytes]) -> tuple[Any, dict[str, tuple[int, int]]]:
    """Contents of an archive, and storage -> its first byte in the file and its number of bytes."""
    with zipfile.ZipFile(_Sips(file)) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = sorted((name for name in entries if name.endswith("data.pkl")), key=len)
        if not pickles:
            raise PickleError("it is an archive without tensors")
        folder = pickles[0].removesuffix("data.pkl")
        if folder + "constants.pkl" in entries:
            raise PickleError("it is a TorchScript program, not weights, and was not run")
        with archive.open(pickles[0]) as source:
            text = source.read(MAX_DIRECTORY + 1)
        if len(text) > MAX_DIRECTORY:
            raise PickleError(f"its table of contents has more than {MAX_DIRECTORY >> 20} MB")
        order = entries.get(folder + "byteorder")
        if order is not None and archive.read(order)[:6] == b"big":
            raise PickleError("its numbers are in the byte order of another kind of machine")
    contents = _Machine(BytesIO(text)).run()
    prefix = folder + "data/"
    rows = {}
    for name, entry in entries.items():
        if not name.startswith(prefix):
            continue
        if entry.compress_type != zipfile.ZIP_STORED:
            raise PickleError("its numbers are compressed; save it again with torch.save")
        file.seek(entry.header_offset)
        header = file.read(30)
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        rows[name.removeprefix(prefix)] = (start, entry.file_size)
    return contents, rows


def _read_legacy(file: IO[bytes]) -> tuple[Any, dict[str, tuple[int, int]]]:
    """As `_read_archive`, of a file of PyTorch before 1.6 or of a bare pickle, which can hold no tensor's numbers."""
    head = BytesIO(file.read(MAX_DIRECTORY))
    found = _Machine(head).run()
    if found != LEGACY_MAGIC:
        return found, {}
    for _ in range(LEGACY_HEADER - 1):
        machine = _Machine(head).run()
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise PickleError("its numbers are in the byte order of another kind of machine")
    interpreter = _Machine(head)
    contents, keys = interpreter.run(), _Machine(head).run()
    rows, position = {}, head.tell()
    for key in keys:
        file.seek(position)
        (numel,) = struct.unpack("<q", file.read(8))
        nbytes = numel * interpreter.storages[str(key)].itemsize
        if numel < 0:
            raise PickleError("it is truncated or damaged")
        rows[str(key)] = (position + 8, nbytes)
        position += 8 + nbytes
    return contents, rows


# ------------------------------------------------------------------------------------------------ machine

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONTAINERS = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": list}
_KEYS = (str, int, float, bool, bytes, type(None))  # tuples in tuples take for ever to hash


class _Machine:
    """Runs one pickle. storages: key -> dtype of the storages it named."""

    def __init__(self, source: BytesIO) -> None:
        self.source = source
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, torch.dtype] = {}

    def run(self) -> Any:
        for number, (operation, argument, _) in enumerate(pickletools.genops(self.source)):
            if operation.name == "STOP":
                return self.stack.pop()
            if number == MAX_INSTRUCTIONS:
                raise PickleError("its table of contents is absurdly long")
            self._step(operation.name, argument)
        raise PickleError("it is truncated or damaged")

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _CONTAINERS:
            stack.append(_CONTAINERS[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "TUPLE":
            items = self._since_mark()
            stack.append(tuple(items))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(self._pop(int(name[-1]))))
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if name == "SETITEM" else self._since_mark()
            if isinstance(stack[-1], dict):
                pairs = zip(items[::2], items[1::2], strict=True)
                stack[-1].update((key, value) for key, value in pairs if type(key) in _KEYS)
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = self._pop(1) if name == "APPEND" else self._since_mark()
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            module, leaf = argument.split(" ", 1) if name == "GLOBAL" else self._pop(2)
            stack.append(_Name(f"{module}.{leaf}".replace("__builtin__.", "builtins.", 1)))
            _check_known(stack[-1].name)
        elif name in ("REDUCE", "NEWOBJ"):
            called, arguments = self._pop(2)
            if not isinstance(called, _Name):
                raise PickleError("it is truncated or damaged")
            stack.append(_made(called.name, arguments))
        elif name == "BUILD":
            (state,) = self._pop(1)
            if isinstance(stack[-1], _Parameters):
                stack[-1].update(state["_parameters"])
        elif name == "BINPERSID":
            (described,) = self._pop(1)
            stack.append(self._storage(described))
        elif name in ("INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
            raise CodeRefused(argument if isinstance(argument, str) else name)
        elif name not in ("PROTO", "FRAME"):
            raise PickleError(f"it holds the instruction {name}, which no file of tensors needs")

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise PickleError("it is truncated or damaged")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _since_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def _storage(self, described: Any) -> _Storage:
        # ("storage", class, key, device, numel), and before PyTorch 1.6 a view's (key, offset, numel)
        kind, storage_class, key, _, numel, *view = (_text(part) for part in described)
        if kind != "storage" or type(numel) is not int:
            raise PickleError("it is truncated or damaged")
        dtype = _STORAGES[storage_class.name.rpartition(".")[2]]
        self.storages[str(key)] = dtype
        start = view[0][1] if view and view[0] is not None else 0
        return _Storage(str(key), dtype, start)


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _check_known(name: str) -> None:
    module, _, leaf = name.rpartition(".")
    storage = module in ("torch", "torch.storage", "torch.cuda") and leaf in _STORAGES
    if not (storage or name in _DTYPES or name in _BESIDE or name in _STRANGE_TENSORS or name in _MAKERS):
        raise CodeRefused(name.removeprefix("builtins."))


def _made(name: str, arguments: Any) -> Any:
    if name in _MAKERS:
        return _MAKERS[name](*arguments)
    return Unusable(_STRANGE_TENSORS.get(name, f"{name.rpartition('.')[2]} object"))


def _rebuild(storage: _Storage, offset: int, shape: Any, stride: Any, *rest: Any) -> _View:
    # Behind them: whether it is trained, hooks and, for numbers that have no storage class, the dtype.
    dtype = next((_DTYPES[part.name] for part in rest if isinstance(part, _Name)), storage.dtype)
    numbers = (storage.start, offset, *shape, *stride)
    exact = all(type(number) is int and 0 <= number < 2**63 for number in numbers)
    if not exact or len(shape) > MAX_DIMENSIONS or len(shape) != len(stride):
        raise PickleError("it is truncated or damaged")
    return _View(storage, dtype, storage.start + offset, tuple(shape), tuple(stride))


_MAKERS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda items=(): dict(items),
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_tensor_v3": _rebuild,
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *rest: data,
    "torch.nn.parameter.Parameter": lambda data, *rest: data,
    "torch.nn.modules.container.ParameterDict": lambda *rest: _Parameters(),
}


# ------------------------------------------------------------------------------------------------ tensors


class _Numbers:
    """The numbers of a file. rows: storage -> its first byte and its number of bytes. Mapped when first asked for."""

    def __init__(self, path: Path, rows: Mapping[str, tuple[int, int]]) -> None:
        self.path, self.rows = path, rows
        self.size = path.stat().st_size
        self.mapped: torch.UntypedStorage | None = None

    def check(self, view: _View) -> None:
        """Raise PickleError unless the file holds every number of the tensor."""
        start, nbytes = self.rows.get(view.storage.key, (0, -1))
        reach = view.offset + sum((side - 1) * step for side, step in zip(view.shape, view.stride, strict=True))
        if nbytes < 0 or start + nbytes > self.size:
            raise PickleError("it is truncated or damaged")
        if not prod(view.shape):
            return
        if (reach + 1) * view.dtype.itemsize > nbytes or prod(view.shape) * view.dtype.itemsize > nbytes:
            raise PickleError(
                f"it has a tensor of {short(prod(view.shape))} numbers where it holds {nbytes:,} bytes of them"
            )

    def read(self, view: _View) -> Tensor:
        if not prod(view.shape):
            return torch.empty(view.shape, dtype=view.dtype)
        if self.mapped is None:
            self.mapped = torch.UntypedStorage.from_file(str(self.path), False, self.size)
        start, nbytes = self.rows[view.storage.key]
        row = self.mapped[start : start + nbytes]
        return torch.empty(0, dtype=view.dtype).set_(row, view.offset, view.shape, view.stride)


def _with_tensors(contents: Any, numbers: _Numbers) -> Any:
    """The same containers with tensors that can be read in the place of views."""
    found: dict[int, Any] = {}

    def tensor(view: _View) -> StoredTensor:
        numbers.check(view)
        return StoredTensor(view.shape, view.dtype, lambda: numbers.read(view))

    def put(container: Any) -> None:
        places = container.items() if isinstance(container, dict) else enumerate(container)
        for place, value in list(places):
            if isinstance(value, _View):
                container[place] = tensor(value)
            elif isinstance(value, (_Name, _Storage)):
                container[place] = Unusable("name" if isinstance(value, _Name) else "storage")
            elif isinstance(value, (dict, list)) and id(value) not in found:
                found[id(value)] = value
                waiting.append(value)

    waiting = [[contents]]
    outermost = waiting[0]
    while waiting:
        put(waiting.pop())
    return outermost[0]
