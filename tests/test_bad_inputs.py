"""Bad inputs of every kind end in one sentence, soon and without much memory.

`CASES` is the table: name -> (how to make the input in a folder, what reads it). Another part of the project adds its
own with `CASES.update`.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import pickle
import resource
import signal
import socket
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
import torch
from encoder_files import read_clip, read_vae
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_base import write_tiny_base

from dreamvideo.commands.cli import main
from dreamvideo.commands.evaluate import _read_prompts
from dreamvideo.files import tensors as tensor_files
from dreamvideo.files.adapter_info import AdapterInfo
from dreamvideo.files.adapters import load_adapter, save_adapter
from dreamvideo.files.tensors import TensorFile
from dreamvideo.files.unet import load_unet
from dreamvideo.media.pictures import _count_scans, read_picture
from dreamvideo.models.adapters import Adapter, AdapterConfig
from dreamvideo.models.config import UNetConfig
from dreamvideo.models.deltas import DeltaConfig, WeightDelta
from dreamvideo.training.state import steps_of_state

UNET = UNetConfig(
    dim=8, dim_mult=(1, 2), res_blocks=1, attention_levels=(True, True), head_dim=4, first_heads=2, context_dim=12,
    norm_groups=4,
)  # fmt: skip
MOST_MEMORY, MOST_SECONDS = 1 << 30, 10  # five on a machine that does nothing else

needs_linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is limited by what Linux tells"
)

Make = Callable[[Path], Path]
Read = Callable[[Path], object]
CASES: dict[str, tuple[Make, Read]] = {}


def case(name: str, read: Read, make: Make) -> None:
    assert name not in CASES, name
    CASES[name] = (make, read)


# ------------------------------------------------------------------------------------------ good inputs


@functools.cache
def good_adapter() -> bytes:
    adapter = Adapter(AdapterConfig.identity(hidden=2), UNET)
    info = AdapterInfo("identity", class_word="dog", placeholder="<my-dog>", captions=("a <my-dog>",), steps=3, seed=0)
    return _bytes(lambda path: save_adapter(path, adapter, info, {"<my-dog>": torch.ones(2, 12)}, torch.ones(2, 6)))


@functools.cache
def good_deltas() -> bytes:
    deltas = WeightDelta(DeltaConfig(("text_kv",), rank=1), UNET)
    return _bytes(lambda path: save_adapter(path, deltas, AdapterInfo("weights")))


@functools.cache
def good_base() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="dreamvideo-bad-inputs-")
    atexit.register(folder.cleanup)
    return write_tiny_base(Path(folder.name))


def _bytes(write: Callable[[Path], object]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "good.safetensors"
        write(path)
        return path.read_bytes()


def split(data: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: dict | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def write(data: bytes, name: str = "x.safetensors") -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def with_metadata(good: Callable[[], bytes], change: Callable[[dict], None]) -> Make:
    def make(folder: Path) -> Path:
        header, body = split(good())
        change(header["__metadata__"])
        return write(joined(header, body))(folder)

    return make


def with_tensors(change: Callable[[dict], object], metadata: bool = True) -> Make:
    """The good adapter's tensors, changed, with or without what it says about itself."""

    def make(folder: Path) -> Path:
        (folder / "good.safetensors").write_bytes(good_adapter())
        tensors = load_file(folder / "good.safetensors")
        change(tensors)
        told = split(good_adapter())[0]["__metadata__"] if metadata else None
        save_file(tensors, folder / "x.safetensors", told)
        return folder / "x.safetensors"

    return make


def saved(contents: object, name: str = "x.pth", **options) -> Make:
    def make(folder: Path) -> Path:
        torch.save(contents() if callable(contents) else contents, folder / name, **options)
        return folder / name

    return make


# ------------------------------------------------------------------------- what an adapter says about itself

NO_NUMBERS = {
    "zero": 0, "negative": -1, "fraction": 1.5, "text": "8", "null": None, "true": True, "huge": 10**30, "list": [8],
    "object": {}, "infinite": float("inf"), "nan": float("nan"),
}  # fmt: skip
DEEP = "[" * 100_000
NO_OBJECTS = {"damaged": "{", "empty": "", "list": "[]", "number": "3", "text": '"x"', "deep": DEEP, "other": '{"a":1}'}


def set_field(name: str, text: str) -> Callable[[dict], None]:
    return lambda metadata: metadata.update({name: text})


def set_inside(config: str, name: str, value: object) -> Callable[[dict], None]:
    return lambda metadata: metadata.update({config: json.dumps({**json.loads(metadata[config]), name: value})})


def leave_out(config: str, name: str) -> Callable[[dict], None]:
    def change(metadata: dict) -> None:
        values = json.loads(metadata[config])
        del values[name]
        metadata[config] = json.dumps(values)

    return change


def adapter_says(name: str, change: Callable[[dict], None], good: Callable[[], bytes] = good_adapter) -> None:
    case(f"adapter says: {name}", load_adapter, with_metadata(good, change))


