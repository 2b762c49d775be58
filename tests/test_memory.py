"""What is chosen from how much memory there is, with the amounts given, and what running out of it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import fake_encoders, pictures, tiny_unet
from tiny_base import write_tiny_base
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from dreamvideo import base as base_module
from dreamvideo import devices as memory
from dreamvideo.base import EMBEDDED_FOLDER, open_base
from dreamvideo.commands.arguments import build_parser
from dreamvideo.commands.cli import explain
from dreamvideo.customizing import customize
from dreamvideo.devices import GIB, KEPT, choose_checkpointing, explain_shortage, free_bytes
from dreamvideo.encoders.loading import load_encoders
from dreamvideo.encoders.parking import park
from dreamvideo.encoders.protocols import release
from dreamvideo.files.base import find_base
from dreamvideo.files.tensors import TensorFile
from dreamvideo.files.unet import build_unet
from dreamvideo.models.adapters import Adapter, AdapterConfig
from dreamvideo.models.config import UNetConfig
from dreamvideo.models.layers import economical
from dreamvideo.models.stack import AdapterStack, StackEntry
from dreamvideo.models.unet import UNet
from dreamvideo.placing import place
from dreamvideo.sampling import SamplingSettings, generate
from dreamvideo.training import loop as training
from dreamvideo.training.data import encode_clips, encode_photos
from dreamvideo.training.loop import Callbacks
from dreamvideo.training.settings import TrainingSettings
from dreamvideo.training.stages import train_motion, train_textual_inversion

FULL, CLIP = UNetConfig(), 32 * 32 * 32  # the latent cells of 32 frames of 256 x 256 pixels
MOTION = 77_966_496  # parameters of a full-size motion adapter


@pytest.mark.parametrize(
    ("gib", "cells", "on"), [(40, CLIP, False), (10, CLIP, True), (5, CLIP, True), (5, CLIP // 16, False)]
)
def test_checkpointing_is_for_what_does_not_fit(gib, cells, on):
    choice = choose_checkpointing(FULL, cells, torch.float16, MOTION, int(gib * GIB))
    assert choice.checkpointing is on
    assert f"{gib}.0 GiB are free" in choice.reason and ("is on" in choice.reason) is on


def test_what_does_not_fit_at_all_is_said():
    reason = choose_checkpointing(FULL, CLIP, torch.float16, MOTION, GIB).reason
    assert "is on" in reason and "fewer frames" in reason


def test_the_estimate_is_what_a_step_keeps():
    config = UNetConfig(dim=32, head_dim=16, context_dim=16)
    unet = UNet(config, operations=economical(nn), device="meta", attention=Fused.apply).requires_grad_(False).eval()
    adapter = Adapter(AdapterConfig.motion(condition_dim=8), config, device="meta")
    frames, side = 8, 16
    x = torch.zeros(1, 4, frames, side, side, device="meta")
    context, stack = torch.zeros(1, 77, 16, device="meta"), AdapterStack([StackEntry(adapter)])
    weights = {id(tensor) for tensor in (*unet.parameters(), *adapter.parameters())}
    kept: dict[int, torch.Tensor] = {}  # by storage; holding them keeps the numbers from being given again

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in weights and (tensor._base is None or id(tensor._base) not in weights):
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        unet(x, torch.zeros(1, device="meta"), context, stack)
    numbers = sum(tensor.untyped_storage().nbytes() // 4 for tensor in kept.values())
    assert numbers == pytest.approx(KEPT * frames * side * side * config.dim, rel=0.15)


class Fused(torch.autograd.Function):
    """Stands for attention that keeps no scores."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None, None


@pytest.mark.parametrize(("free", "asked", "on"), [(10**12, None, False), (10**5, None, True), (10**5, False, False)])
def test_training_chooses_and_says_so(monkeypatch, free, asked, on):
    monkeypatch.setattr(training, "free_bytes", lambda device, budget: free)
    unet, encoders, said, seen = tiny_unet(), fake_encoders(), [], []
    settings = TrainingSettings(steps=1, learning_rate=1e-3, batch_size=1, gradient_checkpointing=asked)
    callbacks = Callbacks(say=said.append, progress=lambda *_: seen.append(unet.gradient_checkpointing))
    data = encode_clips([pictures(2)], "a car turns", encoders, 2)
    train_motion(unet, encoders.text, data, settings=settings, callbacks=callbacks)
    assert seen == [on] and len(said) == (asked is None)


def test_a_budget_and_the_choice_do_not_make_another_run():
    settings = TrainingSettings(steps=1, learning_rate=1e-3, batch_size=1)
    assert settings.deciding() == replace(settings, memory=8.0, gradient_checkpointing=True).deciding()


