"""Files of named tensors, safetensors and PyTorch's, whole or in shards: read tensor by tensor, written as a stream.

A pickle can carry code; only tensors and plain containers are ever unpickled here (see `pickles`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..safety.limits import bare, short
from ..safety.paths import PathLike, atomic_path, check_readable
from .dtypes import DTYPE_CODES, DTYPES, is_finite, main_dtype, readable
from .pickle_machine import CodeRefused, PickleError
from .pickles import StoredTensor, TensorSpec, read_contents
from .shards import shards

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)

# What trainers wrap a state dict in, outermost choice first.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "ema", "ema_state_dict", "unet", "params")
# Mapped pages count as resident until they are unmapped, so a file is mapped anew after this share of its bytes.
WINDOW_SHARE, WINDOW_LEAST = 32, 8 << 20
# Of a safetensors file's JSON header, in bytes: a thousand tensors take about 0.1 MB.
MAX_HEADER = 16 << 20
# Containers around containers around the tensors.
MAX_WRAPPING = 8


class CheckpointError(ValueError):
    """A file that cannot be used as asked; the message is one sentence for the user."""


class TensorFile:
    """The tensors of one file, or of all shards of which one is named.

    specs: name -> TensorSpec. metadata: safetensors' own, str -> str. wrapped: whether a container such as
    {"state_dict": ..., "step": ...} was around the tensors. Tensors stay memory-mapped where the format allows.

    Raises CheckpointError when the file is missing, empty, truncated, holds no tensors, or would have to run code.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        self.specs: dict[str, TensorSpec] = {}
        self.metadata: dict[str, str] = {}
        self.wrapped = False
        self._paths: dict[str, Path] = {}
        self._readers: dict[Path, OpenFile] = {}
        self._stamps: dict[Path, tuple[int, int]] = {}
        for shard in shards(self.path):
            reader = self._readers[shard] = open_file(shard)
            self._stamps[shard] = _stamp(shard)
            self.specs.update((name, TensorSpec(value.shape, value.dtype)) for name, value in reader.tensors.items())
            self.metadata.update(reader.metadata)
            self.wrapped |= reader.wrapped
            self._paths.update(dict.fromkeys(reader.tensors, shard))
        if not self.specs:
            raise CheckpointError(f"{self.path} holds no tensors, so it is not a checkpoint.")

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point dtype most of the numbers have."""
        return main_dtype(self.specs.values())

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU as the file has it, usually a view of mapped pages: do not write to it."""
        path = self._paths[name]
        if _stamp(path) != self._stamps[path]:  # its tensors may lie elsewhere now
            raise CheckpointError(f"{path} was changed while it was in use; load it again.")
        return self._readers[path].tensors[name].read()

    def stream(
        self, names: Iterable[str], device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Read `names` in turn into memory of their own, floating-point ones cast to `dtype`.

        Copies, because pages of the file would change with it and lie unaligned; what was copied is unmapped as it
        goes, so that memory never holds the file twice. Raises CheckpointError at the first tensor that is not finite.
        """
        window = max(WINDOW_LEAST, sum(spec.nbytes for spec in self.specs.values()) // WINDOW_SHARE)
        passed = 0
        try:
            for name in names:
                source = self.read(name)
                value = source.to(device, dtype if source.is_floating_point() else None, copy=True)
                if not is_finite(value):
                    raise CheckpointError(self._not_finite(bare(name), source, value))
                passed += source.nbytes
                del source
                if passed > window:
                    self.unmap()
                    passed = 0
                yield name, value
        finally:
            self.unmap()

    def unmap(self) -> None:
        """Let go of mapped pages; what is read next maps them again."""
        for reader in self._readers.values():
            reader.unmap()

    def _not_finite(self, name: str, source: Tensor, value: Tensor) -> str:
        if is_finite(source):
            return (
                f"{self.path}: {bare(name)} has numbers too large for {_short(value.dtype)}; use bfloat16 or float32."
            )
        return f"{self.path} has NaN or infinite numbers in {bare(name)}: it is damaged, or its training diverged."


class StateDict(Mapping[str, Tensor]):
    """Tensors of a file under other names: name -> tensor, read when asked for and given the shape in `shapes`."""

    def __init__(self, file: TensorFile, stored: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.file = file
        self.stored = dict(stored)
        self.shapes = {name: tuple(shapes[name]) for name in stored}

    def __getitem__(self, name: str) -> Tensor:
        return self.file.read(self.stored[name]).reshape(self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def specs(self) -> dict[str, TensorSpec]:
        return {name: TensorSpec(self.shapes[name], self.file.specs[old].dtype) for name, old in self.stored.items()}

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point dtype most of the numbers have."""
        return main_dtype(self.specs.values())

    @property
    def parameters(self) -> int:
        return sum(spec.elements for spec in self.specs.values())

    def only(self, names: Iterable[str]) -> StateDict:
        """Those of the tensors."""
        return StateDict(self.file, {name: self.stored[name] for name in names}, self.shapes)

    def stream(
        self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """As `TensorFile.stream`, in the order of the names. dtype: None for `readable(self.dtype)`."""
        dtype = dtype or readable(self.dtype)
        values = self.file.stream(self.stored.values(), device, dtype)
        for name, (_, value) in zip(self.stored, values, strict=True):
            yield name, value.reshape(self.shapes[name])


def check_weights(path: Path, specs: Mapping[str, TensorSpec]) -> None:
    """Raise CheckpointError where what should be weights are whole numbers, truth values or complex ones."""
    for name, spec in specs.items():
        if not spec.dtype.is_floating_point:
            raise CheckpointError(
                f"{path}: {bare(name)} is stored as {_short(spec.dtype)}, and weights are floating-point "
                "numbers; download it again."
            )


def write_tensors(
    path: PathLike,
    specs: Mapping[str, TensorSpec],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str],
    *,
    wrap: bool = False,
) -> None:
    """Write `tensors` (name, tensor; in the order of `specs`) to `path`, atomically; the suffix chooses the format.

    .safetensors is written tensor by tensor; PyTorch's formats need all tensors at once and drop the metadata.
    wrap: put them into VGen's container {"state_dict": ..., "step": 0}.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path} must end in one of {', '.join(SUFFIXES)}, which chooses the format.")
    if wrap and path.suffix == ".safetensors":
        raise CheckpointError(f"{path} must end in .pth: VGen's container is not a safetensors file.")
    with atomic_path(path) as part:
        if path.suffix == ".safetensors":
            _write_safetensors(part, specs, tensors, metadata)
        else:
            state = dict(tensors)
            torch.save({"state_dict": state, "step": 0} if wrap else state, part)


def write_safetensors(path: PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata to a safetensors file, atomically; the same contents give the same bytes."""
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # every tensor begins aligned
    specs = {name: TensorSpec(tuple(tensors[name].shape), tensors[name].dtype) for name in order}
    with atomic_path(path) as part:
        _write_safetensors(part, specs, ((name, tensors[name]) for name in order), dict(sorted(metadata.items())))


def _write_safetensors(
    path: Path, specs: Mapping[str, TensorSpec], tensors: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str]
) -> None:
    # Format: u64 header length, JSON header padded with spaces, then the bytes of each tensor.
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, spec in specs.items():
        begin, end = end, end + spec.nbytes
        header[name] = {"dtype": DTYPE_CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, spec), (given, tensor) in zip(specs.items(), tensors, strict=True):
            if given != name or tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
                raise ValueError(f"{name} was announced as {spec} and is {given}, {tensor.shape}, {tensor.dtype}.")
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


