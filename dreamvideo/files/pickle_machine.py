"""Runs a pickle without importing anything: it makes descriptions of tensors and plain containers, and nothing else."""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch

MAX_INSTRUCTIONS = 1_000_000  # a tensor takes about 25


MAX_DIMENSIONS = 8


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
    "torch.serialization._get_layout",
    "_codecs.encode",
}


class PickleError(ValueError):
    """A PyTorch file that is damaged or is something else; the message is the reason, without the file's name."""


class CodeRefused(PickleError):
    """A pickle that asks for something else than tensors and containers. The message is what it asks for."""


@dataclass(frozen=True)
class Unusable:
    """Something in a pickle of which nothing was made; `what` is what messages call it."""

    what: str


@dataclass(frozen=True)
class Name:
    """What a pickle calls by module and name; nothing is imported."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A row of numbers. key: which of the file; start: the first of them that belongs to a view."""

    key: str
    dtype: torch.dtype
    start: int = 0


@dataclass(frozen=True)
class View:
    """A tensor as the pickle describes it: [shape] numbers of a storage, from an offset, so many apart."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Parameters(dict):
    """A `torch.nn.ParameterDict`, of which its parameters are kept."""


class Scripted(dict):
    """A module of a TorchScript program: its attributes by name, and nothing of its code."""


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}


_CONTAINERS = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": list}


_KEYS = (str, int, float, bool, bytes, type(None))  # tuples in tuples take for ever to hash


class Machine:
    """Runs one pickle. storages: key -> dtype of the storages it named.

    scripted: it is a TorchScript program's, whose own classes become `Scripted`.
    """

    def __init__(self, source: BytesIO, scripted: bool = False) -> None:
        self.source, self.scripted = source, scripted
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
            stack.append(Name(f"{module}.{leaf}".replace("__builtin__.", "builtins.", 1)))
            _check_known(stack[-1].name, self.scripted)
        elif name in ("REDUCE", "NEWOBJ"):
            called, arguments = self._pop(2)
            if not isinstance(called, Name):
                raise PickleError("it is truncated or damaged")
            stack.append(_made(called.name, arguments))
        elif name == "BUILD":
            (state,) = self._pop(1)
            if isinstance(stack[-1], _Parameters):
                stack[-1].update(state["_parameters"])
            elif isinstance(stack[-1], Scripted) and isinstance(state, dict):
                stack[-1].update(state)
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

    def _storage(self, described: Any) -> Storage:
        # ("storage", class, key, device, numel), and before PyTorch 1.6 a view's (key, offset, numel)
        kind, storage_class, key, _, numel, *view = (_text(part) for part in described)
        if kind != "storage" or type(numel) is not int:
            raise PickleError("it is truncated or damaged")
        dtype = _STORAGES[storage_class.name.rpartition(".")[2]]
        self.storages[str(key)] = dtype
        start = view[0][1] if view and view[0] is not None else 0
        return Storage(str(key), dtype, start)


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _check_known(name: str, scripted: bool) -> None:
    if scripted and (name.startswith(_PROGRAM) or name in _SCRIPTED_MAKERS):
        return
    module, _, leaf = name.rpartition(".")
    storage = module in ("torch", "torch.storage", "torch.cuda") and leaf in _STORAGES
    if not (storage or name in _DTYPES or name in _BESIDE or name in _STRANGE_TENSORS or name in _MAKERS):
        raise CodeRefused(name.removeprefix("builtins."))


def _made(name: str, arguments: Any) -> Any:
    maker = _MAKERS.get(name) or _SCRIPTED_MAKERS.get(name)
    if maker is not None:
        return maker(*arguments)
    if name.startswith(_PROGRAM):  # known in a TorchScript program alone
        return Scripted()
    return Unusable(_STRANGE_TENSORS.get(name, f"{name.rpartition('.')[2]} object"))


def _rebuild(storage: Storage, offset: int, shape: Any, stride: Any, *rest: Any) -> View:
    # Behind them: whether it is trained, hooks and, for numbers that have no storage class, the dtype.
    dtype = next((_DTYPES[part.name] for part in rest if isinstance(part, Name)), storage.dtype)
    numbers = (storage.start, offset, *shape, *stride)
    exact = all(type(number) is int and 0 <= number < 2**63 for number in numbers)
    if not exact or len(shape) > MAX_DIMENSIONS or len(shape) != len(stride):
        raise PickleError("it is truncated or damaged")
    return View(storage, dtype, storage.start + offset, tuple(shape), tuple(stride))


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
_PROGRAM = "__torch__."  # what a TorchScript program calls its own classes by
_SCRIPTED_MAKERS: Mapping[str, Callable[..., Any]] = {
    **{f"torch.jit._pickle.build_{kind}list": list for kind in ("int", "tensor", "double", "bool")},
    "torch.jit._pickle.restore_type_tag": lambda value, kind: value,
}
