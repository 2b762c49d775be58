"""Every row of `METHODS`: what holds of all methods, whatever they train; and what is each row's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fakes import CONFIG, FEATURE_WIDTH, FakeText, fake_encoders, pictures, tiny_unet
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dreamvideo.base import Base
from dreamvideo.customizing import customize
from dreamvideo.defaults import EMBEDDED, FULL_SIZE, fitted
from dreamvideo.files.adapter_info import AdapterInfo, TrainedAdapter, check_fits
from dreamvideo.files.adapters import load_adapter, save_trained
from dreamvideo.files.fingerprint import fingerprint
from dreamvideo.files.foreign_adapters import save_authors_adapter
from dreamvideo.models.adapters import Adapter, AdapterConfig, build_adapter
from dreamvideo.models.config import UNetConfig
from dreamvideo.models.deltas import WEIGHT_GROUPS, DeltaConfig, WeightDelta, merge, overlay, weight_shapes
from dreamvideo.models.stack import AdapterStack, StackEntry
from dreamvideo.models.unet import UNet
from dreamvideo.plans import subject_plan
from dreamvideo.runs import Reports, train_stages
from dreamvideo.sampling import SamplingSettings, generate, sample_latents
from dreamvideo.training.data import TrainingData, encode_clips, encode_photos
from dreamvideo.training.loop import Callbacks, TrainingResult
from dreamvideo.training.methods import (
    CUSTOM_DIFFUSION,
    CUSTOMIZING_MOTION,
    DREAMIX,
    LORA_MOTION,
    LORA_SUBJECT,
    METHODS,
    MOTION,
    MOTION_METHODS,
    SUBJECT_METHODS,
    TEXTUAL_INVERSION,
    TUNE_A_VIDEO,
    Method,
    for_clips,
    noisy_timesteps,
)
from dreamvideo.training.settings import TrainingSettings
from dreamvideo.training.stages import train_method

STEPS = 4
ROWS = [fitted(method, CONFIG) for method in METHODS.values() if method is not TUNE_A_VIDEO]  # for image bases
WEIGHTS = [row for row in ROWS if row.trains == "weights"]
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
each_weights_row = pytest.mark.parametrize("row", WEIGHTS, ids=lambda row: row.name)
TOKENS = {"<toy>": torch.linspace(-1, 1, CONFIG.context_dim)[None]}
ENCODERS = fake_encoders()


@pytest.fixture(scope="module")
def unet() -> UNet:
    return tiny_unet()


def data_of(row: Method) -> TrainingData:
    if row.data == "images":
        return encode_photos(pictures(2), "a <toy>", ENCODERS)
    captions = ["a car <toy>", "a plane rolls"] if row.related_clips else "a car turns"
    return encode_clips([pictures(3, seed) for seed in range(2)], captions, ENCODERS, frames=2)


def run(unet: UNet, row: Method, steps: int = STEPS, **hooks) -> TrainingResult:
    settings = TrainingSettings.for_method(
        row, steps=steps, learning_rate=0.02, batch_size=2, seed=1, save_every=2, warmup=0
    )
    named = {"placeholder": "<toy>", "class_word": "toy"} if row.token != "none" else {}
    tokens = TOKENS if row.token == "given" else None
    return train_method(unet, FakeText(), data_of(row), row, tokens=tokens, settings=settings, **named, **hooks)


@pytest.fixture(scope="module")
def trained(unet):
    """Row name -> the result of its run, made when first asked for."""
    results: dict[str, TrainingResult] = {}

    def of(row: Method) -> TrainingResult:
        if row.name not in results:
            results[row.name] = run(unet, row)
        return results[row.name]

    return of


@torch.no_grad()
def predict(unet: UNet, entries: list[StackEntry], batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 4, 2, 4, 4, generator=generator)
    context = torch.randn(batch, 77, CONFIG.context_dim, generator=generator)
    feature = torch.ones(1, FEATURE_WIDTH)
    return unet(x, torch.full((batch,), 500), context, AdapterStack(entries, feature) if entries else None)


def fresh(row: Method):
    config = row.config
    if isinstance(config, AdapterConfig) and row.appearance_guidance:
        config = replace(config, condition_dim=FEATURE_WIDTH)
    return build_adapter(config, CONFIG)


# --- what holds of every row ------------------------------------------------------------------------------------


@each_row
def test_fresh_is_the_base_bit_for_bit(unet, row):
    if row.config is not None:
        assert torch.equal(predict(unet, [StackEntry(fresh(row))]), predict(unet, []))


@each_row
def test_training_changes_what_the_row_trains_and_nothing_else(unet, trained, row):
    before = {name: tensor.clone() for name, tensor in tiny_unet().state_dict().items()}
    result = trained(row).trained
    assert result.info.kind == row.trains and result.info.extra["method"] == row.name
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    assert all(parameter.grad is None for parameter in unet.parameters())
    learned = {} if result.adapter is None else dict(result.adapter.named_parameters())
    start = {} if row.config is None else dict(fresh(row).named_parameters())
    assert learned.keys() == start.keys()
    assert all(
        not torch.equal(learned[name], start[name]) for name in learned if name.endswith((".up", "up_linear.weight"))
    )
    assert sum(torch.equal(learned[name], start[name]) for name in learned) <= len(learned) // 10
    if row.token != "none":
        first = TOKENS["<toy>"] if row.token == "given" else FakeText().embed_word("toy")
        rare = FakeText().embed_word("sks toy")
        moved = not torch.equal(result.tokens["<toy>"], rare if row.token == "rare" else first)
        assert moved == (row.token == "learned")
    assert (result.features is not None) == (row.data == "images")


@each_row
def test_strength_scales_and_zero_is_the_base(unet, trained, row):
    adapter = trained(row).trained.adapter
    if adapter is not None:
        base = predict(unet, [])
        assert torch.equal(predict(unet, [StackEntry(adapter, 0.0)]), base)
        full, half = (predict(unet, [StackEntry(adapter, strength)]) for strength in (1.0, 0.5))
        assert not torch.allclose(full, base, atol=1e-5) and not torch.allclose(full, half, atol=1e-5)


@each_row
def test_a_file_gives_back_what_was_saved(unet, trained, row, tmp_path):
    result = trained(row)
    save_trained(tmp_path / "a.safetensors", result.trained)
    loaded = load_adapter(tmp_path / "a.safetensors")
    check_fits(loaded.info, CONFIG, fingerprint(unet), kind=row.trains)
    assert loaded.info == replace(result.trained.info, adapter_config=loaded.info.adapter_config)
    assert all(torch.equal(loaded.tokens[name], vectors) for name, vectors in result.trained.tokens.items())
    if loaded.adapter is not None:
        assert loaded.adapter.config == result.trained.adapter.config
        both = (predict(unet, [StackEntry(each)]) for each in (loaded.adapter, result.trained.adapter))
        assert torch.equal(*both)


@each_row
def test_an_interruption_leaves_no_trace(unet, trained, row, tmp_path):
    state, seen = tmp_path / "state.safetensors", []
    callbacks = Callbacks(progress=lambda step, *rest: seen.append(step), should_stop=lambda: len(seen) == 2)
    assert run(unet, row, callbacks=callbacks, state_path=state).stopped and seen == [1, 2]
    save_trained(tmp_path / "resumed.safetensors", run(unet, row, state_path=state, resume=True).trained)
    save_trained(tmp_path / "whole.safetensors", trained(row).trained)
    assert (tmp_path / "resumed.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


@each_row
def test_it_stacks_with_another_adapter_and_samples(unet, trained, row):
    other = Adapter(AdapterConfig.motion(condition_dim=FEATURE_WIDTH), CONFIG)
    for name, parameter in other.named_parameters():
        if "up_linear" in name:
            parameter.data.fill_(0.02)
    info = AdapterInfo("motion", extra={"settings": {"p_image_drop": 0.5}})
    mine, motion = trained(row).trained, TrainedAdapter(other, info, {}, None)
    prompt = "a <toy>" if row.token != "none" else "a car"
    settings = SamplingSettings(prompt, frames=2, height=32, width=32, steps=2)
    both, alone = (generate(unet, ENCODERS, settings, customize(each)) for each in ([mine, motion], [mine]))
    assert both.shape == (2, 3, 32, 32) and torch.isfinite(both).all() and not torch.allclose(both, alone, atol=1e-4)
    if mine.adapter is not None:
        entries = [StackEntry(mine.adapter, 0.7), StackEntry(other)]
        torch.testing.assert_close(predict(unet, entries), predict(unet, entries[::-1]), atol=1e-5, rtol=1e-5)


@each_row
def test_a_narrow_base_scales_widths_rates_and_steps_alike(row):
    settings, original = EMBEDDED.settings_for(row), METHODS[row.name]
    stage = {"token": TEXTUAL_INVERSION, "identity": METHODS["identity"], "motion": MOTION}[row.stage]
    own = EMBEDDED.training[row.stage]
    share = EMBEDDED.rates.get(row.name, 1)
    assert settings.learning_rate / own["learning_rate"] == pytest.approx(
        share * row.learning_rate / stage.learning_rate
    )
    assert settings.steps == round(own["steps"] * row.steps / stage.steps)
    assert FULL_SIZE.settings_for(original) == TrainingSettings.for_method(original)


# --- weight deltas ------------------------------------------------------------------------------------------------


@each_weights_row
def test_checkpointing_recomputes_under_the_same_weights(unet, row):
    gradients = []
    for checkpointing in (False, True):
        delta = trained_delta(row.config)
        unet.gradient_checkpointing = checkpointing
        try:
            x = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
            stack = AdapterStack([StackEntry(delta, 0.5)])
            unet(x, torch.tensor([300]), torch.ones(1, 77, CONFIG.context_dim), stack).square().mean().backward()
        finally:
            unet.gradient_checkpointing = False
        gradients.append([parameter.grad for parameter in delta.parameters()])
    assert all(gradient is not None for gradient in gradients[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def trained_delta(config: DeltaConfig, seed: int = 1) -> WeightDelta:
    delta = WeightDelta(config, CONFIG)
    generator = torch.Generator().manual_seed(seed)
    for parameter in delta.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return delta


def test_deltas_add_up_as_weights_do(unet):
    spatial, temporal = trained_delta(DeltaConfig(("spatial",))), trained_delta(DeltaConfig(("temporal_kv",), rank=2))
    copied = tiny_unet()
    state = copied.state_dict()
    for delta, strength in ((spatial, 0.5), (temporal, 2.0)):
        for name, change in delta.changes().items():
            state[name] += strength * change.detach()
    entries = [StackEntry(spatial, 0.5), StackEntry(temporal, 2.0)]
    torch.testing.assert_close(predict(unet, entries), predict(copied, []), atol=1e-5, rtol=1e-5)


def test_guidance_in_one_batch_equals_two_calls_and_merges_once(unet, monkeypatch):
    delta = trained_delta(DeltaConfig(("temporal", "text_kv")))
    cond, uncond = torch.ones(1, 77, CONFIG.context_dim), torch.zeros(1, 77, CONFIG.context_dim)
    noise = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    merges = []
    monkeypatch.setattr("dreamvideo.models.stack.merge", lambda *given: merges.append(given) or merge(*given))
    batched = sample_latents(unet, cond, uncond, noise, stack=AdapterStack([StackEntry(delta)]), steps=3, guidance=2.0)
    assert len(merges) == 1
    merged = merge(unet, [(delta, 1.0)])
    torch.testing.assert_close(batched, sample_latents(merged, cond, uncond, noise, steps=3, guidance=2.0))


def test_a_kept_merge_follows_its_deltas(unet):
    delta = trained_delta(DeltaConfig(("text_kv",)))
    stack = AdapterStack([StackEntry(delta)])
    with torch.no_grad():
        times = torch.tensor([5])
        first = stack.network(unet, times)
        assert stack.network(unet, times) is first
        next(delta.parameters()).add_(1)
        assert stack.network(unet, times) is not first


def test_an_overlay_shares_all_but_what_changes(unet):
    name = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    before = unet.get_parameter(name).clone()
    laid = overlay(unet, {name: torch.zeros_like(before)})
    assert torch.equal(unet.get_parameter(name), before) and not laid.state_dict()[name].any()
    theirs, ours = laid.state_dict(keep_vars=True), unet.state_dict(keep_vars=True)
    assert all(theirs[key] is ours[key] for key in ours if key != name)
    assert laid.input_blocks is unet.input_blocks and overlay(unet, {}) is unet


def test_a_window_is_one_strength_for_the_batch(unet):
    stack = AdapterStack([StackEntry(trained_delta(DeltaConfig(("text_kv",))), window=(0.0, 0.5))])
    assert stack.network(unet, torch.tensor([100, 100])) is unet
    assert stack.network(unet, torch.tensor([900, 900])) is not unet
    with pytest.raises(ValueError, match="one strength for a batch"):
        stack.network(unet, torch.tensor([100, 900]))
    with pytest.raises(ValueError, match="whole picture"):
        StackEntry(trained_delta(DeltaConfig(("text_kv",))), mask=torch.ones(4, 4))
    with pytest.raises(ValueError, match="both halves of guidance"):
        StackEntry(trained_delta(DeltaConfig(("text_kv",))), guided_from=0.4)


def test_the_groups_are_the_published_halves():
    groups = {group: weight_shapes(UNetConfig(), (group,)) for group in WEIGHT_GROUPS}
    spatial, temporal, text, time = (groups[name] for name in ("spatial", "temporal", "text_kv", "temporal_kv"))
    assert len(groups["queries"]) == 32 and groups["queries"].keys() < spatial.keys()
    # The paper's halves; reference/dreamvideo.md counts them, the time embedding belongs to neither.
    assert len(spatial) == 682 and sum(shape.numel() for shape in spatial.values()) == 863_860_164
    assert not spatial.keys() & temporal.keys() and len(spatial) + len(temporal) + 4 == 1480
    assert len(text) == 32 and text.keys() < spatial.keys()
    assert len(time) == 17 * 4 and time.keys() < temporal.keys()


def test_half_precision_weights_are_rounded_once():
    half = tiny_unet(dtype=torch.bfloat16)
    delta = trained_delta(DeltaConfig(("text_kv",), rank=2))
    name, change = next(iter(delta.changes().items()))
    weight = merge(half, [(delta, 1.0), (delta, 0.25)]).state_dict()[name]
    wanted = half.state_dict()[name].float() + 1.25 * change
    assert weight.dtype == torch.bfloat16
    torch.testing.assert_close(weight, wanted.to(torch.bfloat16), atol=0.01, rtol=0.01)
    assert isinstance(half, UNet)


def test_deltas_of_another_base_are_refused_in_a_sentence(unet, trained):
    info = trained(fitted(LORA_SUBJECT, CONFIG)).trained.info
    other = replace(CONFIG, dim=64)
    with pytest.raises(ValueError, match=r"set of weight deltas.*another base: it fits \d+ weights of [\d,]+ num"):
        check_fits(info, other)
    with pytest.raises(ValueError, match="other weights"):
        check_fits(info, CONFIG, fingerprint(tiny_unet(5)))
    with pytest.raises(ValueError, match="kind weights.*kind motion is wanted"):
        check_fits(info, CONFIG, kind="motion")
    with pytest.raises(ValueError, match="for another UNet"):
        merge(UNet(other), [(trained_delta(DeltaConfig(("text_kv",))), 1.0)])
    with pytest.raises(ValueError, match="hold no weight deltas"):
        save_authors_adapter("never.pth", trained_delta(DeltaConfig(("text_kv",))), 1)


@pytest.mark.parametrize("wrong", [{"weights": ()}, {"weights": ("all",)}, {"weights": ("spatial",), "rank": 0}])
def test_nonsense_deltas_are_refused(wrong):
    with pytest.raises(ValueError, match="eight deltas"):
        DeltaConfig(**wrong)


def test_a_rank_needs_matrices():
    with pytest.raises(ValueError, match="are for matrices"):
        WeightDelta(DeltaConfig(("spatial",), rank=2), CONFIG)


# --- what is a row's own --------------------------------------------------------------------------------------------


def test_rows_hold_the_published_numbers():
    assert 100 <= DREAMIX.steps <= 200 and DREAMIX.token == "rare" and DREAMIX.config == DeltaConfig(("spatial",))
    assert (CUSTOM_DIFFUSION.steps, CUSTOM_DIFFUSION.learning_rate) == (250, 4e-5)
    assert LORA_SUBJECT.config == DeltaConfig(("text_kv",), 32) and LORA_MOTION.config == DeltaConfig(
        ("temporal_kv",), 32
    )
    assert SUBJECT_METHODS["hidden_32"].config.hidden == 32 and MOTION_METHODS["serial"].config.placement == "serial"
    assert METHODS["no_appearance_guidance"].config.condition_dim is None
    assert for_clips(MOTION, 3) == METHODS["motion_several"] and for_clips(DREAMIX, 3) is DREAMIX
    assert fitted(LORA_SUBJECT, replace(UNetConfig(), dim=64)).config.rank == 6


def test_noisy_timesteps_lean_to_the_noisy_end():
    times = noisy_timesteps(20000, torch.Generator().manual_seed(0)).float()
    assert times.min() >= 0 and times.max() <= 999 and times.dtype == torch.float32
    # The mean of p(t) = (1 - a cos(pi t / T)) / T is T (1/2 + 2 a / pi^2).
    assert times.mean().item() == pytest.approx(1000 * (0.5 + 2 * 0.5 / 9.8696), abs=8)


def test_a_method_of_one_stage_runs_one_and_a_given_token_comes_first(unet):
    base = Base(unet, ENCODERS, torch.device("cpu"), torch.float32)
    data = encode_photos(pictures(1), "a <toy>", ENCODERS)
    told = []

    def subject(row):
        own = {"steps": 1, "learning_rate": 1e-3, "batch_size": 1, "masked": False}
        named = {"placeholder": "<toy>", "class_word": "toy", "settings": own, "token_settings": {"steps": 1}}
        plan = subject_plan(base.defaults, unet.config, row, **named)
        return train_stages(base, data, plan, reports=Reports(lambda stage, *rest: told.append(stage)))

    outcome = subject(METHODS["identity"])
    assert list(outcome.losses) == ["token", "identity"] == told and outcome.adapter.info.kind == "identity"
    assert outcome.complete and list(outcome.adapter.tokens) == ["<toy>"]
    outcome = subject(CUSTOM_DIFFUSION)
    assert list(outcome.losses) == ["identity"] and outcome.adapter.info.kind == "weights"
    assert subject(TEXTUAL_INVERSION).adapter.info.kind == "token"


def test_related_clips_go_without_the_motions_name_but_not_all_may(unet):
    text = FakeText()
    with pytest.raises(ValueError, match="lacks the placeholder <turn>"):
        data = encode_clips([pictures(3)], "a car turns", ENCODERS, frames=2)
        train_method(unet, text, data, CUSTOMIZING_MOTION, placeholder="<turn>", class_word="turns")


def test_damaged_deltas_are_refused_in_a_sentence(trained, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_trained(path, trained(fitted(LORA_SUBJECT, CONFIG)).trained)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    save_file({key: value for key, value in state.items() if not key.endswith("to_k.weight.up")}, path, metadata)
    with pytest.raises(
        ValueError, match=r"lora.safetensors \(set of weight deltas.*to_k.weight.up is missing, expected"
    ):
        load_adapter(path)
    save_file(state, path, {**metadata, "adapter_config": '{"weights": ["all"], "rank": 2}'})
    with pytest.raises(ValueError, match="metadata is damaged"):
        load_adapter(path)
