"""What devices lack or insist on: numbered cards, areas that do not divide, eight-bit weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from fakes import CONFIG, tiny_unet

from dreamvideo import base
from dreamvideo import devices as memory
from dreamvideo.encoders.clip import clip_pixels
from dreamvideo.models.adapters import AdapterConfig, build_adapter
from dreamvideo.models.deltas import DeltaConfig, merge
from dreamvideo.models.resizing import area_average
from dreamvideo.models.stack import AdapterStack, StackEntry
from dreamvideo.models.unet import UNet
from dreamvideo.sampling import choose_device
from dreamvideo.training.precision import all_finite

FP8 = torch.float8_e4m3fn


def test_a_card_is_numbered_when_it_is_chosen_or_named(monkeypatch):
    for name, found in {"is_available": True, "device_count": 2, "current_device": 1}.items():
        monkeypatch.setattr(torch.cuda, name, lambda found=found: found)
    assert choose_device() == base._device("cuda") == torch.device("cuda", 1)
    assert base._device("cuda:0") == torch.device("cuda", 0) and base._device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (memory.GIB, 4 * memory.GIB))
    limits = []

    def limit(share, device):
        limits.append((share, torch.cuda._utils._get_device_index(device)))  # as PyTorch, which wants an index

    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limit)
    memory.limit(choose_device(), 2)
    memory.limit(base._device("cuda"), 8)
    assert limits == [(0.5, 1), (1.0, 1)]


@pytest.mark.parametrize("before", [(1, 1), (5, 6), (7, 20), (64, 48), (45, 80)])
@pytest.mark.parametrize("after", [(1, 1), (3, 4), (5, 7), (8, 8), (32, 31)])
def test_area_averages_are_pytorchs(before, after):
    pictures = torch.rand(2, 3, *before, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(pictures, after, mode="area")
    torch.testing.assert_close(area_average(pictures, after), expected, atol=1e-6, rtol=1e-5)


def test_nothing_pools_to_a_size_that_does_not_divide(monkeypatch):
    """mps refuses it."""
    monkeypatch.setattr(F, "interpolate", refusing(F.interpolate))
    for name in ("adaptive_avg_pool2d", "adaptive_avg_pool3d"):
        monkeypatch.setattr(F, name, lambda *_: pytest.fail("pooled"))
    assert clip_pixels(torch.rand(1, 3, 45, 80), 32).shape == (1, 3, 32, 32)
    entry = StackEntry(build_adapter(AdapterConfig.identity(), CONFIG), mask=torch.rand(5, 7))
    stack = AdapterStack([entry])
    tiny_unet()(torch.zeros(1, 4, 1, 4, 4), torch.tensor([1]), torch.zeros(1, 77, CONFIG.context_dim), stack)


def refusing(interpolate):
    def checked(*args, **named):
        assert named.get("mode") != "area"
        return interpolate(*args, **named)

    return checked


class CastingUNet(UNet):
    """A host's: weights stored in eight bits, inputs in another dtype."""

    dtype = torch.float16


@pytest.fixture
def eight_bit() -> UNet:
    unet = CastingUNet(CONFIG)
    unet.load_state_dict(tiny_unet().state_dict())
    return unet.requires_grad_(False).to(FP8)


def test_deltas_on_eight_bit_weights_act_and_learn(eight_bit):
    delta = build_adapter(DeltaConfig(("text_kv",)), CONFIG)
    name = next(iter(delta.changes()))
    with torch.no_grad():
        delta.get_submodule(name).delta.fill_(5e-4)
    network = merge(eight_bit, [(delta, 1.0)])
    module, _, leaf = name.rpartition(".")
    merged = network.get_submodule(module)._parameters[leaf]
    before = eight_bit.get_submodule(module)._parameters[leaf].half()
    assert merged.dtype == torch.float16
    torch.testing.assert_close((merged - before).float(), torch.full(before.shape, 5e-4), atol=3e-4, rtol=0)
    assert (merged != before).all()
    merged.float().sum().backward()
    assert (delta.get_submodule(name).delta.grad == 1).all()


def test_a_unet_that_would_compute_in_eight_bits_takes_no_deltas():
    delta = build_adapter(DeltaConfig(("text_kv",)), CONFIG)
    with pytest.raises(ValueError, match="float8_e4m3fn.*bfloat16 or float16"):
        merge(tiny_unet().to(FP8), [(delta, 1.0)])


def test_numbers_in_eight_bits_can_be_asked_whether_they_are_finite():
    weights = torch.ones(3).to(FP8)
    assert all_finite([weights])
    assert not all_finite([weights, torch.tensor([math.nan]).to(FP8)])
