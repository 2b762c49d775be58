"""Files of CLIP and of the VAE: layouts and configs, against open_clip and diffusers themselves; and whole bases."""

from __future__ import annotations

import json
import re
import sys
import types

import numpy
import pytest
import torch
from encoder_files import read_clip, read_vae
from safetensors.torch import save_file

from dreamvideo.files.base import find_base
from dreamvideo.files.encoders import open_clip_file
from dreamvideo.files.inspection import describe, inspect
from dreamvideo.files.tensors import CheckpointError
from dreamvideo.models.config import UNetConfig
from dreamvideo.models.unet import UNet

VAE = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
}
CLIP = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 48, "patch_size": 16, "width": 128, "layers": 3, "head_width": 64, "mlp_ratio": 2.0,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 90, "width": 64, "heads": 1, "layers": 2, "mlp_ratio": 4.0},
}  # fmt: skip
TINY = UNetConfig(dim=32, dim_mult=(1, 2), res_blocks=1, attention_levels=(True, False), head_dim=8, context_dim=64)


def randomised(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / max(1, parameter[0].numel()) ** 0.5
    return model.eval()


@pytest.fixture(scope="module")
def vae():
    from diffusers import AutoencoderKL

    return randomised(AutoencoderKL(**VAE))


@pytest.fixture(scope="module")
def clip():
    from open_clip.model import CLIP as OpenCLIP

    model = OpenCLIP(**CLIP)
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.1 if parameter.ndim else parameter.data
    return model.eval()


LDM = (  # as the table of the reference states it, diffusers -> LDM
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_(q|k|v)", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.0\.resnets\.(\d)", r"up.2.block.\1"),
    (r"up_blocks\.1\.resnets\.(\d)", r"up.1.block.\1"),
    (r"up_blocks\.2\.resnets\.(\d)", r"up.0.block.\1"),
    (r"up_blocks\.0\.upsamplers\.0", "up.2.upsample"),
    (r"up_blocks\.1\.upsamplers\.0", "up.1.upsample"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)


def in_ldm(state):
    renamed = {}
    for name, value in state.items():
        if re.search(r"attentions\.0\.to_.*weight", name):
            value = value[:, :, None, None]
        for pattern, replacement in LDM:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def in_old_diffusers(state):
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    return {re.sub(r"to_(q|k|v|out\.0)\.", lambda m: names[m[0][:-1]] + ".", name): v for name, v in state.items()}


def save(path, state, **metadata):
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path, metadata or None)
    else:
        torch.save(state, path)
    return path


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def assert_same(found, state):
    assert set(found) == set(state)
    assert all(torch.equal(found[name], state[name]) for name in state)


VAE_FILES = {
    "diffusers": lambda s: s,
    "diffusers before 0.14": in_old_diffusers,
    "ldm": in_ldm,
    "modelscope": lambda s: {"state_dict": prefixed("first_stage_model.", in_ldm(s))},
    "with its loss": lambda s: {"state_dict": in_ldm(s) | {"loss.logvar": torch.zeros(1)}},
    "whole checkpoint": lambda s: {
        "state_dict": prefixed("first_stage_model.", in_ldm(s))
        | {"model.diffusion_model.input_blocks.1.0.in_layers.0.weight": torch.zeros(4), "betas": torch.zeros(9)},
        "global_step": 5,
    },
    "vae of a pipeline": lambda s: prefixed("vae.", s),
}


@pytest.mark.parametrize("layout", VAE_FILES)
def test_autoencoder_of_every_layout(tmp_path, vae, layout):
    state, config = read_vae(save(tmp_path / "vae.ckpt", VAE_FILES[layout](vae.state_dict())))
    assert_same(state, vae.state_dict())
    assert {key: config[key] for key in VAE} == VAE