def test_a_budget_counts_what_is_held(monkeypatch):
    monkeypatch.setattr(memory, "_amounts", lambda device: (20 * GIB, 3 * GIB))
    cpu = torch.device("cpu")
    assert [free_bytes(cpu, budget) for budget in (None, 8, 2, 100)] == [20 * GIB, 5 * GIB, 0, 20 * GIB]
    assert memory.total_bytes(cpu, 8) == 8 * GIB


def test_a_card_is_asked_and_limited(monkeypatch):
    card, fractions = torch.device("cuda"), []
    amounts = {"mem_get_info": (4 * GIB, 16 * GIB), "memory_allocated": 3 * GIB, "memory_reserved": 5 * GIB}
    for name, amount in amounts.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, amount=amount: amount)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: fractions.append(share))
    assert free_bytes(card) == 6 * GIB and free_bytes(card, 8) == 5 * GIB  # what PyTorch keeps unused is free too
    for budget in (8, 100):
        memory.limit(card, budget)
    assert fractions == [0.5, 1.0]


def test_the_command_line_takes_a_budget():
    train = ["train", "motion", "clip.mp4"]
    parse = build_parser().parse_args
    assert parse([*train, "--memory", "8"]).memory == 8.0 and parse(["sample", "a car"]).memory is None
    asked = [parse([*train, *given]).gradient_checkpointing for given in ([], ["--no-gradient-checkpointing"])]
    assert asked == [None, False]
    with pytest.raises(ValueError, match="memory"):
        parse([*train, "--memory", "0"])


def test_this_machine_tells_its_memory():
    cpu = torch.device("cpu")
    assert 0 < free_bytes(cpu) < memory.total_bytes(cpu) < 2**50


def test_memory_is_known_where_there_is_no_proc(monkeypatch):
    """As on Windows and macOS."""
    monkeypatch.setattr(memory, "Path", lambda name: Path("/nowhere"))
    cpu = torch.device("cpu")
    assert 0 < free_bytes(cpu) < memory.total_bytes(cpu)


NO_LIMIT = {1: 2**63 - 4096, 2: "max"}


def control_group(root: Path, version: int, limit, used: int, dropped: int = 0) -> None:
    """The files by which Linux tells of a group's memory."""
    root.mkdir(parents=True, exist_ok=True)
    limit_file, usage_file, droppable = memory.GROUP_FILES[2 - version]
    for name, value in ((limit_file, limit), (usage_file, used), ("memory.stat", f"anon 7\n{droppable} {dropped}")):
        (root / name).write_text(f"{value}\n")


def left_in(system: Path) -> int | None:
    return min(filter(None, map(memory._left_in_group, memory._control_groups(system))), default=None)


