"""A file changed at random loads as finite weights that fit, or ends in one sentence: the same examples everywhere."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreamvideo.files.adapter_info import AdapterInfo
from dreamvideo.files.adapters import load_adapter, save_adapter
from dreamvideo.files.foreign_adapters import save_authors_adapter, save_authors_embedding
from dreamvideo.models.adapters import Adapter, AdapterConfig
from dreamvideo.models.config import UNetConfig

UNET = UNetConfig(
    dim=8, dim_mult=(1, 2), res_blocks=1, attention_levels=(True, True), head_dim=4, first_heads=2, context_dim=12,
    norm_groups=4,
)  # fmt: skip
KINDS = ("ours.safetensors", "authors.pth", "embedding.pt")
same_everywhere = settings(
    derandomize=True, deadline=None, max_examples=100, database=None, suppress_health_check=list(HealthCheck)
)


@functools.cache
def good(kind: str) -> bytes:
    adapter = Adapter(AdapterConfig.identity(hidden=2), UNET)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / kind
        if kind == KINDS[0]:
            info = AdapterInfo("identity", class_word="dog", placeholder="<a>", captions=("a <a>",), steps=3, seed=0)
            save_adapter(path, adapter, info, {"<a>": torch.ones(2, 12)}, torch.ones(2, 6))
        elif kind == KINDS[1]:
            save_authors_adapter(path, adapter, 3)
        else:
            save_authors_embedding(path, torch.ones(2, 12))
        return path.read_bytes()


def check(kind: str, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / kind
        path.write_bytes(data)
        try:
            loaded = load_adapter(path, UNET)
        except ValueError as error:
            text = str(error)
            assert text.endswith(".") and text.isprintable() and "Unexpected" not in text
            return
    weights = {} if loaded.adapter is None else loaded.adapter.state_dict()
    if weights:
        fresh = Adapter(loaded.adapter.config, loaded.info.unet_config, device="meta").state_dict()
        assert {key: value.shape for key, value in fresh.items()} == {k: value.shape for k, value in weights.items()}
    found = [*weights.values(), *loaded.tokens.values(), *([] if loaded.features is None else [loaded.features])]
    assert found and all(value.is_floating_point() and value.isfinite().all() for value in found)


def of_header(data: bytes) -> int:
    """Where what comes before the numbers ends: there most mutations do more than change a number."""
    return 8 + int.from_bytes(data[:8], "little") if data[8:9] == b"{" else len(data)


places = st.integers(0, 1 << 30)


@same_everywhere
@given(st.sampled_from(KINDS), st.lists(st.tuples(places, st.integers(1, 255)), min_size=1, max_size=8))
def test_flipped_bytes(kind, flips):
    data = bytearray(good(kind))
    for place, change in flips:
        data[place % of_header(good(kind))] ^= change
    check(kind, bytes(data))


@same_everywhere
@given(st.sampled_from(KINDS), places, st.binary(max_size=16))
def test_truncated_and_lengthened(kind, place, tail):
    data = good(kind)
    check(kind, data[: place % len(data)] + tail)


@same_everywhere
@given(st.sampled_from(KINDS), st.sampled_from(KINDS), places, places, places)
def test_spliced(kind, other, start, length, target):
    data, source = good(kind), good(other)
    start, target = start % len(source), target % of_header(data)
    piece = source[start : start + length % 200]
    check(kind, data[:target] + piece + data[target + len(piece) :])


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@same_everywhere
@given(places, anything, st.booleans())
def test_metadata_of_any_type(place, value, inside):
    data = good(KINDS[0])
    end = of_header(data)
    header = json.loads(data[8:end])
    metadata = header["__metadata__"]
    key = sorted(metadata)[place % len(metadata)]
    if inside and key.endswith("_config"):
        config = json.loads(metadata[key])
        config[sorted(config)[place % len(config)]] = value
        metadata[key] = json.dumps(config)
    else:
        metadata[key] = value if isinstance(value, str) else json.dumps(value)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    check(KINDS[0], len(text).to_bytes(8, "little") + text + data[end:])


@same_everywhere
@given(places, st.sampled_from(["dtype", "shape", "data_offsets"]), anything)
def test_tensors_described_by_anything(place, field, value):
    data = good(KINDS[0])
    end = of_header(data)
    header = json.loads(data[8:end])
    names = sorted(set(header) - {"__metadata__"})
    header[names[place % len(names)]][field] = value
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    check(KINDS[0], len(text).to_bytes(8, "little") + text + data[end:])