def test_autoencoder_config_builds_the_same_autoencoder(tmp_path, vae):
    from diffusers import AutoencoderKL

    state, config = read_vae(save(tmp_path / "vae.pth", in_ldm(vae.state_dict())))
    built = AutoencoderKL(**config).eval()
    built.load_state_dict(state, assign=True)
    image = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(built.encode(image).latent_dist.mean, vae.encode(image).latent_dist.mean)
        latents = torch.rand(1, 4, 4, 6, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(built.decode(latents).sample, vae.decode(latents).sample)


def test_autoencoder_with_published_names_of_stable_diffusion(tmp_path):
    """The full-size autoencoder: 248 tensors, 83,653,863 parameters."""
    from diffusers import AutoencoderKL

    from dreamvideo.files.encoders import ldm_name

    config = VAE | {"block_out_channels": (128, 256, 512, 512)}
    config |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):
        state = AutoencoderKL(**config).state_dict()
    names = {ldm_name(name, 3) for name in state}
    assert len(names) == len(state) == 248
    assert sum(value.numel() for value in state.values()) == 83_653_863
    for name in (
        "encoder.down.1.block.0.nin_shortcut.weight",
        "encoder.down.2.downsample.conv.bias",
        "encoder.mid.attn_1.q.weight",
        "decoder.up.0.block.2.conv2.weight",
        "decoder.up.3.upsample.conv.weight",
        "decoder.norm_out.bias",
        "post_quant_conv.weight",
    ):
        assert name in names


def test_autoencoder_metadata_goes_before_shapes(tmp_path):
    from diffusers import AutoencoderKL

    config = VAE | {"block_out_channels": (16, 16, 32), "norm_num_groups": 8}
    model = randomised(AutoencoderKL(**config))
    with pytest.raises(CheckpointError, match="32 norm groups"):
        read_vae(save(tmp_path / "bare.safetensors", model.state_dict()))
    path = save(tmp_path / "vae.safetensors", model.half().state_dict(), vae_config=json.dumps(config))
    state, found = read_vae(path)
    assert found == config and state["quant_conv.bias"].dtype == torch.float16
    state, _ = read_vae(path, dtype=torch.float32)
    assert_same(state, {name: value.float() for name, value in model.state_dict().items()})


