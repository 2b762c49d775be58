"""Parts of a video that read prompts of their own, and adapters that act in a part of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_base import UNET, randomised
from torch import Tensor

from dreamvideo.models import stack
from dreamvideo.models.adapters import AdapterConfig, build_adapter
from dreamvideo.models.apart import parts_of, predict_parts
from dreamvideo.models.deltas import DeltaConfig, merge
from dreamvideo.models.regions import Region, mask_at, part_of_video
from dreamvideo.models.stack import AdapterStack, StackEntry
from dreamvideo.models.unet import UNet
from dreamvideo.sampling import sample_latents

FRAMES = 3


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def unet() -> UNet:
    return randomised(UNet(UNET)).eval().requires_grad_(False)


X, TIMESTEPS = random(2, 4, FRAMES, 4, 8), torch.tensor([700, 200])
PROMPT, OTHER, THIRD = (random(1, 77, UNET.context_dim, seed=seed) for seed in (1, 2, 3))


def run(unet: UNet, *regions: Region, prompt: Tensor = PROMPT, shares: Tensor | float = 1.0) -> Tensor:
    return unet(X, TIMESTEPS, prompt.expand(2, -1, -1), AdapterStack([], regions=regions, prompted=shares))


def test_a_region_of_the_whole_video_is_another_prompt(unet):
    whole = run(unet, Region(OTHER, torch.ones(8, 8)))
    torch.testing.assert_close(whole, run(unet, prompt=OTHER), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(whole, run(unet), atol=1e-3)


def test_no_region_an_empty_one_and_one_of_the_same_prompt_are_the_base(unet):
    base = unet(X, TIMESTEPS, PROMPT.expand(2, -1, -1))
    assert torch.equal(run(unet), base)
    torch.testing.assert_close(run(unet, Region(OTHER, torch.zeros(8, 8))), base, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(run(unet, Region(PROMPT, random(8, 8).sigmoid())), base, atol=1e-5, rtol=1e-5)


def test_each_place_reads_its_own_prompt(unet):
    """Of one cross-attention: the left half as under one prompt alone, the right half as under the other."""
    left = part_of_video(1, across=(0, 0.5))[0]
    bound = AdapterStack([], regions=[Region(OTHER, left), Region(THIRD, 1 - left)]).bind(TIMESTEPS, (4, 8))
    prompts = {id(PROMPT): 0.0, id(OTHER): 1.0, id(THIRD): 2.0}
    values = {key: torch.full((2, FRAMES, 32, 5), value) for key, value in prompts.items()}

    def attend(context: Tensor) -> Tensor:
        return values[id(OTHER)] if torch.equal(context[:1], OTHER) else values[id(THIRD)]

    read = bound.read(attend, values[id(PROMPT)], (4, 8)).view(2, FRAMES, 4, 8, 5)
    assert (read[..., :4, :] == 1).all() and (read[..., 4:, :] == 2).all()


def test_a_moving_region_acts_in_its_frames_alone():
    late = part_of_video(FRAMES, time=(1 / 3, 1))
    bound = AdapterStack([], regions=[Region(OTHER, late)]).bind(TIMESTEPS, (4, 8))
    read = bound.read(lambda context: torch.ones(2, FRAMES, 32, 5), torch.zeros(2, FRAMES, 32, 5), (4, 8))
    assert read[:, 0].abs().max() < 1e-6 and torch.allclose(read[:, 1:], torch.ones(()))


def test_overlapping_regions_share(unet):
    twice = run(unet, Region(OTHER, torch.ones(8, 8)), Region(OTHER, torch.ones(4, 4)))
    torch.testing.assert_close(twice, run(unet, prompt=OTHER), atol=1e-5, rtol=1e-5)


def test_the_half_without_the_prompt_heeds_no_region(unet):
    region = Region(OTHER, torch.ones(8, 8))
    halves = run(unet, region, shares=torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(halves[:1], run(unet)[:1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(halves[1:], run(unet, region)[1:], atol=1e-5, rtol=1e-5)
    noise, uncond = random(1, 4, FRAMES, 4, 8, seed=5), random(1, 77, UNET.context_dim, seed=6)
    sampled = sample_latents(unet, PROMPT, uncond, noise, stack=AdapterStack([], regions=[region]), steps=2)
    torch.testing.assert_close(sampled, sample_latents(unet, OTHER, uncond, noise, steps=2), atol=1e-3, rtol=1e-3)


def test_gradients_pass_through_regions(unet):
    context = OTHER.clone().requires_grad_()
    run(unet, Region(context, torch.ones(8, 8))).square().mean().backward()
    assert context.grad is not None and context.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("context", "mask", "message"),
    [
        (OTHER, torch.ones(2), r"mask is \[H, W\] or \[F, H, W\]"),
        (OTHER, torch.full((2, 2), 255.0), "in 0..1, not 255..255"),
        (OTHER.expand(2, -1, -1), torch.ones(2, 2), r"text states are \[1, T, D\]"),
    ],
)
def test_nonsense_is_refused(context, mask, message):
    with pytest.raises(ValueError, match=message):
        Region(context, mask)


def test_a_mask_for_another_length_is_refused(unet):
    with pytest.raises(ValueError, match="mask has 4 frames, but the video has 3"):
        run(unet, Region(OTHER, torch.ones(4, 8, 8)))


def test_parts_of_a_video_add_up_to_the_whole():
    parts = [part_of_video(5, across=across, down=(0, 1), time=(0, 1)) for across in ((0, 0.3), (0.3, 1))]
    torch.testing.assert_close(parts[0] + parts[1], torch.ones(5, 64, 64))
    assert part_of_video(8, time=(0.5, 1))[:4].sum() == 0 and part_of_video(8, time=(0.5, 1))[4:].min() == 1
    assert mask_at(part_of_video(8, down=(0, 0.25)), 8, (8, 8), "b f h w")[0, 0, :, 0].tolist() == [1, 1] + [0] * 6
    with pytest.raises(ValueError, match="start to a later end"):
        part_of_video(8, time=(0.5, 0.5))


# ------------------------------------------------------------------------------------------------ drawn apart

LEFT, RIGHT = part_of_video(1, across=(0, 0.5))[0], part_of_video(1, across=(0.5, 1))[0]


def apart(unet: UNet, *regions: Region, entries=(), steps: Tensor = TIMESTEPS, shares: Tensor | float = 1.0) -> Tensor:
    acting = AdapterStack(entries, regions=regions, prompted=shares)
    return predict_parts(unet, X, steps, PROMPT.expand(2, -1, -1), acting, UNET.stride)


def test_a_region_of_the_whole_video_is_nothing_else_apart(unet):
    region = Region(OTHER, torch.ones(8, 8), apart=1.0)
    torch.testing.assert_close(apart(unet, region), run(unet, prompt=OTHER), atol=1e-5, rtol=1e-5)


def test_what_acts_in_a_box_is_a_stack_of_the_same_kind():
    """A host's stack, whose weights hold the deltas already, must not merge them again there."""

    class HostStack(AdapterStack):
        pass

    (part,) = parts_of(HostStack([], regions=[Region(OTHER, LEFT, 1.0)], prompted=0.5), TIMESTEPS, X, UNET.stride)
    assert type(part.stack) is HostStack and part.stack.prompted == 0.5


