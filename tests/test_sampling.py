"""Sampling: guidance as one batch, determinism, what adapters change, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from fakes import CONFIG, FEATURE_WIDTH, WIDTH, fake_encoders, pictures, tiny_unet

from dreamvideo.customizing import NOTHING, Customization, customize
from dreamvideo.files.adapter_info import AdapterInfo, TrainedAdapter
from dreamvideo.models.adapters import Adapter, AdapterConfig
from dreamvideo.models.diffusion import ddim_sample
from dreamvideo.models.stack import AdapterStack, StackEntry
from dreamvideo.models.unet import UNet
from dreamvideo.sampling import (
    SamplingSettings,
    choose_device,
    choose_dtype,
    generate,
    invert,
    latent_size,
    missing_placeholders,
    sample_latents,
)

SETTINGS = SamplingSettings("a car turns", frames=3, height=32, width=32, steps=3)
ENCODERS = fake_encoders()


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


def trained(config: AdapterConfig, seed: int = 0) -> Adapter:
    """An adapter whose residuals are not zero."""
    generator = torch.Generator().manual_seed(seed)
    adapter = Adapter(config, CONFIG, generator=generator).requires_grad_(False)
    for name, parameter in adapter.named_parameters():
        if "up_linear" in name:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapter


def identity(name: str = "<toy>", seed: int = 0, features: bool = True) -> TrainedAdapter:
    vectors = torch.randn((1, WIDTH), generator=torch.Generator().manual_seed(seed))
    photographs = torch.arange(2.0 * FEATURE_WIDTH).view(2, FEATURE_WIDTH) / 10 if features else None
    info = AdapterInfo("identity", placeholder=name)
    return TrainedAdapter(trained(AdapterConfig.identity(), seed), info, {name: vectors}, photographs)


def motion(p_image_drop: float = 0.5) -> TrainedAdapter:
    info = AdapterInfo("motion", extra={"settings": {"p_image_drop": p_image_drop}})
    return TrainedAdapter(trained(AdapterConfig.motion(condition_dim=FEATURE_WIDTH)), info, {}, None)


def contexts() -> tuple[torch.Tensor, torch.Tensor]:
    cond, uncond = ENCODERS.text.encode(["a car turns", ""]).split(1)
    return cond, uncond


def noise(batch: int = 1) -> torch.Tensor:
    return torch.randn((batch, 4, 3, 4, 4), generator=torch.Generator().manual_seed(5))


def test_the_same_seed_gives_the_same_video_and_another_seed_another(unet):
    state = torch.get_rng_state()
    first = generate(unet, ENCODERS, SETTINGS)
    assert torch.equal(first, generate(unet, ENCODERS, SETTINGS))
    assert not torch.equal(first, generate(unet, ENCODERS, replace(SETTINGS, seed=1)))
    assert torch.equal(state, torch.get_rng_state())
    assert first.shape == (3, 3, 32, 32) and first.dtype == torch.float32 and 0 <= first.min() <= first.max() <= 1


def test_no_adapter_identity_motion_and_both_differ_and_the_base_stays(unet):
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    settings = replace(SETTINGS, prompt="a toy car")
    videos = [
        generate(unet, ENCODERS, settings, customize(files))
        for files in ([], [identity()], [motion()], [identity(), motion()])
    ]
    assert all(not torch.allclose(a, b) for i, a in enumerate(videos) for b in videos[:i])
    assert torch.equal(videos[0], generate(unet, ENCODERS, settings))
    assert torch.equal(videos[0], generate(unet, ENCODERS, settings, customize([identity(), motion()], [0, 0])))
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())


@pytest.mark.parametrize("strengths", [(0.0, 1.0), (1.0, 1.0), (0.5, 2.0)])
def test_guidance_as_one_batch_equals_two_runs(unet, strengths):
    entries = [StackEntry(each.adapter) for each in (identity(), motion())]
    feature = torch.linspace(-1, 1, FEATURE_WIDTH)[None]
    cond, uncond = contexts()

    def predict(x, t):
        times = torch.full((len(x),), t)
        u = unet(x, times, uncond, adapters=AdapterStack(entries, torch.zeros_like(feature), strengths[0]))
        c = unet(x, times, cond, adapters=AdapterStack(entries, feature, strengths[1]))
        return u + 9.0 * (c - u)

    wanted = ddim_sample(predict, noise(), 3)
    found = sample_latents(
        unet, cond, uncond, noise(), stack=AdapterStack(entries), feature=feature, feature_strengths=strengths, steps=3
    )
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())


def test_guidance_draws_towards_an_adapter_from_a_part_of_the_way_on(unet):
    """In the first of two steps both halves have it, in the second the negative prompt goes without."""
    entries = [StackEntry(identity().adapter)]
    cond, uncond = contexts()
    seen = []

    def predict(x, t):
        seen.append(t)
        times = torch.full((len(x),), t)
        u = unet(x, times, uncond, adapters=AdapterStack(entries) if len(seen) == 1 else None)
        c = unet(x, times, cond, adapters=AdapterStack(entries))
        return u + 9.0 * (c - u)

    def found(guided_from):
        stack = AdapterStack([replace(entry, guided_from=guided_from) for entry in entries])
        return sample_latents(unet, cond, uncond, noise(), stack=stack, steps=2)

    wanted = ddim_sample(predict, noise(), 2)
    torch.testing.assert_close(found(0.6), wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())
    never = sample_latents(unet, cond, uncond, noise(), stack=AdapterStack(entries), steps=2)
    assert torch.equal(found(1.0), never) and not torch.allclose(never, wanted, atol=1e-3)


def test_a_file_says_from_where_on_it_acts_and_is_guided_towards_and_a_limit_goes_before_it():
    plain = identity()
    told = replace(plain, info=replace(plain.info, extra={"acts_from": 0.3, "guided_from": 0.4}))
    entries = customize([plain, told]).entries
    assert [(entry.window, entry.guided_from) for entry in entries] == [((0.0, 1.0), 1.0), ((0.3, 1.0), 0.4)]
    (limited,) = customize([told], limits=[{"window": (0.0, 0.9), "guided_from": 0.7}]).entries
    assert limited.window == (0.0, 0.9) and limited.guided_from == 0.7


def test_several_videos_in_one_batch_are_what_they_are_alone(unet):
    cond, uncond = contexts()
    stack, features = AdapterStack([StackEntry(motion().adapter)]), torch.randn(2, FEATURE_WIDTH)
    arguments = {"stack": stack, "steps": 2, "guidance": 3.0}
    both = sample_latents(unet, cond, uncond, noise(2), feature=features, **arguments)
    for i in range(2):
        alone = sample_latents(unet, cond, uncond, noise(2)[i : i + 1], feature=features[i : i + 1], **arguments)
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-4, atol=1e-4)


def test_guidance_one_is_the_conditional_half_alone(unet, monkeypatch):
    cond, uncond = contexts()
    sizes, original = [], UNet.forward
    monkeypatch.setattr(
        UNet, "forward", lambda self, x, *rest, **named: sizes.append(len(x)) or original(self, x, *rest, **named)
    )
    feature = torch.ones(1, FEATURE_WIDTH)
    arguments = {"stack": AdapterStack([StackEntry(motion().adapter)]), "feature": feature, "steps": 2}
    alone = sample_latents(unet, cond, uncond, noise(), guidance=1.0, **arguments)
    assert sizes == [1, 1]
    nearly = sample_latents(unet, cond, uncond, noise(), guidance=1.0 + 1e-6, **arguments)
    assert sizes == [1, 1, 2, 2]
    torch.testing.assert_close(alone, nearly, rtol=1e-3, atol=1e-3)


def test_settings_reach_the_video(unet):
    custom = customize([identity(), motion()])
    base = generate(unet, ENCODERS, SETTINGS, custom)
    changes = (
        {"prompt": "a dog runs"},
        {"negative_prompt": "grey"},
        {"guidance": 4.0},
        {"steps": 5},
        {"feature_strength_cond": 0.5},
        {"feature_strength_uncond": 0.0},
        {"offset_noise": 0.0},
    )
    for change in changes:
        assert not torch.equal(base, generate(unet, ENCODERS, replace(SETTINGS, **change), custom)), change
    shown = generate(unet, ENCODERS, SETTINGS, custom, guidance_image=pictures(1)[0])
    assert not torch.equal(base, shown)
    small = generate(unet, ENCODERS, replace(SETTINGS, frames=1, height=16, width=48), custom)
    assert small.shape == (1, 3, 16, 48)


def test_the_callback_hears_every_step(unet):
    seen = []
    generate(unet, ENCODERS, SETTINGS, callback=lambda done, steps, x0: seen.append((done, steps, tuple(x0.shape))))
    assert [each[0] for each in seen] == list(range(1, seen[0][1] + 1)) and seen[0][2] == (1, 4, 3, 4, 4)


def test_a_region_mask_and_a_window_are_fields_of_the_customization(unet):
    whole = generate(unet, ENCODERS, SETTINGS, Customization((StackEntry(motion().adapter),)))
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    masked = generate(unet, ENCODERS, SETTINGS, Customization((StackEntry(motion().adapter, mask=left),)))
    late = generate(unet, ENCODERS, SETTINGS, Customization((StackEntry(motion().adapter, window=(0.5, 1.0)),)))
    assert not torch.equal(whole, masked) and not torch.equal(whole, late)


# --- putting files together -----------------------------------------------------------------------------------------


def test_customize_gathers_adapters_tokens_and_a_guidance_image():
    one, other, moves = identity(), identity("<cat>", seed=1), motion()
    custom = customize([one, moves, other], [0.5, 1.0, 0.7])
    assert [entry.strength for entry in custom.entries] == [0.5, 1.0, 0.7]
    assert [entry.adapter for entry in custom.entries] == [one.adapter, moves.adapter, other.adapter]
    assert set(custom.tokens) == {"<toy>", "<cat>"} and torch.equal(custom.feature, one.features[:1])
    token = TrainedAdapter(None, AdapterInfo("token", placeholder="<toy>"), one.tokens, one.features)
    assert customize([token]).entries == () and customize([token]).feature is None
    assert set(customize([token, one]).tokens) == {"<toy>"}


def test_the_unconditional_strength_follows_the_motions_training():
    assert customize([identity()]).feature_strength_uncond == 0
    assert customize([identity(), motion(0.5)]).feature_strength_uncond == 1
    assert customize([identity(), motion(0.0)]).feature_strength_uncond == 0
    assert customize([motion(0.5), motion(0.0)]).feature_strength_uncond == 0
    unknown = replace(motion(), info=AdapterInfo("motion"))  # the authors' files do not say
    assert customize([unknown]).feature_strength_uncond == 0 and customize([unknown]).feature is None


def test_without_a_guidance_image_a_motion_that_knows_zero_images_gets_one():
    assert torch.equal(customize([motion(0.5)]).feature, torch.zeros(1, FEATURE_WIDTH))
    assert customize([motion(0.0)]).feature is None
    assert customize([identity(features=False), motion(0.0)]).feature is None


def test_files_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="different tokens called <toy>"):
        customize([identity(), identity(seed=1)])
    with pytest.raises(ValueError, match="2 strengths for 1"):
        customize([identity()], [1.0, 1.0])


# --- the noise prior ------------------------------------------------------------------------------------------------


def test_inversion_leads_back_to_its_latents():
    """A base that predicts the noise perfectly: inverted and sampled again, the latents come back."""
    cond, uncond = contexts()
    calm = tiny_unet()
    torch.nn.init.zeros_(calm.out[2].weight)
    torch.nn.init.zeros_(calm.out[2].bias)
    latents = noise()
    inverted = invert(calm, uncond, latents, steps=10)
    assert torch.equal(inverted, torch.zeros_like(latents))  # its last step returns the predicted noise: none


def test_a_noise_prior_remembers_its_clip(unet):
    clip = pictures(3, seed=2)
    prior = replace(SETTINGS, prior_strength=0.5)
    plain, first = generate(unet, ENCODERS, SETTINGS), generate(unet, ENCODERS, prior, prior_clip=clip)
    other = generate(unet, ENCODERS, prior, prior_clip=pictures(3, seed=3))
    assert not torch.equal(plain, first) and not torch.equal(first, other)
    assert torch.equal(plain, generate(unet, ENCODERS, SETTINGS, prior_clip=clip))
    seeds = [
        generate(unet, ENCODERS, replace(prior, prior_strength=1.0, seed=seed), prior_clip=clip) for seed in (0, 1)
    ]
    assert torch.equal(*seeds)
    with pytest.raises(ValueError, match="needs the clip"):
        generate(unet, ENCODERS, prior)
    with pytest.raises(ValueError, match="crop and cut the clip alike"):
        generate(unet, ENCODERS, prior, prior_clip=pictures(2))


def test_what_takes_long_beside_the_steps_is_counted(unet):
    counted: dict[str, list[tuple[int, int]]] = {}

    def report_for(what):
        counted[what] = []
        return lambda *told: counted[what].append(told)

    prior = replace(SETTINGS, prior_strength=0.5)
    told = generate(unet, ENCODERS, prior, prior_clip=pictures(3, seed=2), report_for=report_for)
    assert list(counted) == ["Encoding frame", "Inverting step", "Decoding frame"]
    assert counted["Encoding frame"][0] == counted["Decoding frame"][0] == (0, 3)
    assert counted["Encoding frame"][-1] == counted["Decoding frame"][-1] == (3, 3)
    steps = counted["Inverting step"]
    assert steps == [(done, len(steps)) for done in range(1, len(steps) + 1)]
    assert torch.equal(told, generate(unet, ENCODERS, prior, prior_clip=pictures(3, seed=2)))


# --- machines and refusals ------------------------------------------------------------------------------------------


def test_half_precision_samples_too():
    for dtype in (torch.bfloat16, torch.float16):
        video = generate(tiny_unet(dtype=dtype), ENCODERS, SETTINGS, customize([identity(), motion()]))
        assert video.dtype == torch.float32 and torch.isfinite(video).all()


def test_device_and_precision_suit_the_machine(monkeypatch):
    assert choose_dtype("cpu") == torch.float32 and choose_dtype("mps") == torch.float16
    for bf16, wanted in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, bf16=bf16, **named: bf16)
        assert choose_dtype(torch.device("cuda", 0)) == wanted
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for cuda, mps, wanted in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert choose_device().type == wanted


def test_a_placeholder_that_nothing_provides_is_refused(unet):
    assert missing_placeholders("a <toy> on a <my-mat> 3 < 4 > 2, 5*4", {"<toy>": None}) == ["<my-mat>"]
    assert missing_placeholders("a * runs", {}) == ["*"] and missing_placeholders("a * runs", {"*": None}) == []
    with pytest.raises(ValueError, match="names <dog>, but the adapters given bring <toy>"):
        generate(unet, ENCODERS, replace(SETTINGS, prompt="a <dog> runs"), customize([identity()]))
    with pytest.raises(ValueError, match="no learned token"):
        generate(unet, ENCODERS, replace(SETTINGS, prompt="a <dog> runs"), NOTHING)


def test_sizes_that_do_not_divide_are_refused_with_the_nearest_that_do(unet):
    assert latent_size(unet, 32, 48) == (4, 6)
    with pytest.raises(ValueError, match="50 x 32 pixels does not divide by 8.*48 x 32 and 56 x 32"):
        generate(unet, ENCODERS, replace(SETTINGS, width=50))
    with pytest.raises(ValueError, match="8 x 32"):
        latent_size(unet, 32, 3)


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"steps": 0}, {"guidance": float("nan")}])
def test_bad_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(SETTINGS, **wrong)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("fps", 1e300),
        ("fps", 1e-300),
        ("fps", math.nan),
        ("frames", 10**8),
        ("frames", 10**4000),
        ("prior_strength", math.nan),
        ("feature_strength_uncond", math.inf),
    ],
)
def test_settings_that_cannot_be_are_told_at_once(setting, value):
    with pytest.raises(ValueError, match=f"Sampling .*{setting}") as error:
        SamplingSettings("a dog", **{setting: value})
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("strength", [math.nan, math.inf])
def test_a_strength_is_a_number(strength):
    with pytest.raises(ValueError, match="strength of an adapter must be a finite number"):
        customize([identity()], [strength])
