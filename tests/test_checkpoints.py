"""Base checkpoints: every layout, prefix and container gives the same UNet; what does not fit is refused by name."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreamvideo.files import dtypes
from dreamvideo.files.conversion import convert
from dreamvideo.files.fingerprint import fingerprint, same_base
from dreamvideo.files.layouts import diffusers_name, diffusers_shape, infer_config, original_shapes
from dreamvideo.files.tensors import CheckpointError
from dreamvideo.files.unet import load_unet, read_unet
from dreamvideo.models.config import UNetConfig
from dreamvideo.models.unet import UNet

ORACLES = Path(__file__).parents[2] / "shared" / "oracles"
TINY = UNetConfig(dim=32, dim_mult=(1, 2), res_blocks=1, attention_levels=(True, False), head_dim=8, context_dim=24)
CONFIGS = {
    "full size": UNetConfig(),
    "tiny": TINY,
    "one level": UNetConfig(dim=96, dim_mult=(1,), res_blocks=2, attention_levels=(True,), head_dim=16),
    "heads of 64, one of them first": UNetConfig(
        dim=64, dim_mult=(1, 2), res_blocks=1, attention_levels=(True, True), first_heads=1
    ),
    "attention at the ends": UNetConfig(
        dim=32, dim_mult=(1, 2, 3), res_blocks=3, attention_levels=(True, False, True), head_dim=32, context_dim=40
    ),
    "attention in the middle": UNetConfig(
        dim=64, dim_mult=(1, 2, 2, 4), res_blocks=1, attention_levels=(False, True, False, False), out_channels=8
    ),
}


def random_state(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) / 8 for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def state():
    return random_state(original_shapes(TINY))


def in_diffusers(state, config=TINY):
    return {
        diffusers_name(name, config.res_blocks): value.reshape(diffusers_shape(name, tuple(value.shape)))
        for name, value in state.items()
    }


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


# Architecture


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_config_is_inferred_from_shapes(config, layout):
    shapes = original_shapes(config)
    if layout == "diffusers":
        shapes = {diffusers_name(n, config.res_blocks): diffusers_shape(n, s) for n, s in shapes.items()}
    assert infer_config(shapes, layout) == config


@pytest.mark.skipif(not ORACLES.exists(), reason="no shared oracles")
def test_full_size_names_and_shapes_are_those_of_the_release():
    released = json.loads((ORACLES / "full_size_keys.json").read_text())["base"]
    assert original_shapes(UNetConfig()) == {name: tuple(shape) for name, shape in released.items()}


def test_full_size_counts():
    shapes = original_shapes(UNetConfig())
    assert len(shapes) == 1480
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 1_411_233_860


@pytest.mark.parametrize("config", [CONFIGS["full size"], CONFIGS["attention at the ends"]], ids=["full", "small"])
def test_diffusers_names_and_shapes_are_those_of_diffusers(config):
    from diffusers import UNet3DConditionModel

    from dreamvideo.files.conversion import diffusers_config

    with torch.device("meta"):
        model = UNet3DConditionModel(**{k: v for k, v in diffusers_config(config).items() if k != "_class_name"})
    ours = {diffusers_name(n, config.res_blocks): diffusers_shape(n, s) for n, s in original_shapes(config).items()}
    assert ours == {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_head_dim_from_argument_or_metadata(tmp_path):
    config = UNetConfig(dim=32, dim_mult=(1, 2), res_blocks=1, attention_levels=(True, True), head_dim=8, first_heads=6)
    state = random_state(original_shapes(config))
    path = save(tmp_path / "unet.pth", state)
    with pytest.raises(CheckpointError, match="head_dim"):
        read_unet(path)
    assert read_unet(path, head_dim=8).config == config
    named = save(tmp_path / "unet.safetensors", state, unet_config=json.dumps(config.to_dict()))
    assert read_unet(named, head_dim=16).config == config


# Layouts

PREFIXES = ["", "module.", "model.diffusion_model.", "diffusion_model.", "unet.", "module.unet."]
CONTAINERS = {
    "flat": lambda state: state,
    "vgen": lambda state: {"state_dict": state, "step": 600},
    "resumable": lambda state: {"state_dict": state, "optimizer": {"lr": 1.0}, "scaler": {}, "step": torch.tensor(3)},
    "nested": lambda state: {"model": {"module": state}, "ema": {}},
    "parameters": lambda state: {name: torch.nn.Parameter(value) for name, value in state.items()},
    "unknown": lambda state: {"my_weights": state},
}


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize(
    "prefix, container",
    [(prefix, "safetensors") for prefix in PREFIXES] + [("module.", container) for container in CONTAINERS],
)
def test_every_layout_prefix_and_container_gives_the_original_state(tmp_path, state, layout, prefix, container):
    stored = prefixed(prefix, in_diffusers(state) if layout == "diffusers" else state)
    if container == "safetensors":
        path = save(tmp_path / "x.safetensors", stored)
    else:
        path = save(tmp_path / "x.ckpt", CONTAINERS[container](stored))
    found = read_unet(path)
    wrapped = container not in ("safetensors", "flat", "parameters")
    assert found.layout == ("vgen" if wrapped and layout == "original" else layout)
    assert found.config == TINY
    assert found.parameters == sum(value.numel() for value in state.values())
    assert_same(found.state, state)


def reverse_converted(state):
    """As A1111 converters wrote it: linear temporal and 1x1-convolution spatial projections, `.0.op`."""
    changed = {}
    for name, value in state.items():
        if name.endswith(("proj_in.weight", "proj_out.weight")):
            value = value.squeeze(-1) if value.ndim == 3 else value[:, :, None, None]
        changed[name.replace(".op.", ".0.op.")] = value
    return changed


def test_reverse_converted_variant(tmp_path, state):
    changed = reverse_converted(state)
    assert any(name not in state for name in changed) and any(value.ndim == 4 for value in changed.values())
    found = read_unet(save(tmp_path / "x.pth", changed))
    assert_same(found.state, state)
    assert any("another shape" in note for note in found.notes)


def test_legacy_pickle_container(tmp_path, state):
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    found = read_unet(tmp_path / "old.pth")
    for _ in range(2):  # reading frees tensors as it goes, and can be repeated
        assert_same(dict(found.state.stream()), state)


def test_shards_are_merged(tmp_path, state):
    names = list(state)
    for rank in range(3):
        save(tmp_path / f"ema_00000010_rank{rank:04}.pth", {name: state[name] for name in names[rank::3]})
        save(tmp_path / f"d-{rank + 1:05}-of-00003.safetensors", {name: state[name] for name in names[rank::3]})
    assert_same(read_unet(tmp_path / "ema_00000010_rank0001.pth").state, state)
    assert_same(read_unet(tmp_path / "d-00001-of-00003.safetensors").state, state)
    (tmp_path / "d-00003-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="00003-of-00003"):
        read_unet(tmp_path / "d-00001-of-00003.safetensors")


def test_what_lies_beside_the_unet_is_noted_and_left(tmp_path, state):
    extra = {
        "fps_embedding.0.weight": torch.zeros(4, 4),
        "input_blocks.1.2.transformer_blocks.0.ff_adapter.down_linear.weight": torch.zeros(4, 4),
        "alphas_cumprod": torch.zeros(1000),
    }
    found = read_unet(save(tmp_path / "x.pth", state | extra))
    assert_same(found.state, state)
    assert len(found.notes) == 3
    whole = prefixed("model.diffusion_model.", state) | {"first_stage_model.encoder.conv_in.bias": torch.zeros(4)}
    found = read_unet(save(tmp_path / "whole.pth", whole))
    assert_same(found.state, state)
    assert "not used: 1 tensors of other models" in found.notes


# Loading


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_loaded_unet_has_the_weights(tmp_path, state, suffix, dtype):
    unet = load_unet(save(tmp_path / f"unet{suffix}", state), dtype=dtype)
    expected = {name: value.to(dtype or torch.float32) for name, value in state.items()}
    assert_same(unet.state_dict(), expected)
    assert not unet.training
    assert not any(parameter.requires_grad for parameter in unet.parameters())


def test_loaded_unet_computes_as_one_given_the_weights(tmp_path, state):
    reference = UNet(TINY).eval()
    reference.load_state_dict(state)
    loaded = load_unet(save(tmp_path / "unet.safetensors", in_diffusers(state)))
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(1, 4, 3, 4, 6, generator=generator), torch.randn(1, 7, 24, generator=generator)
    with torch.no_grad():
        assert torch.equal(loaded(x, torch.tensor([7]), context), reference(x, torch.tensor([7]), context))


def test_eight_bit_weights_are_read_as_float16(tmp_path, state):
    stored = {name: value.to(torch.float8_e4m3fn) for name, value in state.items()}
    unet = load_unet(save(tmp_path / "unet.safetensors", stored))
    assert unet.dtype == torch.float16
    assert_same(unet.state_dict(), {name: value.to(torch.float16) for name, value in stored.items()})


MEASURE = """
import json, sys
from pathlib import Path
import torch
from dreamvideo.files.conversion import convert
from dreamvideo.files.unet import load_unet

