"""Files of named tensors, safetensors and PyTorch's, whole or in shards: read tensor by tensor, written as a stream.

A pickle can carry code; only tensors and plain containers are ever unpickled here (`weights_only=True`).
"""

from __future__ import annotations

import json
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .files import atomic_path

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}

# What trainers wrap a state dict in, outermost choice first.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "ema", "ema_state_dict", "unet", "params")
# Mapped pages count as resident until they are unmapped, so a file is mapped anew after this share of its bytes.
WINDOW_SHARE, WINDOW_LEAST = 32, 8 << 20
# Elements summed at once when looking for NaN: bounds the float32 copy PyTorch makes of half-precision numbers.
CHECK_ELEMENTS = 1 << 22
# safetensors' own limit for its JSON header, in bytes.
MAX_HEADER = 100_000_000


class CheckpointError(ValueError):
    """A file that cannot be used as asked; the message is one sentence for the user."""


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def elements(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        return self.elements * self.dtype.itemsize


class TensorFile:
    """The tensors of one file, or of all shards of which one is named.

    specs: name -> TensorSpec. metadata: safetensors' own, str -> str. wrapped: whether a container such as
    {"state_dict": ..., "step": ...} was around the tensors. Tensors stay memory-mapped where the format allows.

    Raises CheckpointError when the file is missing, empty, truncated, holds no tensors, or would have to run code.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.specs: dict[str, TensorSpec] = {}
        self.metadata: dict[str, str] = {}
        self.wrapped = False
        self._paths: dict[str, Path] = {}
        self._readers: dict[Path, _Reader] = {}
        for shard in shards(self.path):
            reader = self._reader(shard)
            self.specs.update(reader.specs)
            self.metadata.update(reader.metadata)
            self.wrapped |= reader.wrapped
            self._paths.update(dict.fromkeys(reader.specs, shard))
        if not self.specs:
            raise CheckpointError(f"{self.path} holds no tensors, so it is not a checkpoint.")

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point dtype most of the numbers have."""
        return main_dtype(self.specs.values())

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU as the file has it, usually a view of mapped pages: do not write to it."""
        return self._reader(self._paths[name]).read(name)

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
                reader = self._reader(self._paths[name])
                source = reader.read(name)
                reader.forget(name)
                value = source.to(device, dtype if source.is_floating_point() else None, copy=reader.mapped)
                if not is_finite(value):
                    raise CheckpointError(self._not_finite(name, source, value))
                passed += source.nbytes
                del source, reader
                if passed > window:
                    self._readers = {path: reader for path, reader in self._readers.items() if not reader.mapped}
                    passed = 0
                yield name, value
        finally:
            self._readers.clear()  # readers may have been told to forget

    def _reader(self, path: Path) -> _Reader:
        if path not in self._readers:
            self._readers[path] = _open(path)
        return self._readers[path]

    def _not_finite(self, name: str, source: Tensor, value: Tensor) -> str:
        if is_finite(source):
            return f"{self.path}: {name} has numbers too large for {_short(value.dtype)}; use bfloat16 or float32."
        return f"{self.path} has NaN or infinite numbers in {name}: it is damaged, or its training diverged."


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

    def stream(
        self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """As `TensorFile.stream`, in the order of the names. dtype: None for `readable(self.dtype)`."""
        dtype = dtype or readable(self.dtype)
        values = self.file.stream(self.stored.values(), device, dtype)
        for name, (_, value) in zip(self.stored, values, strict=True):
            yield name, value.reshape(self.shapes[name])


def main_dtype(specs: Iterable[TensorSpec]) -> torch.dtype:
    """The floating-point dtype most of the numbers have; float32 where there are none."""
    counts: Counter[torch.dtype] = Counter()
    for spec in specs:
        if spec.dtype.is_floating_point:
            counts[spec.dtype] += spec.elements
    return counts.most_common(1)[0][0] if counts else torch.float32


def readable(dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or float16 for the 8-bit formats, which store numbers and do not compute; float16 holds them exactly."""
    return dtype if dtype.itemsize > 1 else torch.float16


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite; tensors that are not floating-point always are."""
    if not tensor.is_floating_point():
        return True
    chunks = tensor.reshape(-1).split(CHECK_ELEMENTS)
    if tensor.dtype.itemsize == 1:
        chunks = [chunk.to(torch.float16) for chunk in chunks]
    # A sum is finite unless a number is not, or (rarely) the sum itself overflows: then look at each.
    return all(
        torch.isfinite(chunk.sum(dtype=torch.promote_types(chunk.dtype, torch.float32))) or torch.isfinite(chunk).all()
        for chunk in chunks
    )


def shards(path: Path) -> list[Path]:
    """All files of the sharded checkpoint of which `path` is one; a file that is whole alone gives itself.

    Knows Hugging Face's NAME-00001-of-00003.SUFFIX and VGen's ema_..._rank0000.pth (every n-th tensor a rank).
    """
    if part := re.fullmatch(r"(.*)-\d{5}-of-(\d{5})", path.stem):
        stem, count = part.groups()
        return [path.with_name(f"{stem}-{i + 1:05}-of-{count}{path.suffix}") for i in range(int(count))]
    if part := re.fullmatch(r"(.*_rank)\d{4}", path.stem):
        ranks = [
            path.parent / other
            for other in sorted(entry.name for entry in path.parent.glob(f"*{path.suffix}"))
            if re.fullmatch(re.escape(part[1]) + r"\d{4}", Path(other).stem)
        ]
        return ranks or [path]
    return [path]


def write_tensors(
    path: str | Path,
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


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
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


class _Reader:
    """One open file. mapped: its tensors are pages of the file, so opening it again costs nothing."""

    specs: dict[str, TensorSpec]
    metadata: dict[str, str]
    wrapped: bool
    mapped: bool

    def read(self, name: str) -> Tensor:
        raise NotImplementedError

    def forget(self, name: str) -> None:
        """The caller has taken `name` and will not ask for it again."""


class _SafetensorsReader(_Reader):
    mapped, wrapped = True, False

    def __init__(self, path: Path) -> None:
        self.file = safe_open(path, framework="pt", device="cpu")
        self.metadata = self.file.metadata() or {}
        self.specs = {}
        for name in self.file.keys():  # noqa: SIM118 - not a mapping
            part = self.file.get_slice(name)
            if part.get_dtype() not in DTYPES:
                raise CheckpointError(f"{path}: {name} is stored as {part.get_dtype()}, which is not read here.")
            self.specs[name] = TensorSpec(tuple(part.get_shape()), DTYPES[part.get_dtype()])

    def read(self, name: str) -> Tensor:
        return self.file.get_tensor(name)


class _TorchReader(_Reader):
    def __init__(self, path: Path, mapped: bool) -> None:
        self.mapped = mapped
        with _stand_ins():
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        self.tensors = unwrap(loaded)
        self.wrapped = isinstance(loaded, Mapping) and not any(name in loaded for name in self.tensors)
        self.metadata = {}
        self.specs = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        return self.tensors[name]

    def forget(self, name: str) -> None:
        if not self.mapped:
            del self.tensors[name]


class _Inert:
    """Stands in for objects that training frameworks leave beside the weights: takes anything, keeps nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# Found in published Stable Diffusion checkpoints; naming them lets the pickle through without importing any of it.
_INERT = [
    (_Inert, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    (_Inert, "numpy.core.multiarray.scalar"),
    (_Inert, "numpy._core.multiarray.scalar"),
    (_Inert, "numpy.dtype"),
    (_Inert, "_codecs.encode"),
]


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Names that the program has allowed step aside: ComfyUI allows some of ours, and chance would say whose counts."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals(_INERT):
            yield
    finally:
        torch.serialization.add_safe_globals(allowed)


def unwrap(loaded: object) -> dict[str, Tensor]:
    """The tensors by name inside the containers trainers put around them; empty where there are none."""
    while isinstance(loaded, Mapping):
        inner = [loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)]
        named = {name: value for name, value in loaded.items() if isinstance(name, str)}
        tensors = {name: value.detach() for name, value in named.items() if isinstance(value, Tensor)}
        if not inner and tensors:
            return tensors
        inner = inner or [value for value in loaded.values() if isinstance(value, Mapping)]
        loaded = inner[0] if inner else None
    return {}


def _open(path: Path) -> _Reader:
    start = _first_bytes(path)
    try:
        if start[:4] == b"PK\x03\x04":
            return _TorchReader(path, mapped=True)
        # The header's length comes before it and may begin with any byte, a pickle's first one too.
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < MAX_HEADER:
            return _SafetensorsReader(path)
        if start[:1] == b"\x80":  # a bare pickle: PyTorch before 1.6, which cannot be mapped
            return _TorchReader(path, mapped=False)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(_unpickling(path, str(error))) from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}); download it again.") from error
    except MemoryError:
        raise
    except Exception as error:  # damaged files fail in many ways
        if "TorchScript" in str(error):
            raise CheckpointError(f"{path} is a TorchScript program, not weights; it was not run.") from error
        raise CheckpointError(f"{path} is truncated or damaged; download it again.") from error
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights it points to; download the file itself.")
    raise CheckpointError(f"{path} is not a checkpoint: neither safetensors nor a PyTorch file.")


def _first_bytes(path: Path) -> bytes:
    if not path.exists():
        raise CheckpointError(f"There is no file {path}.")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint file.")
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if not start:
        raise CheckpointError(f"{path} is empty; download it again.")
    return start


def _unpickling(path: Path, message: str) -> str:
    name = re.search(r"GLOBAL ([\w.]+)", message)
    if name:
        return (
            f"{path} carries Python code ({name[1]}) beside or instead of tensors; it was refused and not run: "
            "use a safetensors file or a plain state dict."
        )
    return f"{path} is damaged, or a pickle of something else than tensors, which was refused and not run."


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
