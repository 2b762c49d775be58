"""Files of image bases: every layout gives the same network, what does not fit is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_image_base import (
    IMAGE,
    TEXT,
    UNET_PREFIX,
    V1,
    V2,
    V3,
    VERSIONS,
    as_ldm,
    checkpoint,
    image_state,
    motion_lora,
    motion_state,
    network,
    text_state,
    vae_state,
    write_tiny_image_base,
)
from torch import Tensor

from dreamvideo.base import open_base
from dreamvideo.commands.cli import main
from dreamvideo.encoders.clip_text import ClipText, build_text
from dreamvideo.encoders.protocols import NoImages
from dreamvideo.files.adapters import load_adapter
from dreamvideo.files.base import find_base
from dreamvideo.files.conversion import convert
from dreamvideo.files.fingerprint import fingerprint, same_base
from dreamvideo.files.image_layouts import image_diffusers_name
from dreamvideo.files.inspection import describe, inspect
from dreamvideo.files.motion_modules import read_motion_module
from dreamvideo.files.motion_names import motion_diffusers_name
from dreamvideo.files.tensors import CheckpointError, write_safetensors
from dreamvideo.files.text_encoders import stored_text
from dreamvideo.files.unet import load_unet, read_unet
from dreamvideo.models.animatediff import ImageUNet
from dreamvideo.models.network import VideoUNet


def save(path: Path, state: dict[str, Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        write_safetensors(path, state, {})
    else:
        torch.save({"state_dict": state} if path.suffix == ".ckpt" else state, path)
    return path


def same(found: VideoUNet, wanted: ImageUNet) -> bool:
    ours, theirs = found.state_dict(), wanted.state_dict()
    return (
        found.config == wanted.config
        and ours.keys() == theirs.keys()
        and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    )


def in_diffusers(net: ImageUNet) -> dict[str, Tensor]:
    return {image_diffusers_name(name, net.config.res_blocks): value for name, value in image_state(net).items()}


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_every_layout_gives_the_same_network(tmp_path: Path, suffix: str) -> None:
    net = network(IMAGE)
    files = [
        save(tmp_path / f"whole{suffix}", checkpoint(net)),
        save(tmp_path / f"bare{suffix}", image_state(net)),
        save(tmp_path / f"unet{suffix}", in_diffusers(net)),
    ]
    for path in files:
        assert same(load_unet(path), net), path
    assert [read_unet(path).layout for path in files] == ["original", "original", "diffusers"]


@pytest.mark.parametrize("version", VERSIONS)
def test_versions_of_motion_modules_are_told_apart(tmp_path: Path, version: str) -> None:
    net = network(VERSIONS[version])
    bare = motion_state(net, positions=version != "AnimateLCM")
    theirs = {motion_diffusers_name(name): value for name, value in motion_state(net, positions=False).items()}
    for name, value in bare.items():
        if name.endswith(".pos_encoder.pe"):
            block = motion_diffusers_name(name.partition(".attention_blocks.")[0])
            theirs[f"{block}.pos_embed.pe"] = value
    image = save(tmp_path / "image.safetensors", image_state(net))
    for path, state in (
        ("a.ckpt", {f"module.{name}": value for name, value in bare.items()}),
        ("b.safetensors", bare),
        ("c.safetensors", theirs),
    ):
        module = read_motion_module(save(tmp_path / path, state))
        assert (module.version, module.frames) == (version, net.config.motion_frames)
        found = read_unet(image, motion_module=tmp_path / path)
        unet = load_unet(image, motion_module=tmp_path / path)
        assert found.config == net.config and same(unet, net)
        assert found.parameters == sum(each.numel() for each in net.parameters())
        assert fingerprint(found.tensors) == fingerprint(unet)
    assert f"version {version}" in describe(inspect(tmp_path / "a.ckpt"))


def test_a_fingerprint_knows_the_motion_module(tmp_path: Path) -> None:
    image = save(tmp_path / "image.safetensors", image_state(network(V3)))
    prints = []
    for seed in (0, 1):
        path = save(tmp_path / f"{seed}.safetensors", motion_state(network(V3, seed)))
        prints.append(fingerprint(load_unet(image, motion_module=path)))
    prints.append(fingerprint(load_unet(image)))
    assert not any(same_base(prints[i], prints[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    half = load_unet(image, motion_module=tmp_path / "0.safetensors", dtype=torch.bfloat16)
    assert same_base(prints[0], fingerprint(half))


def test_a_folder_is_a_base(tmp_path: Path) -> None:
    base = open_base(write_tiny_image_base(tmp_path), device="cpu")
    assert same(base.unet, network(V3)) and isinstance(base.encoders.text, ClipText)
    assert base.encoders.image.encode(torch.rand(1, 3, 40, 40)).shape == (1, 12)
    latents = base.encoders.vae.encode(torch.rand(2, 3, 32, 32)).mean
    assert latents.shape == (2, 4, 4, 4)
    assert base.encoders.text.encode(["a dog"]).shape == (1, 77, 24)
    told = describe(inspect(tmp_path))
    assert "UNet\n" in told and "motion module (AnimateDiff)\n" in told and "missing" not in told


def test_a_checkpoint_alone_is_a_base_without_motion_and_image_encoder(tmp_path: Path) -> None:
    write_tiny_image_base(tmp_path, motion=False, images=False)
    base = open_base(unet=tmp_path / "dreamy.safetensors", device="cpu")
    assert same(base.unet, network(IMAGE)) and isinstance(base.encoders.image, NoImages)
    with pytest.raises(ValueError, match="no image encoder.*--clip"):
        base.encoders.image.encode(torch.rand(1, 3, 40, 40))


def test_a_folder_of_diffusers_is_a_base(tmp_path: Path) -> None:
    net = network(V2)
    name = "diffusion_pytorch_model.safetensors"
    save(tmp_path / "unet" / name, in_diffusers(net))
    save(tmp_path / "vae" / name, vae_state())
    save(tmp_path / "text_encoder" / "model.safetensors", text_state())
    save(tmp_path / "mm.ckpt", motion_state(net))
    assert same(open_base(tmp_path, device="cpu").unet, net)


def test_the_text_tower_is_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    state, config = stored_text(save(tmp_path / "text.safetensors", text_state()))
    text = ClipText(build_text(dict(state.stream()), config))
    theirs = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=TEXT["vocabulary"],
            hidden_size=TEXT["width"],
            intermediate_size=TEXT["hidden"],
            num_hidden_layers=TEXT["layers"],
            num_attention_heads=TEXT["heads"],
            max_position_embeddings=TEXT["length"],
            hidden_act="quick_gelu",
        )
    ).eval()
    own = theirs.state_dict().keys()
    given = {name if name in own else name.removeprefix("text_model."): value for name, value in text_state().items()}
    assert not theirs.load_state_dict(given, strict=False).unexpected_keys
    prompts = ["a photo of a dog, running", "", "word " * 90]
    ids = torch.tensor([text.tokenize(prompt)[0] for prompt in prompts])
    assert ids.shape == (3, 77) and ids[1].tolist() == [49406, *[49407] * 76]  # filled up with the end token
    with torch.no_grad():
        wanted = theirs(ids).last_hidden_state
    torch.testing.assert_close(text.encode(prompts), wanted, atol=1e-5, rtol=0)


def test_learned_tokens_get_gradients(tmp_path: Path) -> None:
    state, config = stored_text(save(tmp_path / "text.safetensors", text_state()))
    text = ClipText(build_text(dict(state.stream()), config))
    vector = text.embed_word("dog")[:1].clone().requires_grad_()
    plain, learned = text.encode(["a dog"]), text.encode(["a <x>"], {"<x>": vector})
    torch.testing.assert_close(plain, learned)
    learned.square().sum().backward()
    assert vector.grad is not None and vector.grad.abs().sum() > 0


def zeros(*names: str, shape: tuple[int, ...] = (1,)) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name in names}


def others() -> dict[str, dict[str, Tensor]]:
    state = image_state(network(IMAGE))
    first = {"input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)}
    averages = {f"model_ema.diffusion_model{name.replace('.', '')}": value for name, value in state.items()}
    return {
        "Stable Diffusion XL UNet.*take a checkpoint of Stable Diffusion 1.5": state | zeros("label_emb.0.0.weight"),
        "inpainting UNet with 9": state | first,
        "Stable Diffusion 2 UNet": {
            name: value.flatten(1) if "proj_" in name and value.ndim == 4 else value for name, value in state.items()
        },
        "moving averages.*take the checkpoint with the weights": averages,
        "lacks 1 of the UNet's": {name: value for name, value in state.items() if name != "out.0.bias"},
        "holds motion modules already": state | zeros("input_blocks.1.motion_modules.0.norm.weight"),
        "1 tensors that Stable Diffusion 1.5's UNet has not": state | zeros("extra.weight"),
    }


@pytest.mark.parametrize("what", others())
def test_other_image_models_are_refused_by_name(tmp_path: Path, what: str) -> None:
    state = {f"{UNET_PREFIX}{name}" if "model_ema" not in name else name: each for name, each in others()[what].items()}
    path = save(tmp_path / "x.safetensors", state)
    with pytest.raises(CheckpointError, match=what):
        read_unet(path)
    if "UNet's" not in what and "UNet has not" not in what:  # those are looked at when they are opened
        with pytest.raises(CheckpointError, match=what):
            find_base(unet=path)


def other_modules() -> dict[str, dict[str, Tensor]]:
    block = "{}_blocks.{}.motion_modules.0.temporal_transformer.{}"
    sdxl = {
        block.format("down", level, "norm.weight"): torch.zeros(width) for level, width in enumerate((320, 640, 1280))
    }
    state = motion_state(network(V3))
    return {
        "for Stable Diffusion XL.*v3_sd15_mm.ckpt": sdxl,
        "Hotshot-XL": zeros("down_blocks.0.temporal_attentions.0.pos_encoder.positional_encoding"),
        "a motion LoRA, not a motion module: merge it": motion_lora(),
        "PIA": state | zeros("conv_in.weight"),
        "for another image model: its levels have": motion_state(network(replace(V3, dim=64))),
        "not an AnimateDiff motion module": image_state(network(IMAGE)),
        "lacks 1 of the motion module's": {
            name: value
            for name, value in state.items()
            if not name.endswith("up_blocks.0.motion_modules.0.temporal_transformer.proj_out.bias")
        },
    }


@pytest.mark.parametrize("what", other_modules())
def test_other_motion_modules_are_refused_by_name(tmp_path: Path, what: str) -> None:
    image = save(tmp_path / "image.safetensors", image_state(network(IMAGE)))
    path = save(tmp_path / "x.safetensors", other_modules()[what])
    with pytest.raises(CheckpointError, match=what):
        read_unet(image, motion_module=path)


def test_a_motion_module_on_modelscope_is_refused(tmp_path: Path) -> None:
    from tiny_base import write_tiny_base

    path = save(tmp_path / "mm.ckpt", motion_state(network(V3)))
    with pytest.raises(CheckpointError, match="temporal layers of its own.*give a Stable Diffusion 1.5 checkpoint"):
        open_base(write_tiny_base(tmp_path / "base"), motion_module=path)


def test_a_checkpoint_without_text_encoder_says_where_it_comes_from(tmp_path: Path) -> None:
    net = network(IMAGE)
    state = {f"{UNET_PREFIX}{name}": value for name, value in image_state(net).items()}
    save(
        tmp_path / "pruned.safetensors",
        {**state, **{f"first_stage_model.{n}": v for n, v in as_ldm(vae_state()).items()}},
    )
    with pytest.raises(CheckpointError, match="the text encoder.*text_encoder/model.safetensors"):
        find_base(tmp_path)


def test_a_motion_lora_is_no_adapter(tmp_path: Path) -> None:
    path = save(tmp_path / "v2_lora_PanLeft.safetensors", motion_lora())
    with pytest.raises(ValueError, match="a motion LoRA.*dreamvideo convert MODULE OUT --lora"):
        load_adapter(path)
    assert "rank 2" in describe(inspect(path))
    site = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora"
    domain = {f"{site}.down.weight": torch.zeros(2, 32), f"{site}.up.weight": torch.zeros(32, 2)}
    path = save(tmp_path / "v3_sd15_adapter.safetensors", domain)
    with pytest.raises(ValueError, match="domain adapter.*dreamvideo convert CHECKPOINT OUT --lora"):
        load_adapter(path)


def test_motion_loras_are_merged(tmp_path: Path) -> None:
    net, lora = network(V3), motion_lora(V2)  # a v2 LoRA on v3 leaves out what is for the middle
    module = save(tmp_path / "mm.ckpt", motion_state(net))
    path = save(tmp_path / "lora.ckpt", lora)
    assert main(["convert", str(module), str(tmp_path / "merged.safetensors"), "--lora", str(path)]) == 0
    merged = read_motion_module(tmp_path / "merged.safetensors")
    assert (merged.version, merged.frames) == ("v3", 32)
    name = "down_blocks.1.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.{}.weight"
    stem = name.format("processor.to_out_lora.{}")
    change = lora[stem.format("up")] @ lora[stem.format("down")]
    own = name.format("to_out.0")
    torch.testing.assert_close(merged.state[own], motion_state(net)[own] + change)
    assert torch.equal(
        merged.state["up_blocks.0.motion_modules.0.temporal_transformer.norm.bias"],
        motion_state(net)["up_blocks.0.motion_modules.0.temporal_transformer.norm.bias"],
    )


def test_the_domain_adapter_is_merged_into_the_image_unet(tmp_path: Path) -> None:
    net = network(IMAGE)
    source = save(tmp_path / "sd.safetensors", checkpoint(net))
    site = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    lora = {f"{site}.processor.to_q_lora.down.weight": down, f"{site}.processor.to_q_lora.up.weight": up}
    path = save(tmp_path / "v3_sd15_adapter.ckpt", lora)
    convert(source, tmp_path / "out.safetensors", loras=[path])
    name = "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    found = load_unet(tmp_path / "out.safetensors").state_dict()
    torch.testing.assert_close(found[name], net.state_dict()[name] + up @ down)
    with pytest.raises(CheckpointError, match="a domain adapter.*is not for this motion module"):
        convert(save(tmp_path / "mm.ckpt", motion_state(network(V3))), tmp_path / "no.safetensors", loras=[path])


@pytest.mark.parametrize("version", ["v1", "v2", "v3", "AnimateLCM"])
def test_motion_modules_convert_to_diffusers_and_back(tmp_path: Path, version: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    config = VERSIONS[version]
    state = motion_state(network(config), positions=version != "AnimateLCM")
    source = save(tmp_path / "mm.ckpt", state)
    convert(source, tmp_path / "adapter", "diffusers")
    if version != "AnimateLCM":
        module = diffusers.MotionAdapter.from_pretrained(tmp_path / "adapter")
        assert module.config.motion_max_seq_length == config.motion_frames
        assert module.config.use_motion_mid_block == config.motion_middle
    convert(tmp_path / "adapter" / "diffusion_pytorch_model.safetensors", tmp_path / "back.safetensors")
    from safetensors.torch import load_file

    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == state.keys() and all(torch.equal(value, state[name]) for name, value in back.items())


def test_image_unets_convert_to_diffusers_and_back(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    net = network(IMAGE)
    source = save(tmp_path / "sd.safetensors", checkpoint(net))
    convert(source, tmp_path / "pipe", "diffusers")
    twin = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "pipe" / "unet")
    assert twin.config.attention_head_dim == 8
    convert(tmp_path / "pipe" / "unet" / "diffusion_pytorch_model.safetensors", tmp_path / "back.safetensors")
    assert same(load_unet(tmp_path / "back.safetensors"), net)
    assert json.loads((tmp_path / "pipe" / "unet" / "config.json").read_text())["_class_name"] == "UNet2DConditionModel"
    with pytest.raises(CheckpointError, match="vgen is for ModelScope"):
        convert(source, tmp_path / "x.pth", "vgen")


def test_v1_takes_norms_across_frames(tmp_path: Path) -> None:
    assert V1.norm_across_frames and not V2.norm_across_frames
    image = save(tmp_path / "image.safetensors", image_state(network(V1)))
    found = read_unet(image, motion_module=save(tmp_path / "mm.ckpt", motion_state(network(V1))))
    assert found.config == V1
