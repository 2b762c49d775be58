"""Training and sampling on a simulated card: nothing mixes devices, and the numbers are the CPU's."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from fakes import CONFIG, FEATURE_WIDTH, pictures, tiny_unet
from simulated_card import Mode, copied_to, simulated_card, value_of
from test_methods import ROWS, TOKENS, data_of, each_row
from tiny_base import CLIP, VAE, randomised
from torch import Tensor, nn

from dreamvideo.customizing import Customization
from dreamvideo.encoders.autoencoder import KLAutoencoder
from dreamvideo.encoders.clip import OpenClipImage, OpenClipText
from dreamvideo.encoders.parking import park
from dreamvideo.encoders.protocols import Encoders
from dreamvideo.files.fingerprint import fingerprint
from dreamvideo.models.adapters import AdapterConfig, build_adapter
from dreamvideo.models.deltas import DeltaConfig
from dreamvideo.models.stack import AdapterStack, StackEntry
from dreamvideo.models.unet import UNet
from dreamvideo.sampling import SamplingSettings, generate, sample_latents
from dreamvideo.training.loop import TrainingResult
from dreamvideo.training.methods import Method
from dreamvideo.training.settings import TrainingSettings
from dreamvideo.training.stages import train_method

BASE = tiny_unet()
DATA = {row.name: data_of(row) for row in ROWS}
CARD, MPS = Mode("cuda:0"), Mode("mps:0")


@pytest.fixture(scope="module")
def encoders() -> Encoders:
    from diffusers import AutoencoderKL
    from open_clip.model import CLIP as OpenClip

    config = {**CLIP, "text_cfg": {**CLIP["text_cfg"], "width": CONFIG.context_dim}}
    clip = randomised(OpenClip(**config)).requires_grad_(False)
    vae = randomised(AutoencoderKL(**VAE)).requires_grad_(False)
    return Encoders(OpenClipText(clip), OpenClipImage(clip), KLAutoencoder(vae))


@pytest.fixture(scope="module")
def there(encoders) -> SimpleNamespace:
    """The base's UNet and text encoder on the card."""
    with simulated_card(CARD) as card:
        return SimpleNamespace(unet=copied_to(BASE, card), text=OpenClipText(copied_to(encoders.text.clip, card)))


def train(unet: UNet, text, row: Method) -> TrainingResult:
    settings = TrainingSettings.for_method(row, steps=1, batch_size=2, seed=1, warmup=0, gradient_checkpointing=False)
    named = {"placeholder": "<toy>", "class_word": "toy"} if row.token != "none" else {}
    tokens = TOKENS if row.token == "given" else None
    return train_method(unet, text, DATA[row.name], row, tokens=tokens, settings=settings, **named)


@each_row
def test_every_method_takes_its_first_step(encoders, there, row):
    expected = train(BASE, encoders.text, row)
    with simulated_card(CARD):
        found = train(there.unet, there.text, row)
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)


@pytest.mark.parametrize("row", [row for row in ROWS if row.token == "learned"], ids=lambda row: row.name)
def test_a_token_from_a_parked_encoder_is_learned_on_the_card(encoders, there, row):
    expected = train(BASE, encoders.text, row)
    with simulated_card(CARD) as card:
        clip = copied_to(encoders.text.clip, "cpu")
        parked = park(Encoders(OpenClipText(clip), OpenClipImage(clip), encoders.vae), card)
        found = train(there.unet, parked.text, row)
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)


# --- sampling ---------------------------------------------------------------------------------------------------


def noised(adapter: nn.Module) -> nn.Module:
    """The adapter with every number away from zero."""
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.ndim)))
    return adapter


IDENTITY = noised(build_adapter(AdapterConfig.identity(), CONFIG))
GUIDED = noised(build_adapter(AdapterConfig.motion(condition_dim=FEATURE_WIDTH), CONFIG))
DENSE = noised(build_adapter(DeltaConfig(("temporal", "text_kv")), CONFIG))
LOW_RANK = noised(build_adapter(DeltaConfig(("text_kv",), rank=2), CONFIG))
MASK = torch.linspace(0, 1, 30).view(5, 6)  # whose sides no level's divide
FEATURE = torch.linspace(-1, 1, FEATURE_WIDTH)[None]
STACKS = {
    "nothing": [],
    "identity": [StackEntry(IDENTITY)],
    "motion": [StackEntry(GUIDED, 0.7)],
    "mask": [StackEntry(IDENTITY, mask=MASK), StackEntry(GUIDED)],
    "window": [StackEntry(IDENTITY, window=(0.0, 0.5)), StackEntry(LOW_RANK, window=(0.4, 1.0))],
    "ramp": [StackEntry(IDENTITY, ramp=(1.0, 0.0), depth=(0.0, 1.0))],
    "deltas": [StackEntry(DENSE), StackEntry(LOW_RANK, 0.5), StackEntry(GUIDED)],
}


