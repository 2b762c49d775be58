"""Motions beyond the paper: frame vectors, residuals at temporal convolutions, a debiased loss, an absorber."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
from fakes import CONFIG, FEATURE_WIDTH, FakeText, fake_encoders, pictures, tiny_unet
from node_stubs import load_nodes
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dreamvideo.commands.cli import main
from dreamvideo.defaults import fitted
from dreamvideo.files.adapter_info import AdapterInfo, TrainedAdapter, check_fits
from dreamvideo.files.adapters import load_adapter, save_adapter, save_trained
from dreamvideo.files.foreign_adapters import save_authors_adapter
from dreamvideo.models.adapters import Adapter, AdapterConfig
from dreamvideo.models.call import Call
from dreamvideo.models.config import UNetConfig, temporal_convolutions
from dreamvideo.models.deltas import DeltaConfig, WeightDelta
from dreamvideo.models.diffusion import against_a_frame, diffusion_loss
from dreamvideo.models.over_time import FrameVectors
from dreamvideo.models.stack import AdapterStack, StackEntry
from dreamvideo.models.unet import UNet
from dreamvideo.training.data import TrainingData, encode_clips, encode_photos
from dreamvideo.training.drawing import draw_batch
from dreamvideo.training.loop import Callbacks, TrainingResult
from dreamvideo.training.methods import (
    FRAME_AWARE,
    FRAME_AWARE_CONVOLUTIONS,
    IDENTITY,
    IDENTITY_PLUS,
    MOTION,
    MOTION_METHODS,
    MOTION_PLUS,
    TEMPORAL_CONVOLUTIONS,
    Method,
)
from dreamvideo.training.settings import TrainingSettings
from dreamvideo.training.stages import train_method
from dreamvideo.training.state import STATE_FORMAT

FRAMES = 3
CONVOLUTIONS = AdapterConfig.motion(sublayers=(), condition_dim=None, conv_rank=2)
KINDS = {
    "frame vectors": AdapterConfig.motion(condition_dim=FEATURE_WIDTH, frames=FRAMES),
    "convolutions": CONVOLUTIONS,
    "both": AdapterConfig.motion(condition_dim=FEATURE_WIDTH, frames=FRAMES, conv_rank=2),
    "vectors alone": AdapterConfig.motion(sublayers=(), condition_dim=None, frames=FRAMES),
    "both, serial": AdapterConfig.motion(condition_dim=None, frames=FRAMES, conv_rank=2, placement="serial"),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
ENCODERS = fake_encoders()


@pytest.fixture(scope="module")
def unet() -> UNet:
    return tiny_unet()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trained(kind: str, seed: int = 1) -> Adapter:
    """An adapter whose every part shows."""
    adapter = Adapter(KINDS[kind], CONFIG)
    for index, (name, parameter) in enumerate(adapter.named_parameters()):
        if "condition" not in name and not name.endswith("bias"):
            parameter.data.copy_(0.3 * random(*parameter.shape, seed=100 * seed + index))
    return adapter


@torch.no_grad()
def predict(unet: UNet, *entries: StackEntry, frames: int = FRAMES, batch: int = 2) -> torch.Tensor:
    x, context = random(batch, 4, frames, 4, 4), random(batch, 77, CONFIG.context_dim, seed=5)
    stack = AdapterStack(entries, random(1, FEATURE_WIDTH, seed=6)) if entries else None
    return unet(x, torch.tensor([800, 100][:batch]), context, stack)


def differs(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() > 1e-3)


# --- how many numbers, and what a fresh one does ------------------------------------------------------------------


def test_full_size_has_the_counted_numbers():
    def numbers(config: AdapterConfig) -> int:
        return sum(each.numel() for each in Adapter(config, UNetConfig(), device="meta").parameters())

    paper = numbers(AdapterConfig.motion())
    assert numbers(AdapterConfig.motion(frames=32)) - paper == 415_744
    assert len(temporal_convolutions(UNetConfig())) == 88
    assert numbers(replace(CONVOLUTIONS, conv_rank=16)) == 5_160_960
    assert numbers(replace(CONVOLUTIONS, conv_rank=4)) == 1_290_240
    assert numbers(AdapterConfig.motion(frames=32, conv_rank=16)) == paper + 415_744 + 5_160_960
    plus = numbers(IDENTITY_PLUS.config), numbers(MOTION_PLUS.config)
    assert plus == (37_227_360, 20_643_840) and sum(plus) < 0.65 * (numbers(AdapterConfig.identity()) + paper)
    for row in (FRAME_AWARE, TEMPORAL_CONVOLUTIONS, FRAME_AWARE_CONVOLUTIONS):
        assert row.config.frames in (None, 32) and row.config.conv_rank in (None, 16)


@each_kind
@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_fresh_is_the_base_bit_for_bit_at_every_length(unet, kind, frames):
    fresh = StackEntry(Adapter(KINDS[kind], CONFIG))
    assert torch.equal(predict(unet, fresh, frames=frames), predict(unet, frames=frames))


def test_an_adapter_of_the_papers_shape_begins_with_the_same_numbers_beside_the_new_parts():
    plain, both = (Adapter(KINDS[kind], CONFIG).state_dict() for kind in ("frame vectors", "both"))
    assert all(torch.equal(both[name], value) for name, value in plain.items())


@each_kind
def test_every_part_acts_and_gets_a_gradient(unet, kind):
    adapter = trained(kind)
    x, context = random(2, 4, FRAMES, 4, 4), random(2, 77, CONFIG.context_dim)
    stack = AdapterStack([StackEntry(adapter)], random(1, FEATURE_WIDTH))
    unet(x, torch.tensor([800, 100]), context, stack).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in adapter.parameters())
    whole = predict(unet, StackEntry(adapter))
    for name, parameter in adapter.named_parameters():
        if name.endswith(("frame_vectors.weight", "adapter.up")) and "conv4" not in name:
            kept = parameter.data.clone()
            parameter.data.zero_()
            assert not torch.equal(predict(unet, StackEntry(adapter)), whole), name
            parameter.data.copy_(kept)


# --- frame vectors --------------------------------------------------------------------------------------------------


def test_a_vector_is_added_to_what_enters_a_temporal_block():
    adapter, block = trained("frame vectors"), "input_blocks.1.2.transformer_blocks.0"
    x, mask = random(2, 8, FRAMES, 32), torch.eye(4)[:2]
    bound = AdapterStack([StackEntry(adapter, 0.7, mask=mask)]).bind(torch.tensor([5, 6]), (2, 4))
    vectors = adapter.frame_vectors(block).weight
    torch.testing.assert_close(bound.enter(block, x, (2, 4)), x + 0.7 * mask.reshape(8, 1, 1) * vectors)
    assert torch.equal(bound.enter("input_blocks.1.1.transformer_blocks.0", x, (2, 4)), x)  # a spatial one


def test_another_length_is_interpolated_in_time():
    vectors = FrameVectors(3, 4, {})
    vectors.weight.data = torch.tensor([0.0, 2.0, 6.0])[:, None] * torch.ones(4)
    assert vectors(3) is vectors.weight
    assert vectors(5)[:, 0].tolist() == [0, 1, 2, 4, 6]  # first on first, last on last
    assert vectors(2)[:, 0].tolist() == [0, 6] and vectors(1)[:, 0].tolist() == [0]


def test_frames_that_are_alike_are_told_apart(unet):
    """Of frames all alike, what a temporal transformer makes differs by frame, and follows the vectors' order."""
    transformer = unet.middle_block[2]
    picture = random(1, 32, 4, 4).expand(FRAMES, 32, 4, 4)

    def seen(adapter: Adapter | None) -> torch.Tensor:
        bound = None if adapter is None else AdapterStack([StackEntry(adapter)]).bind(torch.tensor([5]), (4, 4))
        with torch.no_grad():
            return transformer(picture, Call(FRAMES, torch.zeros(1, 128), torch.zeros(1, 77, 8), bound, False))

    forward, backward = trained("frame vectors"), trained("frame vectors")
    for name, parameter in backward.named_parameters():
        if "frame_vectors" in name:
            parameter.data.copy_(parameter.data.flip(0))
    torch.testing.assert_close(seen(backward), seen(forward).flip(0), atol=1e-5, rtol=1e-5)
    assert differs(seen(forward)[0], seen(forward)[1]) and torch.allclose(*seen(None)[:2], atol=1e-6)


