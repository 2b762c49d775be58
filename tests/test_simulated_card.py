"""Training and sampling on a simulated card: nothing mixes devices, and the numbers are the CPU's."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from fakes import CONFIG, fake_encoders, pictures, tiny_unet
from simulated_card import copied_to, simulated_card, value_of
from test_methods import ROWS, TOKENS, data_of, each_row
from tiny_base import CLIP, VAE, randomised

from dreamvideo.encoders import Encoders, KLAutoencoder, OpenClipImage, OpenClipText
from dreamvideo.methods import Method
from dreamvideo.stages import train_method
from dreamvideo.training import TrainingResult, TrainingSettings
from dreamvideo.unet import UNet

UNET = tiny_unet()


@pytest.fixture(scope="module")
def encoders() -> Encoders:
    from diffusers import AutoencoderKL
    from open_clip.model import CLIP as OpenClip

    width = CONFIG.context_dim
    config = {**CLIP, "text_cfg": {**CLIP["text_cfg"], "width": width}}
    clip = randomised(OpenClip(**config)).requires_grad_(False)
    vae = randomised(AutoencoderKL(**VAE)).requires_grad_(False)
    return Encoders(OpenClipText(clip), OpenClipImage(clip), KLAutoencoder(vae))


def train(unet: UNet, text, row: Method) -> TrainingResult:
    settings = TrainingSettings.for_method(row, steps=2, batch_size=2, seed=1, gradient_checkpointing=False)
    named = {"placeholder": "<toy>", "class_word": "toy"} if row.token != "none" else {}
    tokens = TOKENS if row.token == "given" else None
    return train_method(unet, text, data_of(row), row, tokens=tokens, settings=settings, **named)


@each_row
def test_every_method_takes_its_first_steps(encoders, row):
    expected = train(UNET, encoders.text, row)
    with simulated_card() as card:
        unet = copied_to(UNET, card)
        text = OpenClipText(copied_to(encoders.text.clip, card))
        found = train(unet, text, row)
    assert found.losses == pytest.approx(expected.losses, rel=1e-3)