def test_checkpoints_of_lightning_are_read_without_lightning(tmp_path, vae, monkeypatch):
    """Stable Diffusion's carry a callback's class and NumPy numbers beside the weights; they are left unread."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    packages = ("pytorch_lightning", "pytorch_lightning.callbacks")
    for package in [types.ModuleType(name) for name in packages] + [module]:
        monkeypatch.setitem(sys.modules, package.__name__, package)
    extra = {"callbacks": {module.ModelCheckpoint: {"best": numpy.float64(0.5)}}, "saved": module.ModelCheckpoint()}
    path = save(tmp_path / "x.ckpt", {"state_dict": in_ldm(vae.state_dict())} | extra)
    monkeypatch.undo()
    assert "pytorch_lightning" not in sys.modules
    name = "numpy._core.multiarray.scalar"
    allowed = [(types.FunctionType(refuse.__code__, {}), name) for _ in range(20)]  # by hosts: which counts is chance
    with torch.serialization.safe_globals(allowed):
        assert_same(read_vae(path)[0], vae.state_dict())
        assert set(allowed) <= set(torch.serialization.get_safe_globals())


def refuse(*_):
    raise TypeError


def changed(state, **values):
    return state | {name.replace("__", "."): value for name, value in values.items()}


@pytest.mark.parametrize(
    "message, change",
    [
        ("lacks 1 of", lambda s: {n: v for n, v in s.items() if n != "decoder.conv_out.bias"} | {}),
        ("another architecture", lambda s: changed(s, encoder__extra=torch.zeros(1))),
        ("VQ autoencoder", lambda s: changed(s, quantize__embedding__weight=torch.zeros(1))),
        ("16 channels", lambda s: changed(s, decoder__conv_in__weight=torch.zeros(64, 16, 3, 3))),
        ("3 dimensions", lambda s: changed(s, decoder__conv_in__weight=torch.zeros(64, 4, 3, 3, 3))),
        ("has shape", lambda s: changed(s, quant_conv__bias=torch.zeros(7))),
        ("has no encoder.conv_in", lambda s: {n: v for n, v in s.items() if "encoder.conv_in" not in n}),
        ("NaN", lambda s: changed(s, quant_conv__bias=torch.full((8,), float("nan")))),
        ("an OpenCLIP", lambda s: {"visual.conv1.weight": torch.zeros(1)}),
    ],
)
def test_autoencoders_that_do_not_fit_are_refused(tmp_path, vae, message, change):
    with pytest.raises(CheckpointError, match=message):
        read_vae(save(tmp_path / "vae.pth", change(vae.state_dict())))


@pytest.mark.parametrize("prefix", ["", "module.", "cond_stage_model.model."])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_clip_config_is_inferred(tmp_path, clip, prefix, suffix):
    state, config = read_clip(save(tmp_path / f"clip{suffix}", prefixed(prefix, clip.state_dict())))
    assert config == CLIP
    assert_same(state, clip.state_dict())


def test_clip_config_builds_the_same_model(tmp_path, clip):
    from open_clip.model import CLIP as OpenCLIP

    state, config = read_clip(save(tmp_path / "clip.bin", clip.state_dict()))
    built = OpenCLIP(**config).eval()
    built.load_state_dict(state, assign=True)
    image = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(90, (2, 77), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(built.encode_image(image), clip.encode_image(image))
        torch.testing.assert_close(built.encode_text(tokens), clip.encode_text(tokens))


def test_config_of_the_published_clip(tmp_path):
    """ViT-H-14: 686 tensors, 986,109,441 parameters, and image heads 80 wide, which no shape tells."""
    import open_clip
    from open_clip.model import CLIP as OpenCLIP

    from dreamvideo.files.encoders import _infer_clip

    published = open_clip.get_model_config("ViT-H-14")
    with torch.device("meta"):
        state = OpenCLIP(**published).state_dict()
    assert len(state) == 686 and sum(value.numel() for value in state.values()) == 986_109_441
    config = _infer_clip({name: tuple(value.shape) for name, value in state.items()})
    for part in ("vision_cfg", "text_cfg"):
        assert config[part] == published[part] | {"mlp_ratio": 4.0}
    assert config["embed_dim"] == published["embed_dim"]


def test_clip_metadata_goes_before_shapes_and_eight_bit_numbers_are_cast(tmp_path, clip):
    config = CLIP | {"text_cfg": CLIP["text_cfg"] | {"heads": 4}}
    state = {name: value.half() for name, value in clip.state_dict().items()}
    state["token_embedding.weight"] = state["token_embedding.weight"].to(torch.float8_e4m3fn)
    path = save(tmp_path / "clip.safetensors", state, open_clip_config=json.dumps(config))
    found, read = read_clip(path)
    assert read == config
    assert_same(found, {name: value.half() for name, value in state.items()})
    assert read_clip(path, dtype=torch.float32)[0]["token_embedding.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    "message, change",
    [
        ("text encoder without its image", lambda s: {n: v for n, v in s.items() if not n.startswith("visual.")}),
        ("transformers text encoder", lambda s: {"text_model.encoder.layers.0.ln.weight": torch.zeros(1)}),
        ("lacks 2 of", lambda s: {n: v for n, v in s.items() if not n.startswith("ln_final")}),
        ("has no text_projection", lambda s: {n: v for n, v in s.items() if n != "text_projection"}),
        ("another architecture", lambda s: changed(s, visual__attn_pool__query=torch.zeros(1))),
        ("NaN", lambda s: changed(s, logit_scale=torch.tensor(float("nan")))),
    ],
)
def test_clips_that_do_not_fit_are_refused(tmp_path, clip, message, change):
    with pytest.raises(CheckpointError, match=message):
        read_clip(save(tmp_path / "clip.bin", change(clip.state_dict())))


# Bases


@pytest.fixture
def parts(vae, clip):
    return {
        "unet": UNet(TINY).state_dict(),
        "clip": clip.state_dict(),
        "vae": vae.state_dict(),
    }


@pytest.mark.parametrize(
    "unet_name, clip_name, vae_name",
    [
        ("unet.safetensors", "clip.safetensors", "vae.safetensors"),
        ("text2video_pytorch_model.pth", "open_clip_pytorch_model.bin", "VQGAN_autoencoder.pth"),
        ("model_scope_v1-5_0632000.pth", "open_clip_pytorch_model.bin", "v2-1_512-ema-pruned.ckpt"),
        (
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "open_clip_model.safetensors",
            "vae/diffusion_pytorch_model.bin",
        ),
        ("zeroscope_v2.safetensors", "my clip.bin", "kl.pt"),
    ],
)
def test_base_folders_as_they_are_published(tmp_path, parts, unet_name, clip_name, vae_name):
    for part, name in (("unet", unet_name), ("clip", clip_name), ("vae", vae_name)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(tmp_path / name, parts[part])
    (tmp_path / "readme.bin").write_text("not a checkpoint")
    base = find_base(tmp_path)
    assert (base.unet, base.clip, base.vae) == (tmp_path / unet_name, tmp_path / clip_name, tmp_path / vae_name)
    assert base.missing == ()
    info = inspect(tmp_path)
    assert json.loads(json.dumps(info)) and info["missing"] == {}
    assert info["parts"]["unet"]["config"] == TINY.to_dict()
    text = describe(info)
    assert all(name.split("/")[-1] in text for name in (unet_name, clip_name, vae_name))


def test_given_files_go_before_the_folders(tmp_path, parts):
    for part in parts:
        save(tmp_path / f"{part}.safetensors", parts[part])
    other = save(tmp_path / "other.pth", parts["vae"])
    assert find_base(tmp_path, vae=other).vae == other
    explicit = {part: tmp_path / f"{part}.safetensors" for part in parts}
    assert find_base(**explicit) == find_base(tmp_path)
    with pytest.raises(CheckpointError, match="no file .*absent.pth"):
        find_base(tmp_path, clip=tmp_path / "absent.pth")


@pytest.mark.parametrize("missing", ["unet", "clip", "vae"])
def test_half_a_base_says_what_is_missing_and_where_it_comes_from(tmp_path, parts, missing):
    source = {"unet": "damo-vilab", "clip": "laion/CLIP-ViT-H-14", "vae": "stabilityai"}
    for part in set(parts) - {missing}:
        save(tmp_path / f"{part}.safetensors", parts[part])
    with pytest.raises(CheckpointError, match="half a base") as error:
        find_base(tmp_path)
    for part, where in source.items():
        assert (where in str(error.value)) == (part == missing)
    assert find_base(tmp_path, partial=True).missing == (missing,)
    info = inspect(tmp_path)
    assert set(info["missing"]) == {missing}
    assert source[missing] in describe(info)


def test_folders_without_a_base_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no base"):
        find_base(tmp_path)
    with pytest.raises(CheckpointError, match="holds no base"):
        inspect(tmp_path)
    with pytest.raises(CheckpointError, match="no folder"):
        find_base(tmp_path / "absent")


def test_two_unnamed_candidates_are_not_guessed_between(tmp_path, parts):
    for name in ("one.pth", "two.pth"):
        save(tmp_path / name, parts["unet"])
    with pytest.raises(CheckpointError, match="one.pth, two.pth"):
        find_base(tmp_path, partial=True)


@pytest.mark.parametrize("part", ["unet", "clip", "vae"])
def test_inspect_tells_a_single_file(tmp_path, parts, part):
    state = {name: value.half() for name, value in parts[part].items()}
    info = inspect(save(tmp_path / "x.pth", state))
    assert (info["part"], info["dtype"], info["tensors"]) == (part, "float16", len(state))
    assert info["parameters"] == sum(value.numel() for value in state.values())
    assert f"{info['parameters']:,}" in describe(info)


def test_inspect_refuses_what_is_no_part_of_a_base(tmp_path):
    with pytest.raises(CheckpointError, match="a LoRA"):
        inspect(save(tmp_path / "x.pth", {"x.lora_up.weight": torch.zeros(1)}))


def test_opening_a_clip_does_not_read_it(tmp_path, clip):
    path = save(tmp_path / "clip.pth", clip.state_dict() | {"ln_final.bias": torch.full((64,), float("nan"))})
    assert open_clip_file(path)[1] == CLIP