# --- residuals at temporal convolutions -----------------------------------------------------------------------------


def test_a_residual_is_the_convolution_with_its_weight_changed(unet):
    adapter, changed = trained("convolutions"), tiny_unet()
    for site in temporal_convolutions(CONFIG):
        residual, conv = adapter.conv_residual(site.name), changed.get_submodule(site.name)[-1]
        delta = torch.einsum("or,rck->ock", residual.up, residual.down)
        conv.weight.data += 0.5 * delta[..., None, None]
    torch.testing.assert_close(predict(unet, StackEntry(adapter, 0.5)), predict(changed), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("moving", [False, True])
def test_a_mask_confines_a_convolutions_residual(moving):
    adapter, site, size = trained("convolutions"), "input_blocks.1.0.temopral_conv.conv2", (2, 4)
    mask = torch.zeros(FRAMES, 8, 16)
    mask[:, :, :8] = 1
    mask[1:, :4] = 0 if moving else mask[1:, :4]
    level = torch.nn.functional.avg_pool2d(mask, 4)[None, None]  # [1, 1, F, h, w]
    before, after = (random(2, 32, FRAMES, *size, seed=seed) for seed in (1, 2))

    def add(mask):
        bound = AdapterStack([StackEntry(adapter, mask=mask)]).bind(torch.tensor([1, 2]), size)
        return bound.add_over_time(site, before, after)

    free, masked = add(None), add(mask if moving else mask[0])
    torch.testing.assert_close(masked, torch.where(level == 1, free, after), atol=0, rtol=0)
    assert differs(free, after)


@each_kind
def test_strength_window_and_mask_act_on_all_parts(unet, kind):
    adapter, base = trained(kind), predict(unet)
    free = predict(unet, StackEntry(adapter))
    assert torch.equal(predict(unet, StackEntry(adapter, 0.0)), base) and differs(free, base)
    early = predict(unet, StackEntry(adapter, window=(0.0, 0.5)))  # the inputs stand at 0.2 and 0.9
    torch.testing.assert_close(early, torch.stack([free[0], base[1]]), atol=1e-5, rtol=1e-5)
    assert torch.equal(predict(unet, StackEntry(adapter, mask=torch.zeros(5, 7))), base)
    assert torch.equal(predict(unet, StackEntry(adapter, mask=torch.ones(FRAMES, 5, 7))), free)
    grey = predict(unet, StackEntry(adapter, mask=torch.full((5, 7), 0.5)))
    torch.testing.assert_close(grey, predict(unet, StackEntry(adapter, 0.5)))


@each_kind
def test_it_stacks_in_any_order_and_moves_as_a_copy(unet, kind):
    entries = [StackEntry(trained(kind), 0.7), StackEntry(trained("both", 2), 0.4, mask=torch.eye(8))]
    torch.testing.assert_close(predict(unet, *entries), predict(unet, *entries[::-1]), atol=1e-5, rtol=1e-5)
    half = AdapterStack(entries).to("cpu", torch.bfloat16).entries[0].adapter
    assert {each.dtype for each in half.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(
        predict(unet, StackEntry(half)), predict(unet, StackEntry(trained(kind))), atol=0.3, rtol=0.1
    )


@each_kind
def test_checkpointing_gives_the_same_gradients(unet, kind):
    gradients = []
    for checkpointing in (False, True):
        adapter = trained(kind)
        unet.gradient_checkpointing = checkpointing
        try:
            stack = AdapterStack([StackEntry(adapter, mask=torch.eye(8))], random(1, FEATURE_WIDTH))
            unet(random(1, 4, FRAMES, 4, 4), torch.tensor([300]), random(1, 77, 8), stack).square().mean().backward()
        finally:
            unet.gradient_checkpointing = False
        gradients.append([parameter.grad for parameter in adapter.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


# --- files ----------------------------------------------------------------------------------------------------------


def saved(path, kind: str):
    adapter = trained(kind)
    save_adapter(path, adapter, AdapterInfo("motion", steps=7))
    with safe_open(path, framework="pt") as file:
        return adapter, load_file(path), file.metadata()


@each_kind
def test_a_file_keeps_all_parts_and_says_so(unet, kind, tmp_path):
    path = tmp_path / "motion.safetensors"
    adapter, _, metadata = saved(path, kind)
    loaded = load_adapter(path)
    assert loaded.adapter.config == KINDS[kind] and metadata["format_version"] == "2"
    assert torch.equal(predict(unet, StackEntry(loaded.adapter)), predict(unet, StackEntry(adapter)))
    told = json.loads(metadata["adapter_config"])
    assert (told.get("frames"), told.get("conv_rank")) == (KINDS[kind].frames, KINDS[kind].conv_rank)
    check_fits(loaded.info, CONFIG)
    with pytest.raises(ValueError, match="another base: it fits .* of width 32, but this base has .* of width"):
        check_fits(loaded.info, UNetConfig(context_dim=CONFIG.context_dim))
    with pytest.raises(ValueError, match="authors' adapter files .*; save it as .safetensors"):
        save_authors_adapter(tmp_path / "motion.pth", adapter, 7)


@each_kind
def test_inspect_and_the_node_tell_of_the_parts(kind, tmp_path, capsys):
    path = tmp_path / "motion.safetensors"
    saved(path, kind)
    load_nodes()
    told = sys.modules["dreamvideo_pack.nodes.adapters"].describe(load_adapter(path))
    assert ("frame vectors: 3" in told) == (KINDS[kind].frames is not None)
    assert ("rank at temporal convolutions: 2" in told) == (KINDS[kind].conv_rank is not None)
    assert main(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["adapter"]
    assert (facts.get("frames"), facts.get("conv_rank")) == (KINDS[kind].frames, KINDS[kind].conv_rank)


def test_the_node_tells_of_weight_deltas_too():
    delta = WeightDelta(DeltaConfig(("temporal_kv",), 2), CONFIG)
    info = AdapterInfo("weights", adapter_config=delta.config, unet_config=CONFIG)
    load_nodes()
    told = sys.modules["dreamvideo_pack.nodes.adapters"].describe(TrainedAdapter(delta, info, {}, None))
    assert "set of weight deltas" in told and "sublayers" not in told


def test_the_papers_adapters_are_written_as_ever():
    """What needs nothing of the second version is a file of the first, which earlier versions read."""
    info = AdapterInfo("motion", adapter_config=AdapterConfig.motion(), unet_config=UNetConfig())
    metadata = info.to_metadata()
    assert metadata["format_version"] == "1"
    fields = {"kind", "sublayers", "hidden", "placement", "condition_dim"}
    assert json.loads(metadata["adapter_config"]).keys() == fields
    assert AdapterInfo.from_metadata(metadata) == info


DAMAGES = {
    "a length": (
        "frame_vectors.weight",
        lambda value: value[:-1],
        r"frame_vectors.weight is \[2, 32\], expected \[3, 32\]",
    ),
    "a width": ("frame_vectors.weight", lambda value: value[:, :-1], r"is \[3, 31\], expected \[3, 32\]"),
    "a rank": ("conv1.adapter.down", lambda value: value[:-1], r"down is \[1, 32, 3\], expected \[2, 32, 3\]"),
    "taps": ("conv1.adapter.down", lambda value: value[..., :2], r"is \[2, 32, 2\], expected \[2, 32, 3\]"),
    "channels": (
        "adapter.down",
        lambda value: value[:, :-1],
        "the file is for 20 temporal conv.* width 31, the UNet has 20 .* width 32",
    ),
    "a part": ("conv4.adapter.up", None, r"conv4.adapter.up is missing, expected \[32, 2\]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_part_of_another_shape_is_refused_in_a_sentence(damage, tmp_path):
    path = tmp_path / "motion.safetensors"
    _, state, metadata = saved(path, "both")
    ending, change, told = DAMAGES[damage]
    hit = [name for name in sorted(state) if name.endswith(ending)]
    for name in hit if damage == "channels" else hit[:1]:
        value = state.pop(name)
        if change is not None:
            state[name] = change(value).contiguous()
    save_file(state, path, metadata)
    with pytest.raises(
        ValueError, match=rf"motion.safetensors \(motion adapter, 7 steps\) does not fit the UNet: .*{told}"
    ) as told:
        load_adapter(path)
    assert str(told.value).count(". ") == 0


@pytest.mark.parametrize("kind", ["frame vectors", "convolutions"])
@pytest.mark.parametrize("name", ["positions", "middle_block.0.temopral_conv.conv5.adapter.up", "x.down_linear.weight"])
def test_an_unknown_tensor_is_refused(kind, name, tmp_path):
    path = tmp_path / "motion.safetensors"
    _, state, metadata = saved(path, kind)
    save_file({**state, name: torch.ones(2, 2)}, path, metadata)
    with pytest.raises(ValueError, match=rf"motion.safetensors .*{name} is \[2, 2\], expected no such tensor"):
        load_adapter(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames": 0},
        {"frames": 10**6},
        {"conv_rank": 0},
        {"conv_rank": 1.5},
        {"sublayers": ()},
        {"sublayers": (), "condition_dim": None},
        {"sublayers": (), "frames": 3},
        {"kind": "identity", "condition_dim": None, "frames": 3},
        {"kind": "identity", "condition_dim": None, "conv_rank": 2},
    ],
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match="dapter"):
        AdapterConfig.motion(**wrong)


def test_a_narrow_base_has_a_lower_rank_and_as_many_vectors():
    narrow = fitted(FRAME_AWARE_CONVOLUTIONS, CONFIG).config
    assert (narrow.frames, narrow.conv_rank) == (32, 2)


# --- training: beginnings, the debiased loss, the absorber --------------------------------------------------------


def clips(frames: int = 2, length: int = 3) -> TrainingData:
    return encode_clips([pictures(length, seed) for seed in range(2)], "a car turns", ENCODERS, frames=frames)


def run(unet: UNet, row: Method, **more) -> TrainingResult:
    hooks = {name: more.pop(name) for name in ("callbacks", "state_path", "resume") if name in more}
    settings = TrainingSettings.for_method(
        row, **{"steps": 4, "learning_rate": 0.02, "batch_size": 2, "save_every": 2, "warmup": 0, **more}
    )
    named = {"placeholder": "<turn>", "class_word": "turn"} if row.token != "none" else {}
    data = clips()
    if row.token != "none":
        data = encode_clips([pictures(3)], "a car <turn>", ENCODERS, frames=2)
    return train_method(unet, FakeText(), data, row, settings=settings, **named, **hooks)


def test_parts_have_learning_rates_of_their_own(unet):
    """Adam's first step is its rate, whatever the gradient."""
    row = fitted(FRAME_AWARE_CONVOLUTIONS, CONFIG)
    learned = run(unet, row, steps=1, learning_rate=1e-4).trained.adapter
    start = Adapter(learned.config, CONFIG, generator=torch.Generator().manual_seed(0)).state_dict()
    moved = {name: (value - start[name]).abs().max().item() for name, value in learned.named_parameters()}
    for part, rate in (("frame_vectors.weight", 10e-4), ("conv1.adapter.up", 4e-4), ("up_linear.weight", 1e-4)):
        assert max(most for name, most in moved.items() if name.endswith(part)) == pytest.approx(rate, rel=0.01)
    full = dict(FRAME_AWARE_CONVOLUTIONS.part_rates)
    assert {part: rate * 1e-5 for part, rate in full.items()} == pytest.approx({"frame_vectors": 1e-2, "adapter": 5e-4})


def test_vectors_are_of_as_many_frames_as_a_sample_has(unet):
    assert run(unet, FRAME_AWARE, steps=1).trained.adapter.config.frames == 2


def test_a_method_that_knows_frames_begins_where_the_clip_does(unet):
    said = []
    run(unet, FRAME_AWARE, steps=1, callbacks=Callbacks(say=said.append))
    assert any("Only the first 2 frames of each clip" in text for text in said)

    def latents(row: Method) -> torch.Tensor:
        data, settings = clips(length=6), TrainingSettings.for_method(row, batch_size=8)
        data = replace(data, items=tuple(replace(each, std=torch.zeros_like(each.std)) for each in data.items))
        batch, _ = draw_batch(data, row, settings, torch.empty(0, dtype=torch.int64), torch.Generator().manual_seed(0))
        return batch.latents, [item.mean[:, :2] for item in data.items]

    for row, always in ((FRAME_AWARE, True), (MOTION, False)):
        drawn, beginnings = latents(row)
        assert all(any(torch.equal(each, start) for start in beginnings) for each in drawn) == always


def test_a_debiased_loss_by_hand():
    prediction, noise = random(2, 4, 3, 2, 2), random(2, 4, 3, 2, 2, seed=1)
    anchors = torch.tensor([2, 0])
    seen, wanted, _ = against_a_frame(prediction, noise, None, anchors)
    for row, anchor in enumerate(anchors):
        for frame in range(3):
            torch.testing.assert_close(
                seen[row, :, frame], 2**0.5 * prediction[row, :, frame] - prediction[row, :, anchor]
            )
            torch.testing.assert_close(wanted[row, :, frame], 2**0.5 * noise[row, :, frame] - noise[row, :, anchor])


def test_what_all_frames_share_weighs_less_in_it():
    noise, anchors = random(1, 4, 5, 2, 2), torch.tensor([1])
    shared = noise + random(1, 4, 1, 2, 2, seed=1)
    error = diffusion_loss(shared, noise)
    seen, wanted, _ = against_a_frame(shared, noise, None, anchors)
    torch.testing.assert_close(diffusion_loss(seen, wanted), (2**0.5 - 1) ** 2 * error)


def test_a_mask_covers_both_frames_of_a_difference():
    mask = torch.ones(1, 1, 3, 1, 2)
    mask[0, 0, 0, 0, 0] = mask[0, 0, 2, 0, 1] = 0
    *_, both = against_a_frame(random(1, 4, 3, 1, 2), random(1, 4, 3, 1, 2), mask, torch.tensor([2]))
    assert both[0, 0, :, 0].tolist() == [[0, 0], [1, 0], [1, 0]]


def test_a_debiased_loss_draws_behind_all_else(unet):
    data, none = clips(), torch.empty(0, dtype=torch.int64)
    plain, debiased = (
        draw_batch(
            data,
            MOTION,
            TrainingSettings.for_method(MOTION, batch_size=4, debias=debias),
            none,
            torch.Generator().manual_seed(3),
        )[0]
        for debias in (False, True)
    )
    assert plain.anchors is None and debiased.anchors.shape == (4,)
    assert torch.equal(plain.latents, debiased.latents) and torch.equal(plain.noise, debiased.noise)


@pytest.mark.parametrize("method", [name for name in MOTION_METHODS if name != "tune_a_video"])  # for image bases
def test_every_motion_takes_both_and_an_interruption_leaves_no_trace(unet, method, tmp_path):
    row = fitted(MOTION_METHODS[method], CONFIG)
    extra, state, seen = {"debias": True, "absorber": True}, tmp_path / "state.safetensors", []
    callbacks = Callbacks(progress=lambda step, *rest: seen.append(step), should_stop=lambda: len(seen) == 2)
    assert run(unet, row, callbacks=callbacks, state_path=state, **extra).stopped
    kept = load_file(state)
    assert any(name.startswith("trained.absorber.") for name in kept)
    assert any(name.startswith("optimizer.exp_avg.absorber.") for name in kept)
    resumed, whole = run(unet, row, state_path=state, resume=True, **extra), run(unet, row, **extra)
    for name, result in (("resumed", resumed), ("whole", whole)):
        save_trained(tmp_path / f"{name}.safetensors", result.trained)
    assert (tmp_path / "resumed.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not any("absorber" in name for name in load_file(tmp_path / "whole.safetensors"))
    plain = run(unet, row, debias=False, absorber=False).trained.adapter.state_dict()
    learned = whole.trained.adapter.state_dict()
    assert plain.keys() == learned.keys() and any(not torch.equal(plain[name], learned[name]) for name in plain)
    assert whole.losses[0] != run(unet, row, steps=1, debias=False).losses[0]


def test_an_absorber_takes_a_part_of_what_is_learned(unet, tmp_path):
    state = tmp_path / "state.safetensors"
    run(unet, MOTION, absorber=True, state_path=state)
    absorbed = {name: value for name, value in load_file(state).items() if name.startswith("trained.absorber.")}
    assert all(".1.transformer_blocks.0." in name for name in absorbed)  # of the spatial transformers
    assert all(value.any() for name, value in absorbed.items() if "up_linear.weight" in name)


def test_states_of_before_go_on_and_others_are_refused(unet, tmp_path):
    state = tmp_path / "state.safetensors"
    run(unet, MOTION, steps=2, state_path=state)
    with safe_open(state, framework="pt") as file:
        told = json.loads(file.metadata()[STATE_FORMAT])["run"]
    assert not {"debias", "absorber"} & told.keys()  # as earlier versions have it
    assert run(unet, MOTION, state_path=state, resume=True).steps == 4
    with pytest.raises(ValueError, match="a run with debias False instead of True"):
        run(unet, MOTION, steps=6, state_path=state, resume=True, debias=True)
    run(unet, MOTION, state_path=state, absorber=True)
    with pytest.raises(ValueError, match="a run with absorber True instead of False"):
        run(unet, MOTION, steps=6, state_path=state, resume=True)


def test_photographs_have_neither(unet):
    data = encode_photos(pictures(2), "a <toy>", ENCODERS)
    settings = TrainingSettings.for_method(IDENTITY, steps=1, debias=True)
    with pytest.raises(ValueError, match="trains on photographs: debias and absorber are for clips"):
        train_method(unet, FakeText(), data, IDENTITY, tokens={"<toy>": torch.ones(1, 8)}, settings=settings)
    with pytest.raises(ValueError, match="ask for 2 frames or more"):
        settings = TrainingSettings.for_method(MOTION, steps=1, debias=True)
        train_method(unet, FakeText(), clips(frames=1), MOTION, settings=settings)