@pytest.mark.parametrize(("version", "line"), [(1, "4:memory:/box/part"), (2, "0::/box/part")])
def test_a_containers_limit_counts(tmp_path, monkeypatch, version, line):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"1:cpu,cpuacct:/elsewhere\n{line}\n")
    root = tmp_path / "sys/fs/cgroup" / ("memory" if version == 1 else "")
    assert left_in(tmp_path) is None
    control_group(root / "box/part", version, NO_LIMIT[version], 2 * GIB)
    assert (left_in(tmp_path) or 2**62) > 2**60
    control_group(root / "box/part", version, 8 * GIB, 3 * GIB, GIB)
    assert left_in(tmp_path) == 6 * GIB
    control_group(root / "box", version, 6 * GIB, 5 * GIB)  # of which it is a part
    assert left_in(tmp_path) == GIB
    monkeypatch.setattr(memory, "Path", lambda name: tmp_path)
    control_group(root, version, GIB // 1024, 0)  # all that a container sees of its own
    assert free_bytes(torch.device("cpu")) == GIB // 1024


def test_a_group_beyond_its_limit_leaves_nothing(tmp_path):
    control_group(tmp_path, 2, GIB, 2 * GIB)
    assert memory._left_in_group(tmp_path) == 0


# --- parked encoders ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_base(tmp_path_factory.mktemp("base"))


def test_a_crowded_device_has_its_encoders_parked(folder, monkeypatch):
    """The device is the CPU, told as one that is not."""
    moved = []
    monkeypatch.setattr(base_module, "_device", lambda name: torch.device("meta"))
    monkeypatch.setattr(base_module, "build_unet", lambda found, *_: build_unet(found))
    monkeypatch.setattr(base_module, "read_encoders", lambda stored, device, *_: moved.append(device) or encoders)
    encoders = load_encoders(find_base(folder))
    monkeypatch.setattr(base_module, "park", lambda encoders, device: park(encoders, torch.device("cpu")))
    for total, parked in ((10**12, False), (10**6, True)):
        monkeypatch.setattr(base_module, "total_bytes", lambda device, budget, total=total: total)
        moved.clear()
        assert open_base(folder, device="card", dtype=torch.float32).parked is parked
        assert moved == ["cpu" if parked else torch.device("meta")]


def test_parked_encoders_visit_the_device(folder):
    """The device is the CPU under another name: what counts is when they go there."""
    encoders = load_encoders(find_base(folder))
    places = []
    parked = park(encoders, torch.device("cpu"))
    original = type(parked.text)._move

    def note(self, device):
        places.append((self, str(device)))
        original(self, device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(parked.text), "_move", note)
        parked.text._device = parked.image._device = parked.vae._device = torch.device("cpu", 0)
        states = parked.text.encode(["a car"])
        assert [place for _, place in places] == ["cpu:0", "cpu"]
        torch.testing.assert_close(states, encoders.text.encode(["a car"]))
        places.clear()
        token = torch.zeros(1, parked.text.width, requires_grad=True)
        parked.text.encode(["a <car>"], {"<car>": token})
        assert [place for _, place in places] == ["cpu:0"]  # it stays for the backward pass
        images = torch.rand(3, 3, 16, 16)
        torch.testing.assert_close(parked.image.encode(images), encoders.image.encode(images))
        torch.testing.assert_close(parked.vae.encode(images).mean, encoders.vae.encode(images).mean)
    text = {id(tensor) for tensor in parked.text._tensors()}
    image = {id(tensor) for tensor in parked.image._tensors()}
    assert text and image and not text & image
    assert parked.vae.factor == encoders.vae.factor


# --- encoders that stay in their files ------------------------------------------------------------------------------


def on_meta(encoders):
    """Which of text encoder, image encoder and autoencoder hold no numbers."""
    names = {**dict(encoders.text.clip.named_parameters()), **dict(encoders.vae.vae.named_parameters())}
    parts = {"text": [], "image": [], "vae": []}
    for name, parameter in names.items():
        part = "image" if name.startswith("visual.") else "vae" if name.startswith(("encoder.", "decoder.")) else "text"
        parts[part].append(parameter.is_meta)
    return [part for part, held in parts.items() if all(held)]


@pytest.fixture
def crowded_cpu(monkeypatch):
    monkeypatch.setattr(base_module, "total_bytes", lambda device, budget: 10**6)


def test_a_crowded_cpu_leaves_the_encoders_in_their_files(folder, crowded_cpu):
    said = []
    base = open_base(folder, device="cpu", encoder_dtype=torch.float32, say=said.append)
    assert base.offloaded and not base.parked and on_meta(base.encoders) == ["text", "image", "vae"]
    assert len(said) == 2 and "read when they are needed" in said[0] and "unet.safetensors" in said[1]
    plain, encoders, images = load_encoders(find_base(folder)), base.encoders, torch.rand(3, 3, 16, 16)
    assert torch.equal(encoders.text.encode(["a car"]), plain.text.encode(["a car"]))
    assert on_meta(encoders) == ["image", "vae"] and "text encoder (clip.safetensors, " in said[2]
    assert torch.equal(encoders.image.encode(images), plain.image.encode(images))
    assert torch.equal(encoders.vae.encode(images).mean, plain.vae.encode(images).mean)
    release(encoders.text, encoders.vae)
    assert on_meta(encoders) == ["text", "vae"] and len(said) == 5
    assert torch.equal(encoders.text.embed_word("car"), plain.text.embed_word("car"))
    latents = torch.rand(1, 4, 2, 2)
    assert torch.equal(encoders.vae.decode(latents), plain.vae.decode(latents))
    assert encoders.vae.factor == plain.vae.factor and encoders.text.width == plain.text.width
    assert encoders.fingerprint == plain.fingerprint
    release(*fake_encoders().__dict__.values())  # others have nothing to let go of


def test_offloaded_encoders_are_let_go_before_the_long_work(folder, crowded_cpu):
    base, there = open_base(folder, device="cpu", encoder_dtype=torch.float32), []
    data = encode_clips([pictures(2)], "a car turns", base.encoders, 2)
    assert on_meta(base.encoders) == ["text", "image", "vae"]
    seen = {"progress": lambda *_: there.append(on_meta(base.encoders))}
    settings = TrainingSettings(steps=1, learning_rate=1e-3, batch_size=1)
    result = train_motion(base.unet, base.encoders.text, data, settings=settings, callbacks=Callbacks(**seen))
    sampled = SamplingSettings("a car", frames=2, height=16, width=16, steps=2, prior_strength=0.5)
    more = {"guidance_image": pictures(1)[0], "prior_clip": pictures(2, side=16)}
    customization = customize([result.trained])
    video = generate(
        base.unet,
        base.encoders,
        sampled,
        customization,
        callback=lambda *_: there.append(on_meta(base.encoders)),
        **more,
    )
    assert there == [["text", "image", "vae"]] * 3 and on_meta(base.encoders) == ["text", "image", "vae"]
    roomy = load_encoders(find_base(folder))
    assert torch.equal(video, generate(base.unet, roomy, sampled, customization, **more))


@pytest.mark.parametrize("total", [10**6, 10**12])
def test_encoders_in_half_precision_give_about_the_same(folder, monkeypatch, total):
    monkeypatch.setattr(base_module, "total_bytes", lambda device, budget: total)
    half = open_base(folder, device="cpu", encoder_dtype=torch.bfloat16).encoders
    plain, images = load_encoders(find_base(folder)), pictures(2)
    pairs = [
        (half.text.encode(["a car"]), plain.text.encode(["a car"])),
        (half.image.encode(images), plain.image.encode(images)),
        (half.vae.encode(images).mean, plain.vae.encode(images).mean),
    ]
    assert half.text.clip.token_embedding.weight.dtype == torch.bfloat16
    for found, expected in pairs:
        assert found.dtype == torch.float32 and not torch.equal(found, expected)
        torch.testing.assert_close(found, expected, atol=0.1 * expected.abs().max().item(), rtol=0)
    assert half.fingerprint != plain.fingerprint


def test_a_learned_token_is_learned_with_an_offloaded_text_encoder(folder, crowded_cpu):
    base = open_base(folder, device="cpu", encoder_dtype=torch.float32)
    plain = load_encoders(find_base(folder))
    settings = TrainingSettings(steps=2, learning_rate=1e-2, batch_size=1)
    learned = []
    for encoders in (base.encoders, plain):
        data = encode_photos(pictures(2), "a <toy>", encoders)
        named = {"placeholder": "<toy>", "class_word": "dog"}
        release(encoders.text)
        learned.append(train_textual_inversion(base.unet, encoders.text, data, settings=settings, **named))
    (a, b) = (result.trained.tokens["<toy>"] for result in learned)
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("device", "gib", "asked", "encoders", "dtype"),
    [
        ("cpu", 20, None, "resident", torch.float32),
        ("cpu", 14, None, "offloaded", torch.float32),
        ("cpu", 8, None, "offloaded", torch.bfloat16),
        ("cpu", 8, torch.float32, "offloaded", torch.float32),
        ("cpu", 14, torch.bfloat16, "offloaded", torch.bfloat16),
        ("cuda", 24, None, "resident", torch.float32),
        ("cuda", 8, None, "parked", torch.float32),
    ],
)
def test_the_full_size_is_placed_by_the_memory_there_is(device, gib, asked, encoders, dtype):
    """ModelScope's parts: 1.4 billion numbers, float32 on a CPU, and 1.07 billion of the encoders."""
    unet = 1_411_233_860 * (4 if device == "cpu" else 2)
    parts = {"text encoder": 354_000_000, "image encoder": 632_000_000, "autoencoder": 84_000_000}
    plan = place(torch.device(device), unet, parts, asked, gib * GIB)
    assert (plan.encoders, plan.encoder_dtype) == (encoders, dtype)
    assert f"{unet / GIB:.1f} GiB" in plan.reason and ("may not fit" in plan.reason) is (
        gib == 8 and device == "cpu" and asked is not None
    )
    assert f"{gib}.0 GiB" in plan.reason