for number in ("in_channels", "out_channels", "dim", "res_blocks", "head_dim", "first_heads", "context_dim"):
    for kind, value in NO_NUMBERS.items():
        adapter_says(f"unet_config {number} {kind}", set_inside("unet_config", number, value))
for kind, value in NO_NUMBERS.items():
    adapter_says(f"unet_config norm_groups {kind}", set_inside("unet_config", "norm_groups", value))
    if kind not in ("zero", "true"):
        adapter_says(f"unet_config dropout {kind}", set_inside("unet_config", "dropout", value))
    adapter_says(f"unet_config dim_mult {kind}", set_inside("unet_config", "dim_mult", [1, value]))
    adapter_says(f"unet_config attention_levels {kind}", set_inside("unet_config", "attention_levels", value))
    if kind != "null":
        adapter_says(f"adapter_config hidden {kind}", set_inside("adapter_config", "hidden", value))
        adapter_says(f"adapter_config condition_dim {kind}", set_inside("adapter_config", "condition_dim", value))
        adapter_says(f"deltas rank {kind}", set_inside("adapter_config", "rank", value), good_deltas)
    adapter_says(f"adapter_config placement {kind}", set_inside("adapter_config", "placement", value))
    adapter_says(f"adapter_config sublayers {kind}", set_inside("adapter_config", "sublayers", value))
    adapter_says(f"deltas weights {kind}", set_inside("adapter_config", "weights", [value]), good_deltas)
for name in ("dim_mult", "attention_levels"):
    adapter_says(f"unet_config {name} empty", set_inside("unet_config", name, []))
    adapter_says(f"unet_config {name} long", set_inside("unet_config", name, [1] * 100_000))
adapter_says("adapter_config without sublayers", leave_out("adapter_config", "sublayers"))
for config in ("adapter_config", "unet_config"):
    for kind, text in NO_OBJECTS.items():
        adapter_says(f"{config} {kind}", set_field(config, text))
for name, texts in {
    "captions": ("{", "3", '"x"', "{}", "[1]", "[[1]]", '["\\u001b[31m"]', "[null]", DEEP),
    "steps": ("{", "-1", "1.5", '"x"', "[]", "true", "1" * 30, "1" * 5000, "NaN"),
    "seed": ("{", "-1", "1.5", '"x"', "[]", "true", "1" * 30, "1" * 5000),
    "learning_rate": ("{", "-1", '"x"', "[]", "true", "NaN", "Infinity", "1e999"),
    "extra": (
        "{",
        "3",
        '"x"',
        "[1]",
        '{"settings": 3}',
        '{"settings": {"p_image_drop": "x"}}',
        '{"guided_from": 7}',
        '{"acts_from": 1}',
        DEEP,
    ),
    "format_version": ("4", "x", "-1", "{}", "9" * 5000, "²", "1.5"),
    "token_layers": ("{", "0", "-1", "1.5", '"x"', "[]", "true", "3", "1" * 30),
    "kind": ("", "motion", "style", "token", "weights", "\x1b]0;x\x07", "x" * 100_000),
    "class_word": ("\x1b[31mdog", "dog\nModel: x", "\x00", "\u202egod", "d" * 100_000),
    "placeholder": ("\x1b[31mdog", "<a\nb>", "\x00", "\u202egod", "d" * 100_000),
    "base_fingerprint": ("\x1b[31m", "\x00", "f" * 100_000),
    "run": ("\x1b[2J", "a = 1\x00", "\u202egod", "# " * 200_000),
}.items():
    for number, text in enumerate(texts):
        adapter_says(f"{name} {number}", set_field(name, text))

# ---------------------------------------------------------------------------------- what an adapter holds

DOWN = "middle_block.1.transformer_blocks.0.cross_attn_adapter.down_linear.weight"
TOKEN, FEATURES = "token.<my-dog>", "features"
WRONG_TENSORS = {
    "integers": torch.ones(2, 12, dtype=torch.int64),
    "booleans": torch.ones(2, 12, dtype=torch.bool),
    "NaN": torch.full((2, 12), float("nan")),
    "infinity": torch.full((2, 12), float("inf")),
    "NaN in eight bits": torch.full((2, 12), float("nan")).to(torch.float8_e4m3fn),
    "a row": torch.ones(12),
    "a cube": torch.ones(2, 12, 1),
    "a number": torch.tensor(1.0),
    "nothing": torch.ones(0, 12),
    "an absurd nothing": torch.ones(0, 10**12),
}
for kind, value in WRONG_TENSORS.items():
    for key in (DOWN, TOKEN, FEATURES):
        change = lambda t, k=key, v=value: t.update({k: v})  # noqa: E731 - the loop's own values
        case(f"adapter holds: {key[:8]} of {kind}", load_adapter, with_tensors(change))
    case(
        f"authors' adapter: weight of {kind}",
        lambda path: load_adapter(path, UNET),
        lambda folder, v=value: saved({"state_dict": {DOWN: v}, "step": 1})(folder),
    )
    if kind != "a row":  # which is one vector
        case(f"embedding of {kind}", load_adapter, saved({"string_to_param": {"*": value}, "name": "x"}, "x.pt"))
