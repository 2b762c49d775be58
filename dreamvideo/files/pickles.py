"""PyTorch's files, read by a machine of our own that makes descriptions of tensors and nothing else.

A pickle is a program. The machine here knows the two dozen instructions that tensors and plain containers need, makes
no object of any other class, imports nothing, and stops after so many instructions; where each tensor's numbers lie in
the file is compared with the file before anybody reads one. So a file costs what its directory costs, whatever it says.
"""

from __future__ import annotations

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

from ..safety.limits import short
from .pickle_machine import Machine, Name, PickleError, Scripted, Storage, Unusable, View

# Bytes of a pickle and of an archive's directory: a checkpoint of 6 GB with its optimizer has 1 million of each.
MAX_DIRECTORY = 8 << 20

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_HEADER = 3  # pickles before the contents: magic, protocol, the machine's byte order


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


def read_contents(path: Path) -> tuple[Any, Callable[[], None]]:
    """The containers of a PyTorch file, with `StoredTensor` and `Unusable` for what is neither text nor number, and
    what lets go of the file's mapped pages; the next tensor that is read maps them again.

    Containers may hold themselves. Of a TorchScript program, none of which is run, the tensors are read by name.
    Raises PickleError where the file is damaged, CodeRefused where it asks for code.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
            file.seek(0)
            contents, rows = _read_archive(file) if magic == b"PK\x03\x04" else _read_legacy(file)
        numbers = _Numbers(path, rows)
        return _with_tensors(contents, numbers), numbers.unmap
    except PickleError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise PickleError("it is truncated or damaged") from error


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
        with archive.open(pickles[0]) as source:
            text = source.read(MAX_DIRECTORY + 1)
        if len(text) > MAX_DIRECTORY:
            raise PickleError(f"its table of contents has more than {MAX_DIRECTORY >> 20} MB")
        order = entries.get(folder + "byteorder")
        if order is not None and archive.read(order)[:6] == b"big":
            raise PickleError("its numbers are in the byte order of another kind of machine")
    scripted = folder + "constants.pkl" in entries
    contents = Machine(BytesIO(text), scripted).run()
    if scripted:
        contents = _state(contents)
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


def _state(program: Any) -> dict[str, View]:
    """The tensors of a TorchScript module under the names that its state dict would have."""
    found: dict[str, View] = {}
    seen: set[int] = set()  # a module may hold itself
    waiting = [("", program)]
    while waiting:
        prefix, module = waiting.pop()
        if not isinstance(module, Scripted) or id(module) in seen:
            continue
        seen.add(id(module))
        named = [(prefix + name, value) for name, value in module.items() if isinstance(name, str)]
        found.update((name, value) for name, value in named if isinstance(value, View))
        waiting += [(f"{name}.", value) for name, value in named]
    return found


def _read_legacy(file: IO[bytes]) -> tuple[Any, dict[str, tuple[int, int]]]:
    """As `_read_archive`, of a file of PyTorch before 1.6 or of a bare pickle, which can hold no tensor's numbers."""
    head = BytesIO(file.read(MAX_DIRECTORY))
    found = Machine(head).run()
    if found != LEGACY_MAGIC:
        return found, {}
    for _ in range(LEGACY_HEADER - 1):
        machine = Machine(head).run()
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise PickleError("its numbers are in the byte order of another kind of machine")
    interpreter = Machine(head)
    contents, keys = interpreter.run(), Machine(head).run()
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


class _Numbers:
    """The numbers of a file. rows: storage -> its first byte and its number of bytes. Mapped when first asked for."""

    def __init__(self, path: Path, rows: Mapping[str, tuple[int, int]]) -> None:
        self.path, self.rows = path, rows
        self.size = path.stat().st_size
        self.mapped: Any = None  # an UntypedStorage, which torch's own types take for its parent

    def check(self, view: View) -> None:
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

    def unmap(self) -> None:
        self.mapped = None

    def read(self, view: View) -> Tensor:
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

    def tensor(view: View) -> StoredTensor:
        numbers.check(view)
        return StoredTensor(view.shape, view.dtype, lambda: numbers.read(view))

    def put(container: Any) -> None:
        places = container.items() if isinstance(container, dict) else enumerate(container)
        for place, value in list(places):
            if isinstance(value, View):
                container[place] = tensor(value)
            elif isinstance(value, (Name, Storage)):
                container[place] = Unusable("name" if isinstance(value, Name) else "storage")
            elif isinstance(value, (dict, list)) and id(value) not in found:
                found[id(value)] = value
                waiting.append(value)

    waiting: list[Any] = [[contents]]
    outermost = waiting[0]
    while waiting:
        put(waiting.pop())
    return outermost[0]