def sampled(unet: UNet, entries: list[StackEntry]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(2, 77, CONFIG.context_dim, generator=generator)
    noise = torch.randn(1, 4, 2, 4, 4, generator=generator)
    stack = AdapterStack(entries) if entries else None
    return sample_latents(unet, context[:1], context[1:], noise, stack=stack, feature=FEATURE, steps=2)


@pytest.mark.parametrize("name", STACKS)
def test_sampling_with_every_kind_of_adapter(there, name):
    expected = sampled(BASE, STACKS[name])
    with simulated_card(CARD) as card:
        found = sampled(there.unet, STACKS[name])
        assert found.device == card
    torch.testing.assert_close(value_of(found), expected, atol=1e-3, rtol=1e-3)


def offloaded(adapter: nn.Module, card: torch.device, stays: Callable[[str], bool]) -> nn.Module:
    """A copy on the card but for the parameters that stay on the CPU."""
    adapter = copied_to(adapter, "cpu")
    for module_name, module in adapter.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not stays(f"{module_name}.{name}"):
                module._parameters[name] = nn.Parameter(parameter.detach().to(card))
    return adapter


@pytest.mark.parametrize("part", ["down", "up", "condition_linear"])
@pytest.mark.parametrize("gradients", [False, True])
def test_an_adapter_may_lie_in_parts_elsewhere(there, part, gradients):
    def predicted(unet: UNet, place, adapters: list[nn.Module]) -> Tensor:
        stack = AdapterStack([StackEntry(adapter) for adapter in adapters], FEATURE)
        x, context = torch.ones(1, 4, 2, 4, 4), torch.ones(1, 77, CONFIG.context_dim)
        with torch.set_grad_enabled(gradients):
            return unet(x.to(place), torch.tensor([500]), context, stack)

    adapters = [GUIDED, LOW_RANK]
    expected = predicted(BASE, "cpu", adapters)
    with simulated_card(CARD) as card:
        parted = [offloaded(adapter, card, lambda name: f".{part}" in name) for adapter in adapters]
        found = predicted(there.unet, card, parted)
        if gradients:
            found.square().mean().backward()
            assert all(p.grad.device == p.device for adapter in parted for p in adapter.parameters())
        moved = [entry.adapter for entry in AdapterStack([StackEntry(each) for each in parted]).to(card).entries]
        assert all(parameter.device == card for adapter in moved for parameter in adapter.parameters())
    torch.testing.assert_close(value_of(found), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("parked", [True, False])
def test_a_prompt_becomes_frames_wherever_the_encoders_lie(encoders, there, parked):
    settings = SamplingSettings("a <toy> <car>", frames=2, height=32, width=32, steps=1)
    picture = pictures(1, side=45)[0]

    def frames(unet: UNet, encoders: Encoders, place) -> Tensor:
        tokens = {"<toy>": TOKENS["<toy>"], "<car>": TOKENS["<toy>"].to(place)}
        guided = noised(build_adapter(AdapterConfig.motion(condition_dim=encoders.image.width), CONFIG))
        customization = Customization((StackEntry(guided),), tokens)
        return generate(unet, encoders, settings, customization, guidance_image=picture)

    expected = frames(BASE, encoders, "cpu")
    with simulated_card(CARD) as card:
        place = "cpu" if parked else card
        clip, vae = copied_to(encoders.text.clip, place), copied_to(encoders.vae.vae, place)
        mine = Encoders(OpenClipText(clip), OpenClipImage(clip), KLAutoencoder(vae))
        found = frames(there.unet, park(mine, card) if parked else mine, card)
        assert found.device.type == "cpu"
        if parked:
            assert all(parameter.device.type == "cpu" for parameter in (*clip.parameters(), *vae.parameters()))
    torch.testing.assert_close(value_of(found), expected, atol=1e-3, rtol=1e-3)


def test_mps_is_asked_for_neither_float64_nor_uneven_pooling():
    with simulated_card(MPS) as card:
        unet = copied_to(BASE, card)
        assert fingerprint(unet) == fingerprint(BASE)
        sampled(unet, STACKS["mask"])
