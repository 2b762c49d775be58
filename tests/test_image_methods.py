"""Every row on an image base: it trains, resumes, saves, loads, stacks and samples, or says why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import FEATURE_WIDTH, fake_encoders, pictures
from test_unet import randomize
from tiny_image_base import write_tiny_image_base
from torch import Tensor

from dreamvideo.base import open_base
from dreamvideo.customizing import customize
from dreamvideo.defaults import defaults_for, fitted
from dreamvideo.files.adapter_info import check_fits, places
from dreamvideo.files.adapters import load_adapter, read_info, save_trained
from dreamvideo.files.foreign_adapters import save_authors_adapter
from dreamvideo.models.adapters import Adapter, AdapterConfig
from dreamvideo.models.animatediff import ImageUNet
from dreamvideo.models.config import UNetConfig, transformer_sites
from dreamvideo.models.diffusion import LINEAR_SCHEDULE, SCHEDULE, schedule_for
from dreamvideo.models.frame_attention import FrameAttention, FrameAttentionConfig, first_and_previous
from dreamvideo.models.image_config import ImageUNetConfig
from dreamvideo.models.stack import AdapterStack, StackEntry
from dreamvideo.plans import motion_plan
from dreamvideo.runs import train_motion
from dreamvideo.sampling import SamplingSettings, generate
from dreamvideo.training.data import TrainingData, encode_clips, encode_photos
from dreamvideo.training.loop import Callbacks, TrainingResult
from dreamvideo.training.methods import IDENTITY, METHODS, MOTION, MOTION_METHODS, TUNE_A_VIDEO, Method
from dreamvideo.training.settings import TrainingSettings
from dreamvideo.training.stages import train_method

CONFIG = ImageUNetConfig(
    dim=32,
    dim_mult=(1,),
    res_blocks=1,
    attention_levels=(True,),
    heads=4,
    context_dim=8,
    motion_frames=8,
    motion_middle=True,
)
STILL = replace(CONFIG, motion_frames=None, motion_middle=False)
NEED_CONVOLUTIONS = ("temporal_convolutions", "frame_aware_convolutions", "motion_plus")
ENCODERS = fake_encoders()
TOKENS = {"<toy>": torch.linspace(-1, 1, CONFIG.context_dim)[None]}
STEPS = 4


def network(config: ImageUNetConfig = CONFIG) -> ImageUNet:
    net = randomize(ImageUNet(config)).requires_grad_(False)
    assert isinstance(net, ImageUNet)
    return net


@pytest.fixture(scope="module")
def unet() -> ImageUNet:
    return network()


def data_of(row: Method, clips: int = 2) -> TrainingData:
    if row.data == "images":
        return encode_photos(pictures(2), "a <toy>", ENCODERS)
    captions = ["a car <toy>", "a plane rolls"] if row.related_clips else "a car turns"
    return encode_clips([pictures(3, seed) for seed in range(clips)], captions, ENCODERS, frames=2)


def run(unet: ImageUNet, row: Method, **hooks) -> TrainingResult:
    settings = TrainingSettings.for_method(
        row, steps=STEPS, learning_rate=0.02, batch_size=2, seed=1, save_every=2, warmup=0
    )
    named = {"placeholder": "<toy>", "class_word": "toy"} if row.token != "none" else {}
    tokens = TOKENS if row.token == "given" else None
    return train_method(unet, ENCODERS.text, data_of(row), row, settings=settings, tokens=tokens, **named, **hooks)


def sampled(unet: ImageUNet, *trained, strengths: list[float] | None = None, **more) -> Tensor:
    prompt = "a <toy> turns" if any(each.tokens for each in trained) else "a car turns"
    settings = SamplingSettings(prompt, frames=3, height=16, width=16, steps=2, guidance=2.0, **more)
    return generate(unet, ENCODERS, settings, customize(trained, strengths))


def stopped_and_resumed(unet: ImageUNet, row: Method, folder: Path) -> tuple[bytes, bytes]:
    """The file of a training that was stopped half way and resumed, and of one that was not."""
    seen, state = [], folder / "state.safetensors"
    callbacks = Callbacks(progress=lambda step, *rest: seen.append(step), should_stop=lambda: len(seen) == 2)
    assert run(unet, row, callbacks=callbacks, state_path=state).stopped
    results = {"resumed": run(unet, row, state_path=state, resume=True), "whole": run(unet, row)}
    for name, result in results.items():
        assert not result.stopped
        save_trained(folder / f"{name}.safetensors", result.trained)
    resumed, whole = ((folder / f"{name}.safetensors").read_bytes() for name in results)
    return resumed, whole


@pytest.mark.parametrize("name", [name for name in METHODS if name not in NEED_CONVOLUTIONS])
def test_every_row_trains_resumes_saves_loads_and_samples(unet: ImageUNet, name: str, tmp_path: Path) -> None:
    row = fitted(METHODS[name], CONFIG)
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    resumed, whole = stopped_and_resumed(unet, row, tmp_path)
    assert resumed == whole
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())
    loaded = load_adapter(tmp_path / "whole.safetensors")
    assert loaded.info.format_version == 3 and loaded.info.unet_config == CONFIG
    check_fits(loaded.info, unet.config)
    here = sampled(unet, loaded)
    assert here.shape == (3, 3, 16, 16) and here.isfinite().all()
    if loaded.adapter is not None:
        assert not torch.allclose(here, sampled(unet, loaded, strengths=[0.0]), atol=1e-4)


def test_subject_motion_and_clip_act_together(unet: ImageUNet) -> None:
    names = ("identity", "motion", "lora_motion", "tune_a_video")
    trained = [run(unet, fitted(METHODS[name], CONFIG)).trained for name in names]
    whole = sampled(unet, *trained)
    for index in range(len(names)):
        strengths = [float(index != other) for other in range(len(names))]
        assert not torch.allclose(whole, sampled(unet, *trained, strengths=strengths), atol=1e-5), names[index]
    alone = sampled(unet, *trained, strengths=[0.0] * len(names))
    torch.testing.assert_close(alone, sampled(unet, replace(trained[0], adapter=None), strengths=[1.0]))


@pytest.mark.parametrize("name", NEED_CONVOLUTIONS)
def test_rows_for_temporal_convolutions_say_so(name: str) -> None:
    with pytest.raises(ValueError, match="no such convolutions: take a method without them"):
        fitted(METHODS[name], CONFIG)


def test_without_a_motion_module_motions_say_so() -> None:
    for name in ("motion", "frame_aware"):
        with pytest.raises(ValueError, match="this image model has none: give one.*tune_a_video"):
            fitted(METHODS[name], STILL)
    for name in ("lora_motion", "fine_tuning_motion"):
        with pytest.raises(ValueError, match="learns how things move in its motion module; give one"):
            fitted(METHODS[name], STILL)
    for name in ("identity", "lora_subject", "tune_a_video"):
        fitted(METHODS[name], STILL)


def test_tune_a_video_is_for_image_models_and_one_clip() -> None:
    with pytest.raises(ValueError, match="this base is a video model already: take a Stable Diffusion 1.5"):
        fitted(TUNE_A_VIDEO, UNetConfig())
    with pytest.raises(ValueError, match="learns from one clip and here are 2"):
        motion_plan(defaults_for(STILL), STILL, TUNE_A_VIDEO, 2, settings={})


@pytest.mark.parametrize("kind", ["identity", "motion"])
def test_adapters_sit_where_they_belong(kind: str) -> None:
    config = getattr(AdapterConfig, kind)(condition_dim=None)
    full = ImageUNetConfig(motion_frames=32)
    sites = set(Adapter(config, full, device="meta").modules_at)
    spatial = {site.name for site in transformer_sites(full) if site.kind == "spatial"}
    temporal = {site.name for site in transformer_sites(full) if site.kind == "temporal"}
    if kind == "identity":
        assert sites == {f"{name}.transformer_blocks.0.attn2" for name in spatial} and len(sites) == 16
    else:
        parts = ("attn1", "attn2", "ff")
        assert sites == {f"{name}.transformer_blocks.0.{part}" for name in temporal for part in parts}
        assert len(sites) == 60


def test_a_subject_is_learned_on_the_image_model_alone(unet: ImageUNet) -> None:
    other = network()
    assert other.motion is not None
    randomize(other.motion, seed=9)
    trained = [run(each, fitted(IDENTITY, CONFIG)).trained.adapter.state_dict() for each in (unet, other)]
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())
    still = unet.still()
    assert still.config == STILL and still.motion is None and unet.motion is not None
    assert schedule_for(still.config) is SCHEDULE and schedule_for(unet.config) is LINEAR_SCHEDULE
    assert still.input_blocks is unet.input_blocks


def test_betas_with_a_motion_module_are_linear() -> None:
    alphas = torch.cumprod(1 - torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64), 0)
    torch.testing.assert_close(LINEAR_SCHEDULE.alphas_cumprod, alphas)
    assert LINEAR_SCHEDULE.alphas_cumprod[-1] < SCHEDULE.alphas_cumprod[-1]


def test_appearance_guidance_takes_features_of_any_width(unet: ImageUNet) -> None:
    row = fitted(MOTION, CONFIG)
    trained = run(unet, row).trained
    assert trained.adapter.config.condition_dim == FEATURE_WIDTH != CONFIG.context_dim
    settings = SamplingSettings("a car", frames=3, height=16, width=16, steps=2)
    videos = [
        generate(unet, ENCODERS, settings, customize([trained]), guidance_image=torch.full((3, 16, 16), shade))
        for shade in (0.0, 1.0)
    ]
    assert not torch.allclose(*videos, atol=1e-4)


def test_adapters_of_the_other_kind_of_base_are_refused(unet: ImageUNet, tmp_path: Path) -> None:
    info = run(unet, fitted(IDENTITY, CONFIG)).trained.info
    with pytest.raises(ValueError, match="made for a Stable Diffusion image UNet and this is a ModelScope.*train it"):
        check_fits(info, UNetConfig())
    tiny = UNetConfig(dim=32, dim_mult=(1,), res_blocks=1, attention_levels=(True,), head_dim=16, context_dim=8)
    modelscope = replace(info, unet_config=tiny)
    assert places(info, CONFIG) == places(modelscope, tiny)  # names and widths alone would let it pass
    with pytest.raises(ValueError, match="made for a ModelScope text-to-video UNet and this is a Stable Diffusion"):
        check_fits(modelscope, CONFIG)
    save_authors_adapter(tmp_path / "theirs.pth", Adapter(AdapterConfig.identity(), UNetConfig()), 3)
    theirs = load_adapter(tmp_path / "theirs.pth", ImageUNetConfig(motion_frames=32)).info
    with pytest.raises(ValueError, match="made for a ModelScope"):
        check_fits(theirs, ImageUNetConfig(motion_frames=32))


def test_defaults_are_the_authors() -> None:
    own = defaults_for(ImageUNetConfig(motion_frames=24))
    assert (own.height, own.width, own.frames, own.guidance, own.steps) == (512, 512, 16, 8.0, 25)
    assert own.sampling("a dog").steps == 25 and own.sampling("a dog", steps=7).steps == 7
    settings = own.settings_for(TUNE_A_VIDEO)
    assert (settings.steps, settings.learning_rate, settings.offset_noise) == (500, 3e-5, 0.0)
    assert defaults_for(replace(CONFIG, motion_frames=4)).frames == 4


# ------------------------------------------------------------------------------------------------------- Tune-A-Video


def test_frames_attend_to_the_first_and_the_previous() -> None:
    x = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 2, 1)  # a token's value is its frame's number
    found = first_and_previous(x)
    assert found.shape == (1, 4, 4, 1)
    assert found[0, :, :, 0].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 2, 2]]


def test_a_fresh_tuning_changes_what_frames_read_and_nothing_else() -> None:
    still = network(STILL)
    stack = AdapterStack([StackEntry(FrameAttention(FrameAttentionConfig(), STILL))])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 3, 8, 8, generator=generator)
    context, timesteps = torch.randn(1, 77, 8, generator=generator), torch.tensor([500])
    alike = x[:, :, :1].expand_as(x).contiguous()
    plain, tuned = still(alike, timesteps, context), still(alike, timesteps, context, stack)
    torch.testing.assert_close(tuned, plain, atol=1e-5, rtol=0)
    plain, tuned = still(x, timesteps, context), still(x, timesteps, context, stack)
    assert not torch.allclose(tuned, plain, atol=1e-3)
    off = AdapterStack([replace(stack.entries[0], strength=0.0)])
    assert torch.equal(still(x, timesteps, context, off), plain)


def test_tuned_is_what_the_authors_tune() -> None:
    full = ImageUNetConfig()
    names = list(FrameAttention(FrameAttentionConfig(), full, device="meta").state_dict())
    queries = [name for name in names if name.endswith(".to_q.weight.delta")]
    temporal = [name for name in names if ".attn_temp." in name]
    assert len(queries) == 32 and len(temporal) == 16 * 5 and len(names) == 112
    block = "middle_block.1.transformer_blocks.0"
    assert {
        f"{block}.attn1.to_q.weight.delta",
        f"{block}.attn2.to_q.weight.delta",
        f"{block}.attn_temp.to_out.0.bias",
    } <= {*names}


def test_what_was_tuned_inverts_its_clip() -> None:
    still = network(STILL)
    trained = run(still, fitted(TUNE_A_VIDEO, STILL)).trained
    settings = {"frames": 3, "height": 32, "width": 32, "steps": 50, "guidance": 1.0, "prior_strength": 1.0}
    clip = pictures(3)
    own = SamplingSettings("", **settings)
    found = generate(still, ENCODERS, own, customize([trained]), prior_clip=clip)
    assert found.shape == clip.shape
    calls = []
    hook = still.time_embed.register_forward_hook(lambda *_: calls.append(None))
    generate(still, ENCODERS, own, customize([trained]), prior_clip=clip)
    hook.remove()
    other = generate(still, ENCODERS, own, customize([trained], [0.0]), prior_clip=clip)
    assert len(calls) == 100 and not torch.allclose(found, other, atol=1e-4)


def test_tune_a_video_from_the_command_line(tmp_path: Path) -> None:
    from dreamvideo.commands.cli import main
    from dreamvideo.media.writing import write_video

    write_tiny_image_base(tmp_path / "base", motion=False, images=False)
    write_video(tmp_path / "clip.mp4", torch.rand(4, 3, 64, 64), 8)
    base = ["--base", str(tmp_path / "base"), "--device", "cpu"]
    size = ["--height", "32", "--width", "32", "--frames", "2"]
    out = tmp_path / "clip.safetensors"
    train = ["train", "motion", str(tmp_path / "clip.mp4"), "--caption", "a dot moves", "--method", "tune_a_video"]
    assert main([*train, "--steps", "2", "--no-cache", "--out", str(out), *size, *base]) == 0
    info = read_info(out)
    assert info is not None and str(info) == "Tune-A-Video of a clip, 2 steps"
    prior = ["--prior-clip", str(tmp_path / "clip.mp4"), "--prior-strength", "1"]
    sample = ["sample", "a square moves", "--adapter", str(out), "--steps", "2", *prior, *size, *base]
    assert main([*sample, "--out", str(tmp_path / "video.mp4")]) == 0
    assert (tmp_path / "video.mp4").stat().st_size > 0


def test_a_motion_without_an_image_encoder_is_learned_without_guidance(tmp_path: Path) -> None:
    from dreamvideo.media.writing import write_video
    from dreamvideo.runs import Reports

    base = open_base(write_tiny_image_base(tmp_path / "base", images=False), device="cpu")
    write_video(tmp_path / "clip.mp4", torch.rand(4, 3, 64, 64), 8)
    said: list[str] = []
    more = {"size": (32, 32), "frames": 2, "steps": 1, "out": tmp_path / "motion.safetensors"}
    outcome = train_motion(base, [tmp_path / "clip.mp4"], ["a dot"], reports=Reports(say=said.append), **more)
    assert outcome.adapter.adapter is not None and outcome.adapter.adapter.config.condition_dim is None
    assert any("no image encoder" in line for line in said)
    with pytest.raises(ValueError, match="positions for 32 frames and the video has 33"):
        train_motion(base, [tmp_path / "clip.mp4"], ["a dot"], **{**more, "frames": 33})
    assert "dreamvideo" in MOTION_METHODS


def test_dreamvideo_from_the_command_line(tmp_path: Path) -> None:
    from dreamvideo.commands.cli import main
    from dreamvideo.media.writing import write_png, write_video

    write_tiny_image_base(tmp_path / "base")
    (tmp_path / "photos").mkdir()
    for index in range(2):
        write_png(tmp_path / "photos" / f"{index}.png", torch.rand(3, 64, 64))
    write_video(tmp_path / "clip.mp4", torch.rand(4, 3, 64, 64), 8)
    folder = tmp_path / "base"
    parts = ["--unet", folder / "dreamy.safetensors", "--motion-module", folder / "v3_sd15_mm.safetensors"]
    base = ["--height", 64, "--width", 64, "--device", "cpu", *parts, "--clip", folder / "clip.safetensors"]
    dog, run = tmp_path / "dog.safetensors", tmp_path / "run.safetensors"
    more = ["--steps", 2, "--no-cache", *base]
    subject = ["train", "subject", tmp_path / "photos", "--class-word", "dog", "--placeholder", "<my-dog>"]
    motion = ["train", "motion", tmp_path / "clip.mp4", "--caption", "a dog runs", "--frames", 3]
    sample = ["sample", "a <my-dog> runs", "--adapter", dog, "--adapter", run, "--frames", 3, "--steps", 2, *base]
    for command in (
        [*subject, "--token-steps", 2, "--out", dog, *more],
        [*motion, "--out", run, *more],
        [*sample, "--out", tmp_path / "video.mp4"],
    ):
        assert main([str(each) for each in command]) == 0, command
    assert (tmp_path / "video.mp4").stat().st_size > 0
    assert "motion_module = " in (tmp_path / "run.toml").read_text()