def test_halves_apart_are_pictures_of_their_own(unet):
    drawn = apart(unet, Region(OTHER, LEFT, 1.0), Region(THIRD, RIGHT, 1.0))
    for half, text in ((drawn[..., :4], OTHER), (drawn[..., 4:], THIRD)):
        seen = X[..., :4] if text is OTHER else X[..., 4:]
        alone = unet(seen.contiguous(), TIMESTEPS, text.expand(2, -1, -1))
        torch.testing.assert_close(half, alone, atol=1e-5, rtol=1e-5)


def test_what_no_region_covers_and_what_is_not_apart_is_drawn_with_the_video(unet):
    regions = [Region(OTHER, LEFT, 1.0), Region(THIRD, RIGHT)]
    together = run(unet, *(replace(region, apart=0.0) for region in regions))
    for rest in (apart(unet, *regions), apart(unet, regions[0])):
        assert not torch.allclose(rest[..., :4], together[..., :4], atol=1e-3)
    torch.testing.assert_close(apart(unet, *regions)[..., 4:], together[..., 4:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(apart(unet, regions[0])[..., 4:], run(unet, regions[0])[..., 4:], atol=1e-5, rtol=1e-5)


def test_from_its_part_of_the_steps_on_a_region_is_drawn_with_the_video(unet):
    regions = Region(OTHER, LEFT, 0.4), Region(THIRD, RIGHT, 0.4)
    early, late = torch.tensor([700, 700]), torch.tensor([500, 500])
    joint = AdapterStack([], regions=regions)
    for steps, same in ((early, False), (late, True)):
        whole = unet(X, steps, PROMPT.expand(2, -1, -1), joint)
        assert torch.equal(apart(unet, *regions, steps=steps), whole) == same


def test_overlapping_regions_apart_share(unet):
    twice = apart(unet, Region(OTHER, torch.ones(8, 8), 1.0), Region(OTHER, torch.ones(4, 4), 1.0))
    torch.testing.assert_close(twice, run(unet, prompt=OTHER), atol=1e-5, rtol=1e-5)


def test_adapters_act_in_a_box_as_their_masks_say(unet):
    adapter = randomised(build_adapter(AdapterConfig("identity", ("attn2",)), UNET))
    regions = Region(OTHER, LEFT, 1.0), Region(THIRD, RIGHT, 1.0)
    nothing = apart(unet, *regions)
    found = apart(unet, *regions, entries=[StackEntry(adapter, mask=LEFT)])
    assert torch.equal(found[..., 4:], nothing[..., 4:])
    alone = unet(X[..., :4].contiguous(), TIMESTEPS, OTHER.expand(2, -1, -1), AdapterStack([StackEntry(adapter)]))
    torch.testing.assert_close(found[..., :4], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[..., :4], nothing[..., :4], atol=1e-3)


def test_weight_deltas_are_merged_once_for_all_parts(unet, monkeypatch):
    delta = randomised(build_adapter(DeltaConfig(("spatial",)), UNET))
    merges = []
    monkeypatch.setattr(stack, "merge", lambda *given: merges.append(given) or merge(*given))
    with torch.no_grad():
        apart(unet, Region(OTHER, LEFT, 1.0), Region(THIRD, RIGHT, 1.0), entries=[StackEntry(delta)])
    assert len(merges) == 1


def test_sampling_draws_apart(unet):
    regions = Region(OTHER, LEFT, 1.0), Region(THIRD, RIGHT, 1.0)
    noise, uncond = random(1, 4, FRAMES, 4, 8, seed=5), random(1, 77, UNET.context_dim, seed=6)
    drawn = sample_latents(unet, PROMPT, uncond, noise, stack=AdapterStack([], regions=regions), steps=3)
    for text, half in ((OTHER, slice(0, 4)), (THIRD, slice(4, 8))):
        alone = sample_latents(unet, text, uncond, noise[..., half], steps=3)
        torch.testing.assert_close(drawn[..., half], alone, atol=1e-3, rtol=1e-3)