for name, change in {
    "no tensors": lambda t: t.clear(),
    "one less": lambda t: t.pop(DOWN),
    "one more": lambda t: t.update({DOWN.replace("middle_block", "input_blocks.77"): torch.ones(2, 2)}),
    "a token without a name": lambda t: t.update({"token.": torch.ones(1, 12)}),
    "a token with a blank name": lambda t: t.update({"token. \t": torch.ones(1, 12)}),
    "a token named by an escape": lambda t: t.update({"token.\x1b[2J": torch.ones(1, 12)}),
    "a token of another width": lambda t: t.update({TOKEN: torch.ones(1, 13)}),
    "tokens of two widths": lambda t: t.update({"token.<b>": torch.ones(1, 13)}),
}.items():
    case(f"adapter holds: {name}", load_adapter, with_tensors(change))


def file_of_zeros(shapes: dict[str, list[int]], metadata: dict[str, str] | None = None) -> Make:
    """A sparse file: as large as its tensors, and nothing on the disk."""

    def make(folder: Path) -> Path:
        header, end = {}, 0
        for name, shape in shapes.items():
            size = 4 * functools.reduce(int.__mul__, shape, 1)
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
            end += size
        path = folder / "x.safetensors"
        path.write_bytes(joined({**header, **({"__metadata__": metadata} if metadata else {})}))
        os.truncate(path, path.stat().st_size + end)
        return path

    return make


GIGABYTES = [1 << 15, 1 << 15]
case("adapter: a UNet of 8 GB", load_adapter, file_of_zeros(
    {"input_blocks.1.0.temopral_conv.conv1.0.weight": GIGABYTES, "out.0.weight": GIGABYTES}))  # fmt: skip
case("adapter: 4 GB of no kind", load_adapter, file_of_zeros({"a.weight": GIGABYTES}))
case("adapter: 4 GB of a LoRA", load_adapter, file_of_zeros({"x.lora_up.weight": GIGABYTES}))
case("adapter: 4 GB under one of its names", load_adapter, file_of_zeros({DOWN: GIGABYTES}))
case("adapter: for SDXL", load_adapter, file_of_zeros({"clip_l": [2, 768], "clip_g": [2, 1280]}))

# ------------------------------------------------------------------------------------------- embeddings

for name, contents in {
    "no token": {"string_to_param": {}},
    "no mapping": {"string_to_param": 3},
    "itself": {"string_to_param": None},
    "a hundred vectors": {"string_to_param": {"*": torch.ones(100, 12)}},
    "text": {"string_to_param": {"*": "x"}},
    "two widths": {"string_to_param": {"a": torch.ones(1, 4), "b": torch.ones(1, 5)}},
    "an empty name": {"string_to_param": {"": torch.ones(1, 4)}},
    "a name that is a number and a blank": {"string_to_param": {" ": torch.ones(1, 4)}},
}.items():
    case(f"embedding: {name}", load_adapter, saved(contents, "x.pt"))
case("ComfyUI's embedding: a cube", load_adapter, file_of_zeros({"emb_params": [2, 3, 4]}))
case("ComfyUI's embedding: nothing", load_adapter, file_of_zeros({"emb_params": [0, 1024]}))
case("ComfyUI's embedding: 4 GB", load_adapter, file_of_zeros({"emb_params": GIGABYTES}))
case("diffusers' embedding: 4 GB", load_adapter, file_of_zeros({"<cat>": GIGABYTES}))
case("diffusers' embedding: integers", load_adapter, saved({"<cat>": torch.ones(12).long()}, "learned_embeds.bin"))
case("diffusers' embedding: nothing", load_adapter, saved({"<cat>": torch.ones(0)}, "learned_embeds.bin"))

# ------------------------------------------------------------------------------------- PyTorch's files


class Code:
    def __reduce__(self):
        return os.mkdir, ("code-ran",)


