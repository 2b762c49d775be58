"""The schedule, the loss and DDIM: agreement with diffusers and with what Gaussian data say in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from dreamvideo.models.diffusion import (
    SCHEDULE,
    ddim_invert,
    ddim_sample,
    ddim_timesteps,
    diffusion_loss,
    mix_noise_prior,
    offset_noise,
)

SHAPE = (2, 4, 3, 5, 6)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian_predictor(std: float):
    """The exact noise prediction for data that are N(0, std^2)."""

    def predict(x, t):
        alpha = float(SCHEDULE.alphas_cumprod[t])
        return math.sqrt(1 - alpha) / (alpha * std**2 + 1 - alpha) * x

    return predict


def test_schedule_has_the_published_ends():
    alphas = SCHEDULE.alphas_cumprod
    assert alphas.dtype == torch.float64 and alphas.shape == (1000,)
    assert alphas[0].item() == pytest.approx(1 - 0.00085)
    assert alphas[-1].item() == pytest.approx(0.00466, abs=5e-6)
    assert (alphas.diff() < 0).all()


def diffusers_scheduler(steps: int):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    )
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("steps", [1, 4, 20, 25, 50])
def test_sampling_agrees_with_diffusers(steps):
    scheduler = diffusers_scheduler(steps)
    weight = torch.randn((4, 4), generator=seeded(), dtype=torch.float64) / 4

    def predict(x, t):
        mixed = torch.einsum("oc,bcfhw->bofhw", weight.to(x.dtype), x)
        return torch.tanh(mixed + math.cos(t)) + 0.5 * x

    noise = torch.randn(SHAPE, generator=seeded(1), dtype=torch.float64)
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(predict(x, int(t)), int(t), x).prev_sample
    assert ddim_timesteps(steps) == scheduler.timesteps.tolist()
    # diffusers keeps its alphas in float32
    torch.testing.assert_close(ddim_sample(predict, noise, steps), x, rtol=2e-5, atol=2e-5)


def test_adding_noise_agrees_with_diffusers():
    scheduler = diffusers_scheduler(50)
    x0, noise = torch.randn((2, *SHAPE), generator=seeded(), dtype=torch.float64)
    t = torch.tensor([0, 731])
    expected = scheduler.add_noise(x0, noise, t)
    torch.testing.assert_close(SCHEDULE.add_noise(x0, noise, t), expected, rtol=1e-5, atol=1e-6)
    half = SCHEDULE.add_noise(x0.half(), noise.half(), t)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), expected, rtol=5e-3, atol=5e-3)


def test_timesteps_are_the_authors():
    assert ddim_timesteps(50) == list(range(981, 0, -20))
    assert ddim_timesteps(10) == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert ddim_timesteps(30) == list(range(991, 0, -33))
    for n in range(1, 1001):
        steps = ddim_timesteps(n)
        assert len(steps) >= n and steps[-1] == 1 and max(steps) <= 999
        assert steps == sorted(steps, reverse=True)
        if 1000 % n == 0:
            assert len(steps) == n


@pytest.mark.parametrize("n", [0, -1, 1001])
def test_impossible_number_of_steps_is_told(n):
    for call in (ddim_timesteps, lambda n: ddim_sample(lambda x, t: x, torch.zeros(SHAPE), n)):
        with pytest.raises(ValueError, match=f"between 1 and 1000, got {n}"):
            call(n)


@pytest.mark.parametrize("steps", [1, 7, 30, 50, 400])
def test_sampling_lands_on_the_first_alpha(steps):
    x0 = torch.randn(SHAPE, generator=seeded(), dtype=torch.float64)
    noise = torch.randn(SHAPE, generator=seeded(1), dtype=torch.float64)
    start = SCHEDULE.add_noise(x0, noise, torch.tensor([ddim_timesteps(steps)[0]] * 2))
    end = ddim_sample(lambda x, t: noise, start, steps)
    torch.testing.assert_close(end, SCHEDULE.add_noise(x0, noise, torch.tensor([0, 0])))


def test_sampling_turns_noise_into_gaussian_data():
    noise = offset_noise((1, 4, 8, 16, 16), seeded(), strength=0.0)
    for std in (0.3, 2.0):
        sample = ddim_sample(gaussian_predictor(std), noise, steps=200)
        alpha = float(SCHEDULE.alphas_cumprod[0])
        assert sample.std().item() == pytest.approx(math.sqrt(alpha * std**2 + 1 - alpha), rel=0.05)


@pytest.mark.parametrize("steps", [50, 100, 250])
def test_inversion_leads_back_to_the_clip(steps):
    latents = 0.7 * torch.randn(SHAPE, generator=seeded(), dtype=torch.float64)
    predict = gaussian_predictor(0.7)
    inverted = ddim_invert(predict, latents, steps)
    error = (ddim_sample(predict, inverted, steps) - latents).std() / latents.std()
    assert error < 4 / steps  # Euler steps of an ODE: first order


def test_last_inversion_step_returns_the_predicted_noise():
    seen = []

    def predict(x, t):
        seen.append(t)
        return torch.full_like(x, float(t))

    assert (ddim_invert(predict, torch.zeros(SHAPE), 50) == 980.0).all()
    assert seen == list(range(0, 1000, 20))
    assert (ddim_invert(predict, torch.zeros(SHAPE), 30) == 990.0).all()


def test_callback_sees_every_step_and_the_clean_estimate():
    x0 = torch.randn(SHAPE, generator=seeded(), dtype=torch.float64)
    noise = torch.randn(SHAPE, generator=seeded(1), dtype=torch.float64)
    start = SCHEDULE.add_noise(x0, noise, torch.tensor([901, 901]))
    calls = []
    ddim_sample(lambda x, t: noise, start, 10, callback=lambda *told: calls.append(told))
    assert [(done, total) for done, total, _ in calls] == [(k, 10) for k in range(1, 11)]
    for _, _, estimate in calls:
        torch.testing.assert_close(estimate, x0)


def test_sampling_keeps_dtype_and_asks_for_no_gradients():
    noise = torch.randn(SHAPE, generator=seeded(), requires_grad=True)
    sample = ddim_sample(lambda x, t: (0.5 * x).bfloat16(), noise, 5)
    assert sample.dtype == torch.float32 and not sample.requires_grad


def test_offset_noise_shifts_each_channel_of_each_frame():
    plain = offset_noise((2, 4, 6, 64, 64), seeded(3), strength=0.0)
    noise = offset_noise((2, 4, 6, 64, 64), seeded(3), strength=0.5)
    offset = (noise - plain) / 0.5
    torch.testing.assert_close(offset, offset.mean((3, 4), keepdim=True).expand_as(offset), atol=1e-5, rtol=0)
    assert offset[..., 0, 0].unique().numel() == 2 * 4 * 6
    assert noise.var().item() == pytest.approx(1.25, abs=0.15)
    assert torch.equal(noise, offset_noise((2, 4, 6, 64, 64), seeded(3), strength=0.5))
    assert offset_noise(SHAPE, seeded(), dtype=torch.float16).dtype == torch.float16


def test_masked_loss_is_the_authors_mean_over_all_elements():
    prediction, noise = torch.randn((2, *SHAPE), generator=seeded())
    mask = (torch.rand((2, 1, 1, 5, 6), generator=seeded(1)) > 0.7).float()
    expected = ((mask * prediction - mask * noise) ** 2).mean()
    torch.testing.assert_close(diffusion_loss(prediction, noise, mask), expected)
    torch.testing.assert_close(diffusion_loss(prediction, noise), ((prediction - noise) ** 2).mean())
    torch.testing.assert_close(
        diffusion_loss(prediction, noise, torch.ones_like(mask)), diffusion_loss(prediction, noise)
    )


def test_normalised_loss_does_not_depend_on_the_subjects_size():
    prediction, noise = torch.ones(SHAPE), torch.zeros(SHAPE)
    mask = torch.zeros((2, 1, 1, 5, 6))
    mask[0, ..., 0, 0], mask[1, ..., :3, :] = 1.0, 1.0
    assert diffusion_loss(prediction, noise, mask, normalize_mask=True).item() == pytest.approx(1.0)
    assert diffusion_loss(prediction, noise, mask).item() == pytest.approx((1 + 18) / 60)
    assert diffusion_loss(prediction, noise, torch.zeros_like(mask), normalize_mask=True).item() == 0.0


def test_loss_of_half_precision_is_computed_in_float32():
    prediction, noise = torch.full(SHAPE, 300.0, dtype=torch.float16), torch.zeros(SHAPE, dtype=torch.float16)
    assert diffusion_loss(prediction, noise).item() == 90000.0  # beyond float16


def test_noise_prior_keeps_the_variance():
    noise, inverted = torch.randn((2, 1, 4, 8, 32, 32), generator=seeded())
    assert torch.equal(mix_noise_prior(noise, inverted, 0.0), noise)
    assert torch.equal(mix_noise_prior(noise, inverted, 1.0), inverted)
    mixed = mix_noise_prior(noise, inverted, 0.3)
    assert mixed.var().item() == pytest.approx(1.0, abs=0.03)
    assert (mixed * inverted).mean().item() == pytest.approx(math.sqrt(0.3), abs=0.03)
    for strength in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            mix_noise_prior(noise, inverted, strength)
    with pytest.raises(ValueError, match="shape"):
        mix_noise_prior(noise, inverted[:, :, :1], 0.5)