def test_everything_is_looked_at_before_anything_is_read(folder, tmp_path, monkeypatch):
    """A CLIP of another width, found when the UNet is read, would have cost a minute."""
    monkeypatch.setattr(TensorFile, "read", lambda *_: pytest.fail("A tensor was read."))
    for name, error in {"clip": "text states of width", "vae": "not a Stable Diffusion autoencoder"}.items():
        files = {part: folder / f"{part}.safetensors" for part in ("unet", "clip", "vae")}
        files[name] = EMBEDDED_FOLDER / "clip.safetensors"
        with pytest.raises(ValueError, match=error):
            open_base(**files, device="cpu")


# --- running out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 7.75 GiB of which 1.20 GiB "
            "is free. Of the allocated memory",
            ("2.50 GiB were asked for", "1.20 GiB were free", "of 7.75 GiB"),
        ),
        (
            "MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB, max allowed: 9.07 GB). "
            "Tried to allocate 256 MB on private pool.",
            ("256 MB were asked for", "of 9.07 GB"),
        ),
        (
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 4294967296 bytes. Error code 12",
            ("4.0 GiB were asked for",),
        ),
    ],
)
def test_running_out_says_how_much_and_which_switch(error, told):
    text = explain(RuntimeError(error))
    assert all(part in text for part in told), text
    assert "--memory" in text and "--gradient-checkpointing" in text and "\n" not in text
    assert explain_shortage(MemoryError()).startswith("There is not enough memory. ")