def archive(text: bytes, numbers: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> Make:
    """A PyTorch file of a pickle written by hand."""

    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "x.pth", "w", method) as file:
            file.writestr("a/data.pkl", text)
            for key, data in (numbers or {}).items():
                file.writestr(f"a/data/{key}", data)
        return folder / "x.pth"

    return make


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, key: str = "0", numel: int = 1) -> bytes:
    """Instructions that leave a tensor of float32 on the stack."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(number(value) for value in values) + b"t"

    def number(value: int) -> bytes:
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(numel) + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    view = storage + number(offset) + numbers(shape) + numbers(stride) + b"\x89" + hooks
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"tR"


def named_tensor(*arguments, name: str = DOWN, **options) -> bytes:
    key = b"X" + struct.pack("<I", len(name)) + name.encode()
    return b"\x80\x02}" + key + tensor(*arguments, **options) + b"s."


ONE = {"0": bytes(4)}
HAND_MADE = {
    "a tensor of 4 GB of one number": archive(named_tensor((1000, 1000, 1000), (0, 0, 0)), ONE),
    "a tensor beyond its numbers": archive(named_tensor((2, 2), (2, 1)), ONE),
    "a tensor from before its numbers": archive(named_tensor((1,), (1,), offset=-1), ONE),
    "a tensor from behind its numbers": archive(named_tensor((1,), (1,), offset=10**15), ONE),
    "a negative stride": archive(named_tensor((2,), (-1,), offset=1), ONE),
    "a negative shape": archive(named_tensor((-2,), (1,)), ONE),
    "a shape of two thousand bits": archive(named_tensor((1 << 2000,), (1,)), ONE),
    "a shape and another stride": archive(named_tensor((1, 1), (1,)), ONE),
    "ten thousand dimensions": archive(named_tensor((1,) * 10_000, (1,) * 10_000), ONE),
    "an absurd nothing": archive(named_tensor((0, 2**62), (1, 1)), ONE),
    "numbers that are not there": archive(named_tensor((1,), (1,), key="7"), ONE),
    "compressed numbers": archive(named_tensor((4,), (1,)), {"0": bytes(1 << 20)}, zipfile.ZIP_DEFLATED),
    "itself": archive(b"\x80\x02}q\x00X\x0a\x00\x00\x00state_dicth\x00s."),
    "itself in itself": archive(b"\x80\x02}q\x00X\x05\x00\x00\x00modelX\x05\x00\x00\x00model}q\x01h\x00ss."),
    "a list of itself": archive(b"\x80\x02]q\x00h\x00a."),
    "a pickle of 2 GB": lambda folder: bomb(folder),
    "two million instructions": archive(b"\x80\x02" + b"N" * 2_000_000 + b"."),
    "a memo at the end of memory": archive(b"\x80\x02}r\xff\xff\xff\xff."),
    "a text longer than the file": archive(b"\x80\x02X\xff\xff\xff\xffa."),
    "bytes longer than any memory": archive(b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fa."),
    "a number of a million digits": archive(b"\x80\x02}X\x01\x00\x00\x00a\x8b" + struct.pack("<i", 400_000)
                                            + b"\x7f" * 400_000 + b"s."),
    "a key that takes for ever to hash": archive(b"\x80\x02})q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"h\x00Ns."),
    "an empty stack": archive(b"\x80\x02RRR."),
    "a mark that is missing": archive(b"\x80\x02tt."),
    "no end": archive(b"\x80\x02}"),
    "no pickle": archive(b""),
    "garbage": archive(bytes(range(256))),
    "protocol 0": archive(b"(dp0\n."),
    "a call of what is no class": archive(b"\x80\x02}}R."),
    "an object built on a name": archive(b"\x80\x02ccollections\nOrderedDict\n}b."),
    "code": saved(lambda: {"a": torch.zeros(2), "b": Code()}),
    "code in protocol 4": write(pickle.dumps({"a": Code()}, protocol=4), "x.pth"),
    "code in a bare pickle": write(pickle.dumps({"a": Code()}, protocol=2), "x.pth"),
    "code of protocol 0": archive(b"ios\nsystem\n(S'true'\nR."),
    "a module": saved(lambda: {"model": torch.nn.Linear(2, 2)}),
    "a sparse tensor": saved(lambda: {"state_dict": {DOWN: torch.eye(3).to_sparse()}}),
    "a tensor without numbers": saved(lambda: {"state_dict": {DOWN: torch.empty(3, device="meta")}}),
    "a quantised tensor": saved(lambda: {DOWN: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}),
    "complex numbers": saved(lambda: {"state_dict": {DOWN: torch.ones(3, 3, dtype=torch.complex64)}}),
    "a list": saved([1, 2, 3]),
    "a number": saved(3),
    "nothing": saved(None),
    "no tensors": saved({"epoch": 3}),
    "keys that are numbers": saved({1: torch.ones(2), None: torch.ones(2)}),
    "a text of the old format": write(b"\x80\x02garbage", "x.pth"),
    "the old format without its numbers": write(
        b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, ["0"])),
        "x.pth",
    ),
    "the old format of a large machine": write(
        b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": False}, {}, [])),
        "x.pth",
    ),
    "an archive of nothing": write(b"PK\x05\x06" + bytes(18), "x.pth"),
    "an archive of pictures": lambda folder: zipped(folder, {"a.jpg": b"x", "b.jpg": b"y"}),
    "a TorchScript program": lambda folder: zipped(folder, {"a/data.pkl": b"}.", "a/constants.pkl": b"}."}),
    "another byte order": lambda folder: zipped(folder, {"a/data.pkl": b"\x80\x02}.", "a/byteorder": b"big"}),
    "the start of an archive": write(b"PK\x03\x04" + bytes(60), "x.pth"),
    "a directory of 9 MB": lambda folder: zipped(folder, {f"{i}{chr(97) * 60_000}": b"" for i in range(150)}),
}  # fmt: skip
for name, make in HAND_MADE.items():
    case(f"PyTorch's file: {name}", load_adapter, make)


def bomb(folder: Path) -> Path:
    """A pickle of 2 GB of the instruction None, in 2 MB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(b"N" * (1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    repeated = zlib.compressobj(9, zlib.DEFLATED, -15)
    middle = repeated.compress(b"N" * (1 << 20)) + repeated.flush(zlib.Z_FULL_FLUSH)
    data, size = block + middle * 2047 + b"\x03\x00", 2048 << 20
    name = b"a/data.pkl"
    local = struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, 8, 0, 0, 0, len(data), size, len(name), 0)
    central = struct.pack(
        "<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, 8, 0, 0, 0, len(data), size, len(name), 0, 0, 0, 0, 0, 0
    )
    start = len(local) + len(name) + len(data)
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(central) + len(name), start, 0)
    return write(local + name + data + central + name + end, "x.pth")(folder)