class OpenFile:
    """One file whose tensors have not been read.

    contents: everything in it, containers with `StoredTensor` for tensors (a container may hold itself).
    tensors: name -> StoredTensor, taken out of what trainers wrap around them. wrapped: whether something was.
    unmap: lets go of mapped pages; the next tensor that is read maps them again.
    """

    def __init__(self, contents: Mapping[str, Any], metadata: Mapping[str, str], unmap: Callable[[], None]) -> None:
        self.contents = contents
        self.metadata = metadata
        self.unmap = unmap
        self.tensors = unwrap(contents)
        self.wrapped = not any(name in contents for name in self.tensors)


def unwrap(contents: object) -> dict[str, StoredTensor]:
    """The tensors by name inside the containers trainers put around them; empty where there are none."""
    for _ in range(MAX_WRAPPING):
        if not isinstance(contents, Mapping):
            break
        inner = [contents[key] for key in WRAPPERS if isinstance(contents.get(key), Mapping)]
        tensors = {
            name: value for name, value in contents.items() if isinstance(name, str) and isinstance(value, StoredTensor)
        }
        if not inner and tensors:
            return tensors
        inner = inner or [value for value in contents.values() if isinstance(value, Mapping)]
        contents = inner[0] if inner else None
    return {}


def open_file(path: PathLike) -> OpenFile:
    """Open a safetensors or PyTorch file; its first bytes tell which, whatever its name says.

    Raises CheckpointError when the file is missing, no file, empty, damaged, or would have to run code.
    """
    path = Path(path)
    try:
        check_readable(path)
        with open(path, "rb") as file:
            start = file.read(64)
        # The header's length comes before it and may begin with any byte, a pickle's first one too.
        header, pickled = int.from_bytes(start[:8], "little"), start[:4] == b"PK\x03\x04" or start[:1] == b"\x80"
        if start[8:9] == b"{" and (header <= MAX_HEADER or not pickled):
            return _open_safetensors(path, header)
        if pickled:
            contents, unmap = read_contents(path)
            return OpenFile(contents if isinstance(contents, Mapping) else {}, {}, unmap)
    except CodeRefused as error:
        raise CheckpointError(
            f"{path} carries Python code ({bare(str(error))}) beside or instead of tensors; it was refused and "
            "not run: use a safetensors file or a plain state dict."
        ) from error
    except PickleError as error:
        raise CheckpointError(f"{path} is no usable PyTorch file: {error}; download it again.") from error
    except SafetensorError as error:
        reason = bare(str(error))
        raise CheckpointError(f"{path} is truncated or damaged ({reason}); download it again.") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights it points to; download the file itself.")
    raise CheckpointError(f"{path} is not a checkpoint: neither safetensors nor a PyTorch file.")


def _open_safetensors(path: Path, header: int) -> OpenFile:
    if header > MAX_HEADER:
        raise CheckpointError(f"{path} is damaged: its header would have {header:,} bytes; download it again.")
    mapped = _Safetensors(path)
    file = mapped.file
    tensors = {}
    for name in file.keys():  # noqa: SIM118 - not a mapping
        part = file.get_slice(name)
        dtype = DTYPES.get(part.get_dtype())
        if dtype is None:
            raise CheckpointError(f"{path}: {short(name)} is stored as {part.get_dtype()}, which is not read here.")
        tensors[name] = StoredTensor(tuple(part.get_shape()), dtype, partial(mapped.read, name))
    return OpenFile(tensors, file.metadata() or {}, mapped.unmap)


class _Safetensors:
    """A safetensors file, mapped until `unmap` and again when it is read next."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: Any = safe_open(path, framework="pt", device="cpu")

    def read(self, name: str) -> Tensor:
        if self.file is None:
            self.file = safe_open(self.path, framework="pt", device="cpu")
        return self.file.get_tensor(name)

    def unmap(self) -> None:
        self.file = None


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    return found.st_size, found.st_mtime_ns


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