def resident(key):
    with open("/proc/self/status") as lines:
        return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024

def grown(task, *arguments, **options):
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    task(*arguments, **options)
    return (resident("VmHWM") - before) / Path(arguments[0]).stat().st_size

folder = Path(sys.argv[1])
torch.zeros(1000, 1000).half().sum(dtype=torch.float32)
shares = {
    "load": grown(load_unet, folder / "unet.pth"),
    "load half": grown(load_unet, folder / "unet.safetensors", dtype=torch.float16),
    "load legacy half": grown(load_unet, folder / "old.pth", dtype=torch.float16),
    "convert": grown(convert, folder / "unet.pth", folder / "x.safetensors", "diffusers"),
    "convert half to a pickle": grown(convert, folder / "unet.safetensors", folder / "x.pth", "vgen", torch.float16),
}
print(json.dumps(shares))
"""
WIDE = UNetConfig(dim=128, dim_mult=(1, 2, 4), res_blocks=1, attention_levels=(True, True, False), context_dim=64)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from /proc")
def test_weights_are_never_held_twice(tmp_path):
    state = {name: torch.full(shape, 0.01) for name, shape in original_shapes(WIDE).items()}
    save(tmp_path / "unet.pth", state)
    save(tmp_path / "unet.safetensors", state)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert (tmp_path / "unet.pth").stat().st_size > 150e6
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    shares = json.loads(done.stdout)
    for path in tmp_path.iterdir():
        path.unlink()
    # A legacy pickle cannot be mapped: it is read whole, then freed as it is cast.
    limits = [1.15, 0.65, 1.15, 0.2, 0.65]
    assert all(share <= limit for share, limit in zip(shares.values(), limits, strict=True)), shares
    assert shares["load"] > 0.9  # the measure works


# Writing


@pytest.mark.parametrize("layout, name", [
    ("original", "o.safetensors"), ("original", "o.pth"), ("vgen", "v.pth"),
    ("diffusers", "d.safetensors"), ("diffusers", "d.bin"), ("diffusers", "pipeline"),
])  # fmt: skip
def test_converting_there_and_back_changes_nothing(tmp_path, state, layout, name):
    source = save(tmp_path / "source.pth", reverse_converted(state))
    there = convert(source, tmp_path / name, layout)
    found = read_unet(there)
    assert (found.layout, found.config) == (layout, TINY)
    back = convert(there, tmp_path / "back.safetensors", "original")
    assert_same(load_file(back), state)


def test_converted_folder_is_diffusers_own(tmp_path, state):
    from diffusers import UNet3DConditionModel

    convert(save(tmp_path / "source.pth", state), tmp_path / "pipeline", "diffusers", torch.float16)
    model = UNet3DConditionModel.from_pretrained(tmp_path / "pipeline" / "unet", torch_dtype=torch.float16)
    assert_same(model.state_dict(), {name: value.half() for name, value in in_diffusers(state).items()})
    assert model.config.sample_size == 32
    convert(tmp_path / "source.pth", tmp_path / "small", "diffusers", sample_size=8)
    assert json.loads((tmp_path / "small" / "unet" / "config.json").read_text())["sample_size"] == 8


def test_vgen_container_is_as_vgen_writes_it(tmp_path, state):
    path = convert(save(tmp_path / "source.safetensors", state), tmp_path / "v.pth", "vgen")
    loaded = torch.load(path, weights_only=True)
    assert set(loaded) == {"state_dict", "step"}
    assert_same(loaded["state_dict"], state)


def test_a_file_is_never_converted_onto_itself(tmp_path, state):
    path = save(tmp_path / "x.safetensors", state)
    before = path.read_bytes()
    os.symlink(path, tmp_path / "link.safetensors")
    os.link(path, tmp_path / "hard.safetensors")
    (tmp_path / "sub").mkdir()
    for name in ("x.safetensors", "link.safetensors", "hard.safetensors", "sub/../x.safetensors"):
        for source, target in ((path, tmp_path / name), (tmp_path / name, path)):
            with pytest.raises(ValueError, match="overwritten"):
                convert(source, target, "diffusers")
    pipeline = convert(path, tmp_path / "pipeline", "diffusers")
    with pytest.raises(ValueError, match="overwritten"):
        convert(pipeline, tmp_path / "pipeline", "diffusers", torch.float16)
    assert path.read_bytes() == before


def test_a_refused_conversion_leaves_a_pipeline_as_it_was(tmp_path, state):
    convert(save(tmp_path / "good.safetensors", state), tmp_path / "pipeline", "diffusers")
    config = tmp_path / "pipeline" / "unet" / "config.json"
    config.write_text("the user's own")
    before = {path: path.read_bytes() for path in config.parent.iterdir()}
    bad = save(tmp_path / "bad.safetensors", state | {"out.2.bias": torch.full((4,), torch.nan)})
    with pytest.raises(CheckpointError, match="NaN"):
        convert(bad, tmp_path / "pipeline", "diffusers")
    with pytest.raises(CheckpointError, match="NaN"):
        convert(bad, tmp_path / "other", "diffusers")
    assert {path: path.read_bytes() for path in config.parent.iterdir()} == before
    assert not (tmp_path / "other").exists() or not list((tmp_path / "other").rglob("*.*"))


def test_converting_refuses_what_cannot_be_written(tmp_path, state):
    source = save(tmp_path / "x.pth", state)
    for target, layout in (("y.safetensors", "vgen"), ("y.txt", "original"), ("y", "original"), ("y.pth", "strange")):
        with pytest.raises(CheckpointError):
            convert(source, tmp_path / target, layout)
    with pytest.raises(CheckpointError, match="too large for float16"):
        convert(save(tmp_path / "big.pth", state | {"out.2.bias": torch.full((4,), 1e6)}), tmp_path / "y.pth",
                dtype=torch.float16)  # fmt: skip
    assert not list(tmp_path.glob("*y*"))


# Refusals


class Code:
    def __reduce__(self):
        return exec, ("open('run', 'w')",)


def test_unusable_files_are_refused_in_a_sentence(tmp_path, state, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = {
        "missing.pth": ("does not exist", None),
        "empty.pth": ("is empty", b""),
        "page.pth": ("not a checkpoint", b"<!DOCTYPE html><html></html>"),
        "pointer.safetensors": ("Git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
        "pickle.pth": ("damaged", b"\x80\x04garbage"),
        "list.pth": ("holds no tensors", [1, 2, 3]),
        "step.pth": ("holds no tensors", {"state_dict": {"a": 1}, "step": 3}),
        "code.pth": ("carries Python code", {"a": torch.zeros(2), "b": Code()}),
        "module.pth": (r"carries Python code \(torch.nn", {"model": torch.nn.Linear(2, 2)}),
    }
    for name, (message, content) in cases.items():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        elif content is not None:
            torch.save(content, tmp_path / name)
        with pytest.raises(CheckpointError, match=message) as error:
            read_unet(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Code()))
    with pytest.raises(CheckpointError, match="refused and not run"):
        read_unet(tmp_path / "bare.pth")
    assert not (tmp_path / "run").exists()
    with pytest.raises(CheckpointError, match="but a folder"):
        read_unet(tmp_path)


@pytest.mark.parametrize("kind", ["x.safetensors", "x.pth", "old.pth"])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.999])
def test_truncated_files_are_refused(tmp_path, state, kind, share):
    path = tmp_path / kind
    if kind == "old.pth":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        save(path, state)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="damaged|download it again"):
        load_unet(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, state, value):
    spoiled = dict(state)
    name = "middle_block.2.transformer_blocks.0.ff.net.2.weight"
    spoiled[name] = spoiled[name].clone()
    spoiled[name][-1, -1] = value
    with pytest.raises(CheckpointError, match=f"NaN or infinite numbers in {name}"):
        load_unet(save(tmp_path / "x.safetensors", spoiled))


def test_sums_that_overflow_are_not_taken_for_infinite_weights():
    assert dtypes.is_finite(torch.full((4, 4), 3e38))
    assert dtypes.is_finite(torch.full((4, 4), 6e4, dtype=torch.float16))


def zeros(*names):
    return {name: torch.zeros(4, 4) for name in names}


STRANGERS = {
    "I2VGen-XL": lambda s: s | zeros("local_image_embedding.0.weight", "context_embedding.0.weight"),
    "HiGen": lambda s: s | zeros("asim_embedding.0.weight"),
    "VideoComposer": lambda s: s | zeros("depth_embedding.0.weight", "local_image_embedding.0.weight"),
    "8 input channels": lambda s: s | {"input_blocks.0.0.weight": torch.zeros(32, 8, 3, 3)},
    "Stable Diffusion 2": lambda s: {n: v for n, v in s.items() if "temopral" not in n and ".2.trans" not in n},
    "Stable Video Diffusion": lambda s: zeros("input_blocks.1.0.time_stack.in_layers.0.weight"),
    "AnimateDiff": lambda s: zeros("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"),
    "DreamVideo adapter": lambda s: zeros("input_blocks.1.1.transformer_blocks.0.cross_attn_adapter.up_linear.bias"),
    "textual-inversion": lambda s: zeros("token.<dog>"),
    "LoRA": lambda s: zeros("lora_unet_down_blocks_0.lora_up.weight"),
    "a VAE": lambda s: zeros("encoder.down.0.block.0.conv1.weight", "decoder.up.0.block.0.conv1.weight"),
    "OpenCLIP": lambda s: zeros("visual.conv1.weight", "token_embedding.weight"),
    "transformers text encoder": lambda s: zeros("text_model.encoder.layers.0.layer_norm1.weight"),
    "unknown kind": lambda s: zeros("blocks.0.weight"),
    "lacks 1 of": lambda s: {n: v for n, v in s.items() if n != "out.0.bias"},
    "another architecture": lambda s: s | zeros("input_blocks.1.1.transformer_blocks.1.attn1.to_q.weight"),
    r"has shape \[7\]": lambda s: s | {"out.0.bias": torch.zeros(7)},
    "has no input_blocks.0.1": lambda s: {n: v for n, v in s.items() if not n.startswith("input_blocks.0.1")},
}


@pytest.mark.parametrize("what", STRANGERS)
def test_other_architectures_are_refused_by_name(tmp_path, state, what):
    path = save(tmp_path / "x.safetensors", STRANGERS[what](state))
    with pytest.raises(CheckpointError, match=what):
        read_unet(path)


def test_diffusers_lookalikes_are_refused_by_name(tmp_path, state):
    state = in_diffusers(state)
    with pytest.raises(CheckpointError, match="I2VGen-XL"):
        read_unet(save(tmp_path / "x.pth", state | zeros("image_latents_proj_in.0.weight")))
    flat = {name: value for name, value in state.items() if "temp_" not in name and "transformer_in" not in name}
    with pytest.raises(CheckpointError, match="Stable Diffusion 2"):
        read_unet(save(tmp_path / "y.pth", flat))


def test_metadata_of_another_architecture_is_refused(tmp_path, state):
    for number, text in enumerate(("{", "[]", '{"colour": 3}', json.dumps(UNetConfig().to_dict()))):
        with pytest.raises(CheckpointError):
            read_unet(save(tmp_path / f"{number}.safetensors", state, unet_config=text))


# Fingerprint


def test_fingerprint_survives_rounding_and_order(state):
    original = fingerprint(state)
    assert fingerprint(dict(reversed(state.items()))) == original
    unet = UNet(TINY)
    unet.load_state_dict(state)
    assert fingerprint(unet) == original
    for dtype in (torch.float16, torch.bfloat16):
        assert same_base(original, fingerprint({name: value.to(dtype) for name, value in state.items()}))


def test_fingerprint_tells_fine_tuned_weights(state):
    original, generator = fingerprint(state), torch.Generator().manual_seed(1)

    def changed(names, amount):
        return state | {
            n: state[n] + amount * state[n].std() * torch.randn(state[n].shape, generator=generator) for n in names
        }

    everything = [name for name, value in state.items() if value.ndim > 1]
    temporal = [name for name in everything if ".2.transformer_blocks" in name or "temopral" in name]
    assert not same_base(original, fingerprint(changed(everything, 0.02)))
    assert not same_base(original, fingerprint(changed(temporal, 0.05)))
    assert not same_base(original, fingerprint(random_state(original_shapes(TINY), seed=5)))
    assert not same_base(original, fingerprint(random_state(original_shapes(CONFIGS["one level"]))))


def test_fingerprint_is_the_same_on_every_machine():
    """Adapter files carry it: it must never change."""
    state = {name: torch.arange(torch.Size(shape).numel()).remainder(17).reshape(shape).double() - 7.5
             for name, shape in original_shapes(TINY).items()}  # fmt: skip
    assert fingerprint(state) == FIXED


def test_same_base_is_false_for_what_is_no_fingerprint():
    assert not same_base("", "1-2-ab:0.1") and not same_base("1-2-ab:0.1", "1-2-ab:x") and not same_base("", "")


FIXED = (
    "466-1326340-b6e2367a:-0.3955,-1.6766,1.0886,0.1460,-0.1988,-2.0093,0.1540,-0.5609,0.2952,1.5024,1.8947,-1.5912,"
    "-0.1936,-1.4834,-0.1301,-0.5173"
)