def zipped(folder: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(folder / "x.pth", "w") as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return folder / "x.pth"


# ------------------------------------------------------------------------------------ what is no file


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "x.safetensors")
    return folder / "x.safetensors"


def listening(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(folder)  # a socket's path may have a hundred characters
        try:
            server.bind("x.pth")
        finally:
            os.chdir(here)
    return folder / "x.pth"


def loop(folder: Path) -> Path:
    (folder / "x.pth").symlink_to(folder / "x.pth")
    return folder / "x.pth"


READERS = {
    "adapter": load_adapter,
    "UNet": load_unet,
    "CLIP": read_clip,
    "VAE": read_vae,
    "state": steps_of_state,
    "picture": read_picture,
    "prompts": _read_prompts,
}
NO_FILES = {
    "a pipe": pipe,
    "a socket": listening,
    "a device": lambda folder: Path("/dev/zero"),
    "the null device": lambda folder: Path("/dev/null"),
    "a folder": lambda folder: folder,
    "missing": lambda folder: folder / "no.pth",
    "in what is no folder": lambda folder: write(b"x", "a")(folder) / "x.pth",
    "a link to itself": loop,
    "a name of 300 characters": lambda folder: folder / ("x" * 300),
    "a NUL in its name": lambda folder: folder / "a\0b",
    "empty": write(b""),
    "a text": write(b"hello, this is no checkpoint"),
    "a page": write(b"<!DOCTYPE html><html></html>"),
    "a pointer": write(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
    "zeros": write(bytes(4096)),
    "a header of 100 MB": write(joined(b"{" + b" " * 100, length=100_000_000)),
    "a header of 2^63 bytes": write(joined(b"{}", length=2**63)),
    "a header that is no JSON": write(joined(b"{colour: red}")),
    "a deep header": write(joined(b'{"a":' * 100_000)),
    "metadata that are numbers": write(joined({"__metadata__": {"a": 3}})),
    "a header of nothing": write(joined({})),
    "an unknown dtype": write(joined({"a": {"dtype": "F7", "shape": [1], "data_offsets": [0, 1]}}, b"x")),
    "a negative shape": write(joined({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4))),
    "numbers behind the end": write(joined({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}, b"x")),
    "a name of escapes": write(joined({"\x1b[2J\n": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))),
}
for kind, read in READERS.items():
    for name, make in NO_FILES.items():
        case(f"{kind}: {name}", read, make)

# ----------------------------------------------------------------------------------------- bases

CLIP_WRONG = {
    "embed_dim": 10**9, "embed_dim text": "x", "vision_cfg": 3, "text_cfg": [], "custom_text": True,
    "vision_cfg.layers": 10**6, "vision_cfg.width": 0, "vision_cfg.head_width": 7, "vision_cfg.patch_size": -1,
    "vision_cfg.timm_model_name": "vit_base_patch16_224", "vision_cfg.timm_model_pretrained": True,
    "text_cfg.layers": 10**9, "text_cfg.heads": 0, "text_cfg.vocab_size": 10**12, "text_cfg.width": None,
    "text_cfg.hf_model_name": "bert-base-uncased", "text_cfg.mlp_ratio": float("inf"), "text_cfg.context_length": 1e30,
}  # fmt: skip
VAE_WRONG = {
    "block_out_channels": [32] * 10**6, "block_out_channels none": 3, "layers_per_block": 10**6,
    "norm_num_groups": 0, "norm_num_groups odd": 7, "latent_channels": 10**12, "in_channels": "x",
    "down_block_types": ["Evil"] * 4, "up_block_types": 3, "scaling_factor": 0, "act_fn": "os.system",
    "force_upcast": {}, "sample_size": 10**30, "in_channels null": None, "out_channels": 0,
}  # fmt: skip
UNET_WRONG = {"res_blocks": 10**6, "dim": 0, "norm_groups": 0, "dim_mult": [1] * 10**5, "head_dim": "x", "a\nb": 1}


def part_says(part: str, key: str, change: Callable[[dict], object] | str) -> Make:
    """A part of the tiny base whose metadata says something else."""

    def make(folder: Path) -> Path:
        header, body = split((good_base() / f"{part}.safetensors").read_bytes())
        metadata = header["__metadata__"]
        if isinstance(change, str):
            metadata[key] = change
        else:
            config = json.loads(metadata[key])
            change(config)
            metadata[key] = json.dumps(config)
        return write(joined(header, body))(folder)

    return make


def put(name: str, value: object) -> Callable[[dict], object]:
    first, _, second = name.split(" ")[0].partition(".")
    return lambda config: config[first].update({second: value}) if second else config.update({first: value})


for part, key, read, wrong in (
    ("unet", "unet_config", load_unet, UNET_WRONG),
    ("clip", "open_clip_config", read_clip, CLIP_WRONG),
    ("vae", "vae_config", read_vae, VAE_WRONG),
):
    for name, value in wrong.items():
        case(f"{part} says: {name}", read, part_says(part, key, put(name, value)))
    for name, text in NO_OBJECTS.items():
        case(f"{part} says: {name}", read, part_says(part, key, text))
# Before the limits: read as weights without a word, or ended in PyTorch's own words.
NO_WEIGHTS = {
    "truth values": lambda weight: weight > 0,
    "whole numbers": lambda weight: weight.long(),
    "bytes": lambda weight: weight.to(torch.uint8),
    "a number": lambda weight: weight.sum(),
    "a row": lambda weight: weight.flatten(),
    "nothing": lambda weight: weight[:0],
}
FIRST = {"unet": "input_blocks.0.0.weight", "clip": "token_embedding.weight", "vae": "encoder.conv_in.weight"}


def part_holds(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Make:
    """A part of the tiny base with one weight changed."""

    def make(folder: Path) -> Path:
        good = good_base() / f"{part}.safetensors"
        tensors = load_file(good)
        tensors[FIRST[part]] = change(tensors[FIRST[part]]).clone()
        save_file(tensors, folder / "x.safetensors", split(good.read_bytes())[0]["__metadata__"])
        return folder / "x.safetensors"

    return make


def part_of_complex_numbers(part: str) -> Make:
    """What safetensors knows no dtype for, in a PyTorch file."""

    def make(folder: Path) -> Path:
        tensors = load_file(good_base() / f"{part}.safetensors")
        return saved({**tensors, FIRST[part]: tensors[FIRST[part]].to(torch.complex64)})(folder)

    return make


for part, read in (("unet", load_unet), ("clip", read_clip), ("vae", read_vae)):
    for kind, change in NO_WEIGHTS.items():
        case(f"{part} holds: {kind}", read, part_holds(part, change))
    case(f"{part} holds: complex numbers", read, part_of_complex_numbers(part))
for layers in ("encoder.down.0.block.99999999.conv1.weight", "encoder.down.99999999.block.0.conv1.weight"):
    shapes = {"encoder.down.0.block.0.conv1.weight": [32, 3, 3, 3], "decoder.conv_in.weight": [32, 4, 3, 3]}
    case(f"vae has {layers}", read_vae, file_of_zeros({**shapes, layers: [1]}))
case("unet of absurd nothing", load_unet, file_of_zeros(
    {"input_blocks.1.0.temopral_conv.conv1.0.weight": [0, 10**15], "input_blocks.0.0.weight": [10**15, 4, 0]}
))  # fmt: skip
case("clip of absurd nothing", read_clip, file_of_zeros({
    "token_embedding.weight": [10**15, 0], "visual.conv1.weight": [0, 3, 10**9, 0], "text_projection": [0, 10**15],
    "visual.positional_embedding": [0, 0], "positional_embedding": [0], }))  # fmt: skip
case("clip of other ranks", read_clip, file_of_zeros({"token_embedding.weight": [3], "visual.conv1.weight": [3]}))

# ---------------------------------------------------------------------------------------- states

for number, told in enumerate(
    ("", "{", "[]", "3", DEEP, "{}", *(json.dumps({"format": "dreamvideo-training", **more}) for more in (
        {}, {"step": "x", "run": {}}, {"step": -1, "run": {}}, {"step": True, "run": {}}, {"step": 10**40, "run": {}},
        {"step": 3}, {"step": 3, "run": []}, {"step": [3], "run": {}},
    )))
):  # fmt: skip
    case(f"state says {number}", steps_of_state, file_of_zeros({"losses": [3]}, {"dreamvideo-training": told}))
case("state: an adapter", steps_of_state, lambda folder: write(good_adapter())(folder))

# -------------------------------------------------------------------------------------- pictures


def png(width: int, height: int, kind: int = 2, bits: int = 8) -> bytes:
    """The start of a PNG: what a reader judges it by."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg_of_scans(side: int, scans: int) -> bytes:
    """A grey progressive JPEG whose last scan comes again and again, in 100 bytes each."""
    with BytesIO() as file:
        Image.new("L", (side, side), 128).save(file, "JPEG", progressive=True, quality=30)
        data = file.getvalue()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * scans + b"\xff\xd9"


def jpeg_2000(side: int) -> bytes:
    """The start of a JPEG 2000 of three colours."""
    tile = struct.pack(">HIIIIIIII", 0, side, side, 0, 0, side, side, 0, 0)
    header = tile + struct.pack(">H", 3) + b"\x07\x01\x01" * 3
    return b"\xff\x4f\xff\x51" + struct.pack(">H", len(header) + 2) + header + b"\xff\x90"


case("picture of 500 scans", read_picture, lambda folder: write(jpeg_of_scans(3000, 500), "x.jpg")(folder))
for name, data in {
    "with JPEG 2000's numbers, of 7,000 pixels a side": jpeg_2000(7000),
    "of 22,000 pixels a side": png(22_000, 22_000),
    "of 12,000 pixels a side": png(12_000, 12_000),
    "of a row of 2^31 pixels": png(2**31 - 1, 1),
    "with 16 bits, of 10,000 pixels a side": png(10_000, 10_000, 0, 16),
    "without pixels": png(0, 0),
    "cut off": png(64, 64)[:40],
}.items():
    case(f"picture {name}", read_picture, write(data, "x.png"))


# --------------------------------------------------------------------------------------- the tests


@contextmanager
def little_time_and_memory(path: Path) -> Iterator[None]:
    """Ends what takes too long, and lets fail what asks for too much. Mapping `path` itself is no memory taken."""

    def late(*_: object) -> None:
        pytest.fail(f"It took more than {MOST_SECONDS} seconds.")  # which no `except Exception` takes for damage

    mapped = 2 * os.path.getsize(path) if os.path.isfile(path) else 0
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    start = memory("VmRSS")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    alarm = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_DATA, (memory("VmData") + mapped + MOST_MEMORY, before[1]))
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_DATA, before)
        signal.signal(signal.SIGALRM, alarm)
    assert memory("VmHWM") - start < MOST_MEMORY


def memory(kind: str) -> int:
    """Bytes, by their name in what Linux tells of this process."""
    row = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(f"{kind}:"))
    return int(row.split()[1]) << 10


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Libraries that a first reading brings in are not its own time and memory."""
    for part, read in (("unet", load_unet), ("clip", read_clip), ("vae", read_vae)):
        read(good_base() / f"{part}.safetensors")


def refusal(read: Read, path: Path) -> str:
    try:
        read(path)
    except ValueError as error:
        return str(error)
    pytest.fail("it was read")


def assert_one_sentence(text: str) -> None:
    assert text.endswith((".", "--help.")) and "Unexpected" not in text and "Traceback" not in text, text
    assert text.isprintable() and len(text) < 2000, text


def test_there_are_enough_of_them():
    assert len(CASES) >= 250


@needs_linux
@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_ends_in_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, read = CASES[name]
    path = make(tmp_path)
    with little_time_and_memory(path):
        told = refusal(read, path)
    assert_one_sentence(told.replace("\0", ""))
    assert not (tmp_path / "code-ran").exists()


# `inspect` reads no weights, no pictures and no states, and of encoders their names alone; every third of the rest says
# that it comes to the same.
NOT_INSPECTED = ("picture", "state", "prompts", "clip holds", "vae holds", "adapter: a folder")
INSPECTED = [name for name in CASES if not name.startswith(NOT_INSPECTED)]


@needs_linux
@pytest.mark.parametrize("name", INSPECTED[::3])
def test_inspect_tells_it_in_one_sentence(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = CASES[name][0](tmp_path)
    with little_time_and_memory(path):
        code = main(["inspect", str(path)])
    told = capsys.readouterr()
    assert code == 2 and not told.out and told.err.count("\n") == 1
    assert_one_sentence(told.err.rstrip("\n").replace("\0", ""))


NUMBERS = {
    "--batch": ("0", "-1", "x", "1.5", "100000000", "9" * 5000, "²", ""),
    "--frames": ("0", "100000000", "9" * 5000),
    "--height": ("0", "100000000", "8193", "nan"),
    "--width": ("0", "100000000", "9" * 400),
    "--steps": ("0", "1" + "0" * 12, "inf"),
    "--seed": ("-1", "9" * 5000, str(2**64), "x"),
    "--fps": ("0", "1e300", "nan", "inf", "-1"),
    "--lr": ("0", "nan", "1e300", "x"),
    "--preview-every": ("0", "9" * 30),
    "--memory": ("nan", "1e300", "0"),
}


@needs_linux
@pytest.mark.parametrize(("option", "text"), [(option, text) for option, texts in NUMBERS.items() for text in texts])
def test_absurd_numbers_are_refused_where_they_are_read(option, text, tmp_path, capsys):
    with little_time_and_memory(tmp_path):
        code = main(["train", "motion", str(tmp_path), f"{option}={text}"])
    told = capsys.readouterr().err
    assert code == 2 and option in told and told.count("\n") == 1 and len(told) < 250
    assert_one_sentence(told.rstrip("\n"))


def test_good_neighbours_load(tmp_path):
    """What the cases were made of is good, so each is refused for what it changes."""
    for number, good in enumerate((good_adapter, good_deltas)):
        load_adapter(write(good(), f"{number}.safetensors")(tmp_path))
    (tmp_path / "fp8").mkdir()
    loaded = load_adapter(with_tensors(lambda t: t.update({DOWN: t[DOWN].to(torch.float8_e4m3fn)}))(tmp_path / "fp8"))
    assert loaded.adapter.state_dict()[DOWN].dtype == torch.float16
    hand_made = archive(named_tensor((1, 2), (2, 1), numel=2, name="a"), {"0": struct.pack("<2f", 3, 4)})(tmp_path)
    assert TensorFile(hand_made).read("a").tolist() == [[3, 4]]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_whatever_torch_writes_of_tensors_is_read_as_torch_reads_it(tmp_path, legacy, protocol):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "whole": base,
        "part": base[1:3, 2:5],
        "turned": base.t(),
        "half": base.half(),
        "bfloat": base.bfloat16(),
        "number": torch.tensor(3.5),
        "nothing": torch.ones(0, 3),
        "parameter": torch.nn.Parameter(base + 1),
        "integers": torch.arange(5),
        "truth": torch.tensor([True, False]),
    }
    contents = {"state_dict": tensors, "step": 3, "lr": 1e-5, "note": "ä", "betas": (0.9, 0.99), "big": 2**70}
    path = tmp_path / "x.pth"
    torch.save(contents, path, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    found = tensor_files.open_file(path)
    assert {key: found.contents[key] for key in ("step", "lr", "note", "betas", "big")} == {
        key: value for key, value in contents.items() if key != "state_dict"
    }
    assert list(found.tensors) == list(tensors)
    for name, value in tensors.items():
        read = found.tensors[name].read()
        assert read.dtype == value.dtype and torch.equal(read, value), name


EMBEDDINGS = {
    "learned_embeds.bin": ("<cat-toy>", lambda path, v: torch.save({"<cat-toy>": v[0]}, path)),
    "learned_embeds.safetensors": ("<cat-toy>", lambda path, v: save_file({"<cat-toy>": v[0].clone()}, path)),
    "two vectors.bin": ("<cat-toy>", lambda path, v: torch.save({"<cat-toy>": v}, path)),
    "my-cat.safetensors": ("<my-cat>", lambda path, v: save_file({"emb_params": v}, path)),
    "my cat.safetensors": ("<my-cat>", lambda path, v: save_file({"emb_params": v}, path)),
    "some.pt": ("<my-cat>", lambda path, v: torch.save(
        {"string_to_token": {"*": 265}, "string_to_param": {"*": v}, "name": "my-cat", "step": 3000}, path)),
    "authors.pt": ("*", lambda path, v: torch.save({"string_to_param": torch.nn.ParameterDict({"*": v})}, path)),
}  # fmt: skip


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embeddings_of_other_programs_load(tmp_path, capsys, name):
    vectors = torch.randn(2, 1024, generator=torch.Generator().manual_seed(0))
    placeholder, save = EMBEDDINGS[name]
    save(tmp_path / name, vectors)
    loaded = load_adapter(tmp_path / name)
    assert loaded.adapter is None and loaded.info.kind == "token" and loaded.info.placeholder == placeholder
    found = loaded.tokens[placeholder]
    assert torch.equal(found, vectors[: len(found)]) and found.ndim == 2
    assert main(["inspect", str(tmp_path / name)]) == 0 and placeholder in capsys.readouterr().out


@pytest.mark.parametrize("pattern", ["d-{}-of-00002.fp16.safetensors", "d.fp16-{}-of-00002.safetensors"])
def test_shards_of_a_variant_are_merged(tmp_path, pattern):
    for number in (1, 2):
        save_file({f"tensor.{number}": torch.full((2,), float(number))}, tmp_path / pattern.format(f"{number:05}"))
    file = TensorFile(tmp_path / pattern.format("00001"))
    assert set(file.specs) == {"tensor.1", "tensor.2"} and file.read("tensor.2").tolist() == [2, 2]


def test_a_photograph_without_permission_says_so(tmp_path, monkeypatch):
    path = write(png(4, 4), "x.png")(tmp_path)

    def refused(*_: object, **__: object):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(ValueError, match="cannot be read: permission denied"):
        read_picture(path)


def test_a_progressive_photograph_is_read(tmp_path):
    Image.new("RGB", (3000, 2000), "red").save(tmp_path / "x.jpg", progressive=True)
    assert read_picture(tmp_path / "x.jpg").size == (2048, 1365)
    assert _count_scans((tmp_path / "x.jpg").read_bytes()) == 10


def test_scans_are_counted_behind_segments_that_look_like_an_end(tmp_path):
    data = jpeg_of_scans(16, 3)
    scan = data.rindex(b"\xff\xda")
    comment = b"\xff\xfe" + struct.pack(">H", 6) + b"\xff\xd9\xff\xda"
    assert _count_scans(data[:scan] + comment + data[scan:]) == _count_scans(data)
    assert _count_scans(data + data) == _count_scans(data)  # as in a file of two pictures


def test_a_quantised_tensor_is_called_no_code(tmp_path):
    with pytest.raises(ValueError) as error:
        load_adapter(HAND_MADE["a quantised tensor"](tmp_path))
    assert "code" not in str(error.value)
